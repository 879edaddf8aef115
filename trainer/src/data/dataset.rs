//! A labelled image set with a bank of neighbours and the images that are scored against it, whatever format it comes
//! in. Its digest names exactly what was measured: the pixels, the labels and the split, in order.

mod listing;
pub mod manifest;

use super::asset::Asset;
use super::fingerprint::{Fingerprint, scan};
pub use super::source::{Source, read_range};
use crate::random::SplitMix64;
use anyhow::{Context, Result, ensure};
use causeway_protocol::{Hits, hex};
use manifest::Part;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

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
        ensure!(
            asset.manifest.format.is_labelled(),
            "{} is no format of labelled images",
            asset.manifest.format.as_str()
        );
        let (bank, query, classes) = listing::list(asset, manifest).with_context(context)?;
        let bank = subset(bank, &manifest.bank, &classes).with_context(context)?;
        let query = match (query, &manifest.query) {
            (Some(query), Some(part)) => Some(subset(query, part, &classes).with_context(context)?),
            _ => None,
        };
        let dataset = Dataset {
            asset: asset.manifest.name.clone(),
            title: [asset.manifest.title.as_str(), manifest.remark().unwrap_or_default()]
                .join(" ")
                .trim_end()
                .to_owned(),
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
mod golden;
#[cfg(test)]
mod tests;
