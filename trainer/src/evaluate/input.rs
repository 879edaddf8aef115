//! A dataset's images as an encoder's input, batch after batch: the one loop that all features come from. Threads decode
//! and resize the next batches while this one is computed; bytes become numbers in f32, which are rounded once to the
//! encoder's arithmetic. Which images share a batch depends on the dataset and the batch size alone.

use crate::data::augment::{Augment, Frame};
use crate::data::dataset::Dataset;
use crate::data::loader::{AHEAD, Batches, Feed, Loader};
use crate::models::vit::VitConfig;
use anyhow::{Context, Result};
use causeway_protocol::{Evaluation, Feature};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Threads that decode for a CPU: beside the threads that compute, two keep up with the smallest encoder.
const THREADS_BESIDE_CPU: usize = 2;

/// How images become an encoder's input.
pub struct Input<'a> {
    /// The encoder's architecture.
    pub config: &'a VitConfig,
    /// Preprocessing, size and batch size.
    pub evaluation: &'a Evaluation,
    /// The encoder's arithmetic.
    pub kind: Kind,
    /// Where it computes.
    pub device: Device,
    /// Cores that may be used.
    pub threads: usize,
}

impl Input<'_> {
    /// Gives some of the dataset's batches to `take`, in order, each with its number.
    ///
    /// # Shapes
    /// [batch, 3, size, size], normalised
    ///
    /// # Errors
    /// An image that cannot be read; what `take` says.
    pub fn each(
        &self,
        dataset: &Dataset,
        batches: Range<usize>,
        take: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let Feature::Cls = self.evaluation.feature;
        let on_cpu = self.device == Device::Cpu;
        let feed = Feed {
            images: dataset.images().map(|image| image.source.clone()).collect(),
            batches: Batches::InTurn { size: self.evaluation.batch_size as usize },
            size: self.evaluation.image_size as usize,
            augment: Augment { frame: Frame::Fixed(self.evaluation.preprocess), flip: false },
            threads: if on_cpu { self.threads.min(THREADS_BESIDE_CPU) } else { self.threads },
            ahead: AHEAD,
            // Every image is seen once.
            keep_bytes: 0,
        };
        let mut loader = Loader::start(feed, batches.start as u64..batches.end as u64)?;
        for batch in batches {
            let (pixels, _) = loader.next().with_context(|| format!("reading {}", dataset.title))?;
            let pixels = self.config.normalise(&self.moved(pixels)?).to_kind(self.kind);
            take(batch, &pixels)?;
        }
        Ok(())
    }

    /// The bytes where they are computed with: a quarter of what they are as numbers, from memory that a GPU reads by
    /// itself while the threads go on.
    fn moved(&self, pixels: Tensor) -> Result<Tensor> {
        if self.device == Device::Cpu {
            return Ok(pixels);
        }
        let pinned = pixels.f_pin_memory(self.device)?;
        Ok(pinned.f_to_device_(self.device, Kind::Uint8, true, false)?)
    }
}
