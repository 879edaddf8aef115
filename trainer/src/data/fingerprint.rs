//! What an image is recognised by: a digest of its pixels, which finds the same image under another name or in another
//! lossless format, and a perceptual hash, which finds it again after resizing or another JPEG compression. Subsets,
//! duplicates and the leak check all compare fingerprints, so an image is decoded for them once.

use super::dataset::Source;
use super::image::RgbImage;
use anyhow::Result;
use causeway_protocol::hex;
use std::f64::consts::PI;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Side of the grey image that the perceptual hash looks at.
const SIDE: usize = 32;
/// Lowest frequencies in each direction that it keeps.
const LOW: usize = 8;
/// An image whose grey cells deviate less than this from their mean, in levels of 255, has no perceptual hash: its
/// hash would be the noise of compression, and every empty image would resemble every other.
const DEVIATION_MIN: f64 = 2.0;

/// What an image is recognised by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fingerprint {
    /// [`RgbImage::pixel_sha256`].
    pub pixels: [u8; 32],
    /// Of the pixels' low frequencies; none where the image is practically one colour.
    pub perceptual: Option<u64>,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Fingerprint {
    /// The fingerprint of an image.
    pub fn of(image: &RgbImage) -> Fingerprint {
        Fingerprint {
            pixels: image.pixel_sha256(),
            perceptual: perceptual_hash(image),
            width: image.width as u32,
            height: image.height as u32,
        }
    }

    /// The digest of the pixels, 64 hex digits.
    pub fn pixel_digest(&self) -> String {
        hex(&self.pixels)
    }
}

/// Decodes images in `threads` threads and returns their fingerprints in order, or why one has none. Holds one decoded
/// image a thread. `done` is told after each image how many are done.
pub fn scan(sources: &[&Source], threads: usize, done: &(dyn Fn(usize) + Sync)) -> Vec<Result<Fingerprint>> {
    let (next, finished) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let found = Mutex::new(Vec::with_capacity(sources.len()));
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(source) = sources.get(at) else { return };
            let print = source.decode().map(|image| Fingerprint::of(&image));
            found.lock().unwrap_or_else(PoisonError::into_inner).push((at, print));
            done(finished.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    std::thread::scope(|scope| {
        let others = threads.min(sources.len()).saturating_sub(1);
        (0..others).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_unstable_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, print)| print).collect()
}

/// A hash of 64 bits that hardly changes when an image is resized or compressed again, after Zauner (2010), "Implementation
/// and benchmarking of perceptual image hash functions", §3.2.1: the image as 32 × 32 grey cells, each the mean of its
/// pixels; the 8 × 8 lowest frequencies of their cosine transform; a bit for each that is above the median of the 63
/// without the constant one. Half of the bits are set, so unrelated images differ in about 32.
pub fn perceptual_hash(image: &RgbImage) -> Option<u64> {
    let cells = grey_cells(image);
    let mean = cells.iter().sum::<f64>() / cells.len() as f64;
    let variance = cells.iter().map(|cell| (cell - mean).powi(2)).sum::<f64>() / cells.len() as f64;
    if variance < DEVIATION_MIN * DEVIATION_MIN {
        return None;
    }
    let coefficients = low_frequencies(&cells);
    let mut sorted = coefficients[1..].to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let bits = coefficients.iter().enumerate().skip(1).filter(|(_, value)| **value > median);
    Some(bits.fold(0, |hash, (at, _)| hash | 1 << at))
}

/// Mean luma (ITU-R BT.601, as Pillow's `L`) of each cell of a grid of 32 × 32; a cell has one pixel at least.
fn grey_cells(image: &RgbImage) -> Vec<f64> {
    let mut cells = Vec::with_capacity(SIDE * SIDE);
    for row in 0..SIDE {
        for column in 0..SIDE {
            let (top, bottom) = cell(row, image.height);
            let (left, right) = cell(column, image.width);
            let mut sum = 0u64;
            for y in top..bottom {
                let row = &image.pixels[(y * image.width + left) * 3..(y * image.width + right) * 3];
                let luma = |p: &[u8]| 299 * u64::from(p[0]) + 587 * u64::from(p[1]) + 114 * u64::from(p[2]);
                sum += row.chunks_exact(3).map(luma).sum::<u64>();
            }
            cells.push(sum as f64 / (1000 * (bottom - top) * (right - left)) as f64);
        }
    }
    cells
}

/// Begin and end of a cell along a side of `length` pixels.
fn cell(at: usize, length: usize) -> (usize, usize) {
    let begin = at * length / SIDE;
    (begin, ((at + 1) * length / SIDE).max(begin + 1))
}

/// The cosine transform (DCT-II, not normalised) of the cells, its 8 × 8 lowest frequencies, row by row.
fn low_frequencies(cells: &[f64]) -> Vec<f64> {
    let wave =
        |frequency: usize, at: usize| (PI * frequency as f64 * (2 * at + 1) as f64 / (2 * SIDE) as f64).cos();
    let waves: Vec<Vec<f64>> = (0..LOW).map(|f| (0..SIDE).map(|at| wave(f, at)).collect()).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    // [LOW, SIDE]: frequency along the row, for each row.
    let along: Vec<Vec<f64>> =
        waves.iter().map(|wave| cells.chunks_exact(SIDE).map(|row| dot(row, wave)).collect()).collect();
    waves.iter().flat_map(|down| along.iter().map(|rows| dot(rows, down)).collect::<Vec<f64>>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::resize::resize;
    use crate::random::SplitMix64;

    /// Blobs as coarse as the frequencies that the hash keeps.
    fn blobs(seed: u64, width: usize, height: usize) -> RgbImage {
        let mut random = SplitMix64::new(seed);
        let pixels = (0..20 * 15 * 3).map(|_| (random.next_u64() >> 56) as u8).collect();
        resize(&RgbImage { width: 20, height: 15, pixels }, width, height)
    }

    fn distance(a: &RgbImage, b: &RgbImage) -> u32 {
        (perceptual_hash(a).unwrap() ^ perceptual_hash(b).unwrap()).count_ones()
    }

    #[test]
    fn a_stripe_sets_the_bit_of_its_frequency() {
        // cos(π·2·(2x + 1)/64), the third wave along a row: only coefficient (0, 2) is not zero, so it is above the
        // median, which is rounding noise about 0.
        let value = |x: usize| (128.0 + 100.0 * (PI * 2.0 * (2 * x + 1) as f64 / 64.0).cos()) as u8;
        let row: Vec<u8> = (0..SIDE).map(value).collect();
        let image = RgbImage::from_grey(SIDE, SIDE, &row.repeat(SIDE));
        let hash = perceptual_hash(&image).unwrap();
        assert_eq!(hash & (1 << 2), 1 << 2);
        assert_eq!(hash & 1, 0, "the constant has no bit");
        assert!(hash.count_ones() <= 31, "the median itself is not above the median");
    }

    #[test]
    fn a_smaller_copy_is_near_and_another_image_far() {
        let (one, other) = (blobs(1, 640, 480), blobs(2, 640, 480));
        assert!(distance(&one, &resize(&one, 224, 168)) <= 2);
        assert!(distance(&one, &resize(&one, 64, 64)) <= 2, "the aspect ratio does not count");
        // numpy, from the same pixels.
        assert_eq!((perceptual_hash(&one), distance(&one, &other)), (Some(0xcf14_afe1_c13c_49c8), 28));
        let flat = RgbImage { width: 40, height: 30, pixels: vec![250; 40 * 30 * 3] };
        assert_eq!(perceptual_hash(&flat), None);
    }

    #[test]
    fn an_image_smaller_than_the_grid_repeats_its_pixels() {
        assert_eq!([cell(0, 8), cell(3, 8), cell(4, 8), cell(31, 8)], [(0, 1), (0, 1), (1, 2), (7, 8)]);
        assert_eq!([cell(0, 640), cell(31, 640)], [(0, 20), (620, 640)]);
        assert!(perceptual_hash(&blobs(3, 7, 5)).is_some());
    }

    #[test]
    fn a_scan_keeps_the_order_whatever_the_threads() {
        let grey = |at: u8| Source::Grey { bytes: vec![at; 6].into(), begin: 0, width: 3, height: 2 };
        let mut sources: Vec<Source> = (0..50).map(grey).collect();
        sources[20] = Source::File { path: "absent.png".into(), sha256: None };
        let sources: Vec<&Source> = sources.iter().collect();
        let count = AtomicUsize::new(0);
        let told = |_| {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let (one, four) = (scan(&sources, 1, &|_| ()), scan(&sources, 4, &told));
        assert_eq!((one.len(), count.into_inner()), (50, 50));
        for (at, (one, four)) in one.iter().zip(&four).enumerate() {
            match (one, four) {
                (Ok(one), Ok(four)) => assert_eq!((one, one.width), (four, 3)),
                (Err(error), Err(_)) => assert!(at == 20 && format!("{error:#}").contains("absent.png")),
                _ => panic!("{at}"),
            }
        }
    }
}
