//! The batches of training and of evaluation, made ahead of need: threads decode, resize and augment while the encoder
//! computes. Every batch is a function of (images, order, seed, step), so it is the same for any number of threads and
//! after any resume; the threads only decide how long the encoder waits for it, and that is measured.

use super::augment::{Augment, Frame};
use super::dataset::Source;
use super::image::RgbImage;
use super::resize::preprocess;
use crate::order::Order;
use anyhow::{Context, Error, Result, anyhow, ensure};
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// Most bytes of images that are kept between steps, unless told otherwise.
pub const KEEP_BYTES: usize = 2 << 30;
/// Batches that are made before they are asked for, unless told otherwise.
pub const AHEAD: u64 = 3;

/// What batches are made of, and how.
#[derive(Clone, Debug)]
pub struct Feed {
    /// The images.
    pub images: Vec<Source>,
    /// Which of them a step sees.
    pub batches: Batches,
    /// Side of the encoder's input.
    pub size: usize,
    /// What is done to an image, with the batches' seed.
    pub augment: Augment,
    /// Threads that decode; two keep up with a ViT-B on a few cores.
    pub threads: usize,
    /// Batches made ahead of need.
    pub ahead: u64,
    /// Most bytes of images that are kept.
    pub keep_bytes: usize,
}

/// Which images a step's batch holds.
#[derive(Clone, Debug)]
pub enum Batches {
    /// Training's.
    Shuffled {
        /// Which images a step sees.
        order: Order,
        /// The places of a step's batch that are made here: all, or one rank's share.
        positions: Range<usize>,
    },
    /// An evaluation's: the images in their own order, so many at a time; the last batch holds what is left.
    InTurn {
        /// Images in a batch.
        size: usize,
    },
}

impl Batches {
    /// The indices of a step's images, of so many in all.
    fn indices(&self, step: u64, images: usize) -> Vec<usize> {
        match self {
            Batches::Shuffled { order, positions } => order.batch(step)[positions.clone()].to_vec(),
            Batches::InTurn { size } => {
                let begin = (step as usize).saturating_mul(*size).min(images);
                (begin..(begin + size).min(images)).collect()
            }
        }
    }

    /// Decides the augmentation, together with the place in the batch.
    fn seed(&self) -> u64 {
        match self {
            Batches::Shuffled { order, .. } => order.seed,
            Batches::InTurn { .. } => 0,
        }
    }

    /// The place in the whole batch of the first image that is made here.
    fn first(&self) -> usize {
        match self {
            Batches::Shuffled { positions, .. } => positions.start,
            Batches::InTurn { .. } => 0,
        }
    }

    fn check(&self, images: usize, end: u64) -> Result<()> {
        match self {
            Batches::Shuffled { order, positions } => {
                ensure!(order.pairs == images, "the order is not that of the images");
                ensure!(!positions.is_empty(), "no place of the batch is made here");
                ensure!(positions.end <= order.batch, "the positions are beyond the batch");
            }
            Batches::InTurn { size } => ensure!(
                *size > 0 && end <= images.div_ceil(*size) as u64,
                "{images} images are no {end} batches of {size}"
            ),
        }
        Ok(())
    }
}

/// Makes the batches of some steps in order. Dropping it stops its threads.
pub struct Loader {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    next: u64,
    end: u64,
}

struct Shared {
    feed: Feed,
    kept: Kept,
    state: Mutex<State>,
    /// A batch is complete.
    complete: Condvar,
    /// A batch was taken, or it is over.
    room: Condvar,
}

struct State {
    /// The next image to be made: its step, and its place among those made here.
    step: u64,
    place: usize,
    end: u64,
    /// Batches in the making or waiting to be taken.
    batches: BTreeMap<u64, Batch>,
    /// The step that training asks for next.
    wanted: u64,
    stop: bool,
}

struct Batch {
    /// For each place the image's index.
    indices: Arc<Vec<usize>>,
    /// `[places, 3, size, size]`
    pixels: Vec<u8>,
    left: usize,
    /// The failure at the lowest place: the same for any number of threads.
    failed: Option<(usize, Error)>,
}

impl Loader {
    /// Starts making the batches of the steps, from the first one.
    pub fn start(feed: Feed, steps: Range<u64>) -> Result<Loader> {
        feed.batches.check(feed.images.len(), steps.end)?;
        let state = State {
            step: steps.start,
            place: 0,
            end: steps.end,
            batches: BTreeMap::new(),
            wanted: steps.start,
            stop: false,
        };
        let threads = feed.threads.max(1);
        let kept = Kept::new(&feed);
        let shared = Arc::new(Shared {
            feed,
            kept,
            state: Mutex::new(state),
            complete: Condvar::new(),
            room: Condvar::new(),
        });
        let mut loader = Loader { shared, workers: Vec::new(), next: steps.start, end: steps.end };
        for at in 0..threads {
            let shared = loader.shared.clone();
            let worker = std::thread::Builder::new().name(format!("data {at}"));
            let worker = worker.spawn(move || shared.work()).context("starting a thread for data")?;
            loader.workers.push(worker);
        }
        Ok(loader)
    }

    /// The next batch, u8 [places, 3, size, size], and how long the encoder had to wait for it.
    ///
    /// # Errors
    /// An image of the batch cannot be read; there are no more steps.
    #[expect(clippy::should_implement_trait, reason = "an iterator's end would hide a missing step")]
    pub fn next(&mut self) -> Result<(Tensor, Duration)> {
        let step = self.next;
        ensure!(step < self.end, "there is no batch of step {step}, the last one was made");
        let since = Instant::now();
        let mut state = self.shared.lock();
        let batch = loop {
            let complete = state.batches.get(&step).is_some_and(|batch| batch.left == 0);
            if complete && let Some(batch) = state.batches.remove(&step) {
                break batch;
            }
            ensure!(!state.stop, "the loader has stopped");
            state = self.shared.complete.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        let waited = since.elapsed();
        self.next += 1;
        state.wanted = self.next;
        drop(state);
        self.shared.room.notify_all();
        if let Some((place, error)) = batch.failed {
            let place = self.shared.feed.batches.first() + place;
            return Err(error.context(format!("the image at place {place} of the batch of step {step}")));
        }
        let side = self.shared.feed.size as i64;
        let shape = [batch.indices.len() as i64, 3, side, side];
        Ok((Tensor::from_data_size(&batch.pixels, &shape, Kind::Uint8), waited))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.room.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches what an image does to it; there is nothing left to tell.
            drop(worker.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some((step, place, index)) = self.take() {
            let made = catch_unwind(AssertUnwindSafe(|| self.make(step, place, index)))
                .unwrap_or_else(|_| Err(anyhow!("decoding {} panicked", self.feed.images[index].name())));
            self.put(step, place, made);
        }
    }

    /// The next image to make; waits while enough batches are ready.
    fn take(&self) -> Option<(u64, usize, usize)> {
        let mut state = self.lock();
        loop {
            if state.stop || state.step >= state.end {
                return None;
            }
            if state.step < state.wanted + self.feed.ahead.max(1) {
                break;
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let Feed { batches, images, size, .. } = &self.feed;
        let (step, place) = (state.step, state.place);
        let batch = state.batches.entry(step).or_insert_with(|| {
            let indices = batches.indices(step, images.len());
            let (pixels, left) = (vec![0; indices.len() * 3 * size * size], indices.len());
            Batch { indices: Arc::new(indices), pixels, left, failed: None }
        });
        let (index, places) = (batch.indices[place], batch.indices.len());
        state.place += 1;
        if state.place == places {
            (state.step, state.place) = (step + 1, 0);
        }
        Some((step, place, index))
    }

    /// One image, `[3, size, size]`.
    fn make(&self, step: u64, place: usize, index: usize) -> Result<Vec<u8>> {
        let Feed { batches, size, augment, .. } = &self.feed;
        let decode = || self.feed.images[index].decode();
        // What is the same in every step is done once and kept; the square that results needs no further framing.
        let (image, rest) = match augment.frame {
            Frame::Fixed(how) => {
                let square = self.kept.get(index, || Ok(preprocess(&decode()?, how, *size)))?;
                (square, Augment { flip: augment.flip, ..Augment::NONE })
            }
            Frame::RandomCrop { .. } => (self.kept.get(index, decode)?, *augment),
        };
        Ok(planes(&rest.apply(&image, *size, batches.seed(), step, batches.first() + place)))
    }

    fn put(&self, step: u64, place: usize, made: Result<Vec<u8>>) {
        let mut state = self.lock();
        let Some(batch) = state.batches.get_mut(&step) else { return };
        match made {
            Ok(planes) => batch.pixels[place * planes.len()..][..planes.len()].copy_from_slice(&planes),
            Err(error) => {
                if batch.failed.as_ref().is_none_or(|(first, _)| place < *first) {
                    batch.failed = Some((place, error));
                }
            }
        }
        batch.left -= 1;
        if batch.left == 0 {
            self.complete.notify_all();
        }
    }
}

/// `[height, width, 3]` as `[3, height, width]`.
fn planes(image: &RgbImage) -> Vec<u8> {
    let count = image.width * image.height;
    let mut planes = vec![0; 3 * count];
    let (red, rest) = planes.split_at_mut(count);
    let (green, blue) = rest.split_at_mut(count);
    let channels = red.iter_mut().zip(green).zip(blue);
    for (pixel, ((red, green), blue)) in image.pixels.chunks_exact(3).zip(channels) {
        (*red, *green, *blue) = (pixel[0], pixel[1], pixel[2]);
    }
    planes
}

/// Images kept between steps, as far as the bytes reach: those that came first stay. With a new order in each epoch no
/// image is needed sooner than another, so there is nothing to gain by replacing one.
struct Kept {
    images: Vec<OnceLock<Arc<RgbImage>>>,
    bytes: AtomicUsize,
    most: usize,
}

impl Kept {
    fn new(feed: &Feed) -> Kept {
        let images = feed.images.iter().map(|_| OnceLock::new()).collect();
        Kept { images, bytes: AtomicUsize::new(0), most: feed.keep_bytes }
    }

    fn get(&self, index: usize, make: impl FnOnce() -> Result<RgbImage>) -> Result<Arc<RgbImage>> {
        if let Some(kept) = self.images[index].get() {
            return Ok(kept.clone());
        }
        let image = Arc::new(make()?);
        let size = image.pixels.len();
        if self.bytes.fetch_add(size, Ordering::Relaxed) + size > self.most
            || self.images[index].set(image.clone()).is_err()
        {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
        }
        Ok(image)
    }
}

#[cfg(test)]
mod tests;
