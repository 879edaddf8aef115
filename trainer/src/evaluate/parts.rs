//! An evaluation divided among workers. The batches of all datasets stand in a row, and each part gets an equal stretch of
//! it: batches stay whole, so features have the bits they would have had in one sweep. A part brings its features as
//! files; the whole takes them into its store, computes what is missing, and puts the ranges together.

use super::features::{Extraction, Piece, Step};
use super::store::{Features, Key, Store};
use super::sweep::Measured;
use anyhow::{Context, Result};
use causeway_protocol::{Alpha, FeatureFile, NumericsStamp, Part};
use std::ops::Range;
use std::path::Path;

/// Features that parts have brought, by now in the store.
#[derive(Clone, Debug, Default)]
pub struct Brought(Vec<Key>);

/// Who made some features, where they were made in parts.
pub type Maker = (NumericsStamp, String);

impl Brought {
    /// Takes the files of the parts into the store; `blobs` holds them under their digests. A file that does not hold
    /// what it should is left out and computed again.
    ///
    /// # Errors
    /// A key that this trainer does not understand.
    pub fn take_in(store: &Store, files: &[FeatureFile], blobs: &Path) -> Result<Brought> {
        let mut brought = Vec::new();
        for FeatureFile { key, blob } in files {
            let key: Key = serde_json::from_value(key.clone())
                .context("reading what a part computed; was it another version of the trainer?")?;
            match store.take_in(&key, &blobs.join(&blob.sha256)) {
                Ok(_) => brought.push(key),
                Err(error) => eprintln!("what a part brought is computed again: {error:#}"),
            }
        }
        Ok(Brought(brought))
    }

    /// Who made all these ranges, where one maker did: `own` before others. None where something is missing.
    fn maker(&self, whole: &Key, ranges: &[Range<usize>], own: &Maker) -> Option<Maker> {
        let same = |key: &&Key| {
            let named =
                |key: &Key| (key.backbone.clone(), key.checkpoint.clone(), key.alpha, key.dataset.clone());
            named(key) == named(whole) && key.features == whole.features && key.dim == whole.dim
        };
        let all: Vec<&Key> = self.0.iter().filter(same).collect();
        let mut makers = vec![own.clone()];
        makers.extend(all.iter().map(|key| (key.stamp.clone(), key.made_by.clone())));
        makers.into_iter().find(|maker| {
            ranges.iter().all(|range| {
                let is = |key: &&Key| (&key.stamp, &key.made_by) == (&maker.0, &maker.1);
                all.iter().any(|key| is(key) && (key.from, key.to) == (range.start, range.end))
            })
        })
    }
}

/// The stretch of each dataset that a part computes: places of images, whole batches. Empty for a dataset it has no
/// share in.
pub fn share(images: &[usize], batch_size: usize, part: Part) -> Vec<Range<usize>> {
    let batches: Vec<usize> = images.iter().map(|images| images.div_ceil(batch_size)).collect();
    let all: usize = batches.iter().sum();
    let (index, of) = (part.index as usize, part.of.max(1) as usize);
    let (begin, end) = (all * index / of, all * (index + 1) / of);
    let mut before = 0;
    let mut shares = Vec::with_capacity(images.len());
    for (images, batches) in images.iter().zip(batches) {
        let within = |at: usize| (at.clamp(before, before + batches) - before) * batch_size;
        shares.push(within(begin).min(*images)..within(end).min(*images));
        before += batches;
    }
    shares
}

/// The ranges into which one dataset falls.
pub fn ranges(datasets: &[Measured], at: usize, batch_size: usize, of: u32) -> Vec<Range<usize>> {
    let images: Vec<usize> = datasets.iter().map(|measured| measured.dataset.images().count()).collect();
    let parts = (0..of).map(|index| share(&images, batch_size, Part { index, of })[at].clone());
    parts.filter(|range| !range.is_empty()).collect()
}

/// The features of a whole dataset at each α from those of its ranges, and what computed them. What no part has brought
/// is computed here.
///
/// # Errors
/// As [`Extraction::features`].
pub fn gather(
    extraction: &mut Extraction,
    piece: &Piece,
    ranges: &[Range<usize>],
    (alphas, brought): (&[Alpha], &Brought),
    tell: &mut dyn FnMut(Step) -> Result<()>,
) -> Result<Vec<(Features, NumericsStamp)>> {
    let own: Maker = (extraction.stamp.clone(), extraction.made_by.to_owned());
    let maker =
        |extraction: &Extraction, alpha: Alpha| brought.maker(&extraction.key(piece, alpha), ranges, &own);
    let makers: Vec<Option<Maker>> = alphas.iter().map(|alpha| maker(extraction, *alpha)).collect();
    let missing = alphas.iter().zip(&makers).filter(|(_, maker)| maker.is_none());
    let missing: Vec<Alpha> = missing.map(|(alpha, _)| *alpha).collect();
    for images in ranges.iter().filter(|_| !missing.is_empty()) {
        extraction.features(&Piece { images: images.clone(), ..piece.clone() }, &missing, tell)?;
    }
    let merged = alphas.iter().zip(makers).map(|(alpha, maker)| {
        let (stamp, made_by) = maker.unwrap_or_else(|| own.clone());
        let whole = Key { stamp: stamp.clone(), made_by, ..extraction.key(piece, *alpha) };
        let features = extraction.store.merge(&whole, ranges)?;
        let features =
            features.context("features of a range have gone from the store: is its limit too small?")?;
        Ok((features, stamp))
    });
    merged.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::testing::Fixture;
    use causeway_protocol::{Dtype, Evaluation, Event, PointRecord};
    use std::collections::BTreeSet;
    use std::fs;

    #[test]
    fn the_parts_are_all_images_once_in_whole_batches() {
        for (images, batch_size, of) in [(vec![50, 7, 33], 8, 3), (vec![5], 8, 4), (vec![64, 64], 8, 2)] {
            let mut next = vec![0; images.len()];
            let mut batches = Vec::new();
            for index in 0..of {
                let shares = share(&images, batch_size, Part { index, of });
                for (at, range) in shares.iter().enumerate().filter(|(_, range)| !range.is_empty()) {
                    assert_eq!(range.start, next[at], "{images:?} {index}");
                    assert!(range.end % batch_size == 0 || range.end == images[at], "{range:?}");
                    next[at] = range.end;
                }
                batches.push(shares.iter().map(|range| range.len().div_ceil(batch_size)).sum::<usize>());
            }
            assert_eq!(next, images);
            assert!(batches.iter().max().unwrap() - batches.iter().min().unwrap() <= 1, "{batches:?}");
        }
        assert_eq!(share(&[64, 64], 8, Part { index: 1, of: 2 }), [64..64, 0..64]);
    }

    /// What part `index` of 3 brings, from a worker of its own; its files are in `blobs`.
    fn bring(index: u32, threads: u32, blobs: &Path) -> Vec<FeatureFile> {
        let mut worker = Fixture::new(Dtype::F32);
        worker.stamp.threads = threads;
        let (store, folder) = (worker.store(), tempfile::tempdir().unwrap());
        let mut files = Vec::new();
        let emit = &mut |event| {
            if let Event::Features(file) = event {
                fs::copy(folder.path().join(&file.blob.file), blobs.join(&file.blob.sha256))?;
                files.push(*file);
            }
            Ok(())
        };
        let readouts = worker.readouts(&worker.evaluation);
        let sweep = worker.begin((&worker.evaluation, &readouts), &[], &store, emit);
        sweep.run_part(Part { index, of: 3 }, folder.path()).unwrap();
        files
    }

    /// The points of an evaluation in three parts, and how many images were computed for it.
    fn gathered(files: &[FeatureFile], blobs: &Path) -> (Vec<PointRecord>, bool) {
        let fixture = Fixture::new(Dtype::F32);
        let store = fixture.store();
        let evaluation = Evaluation { parts: 3, ..fixture.evaluation.clone() };
        let (mut points, mut computed) = (Vec::new(), false);
        let emit = &mut |event| {
            match event {
                Event::Point(point) => points.push(*point),
                Event::Progress(_) => computed = true,
                _ => {}
            }
            Ok(())
        };
        let readouts = fixture.readouts(&evaluation);
        let mut sweep = fixture.begin((&evaluation, &readouts), &[], &store, emit);
        sweep.brought = Brought::take_in(&store, files, blobs).unwrap();
        sweep.run().unwrap();
        (points, computed)
    }

    #[test]
    fn parts_give_the_points_of_one_sweep_also_where_one_is_missing_or_damaged() {
        let blobs = tempfile::tempdir().unwrap();
        let fixture = Fixture::new(Dtype::F32);
        let (alone, _) = fixture.run(&fixture.evaluation, &[]);
        let mut files: Vec<FeatureFile> = (0..3).flat_map(|index| bring(index, 1, blobs.path())).collect();
        assert_eq!(gathered(&files, blobs.path()), (alone.clone(), false), "nothing is left to compute");
        let damaged = blobs.path().join(&files[0].blob.sha256);
        let mut bytes = fs::read(&damaged).unwrap();
        bytes[5] ^= 1;
        fs::write(&damaged, bytes).unwrap();
        files.pop();
        assert_eq!(gathered(&files, blobs.path()), (alone, true));
    }

    #[test]
    fn points_carry_the_stamp_of_what_computed_their_features() {
        let blobs = tempfile::tempdir().unwrap();
        let files: Vec<FeatureFile> = (0..3).flat_map(|index| bring(index, 7, blobs.path())).collect();
        let threads =
            |points: &[PointRecord]| points.iter().map(|point| point.stamp.threads).collect::<BTreeSet<_>>();
        assert_eq!(threads(&gathered(&files, blobs.path()).0), BTreeSet::from([7]));
        // Without one of the parts the datasets it had a share in are computed here, as a whole.
        let fewer: Vec<FeatureFile> = (0..2).flat_map(|index| bring(index, 7, blobs.path())).collect();
        assert_eq!(threads(&gathered(&fewer, blobs.path()).0), BTreeSet::from([1, 7]));
    }
}
