//! The images of a dataset by its format, before subsets: what each format's reader gives, brought to one form.

use super::manifest::{DatasetManifest, Part};
use super::{Labelled, Source};
use crate::data::asset::{Asset, Format};
use crate::data::cifar::Record;
use crate::data::{archive, cifar, cifar_python, class_folder, idx, jsonl, lists, parquet_table, svhn};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::Path;

/// Bank, query part, class names.
pub type Listing = (Vec<Labelled>, Option<Vec<Labelled>>, Vec<String>);

/// The images of an asset.
pub fn list(asset: &Asset, manifest: &DatasetManifest) -> Result<Listing> {
    match asset.manifest.format {
        Format::Jsonl | Format::ClassFolder => named(asset, manifest),
        _ => numbered(asset, manifest),
    }
}

/// Formats that name classes: labels are places in the manifest's order, or in the sorted names.
fn named(asset: &Asset, manifest: &DatasetManifest) -> Result<Listing> {
    let read = |part: &Part| match asset.manifest.format {
        Format::ClassFolder => folders(asset, part),
        _ => jsonl::read_labelled(&asset.path(part.path.as_ref().context("`path` is missing")?)),
    };
    let bank = read(&manifest.bank)?;
    let query = manifest.query.as_ref().map(read).transpose()?;
    let classes = manifest.classes.clone().unwrap_or_else(|| {
        let names = bank.iter().chain(query.iter().flatten()).map(|(_, class)| class.clone());
        names.collect::<BTreeSet<String>>().into_iter().collect()
    });
    let label = |(source, class): (Source, String)| {
        let label = classes.iter().position(|name| *name == class).with_context(|| {
            format!("the class `{class}` is not among `classes` in asset.toml; add it or correct it")
        })?;
        Ok(Labelled { source, label: label as u32 })
    };
    let labelled = |images: Vec<(Source, String)>| images.into_iter().map(label).collect::<Result<Vec<_>>>();
    let (bank, query) = (labelled(bank)?, query.map(labelled).transpose()?);
    Ok((bank, query, classes))
}

fn folders(asset: &Asset, part: &Part) -> Result<Vec<(Source, String)>> {
    let path = part.path.as_ref().context("`path` is missing")?;
    let images = match &part.archive {
        Some(zip) => class_folder::read_zip(&asset.path(zip), path)?,
        None => class_folder::read(&asset.path(path))?,
    };
    let images = match (part.lists.as_slice(), part.shares.as_slice()) {
        ([], []) => images,
        ([], wanted) => lists::shares(images, wanted),
        (named, _) => {
            let named: Vec<_> = named.iter().map(|list| asset.path(list)).collect();
            lists::named(images, &named)?
        }
    };
    Ok(images.into_iter().map(|image| (image.source, image.class)).collect())
}

/// Formats that number classes: names come from the manifest, from the format's own list, or are the numbers.
fn numbered(asset: &Asset, manifest: &DatasetManifest) -> Result<Listing> {
    let (bank, own) = numbered_part(asset, manifest, &manifest.bank)?;
    let query = manifest.query.as_ref().map(|part| numbered_part(asset, manifest, part)).transpose()?;
    let query = query.map(|(query, _)| query);
    let largest = bank.iter().chain(query.iter().flatten()).map(|image| image.label).max().unwrap_or(0);
    let numbers = || (0..=largest).map(|label| label.to_string()).collect();
    let classes = manifest.classes.clone().or(own).unwrap_or_else(numbers);
    ensure!(
        (largest as usize) < classes.len(),
        "an image has the label {largest} but asset.toml names only {} `classes`",
        classes.len()
    );
    Ok((bank, query, classes))
}

/// The images of a part, and the format's own names of the classes.
fn numbered_part(
    asset: &Asset,
    manifest: &DatasetManifest,
    part: &Part,
) -> Result<(Vec<Labelled>, Option<Vec<String>>)> {
    let files = || archive::read_files(&asset.folder, part.archive.as_deref(), parts(part)?);
    let records = |record: Record| {
        let names = || beside(asset, part, record.names_file());
        let classes =
            names().and_then(|text| cifar::class_names(&String::from_utf8_lossy(&text), record.classes));
        anyhow::Ok((record.read(files()?)?, classes))
    };
    let (images, classes) = match asset.manifest.format {
        Format::Cifar10Binary => records(Record::CIFAR10)?,
        Format::Cifar100Binary => records(Record::cifar100(manifest.label))?,
        Format::CifarPython => {
            let batches = part.parts.first().is_some_and(|part| part.contains("batch"));
            let names = beside(asset, part, if batches { "batches.meta" } else { "meta" });
            let classes = names.and_then(|bytes| cifar_python::class_names(&bytes, manifest.label));
            (cifar_python::read(files()?, manifest.label)?, classes)
        }
        Format::SvhnMat => {
            let paths: Vec<_> = parts(part)?.iter().map(|part| asset.path(part)).collect();
            (svhn::read(&paths)?, Some((0..svhn::CLASSES).map(|digit| digit.to_string()).collect()))
        }
        Format::Parquet => {
            let listing = parquet_table::read(&asset.folder, parts(part)?, manifest.label)?;
            (listing.images, listing.classes)
        }
        _ => {
            let path = |path: &Option<String>, field: &str| {
                Ok::<_, anyhow::Error>(
                    asset.path(path.as_ref().with_context(|| format!("`{field}` is missing"))?),
                )
            };
            (idx::read(&path(&part.path, "path")?, &path(&part.labels, "labels")?)?, None)
        }
    };
    let images = images.into_iter().map(|(source, label)| Labelled { source, label }).collect();
    Ok((images, classes))
}

fn parts(part: &Part) -> Result<&[String]> {
    ensure!(!part.parts.is_empty(), "`parts` must name the files, such as [\"data_batch_1.bin\"]");
    Ok(&part.parts)
}

/// A small file beside the first of a part's files, if it is there.
fn beside(asset: &Asset, part: &Part, name: &str) -> Option<Vec<u8>> {
    let path = Path::new(part.parts.first()?).with_file_name(name).to_string_lossy().into_owned();
    let files = archive::read_files(&asset.folder, part.archive.as_deref(), &[path]).ok()?;
    files.into_iter().next().map(|(_, bytes)| bytes)
}
