//! A labelled image set with a bank of neighbours and the images that are scored against it, whatever format it comes
//! in. Its digest names exactly what was measured: the pixels, the labels and the split, in order.

use super::asset::{Asset, DatasetManifest, Format, Part};
use super::fingerprint::{Fingerprint, scan};
use super::image::{RgbImage, decode, decode_file};
use super::{cifar10, class_folder, idx, jsonl};
use crate::random::SplitMix64;
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::{Hits, hex};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
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
    /// An image file inside a tar.
    Member {
        /// The tar.
        file: Arc<Path>,
        /// The image's path in it.
        name: String,
        /// Where its bytes begin.
        begin: u64,
        /// How many there are.
        length: u64,
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
            Source::Member { file, name, begin, length } => {
                let place = || format!("the image {name} in {}", file.display());
                let bytes = read_range(file, *begin, *length).with_context(place)?;
                decode(&bytes)
                    .with_context(|| format!("{} cannot be decoded; replace it or take it out", place()))
            }
            Source::Grey { bytes, begin, width, height } => {
                Ok(RgbImage::from_grey(*width, *height, &bytes[*begin..begin + width * height]))
            }
            Source::Planes { bytes, begin, width, height } => {
                Ok(RgbImage::from_planes(*width, *height, &bytes[*begin..begin + 3 * width * height]))
            }
        }
    }

    /// What a report calls the image: its file, or its place in the array.
    pub fn name(&self) -> String {
        match self {
            Source::File { path, .. } => path.display().to_string(),
            Source::Member { file, name, .. } => format!("{}:{name}", file.display()),
            Source::Grey { begin, width, height, .. } => format!("image {}", begin / (width * height).max(1)),
            // A record of CIFAR has a label before its planes.
            Source::Planes { begin, width, height, .. } => {
                format!("record {}", begin / (3 * width * height + 1))
            }
        }
    }
}

/// Some bytes of a file.
pub fn read_range(path: &Path, begin: u64, length: u64) -> Result<Vec<u8>> {
    let context = || format!("reading {length} bytes at byte {begin} of {}", path.display());
    let file = File::open(path).with_context(context)?;
    let mut bytes = vec![0; usize::try_from(length).with_context(context)?];
    file.read_exact_at(&mut bytes, begin).with_context(context)?;
    Ok(bytes)
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
            other => bail!("{other:?} is no format of labelled images"),
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

    /// Of each class, how many images are scored.
    pub fn queries_per_class(&self) -> Vec<u32> {
        self.count(|_| true)
    }

    /// Of each class, how many scored images are among those.
    pub fn per_class(&self, hits: &Hits) -> Vec<u32> {
        self.count(|query| hits.get(query))
    }

    fn count(&self, counts: impl Fn(usize) -> bool) -> Vec<u32> {
        let mut per_class = vec![0; self.classes.len()];
        for (query, image) in self.queries().iter().enumerate() {
            per_class[image.label as usize] += u32::from(counts(query));
        }
        per_class
    }

    /// Every image once: the bank, then the query part.
    pub fn images(&self) -> impl Iterator<Item = &Labelled> {
        self.bank.iter().chain(self.query.iter().flatten())
    }

    /// Decodes every image, in `threads` threads: a corrupt one is found before anything is computed. In the order of
    /// [`Dataset::images`].
    pub fn fingerprints(&self, threads: usize, done: &(dyn Fn(usize) + Sync)) -> Result<Vec<Fingerprint>> {
        let sources: Vec<&Source> = self.images().map(|image| &image.source).collect();
        let prints = scan(&sources, threads, done).into_iter().collect::<Result<_>>();
        prints.with_context(|| format!("reading the images of the dataset `{}`", self.asset))
    }

    /// sha256 over one line for each image in order, `pixel-sha256 label split`.
    pub fn digest_of(&self, fingerprints: &[Fingerprint]) -> String {
        let mut sha = Sha256::new();
        for ((image, split), print) in self.images().zip(self.splits()).zip(fingerprints) {
            sha.update(format!("{} {} {split}\n", print.pixel_digest(), image.label));
        }
        hex(&sha.finalize())
    }

    /// [`Dataset::digest_of`] its own images, decoded in this thread.
    pub fn digest(&self) -> Result<String> {
        Ok(self.digest_of(&self.fingerprints(1, &|_| ())?))
    }

    /// For each image the side of the dataset it is on.
    pub fn splits(&self) -> impl Iterator<Item = &'static str> {
        let bank = if self.query.is_some() { "bank" } else { "leave_one_out" };
        let queries = self.query.as_ref().map_or(0, Vec::len);
        std::iter::repeat_n(bank, self.bank.len()).chain(std::iter::repeat_n("query", queries))
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
