//! A labelled image set with a bank of neighbours and the images that are scored against it, whatever format it comes
//! in. Its digest names exactly what was measured: the pixels, the labels and the split, in order.

use super::asset::{Asset, DatasetManifest, Format, Part};
use super::image::{RgbImage, decode_file};
use super::{cifar10, class_folder, idx, jsonl};
use crate::random::SplitMix64;
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::hex;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Where an image's pixels are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// An image file and its digest, where known.
    File {
        /// The file.
        path: PathBuf,
        /// Its sha256.
        sha256: Option<String>,
    },
    /// `[height, width]` in a larger array.
    Grey {
        /// The array.
        bytes: Arc<[u8]>,
        /// Where the image begins.
        begin: usize,
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// `[3, height, width]` in a larger array.
    Planes {
        /// The array.
        bytes: Arc<[u8]>,
        /// Where the image begins.
        begin: usize,
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
    },
}

impl Source {
    /// The image, 8-bit RGB.
    pub fn decode(&self) -> Result<RgbImage> {
        match self {
            Source::File { path, sha256 } => decode_file(path, sha256.as_deref()),
            Source::Grey { bytes, begin, width, height } => {
                Ok(RgbImage::from_grey(*width, *height, &bytes[*begin..begin + width * height]))
            }
            Source::Planes { bytes, begin, width, height } => {
                Ok(RgbImage::from_planes(*width, *height, &bytes[*begin..begin + 3 * width * height]))
            }
        }
    }
}

/// An image and its class.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Labelled {
    /// The image.
    pub source: Source,
    /// Place of its class among the classes.
    pub label: u32,
}

/// A dataset, listed.
#[derive(Clone, PartialEq, Debug)]
pub struct Dataset {
    /// Name of the asset.
    pub asset: String,
    /// As figures show it.
    pub title: String,
    /// Licence of the images.
    pub licence: String,
    /// Where they come from.
    pub source: String,
    /// Class names in label order.
    pub classes: Vec<String>,
    /// The images that are neighbours.
    pub bank: Vec<Labelled>,
    /// The images that are scored; none when the bank is scored against itself, each image left out.
    pub query: Option<Vec<Labelled>>,
}

impl Dataset {
    /// Lists the images of a dataset asset. No image file is opened yet.
    pub fn list(asset: &Asset) -> Result<Dataset> {
        let manifest = asset.manifest.dataset.as_ref().context("the manifest has no [dataset]")?;
        let context = || format!("listing the dataset `{}`", asset.manifest.name);
        let (bank, query, classes) = match asset.manifest.format {
            Format::Jsonl | Format::ClassFolder => named(asset, manifest),
            Format::Idx | Format::Cifar10Binary => numbered(asset, manifest),
            Format::Vit | Format::Bert | Format::ClipText | Format::Gpt2 | Format::Llama => {
                bail!("it is no format of images")
            }
        }
        .with_context(context)?;
        let bank = subset(bank, &manifest.bank, &classes).with_context(context)?;
        let query = match (query, &manifest.query) {
            (Some(query), Some(part)) => Some(subset(query, part, &classes).with_context(context)?),
            _ => None,
        };
        let dataset = Dataset {
            asset: asset.manifest.name.clone(),
            title: asset.manifest.title.clone(),
            licence: asset.manifest.licence.clone(),
            source: asset.manifest.source.clone(),
            classes,
            bank,
            query,
        };
        dataset.check().with_context(context)?;
        Ok(dataset)
    }

    fn check(&self) -> Result<()> {
        ensure!(self.bank.len() > 1, "the bank has {} images; k-NN needs at least two", self.bank.len());
        ensure!(self.query.as_ref().is_none_or(|query| !query.is_empty()), "the query part is empty");
        for (label, class) in self.classes.iter().enumerate() {
            ensure!(
                self.bank.iter().any(|image| image.label as usize == label),
                "the class `{class}` has no image in the bank, so it could never be right; add images or take it out"
            );
        }
        Ok(())
    }

    /// The scored images.
    pub fn queries(&self) -> &[Labelled] {
        self.query.as_ref().unwrap_or(&self.bank)
    }

    /// Every image once: the bank, then the query part.
    pub fn images(&self) -> impl Iterator<Item = &Labelled> {
        self.bank.iter().chain(self.query.iter().flatten())
    }

    /// sha256 over one line for each image in order, `pixel-sha256 label split`. Decodes every image, so that a
    /// corrupt one is found before anything is computed.
    pub fn digest(&self) -> Result<String> {
        let mut sha = Sha256::new();
        let bank_split = if self.query.is_some() { "bank" } else { "leave_one_out" };
        let splits = [(bank_split, Some(&self.bank)), ("query", self.query.as_ref())];
        for (split, images) in splits {
            for image in images.into_iter().flatten() {
                let pixels = image.source.decode()?.pixel_digest();
                sha.update(format!("{pixels} {} {split}\n", image.label));
            }
        }
        Ok(hex(&sha.finalize()))
    }
}

type Listing = (Vec<Labelled>, Option<Vec<Labelled>>, Vec<String>);

/// Formats that name classes: labels are places in the manifest's order, or in the sorted names.
fn named(asset: &Asset, manifest: &DatasetManifest) -> Result<Listing> {
    let read = |part: &Part| {
        let path = asset.path(part.path.as_ref().context("`path` is missing")?);
        match asset.manifest.format {
            Format::ClassFolder => class_folder::read(&path),
            _ => jsonl::read_labelled(&path),
        }
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

/// Formats that number classes: names come from the manifest, from the format's own list, or are the numbers.
fn numbered(asset: &Asset, manifest: &DatasetManifest) -> Result<Listing> {
    let read = |part: &Part| {
        let images = match asset.manifest.format {
            Format::Idx => idx::read(
                &asset.path(part.path.as_ref().context("`path` is missing")?),
                &asset.path(part.labels.as_ref().context("`labels` is missing")?),
            ),
            _ => cifar10::read(&asset.folder, &part.parts),
        }?;
        anyhow::Ok(images.into_iter().map(|(source, label)| Labelled { source, label }).collect::<Vec<_>>())
    };
    let bank: Vec<Labelled> = read(&manifest.bank)?;
    let query = manifest.query.as_ref().map(read).transpose()?;
    let largest = bank.iter().chain(query.iter().flatten()).map(|image| image.label).max().unwrap_or(0);
    let own = match asset.manifest.format {
        Format::Cifar10Binary => cifar10::class_names(&asset.folder),
        _ => None,
    };
    let numbers = || (0..=largest).map(|label| label.to_string()).collect();
    let classes = manifest.classes.clone().or(own).unwrap_or_else(numbers);
    ensure!(
        (largest as usize) < classes.len(),
        "an image has the label {largest} but asset.toml names only {} `classes`",
        classes.len()
    );
    Ok((bank, query, classes))
}

/// `per_class` images of each class, chosen by the seed, in their own order: a dataset of its own.
fn subset(images: Vec<Labelled>, part: &Part, classes: &[String]) -> Result<Vec<Labelled>> {
    let Some(per_class) = part.per_class else { return Ok(images) };
    let mut chosen: BTreeSet<usize> = BTreeSet::new();
    for (label, class) in classes.iter().enumerate() {
        let of_class = images.iter().enumerate().filter(|(_, image)| image.label as usize == label);
        let mut places: Vec<usize> = of_class.map(|(place, _)| place).collect();
        ensure!(
            places.len() >= per_class,
            "per_class = {per_class}, but the class `{class}` has {} images",
            places.len()
        );
        SplitMix64::from_parts(&[part.seed, label as u64]).shuffle(&mut places);
        chosen.extend(&places[..per_class]);
    }
    Ok(images
        .into_iter()
        .enumerate()
        .filter(|(place, _)| chosen.contains(place))
        .map(|(_, image)| image)
        .collect())
}

#[cfg(test)]
mod tests;
