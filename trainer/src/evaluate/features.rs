//! The unit of all evaluation: the features of some images of a dataset at some α. An image is decoded and resized once,
//! α is the inner loop over weights that all stay in memory, and the blocks before the first that differs are computed
//! once for all α. Whether an image is computed alone or in a sweep, now or behind a resume, here or in a range on
//! another worker, its features have the same bits: batches are always the same images.

use super::input::Input;
use super::store::{Features, Key, Partial, Store};
use super::work::Work;
use crate::data::dataset::Dataset;
use crate::weights::interpolate::{Encoder, Line};
use crate::weights::{is_finite, memory};
use anyhow::{Context, Result, ensure};
use causeway_protocol::{Alpha, Dtype, Evaluation, NumericsStamp};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// How long another process's work is waited for, in times that it takes to compute the same here.
const PATIENCE: u32 = 3;
/// Time between two looks at it.
const LOOK: Duration = Duration::from_millis(50);

/// What features are asked of: some images of a dataset.
#[derive(Clone, Debug)]
pub struct Piece<'a> {
    /// The dataset.
    pub dataset: &'a Dataset,
    /// Its digest.
    pub digest: &'a str,
    /// The images in the order of [`Dataset::images`], from a multiple of the batch size to another, or to the end.
    pub images: Range<usize>,
}

/// A step of the work: operations, and what was done.
pub enum Step {
    /// They were in the store.
    Found(f64),
    /// They have been computed in a batch: its number from 1, and how many there are.
    Computed(f64, usize, usize),
}

/// What has become of features that another process was writing.
enum Other {
    /// They are there.
    Done(Features),
    /// They are to be written here.
    Left(Box<Partial>),
}

/// Computes features along a line, and keeps them in a store.
pub struct Extraction<'a> {
    /// From θ0 to θ1, on its device, in its arithmetic.
    pub line: &'a Line,
    /// Digest of θ0.
    pub backbone: &'a str,
    /// How an image becomes a feature.
    pub evaluation: &'a Evaluation,
    /// What computes.
    pub stamp: &'a NumericsStamp,
    /// The build and the processor.
    pub made_by: &'a str,
    /// Where features are kept.
    pub store: &'a Store,
    /// The θ_α in memory.
    pub resident: BTreeMap<Alpha, Encoder>,
}

impl Extraction<'_> {
    /// What the features of a piece at an α are kept under.
    pub fn key(&self, piece: &Piece, alpha: Alpha) -> Key {
        Key {
            backbone: self.backbone.to_owned(),
            checkpoint: checkpoint_at(self.line, alpha),
            alpha,
            dataset: piece.digest.to_owned(),
            features: self.evaluation.feature_id(),
            stamp: self.stamp.clone(),
            made_by: self.made_by.to_owned(),
            from: piece.images.start,
            to: piece.images.end,
            dim: self.line.config().feature_dim() as usize,
        }
    }

    /// The features of a piece at each α, from the store or computed into it. All θ_α are in memory at once.
    ///
    /// # Errors
    /// Images that are no whole batches; an image that cannot be read; features that are not finite; a full disk.
    pub fn features(
        &mut self,
        piece: &Piece,
        alphas: &[Alpha],
        tell: &mut dyn FnMut(Step) -> Result<()>,
    ) -> Result<Vec<Features>> {
        self.check(piece)?;
        let (work, images) = (Work::of(self.line, self.evaluation.image_size), piece.images.len() as f64);
        let mut found: BTreeMap<Alpha, Features> = BTreeMap::new();
        let (mut open, mut elsewhere): (Vec<Partial>, Vec<Key>) = (Vec::new(), Vec::new());
        for alpha in alphas {
            let key = self.key(piece, *alpha);
            match self.store.find(&key)? {
                Some(features) => {
                    tell(Step::Found(work.own * images))?;
                    found.insert(*alpha, features);
                }
                None => match self.store.begin_alone(&key)? {
                    Some(partial) => open.push(partial),
                    None => elsewhere.push(key),
                },
            }
        }
        let (begun, count, mut shared) = (Instant::now(), open.len().max(1) as u32, work.shared);
        if !open.is_empty() {
            self.compute(piece, &mut open, work, tell)?;
            shared = 0.0; // has been told
        }
        let patience = PATIENCE * begun.elapsed() / count;
        for partial in open {
            found.insert(partial.key().alpha, partial.finish()?);
        }
        let mut late = Vec::new();
        for key in elsewhere {
            match self.wait_for_another(&key, patience)? {
                Other::Done(features) => {
                    tell(Step::Found(work.own * images))?;
                    found.insert(key.alpha, features);
                }
                Other::Left(partial) => late.push(*partial),
            }
        }
        if late.is_empty() {
            tell(Step::Found(shared * images))?;
        } else {
            self.compute(piece, &mut late, Work { shared, ..work }, tell)?;
        }
        for partial in late {
            found.insert(partial.key().alpha, partial.finish()?);
        }
        alphas.iter().map(|alpha| found.remove(alpha).context("an α is asked twice")).collect()
    }

    /// What another process on this machine is writing, once it is there: θ0's features are wanted by every run. Where that
    /// process stops, or takes longer than this one has patience for, they are left to this one.
    fn wait_for_another(&self, key: &Key, patience: Duration) -> Result<Other> {
        let until = Instant::now() + patience;
        loop {
            if let Some(features) = self.store.find(key)? {
                return Ok(Other::Done(features));
            }
            if let Some(partial) = self.store.begin_alone(key)? {
                // It may have been finished between the two looks.
                let done = self.store.find(key)?;
                return Ok(done.map_or_else(|| Other::Left(Box::new(partial)), Other::Done));
            }
            if Instant::now() >= until {
                return Ok(Other::Left(Box::new(self.store.begin(key)?)));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Writes what is missing of the open files, all of them batch by batch.
    fn compute(
        &mut self,
        piece: &Piece,
        open: &mut [Partial],
        work: Work,
        tell: &mut dyn FnMut(Step) -> Result<()>,
    ) -> Result<()> {
        let Some(key) = open.first().map(|partial| partial.key().clone()) else { return Ok(()) };
        let (batches, batch_size) = (key.batches(), self.evaluation.batch_size as usize);
        let first = open.iter().map(Partial::done).min().unwrap_or(0);
        let kept: f64 = open.iter().map(|partial| key.images_in(partial.done()) as f64 * work.own).sum();
        tell(Step::Found(kept + key.images_in(first) as f64 * work.shared))?;

        let alphas: Vec<Alpha> = open.iter().map(|partial| partial.key().alpha).collect();
        self.keep_resident(&alphas);
        let (line, resident) = (self.line, &self.resident);
        let input = Input {
            config: line.config(),
            evaluation: self.evaluation,
            kind: line.kind(),
            device: line.device(),
            threads: self.stamp.threads as usize,
        };
        let begin = piece.images.start / batch_size;
        input.each(piece.dataset, begin + first..begin + batches, &mut |number, pixels| {
            let batch = number - begin;
            let images = pixels.size()[0] as f64;
            let stem = line.stem(pixels);
            tell(Step::Computed(work.shared * images, batch + 1, batches))?;
            // A process that was stopped may have written this batch for some α and not for others.
            let mut behind: Vec<&mut Partial> =
                open.iter_mut().filter(|partial| partial.done() == batch).collect();
            let mut features = Vec::with_capacity(behind.len());
            for partial in &behind {
                let encoder = resident.get(&partial.key().alpha).context("a θ_α is not in memory")?;
                features.push(encoder.features_with(stem.as_ref(), pixels).to_kind(Kind::Float));
                tell(Step::Computed(work.own * images, batch + 1, batches))?;
            }
            let features = Tensor::stack(&features, 0).to_device(Device::Cpu); // [α, batch, dim]
            for (row, partial) in behind.iter_mut().enumerate() {
                let features = features.get(row as i64);
                self.check_finite(&features, partial.key().alpha, batch)?;
                memory::with_bytes(&features, |bytes| partial.append(bytes))?;
            }
            Ok(())
        })
    }

    /// Has the encoders at these α in memory and no others. Those of the dataset before are taken over.
    fn keep_resident(&mut self, alphas: &[Alpha]) {
        self.resident.retain(|alpha, _| alphas.contains(alpha));
        for alpha in alphas {
            self.resident.entry(*alpha).or_insert_with(|| self.line.encoder(*alpha));
        }
    }

    fn check(&self, piece: &Piece) -> Result<()> {
        let (range, all) = (&piece.images, piece.dataset.images().count());
        let size = self.evaluation.batch_size as usize;
        let whole = |end: usize| end.is_multiple_of(size) || end == all;
        ensure!(
            range.start < range.end
                && range.end <= all
                && range.start.is_multiple_of(size)
                && whole(range.end),
            "the images {range:?} are no whole batches of {size} of {} with its {all} images",
            piece.dataset.title
        );
        Ok(())
    }

    fn check_finite(&self, features: &Tensor, alpha: Alpha, batch: usize) -> Result<()> {
        let hint = match self.evaluation.dtype {
            Dtype::F16 => "; f16 ends at 65,504: take `evaluation.dtype` = \"bf16\" or \"f32\"",
            Dtype::F32 | Dtype::Bf16 => "",
        };
        ensure!(
            is_finite(features),
            "the features at α = {alpha} are not finite in batch {} of {}{hint}",
            batch + 1,
            self.evaluation.batch_size
        );
        Ok(())
    }
}

/// The checkpoint that features and points at an α belong to: α = 0 is the bare backbone and belongs to none.
pub fn checkpoint_at(line: &Line, alpha: Alpha) -> Option<String> {
    (alpha != Alpha::ZERO).then(|| line.digest().to_owned())
}

#[cfg(test)]
mod tests;
