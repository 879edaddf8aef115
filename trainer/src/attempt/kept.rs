//! Images that hold the encoder near θ0: some of the training's own, and buffers of images from elsewhere. Seed and name
//! alone choose them, so an attempt that resumes chooses the same; they are decoded as training images are, never
//! augmented. What an evaluation is scored on is never among them.

use super::narrate::say;
use crate::data::asset::{AssetKind, Library};
use crate::data::captions::Captions;
use crate::data::dataset::{Dataset, Source};
use crate::data::fingerprint;
use crate::data::pixels;
use crate::evaluate::sweep::Measured;
use crate::retention::{Kept, replayed};
use crate::weights::initial;
use anyhow::{Context, Result, ensure};
use causeway_protocol::{Buffer, Preprocess, Spec};
use std::collections::HashSet;

/// The images that the spec's terms ask for.
///
/// # Errors
/// A buffer whose dataset is missing, too small or scored in every image, an image that cannot be read, or one that an
/// evaluation is scored on.
pub fn kept(
    spec: &Spec,
    library: &Library,
    captions: &Captions,
    datasets: &[Measured],
    threads: usize,
) -> Result<Kept> {
    let (Some(training), retention) = (&spec.training, spec.retention.clone().unwrap_or_default()) else {
        return Ok(Kept::default());
    };
    let size = training.image_size as usize;
    let counts = [
        retention.lwf.as_ref().map(|term| term.prototypes),
        retention.ewc.as_ref().map(|term| term.prototypes),
    ];
    let own = |name: &str, count: u32| {
        let chosen = choose(spec.seed, name, &captions.images, count);
        if chosen.len() < count as usize {
            say(&format!("{name}: {} of the {count} asked for; there are no more images", chosen.len()));
        }
        pixels::batch(chosen, Preprocess::Direct, size)
    };
    let elsewhere = |name: &str, field: &str, buffer: &Buffer| {
        let read = || {
            let bank = bank(library, buffer)?;
            let chosen = choose(spec.seed, name, &bank, buffer.images);
            refuse_scored(&chosen, datasets, threads)?;
            pixels::batch(chosen, Preprocess::Direct, size)
        };
        read().with_context(|| format!("`{field}`, the images of `{}`", buffer.dataset))
    };
    Ok(Kept {
        prototypes: counts.into_iter().flatten().max().map(|count| own("prototypes", count)).transpose()?,
        fisher: retention.ewc.as_ref().map(|term| own("ewc/images", term.images)).transpose()?,
        rehearsal: retention
            .rehearsal
            .as_ref()
            .map(|buffer| elsewhere("rehearsal/images", "retention.rehearsal", buffer))
            .transpose()?,
        replay: spec
            .method
            .as_ref()
            .and_then(replayed)
            .map(|buffer| elsewhere("replay/images", "method.buffer", buffer))
            .transpose()?,
    })
}

/// So many of the images, or all; of fewer the first are the same.
fn choose<'a>(seed: u64, name: &str, images: &'a [Source], count: u32) -> Vec<&'a Source> {
    let mut places: Vec<usize> = (0..images.len()).collect();
    initial::stream(seed, name).shuffle(&mut places);
    places.into_iter().take(count as usize).map(|place| &images[place]).collect()
}

/// The images of a buffer's dataset that nothing is scored on.
fn bank(library: &Library, buffer: &Buffer) -> Result<Vec<Source>> {
    let asset = library.get(&buffer.dataset, AssetKind::Dataset)?;
    asset.verify()?;
    let dataset = Dataset::list(asset)?;
    ensure!(
        dataset.query.is_some(),
        "each of its images is scored against the others, so there is none that training may look at; name a dataset \
         whose bank is apart from its queries"
    );
    ensure!(
        dataset.bank.len() >= buffer.images as usize,
        "its bank has {} images, fewer than the {} of the buffer; lower `images`",
        dataset.bank.len(),
        buffer.images
    );
    Ok(dataset.bank.into_iter().map(|image| image.source).collect())
}

/// A bank may hold what is scored elsewhere, under another name.
fn refuse_scored(chosen: &[&Source], datasets: &[Measured], threads: usize) -> Result<()> {
    let scored = |measured: &Measured| {
        let dataset = &measured.dataset;
        let first = if dataset.query.is_some() { dataset.bank.len() } else { 0 };
        let asset = dataset.asset.clone();
        let digests: HashSet<[u8; 32]> =
            measured.fingerprints.iter().skip(first).map(|print| print.pixels).collect();
        (asset, digests)
    };
    let scored: Vec<_> = datasets.iter().map(scored).collect();
    for (source, print) in chosen.iter().zip(fingerprint::scan(chosen, threads, &|_| ())) {
        let print = print?;
        let among = scored.iter().find(|(_, digests)| digests.contains(&print.pixels));
        ensure!(
            among.is_none(),
            "{} is also an image that `{}` is scored on; take it out of one of them",
            source.name(),
            among.map_or("", |(asset, _)| asset.as_str())
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
