//! Pillow's 8-bit bicubic resampling, bit for bit: k-NN accuracies published anywhere were measured through it, and
//! resamplers that merely look alike differ on a third of the sub-pixels. Kernel a = −0.5 widened by the scale when
//! shrinking; coefficients normalised in f64 and quantised to 22 bits; the horizontal pass first, rounded to u8,
//! then the vertical one.
//!
//! Only what the crop keeps is computed: its columns of the rows that its own rows are made of. The inner loops are
//! plain sums over arrays of fixed length, which the compiler turns into vectors; where the processor has AVX2 a second
//! copy of them is used. Whole numbers add up to the same in any order, so all copies give the same bytes.

use super::image::RgbImage;
use causeway_protocol::Preprocess;

/// Fractional bits of a quantised coefficient: 32 − 8 for the pixel − 2 for the kernel's overshoot.
const PRECISION_BITS: u32 = 32 - 8 - 2;
/// Half of a unit, for rounding.
const HALF: i32 = 1 << (PRECISION_BITS - 1);
/// Bytes of a row that are summed at once: four vectors of eight sums.
const LANES: usize = 32;

/// The encoder's square input of side `size`.
pub fn preprocess(image: &RgbImage, how: Preprocess, size: usize) -> RgbImage {
    match how {
        Preprocess::Direct => resize(image, size, size),
        // 256 for 224, DINO's.
        Preprocess::ResizeCrop => resize_crop(image, size * 256 / 224, size),
    }
}

/// The short side to `short`, the aspect ratio kept, then the centre square of side `size`.
pub fn resize_crop(image: &RgbImage, short: usize, size: usize) -> RgbImage {
    let (width, height) = (image.width, image.height);
    // torchvision: the long side is int(short · long / short_before), cut off and not rounded.
    let (new_width, new_height) =
        if width <= height { (short, short * height / width) } else { (short * width / height, short) };
    let centre = |side: usize| Window { side, skip: half_to_even(side - size), take: size };
    resample(image, centre(new_width), centre(new_height))
}

/// n / 2 as Python rounds it: a half goes to the even neighbour.
fn half_to_even(n: usize) -> usize {
    let floor = n / 2;
    if n % 2 == 1 && floor % 2 == 1 { floor + 1 } else { floor }
}

/// Resizes to `width` × `height`. A side that stays as it is is not changed.
pub fn resize(image: &RgbImage, width: usize, height: usize) -> RgbImage {
    let whole = |side: usize| Window { side, skip: 0, take: side };
    resample(image, whole(width), whole(height))
}

/// What is kept of a side that is resized.
#[derive(Clone, Copy)]
struct Window {
    side: usize,
    skip: usize,
    take: usize,
}

/// What one output pixel is made of: `weights.len()` input pixels from `start`.
struct Taps {
    start: usize,
    weights: Vec<i32>,
}

fn taps(before: usize, window: Window) -> Vec<Taps> {
    let places = window.skip..window.skip + window.take;
    if before == window.side {
        return places.map(|start| Taps { start, weights: vec![1 << PRECISION_BITS] }).collect();
    }
    let scale = before as f64 / window.side as f64;
    let widen = scale.max(1.0);
    let support = 2.0 * widen;
    let shrink = 1.0 / widen;
    let one = |at: usize| {
        let centre = (at as f64 + 0.5) * scale;
        let start = ((centre - support + 0.5) as i64).max(0) as usize;
        let end = ((centre + support + 0.5) as usize).min(before);
        let kernel = (start..end).map(|x| cubic((x as f64 - centre + 0.5) * shrink));
        let kernel: Vec<f64> = kernel.collect();
        let sum: f64 = kernel.iter().sum();
        let quantised = |weight: &f64| {
            let scaled = weight / sum * f64::from(1u32 << PRECISION_BITS);
            // Towards zero after adding half away from it, as C casts.
            (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
        };
        Taps { start, weights: kernel.iter().map(quantised).collect() }
    };
    places.map(one).collect()
}

/// Keys' cubic with a = −0.5, in the order of operations that Pillow uses.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn resample(image: &RgbImage, columns: Window, rows: Window) -> RgbImage {
    if image.width == columns.take && image.height == rows.take {
        // Nothing is resized and nothing cut off.
        if (columns.side, rows.side) == (columns.take, rows.take) {
            return image.clone();
        }
    }
    let (across, down) = (taps(image.width, columns), taps(image.height, rows));
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the copy was compiled for.
        return unsafe { both_passes_avx2(image, &across, &down) };
    }
    both_passes(image, &across, &down)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn both_passes_avx2(image: &RgbImage, across: &[Taps], down: &[Taps]) -> RgbImage {
    both_passes(image, across, down)
}

#[inline(always)]
fn both_passes(image: &RgbImage, across: &[Taps], down: &[Taps]) -> RgbImage {
    let (width, height) = (across.len(), down.len());
    let first = down.iter().map(|taps| taps.start).min().unwrap_or(0);
    let last = down.iter().map(|taps| taps.start + taps.weights.len()).max().unwrap_or(0);
    // Rows are filled up to whole vectors, so that the vertical pass has no remainders.
    let stride = (width * 3).next_multiple_of(LANES);
    let mut between = vec![0; (last - first) * stride];
    let rows = image.pixels.chunks_exact(image.width * 3).skip(first);
    horizontal(rows, image.width, across, &mut between, stride);
    let mut pixels = vec![0; height * width * 3];
    for (taps, out) in down.iter().zip(pixels.chunks_exact_mut(width * 3)) {
        vertical(&between[(taps.start - first) * stride..], stride, &taps.weights, out);
    }
    RgbImage { width, height, pixels }
}

/// Resizes rows. `between` is `[rows, stride]`.
#[inline(always)]
fn horizontal<'a>(
    rows: impl Iterator<Item = &'a [u8]>,
    width: usize,
    across: &[Taps],
    between: &mut [u8],
    stride: usize,
) {
    // Four lanes a pixel instead of three and two pixels at once, so that a step is one vector multiply-add; a weight of
    // zero meets the pixel that an odd number of taps leaves over.
    let mut wide: Vec<[i32; 4]> = vec![[0; 4]; width + 1];
    let pair = |pair: &[i32]| {
        let (first, second) = (pair[0], pair.get(1).copied().unwrap_or(0));
        [first, first, first, first, second, second, second, second]
    };
    let across: Vec<(usize, Vec<[i32; 8]>)> =
        across.iter().map(|taps| (taps.start, taps.weights.chunks(2).map(pair).collect())).collect();
    for (row, out) in rows.zip(between.chunks_exact_mut(stride)) {
        for (lanes, pixel) in wide.iter_mut().zip(row.chunks_exact(3)) {
            *lanes = [i32::from(pixel[0]), i32::from(pixel[1]), i32::from(pixel[2]), 0];
        }
        for ((start, weights), out) in across.iter().zip(out.chunks_exact_mut(3)) {
            let mut sums = [0; 8];
            for (pixels, weights) in wide[*start..].as_flattened().chunks_exact(8).zip(weights) {
                for lane in 0..8 {
                    sums[lane] += pixels[lane] * weights[lane];
                }
            }
            let channel = |at: usize| to_u8(HALF + sums[at] + sums[at + 4]);
            out.copy_from_slice(&[channel(0), channel(1), channel(2)]);
        }
    }
}

/// One output row from the rows at the top of `lines`, `[rows, stride]`.
#[inline(always)]
fn vertical(lines: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) {
    for (at, out) in out.chunks_mut(LANES).enumerate() {
        // Summed in registers over all rows before anything is stored.
        let mut sums = [HALF; LANES];
        for (line, weight) in lines.chunks_exact(stride).zip(weights) {
            let Some(values) = line[at * LANES..].first_chunk::<LANES>() else { continue };
            for lane in 0..LANES {
                sums[lane] += i32::from(values[lane]) * weight;
            }
        }
        let bytes = sums.map(to_u8);
        out.copy_from_slice(&bytes[..out.len()]);
    }
}

#[inline(always)]
fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;
    use causeway_protocol::hex;
    use md5::{Digest, Md5};

    /// The top bytes of SplitMix64's stream.
    fn noise(seed: u64, height: usize, width: usize) -> RgbImage {
        let mut random = SplitMix64::new(seed);
        let pixels = (0..height * width * 3).map(|_| (random.next_u64() >> 56) as u8).collect();
        RgbImage { width, height, pixels }
    }

    /// (7x + 3y, xy, 255 − 5x) modulo 256.
    fn smooth(side: i64) -> RgbImage {
        let pixel = |x: i64, y: i64| [x * 7 + y * 3, x * y, 255 - (x * 5) % 256];
        let values = (0..side).flat_map(|y| (0..side).flat_map(move |x| pixel(x, y)));
        let pixels = values.map(|value| (value % 256) as u8).collect();
        RgbImage { width: side as usize, height: side as usize, pixels }
    }

    fn md5(image: &RgbImage) -> String {
        hex(&Md5::digest(&image.pixels))
    }

    /// Made with Pillow 13.0.0: `Image.resize(…, BICUBIC)` with the short side at 256 or 224, then the centre 224
    /// square with Python's `round`; md5 of input and output as `[height, width, 3]` bytes.
    #[test]
    fn every_byte_is_pillows() {
        let cases = [
            (
                noise(11, 32, 32),
                "d6cc77dc48264ed7f9d5b634ed48d62e",
                "0186c23bbf4d4dab532ce298912e71f9",
                "6dd9074e86d966f2ddee6e659c34b841",
            ),
            (
                noise(12, 64, 64),
                "a4ecece389cc9a91eb4213ff64204bd7",
                "8ab08b7cc4545799f15b1a7de980a049",
                "dfba994b1d86d6027ecd16b400bf1f6c",
            ),
            (
                noise(13, 300, 401),
                "11c60375eb521db071527e2a26161b2d",
                "41a8841a43eaef3fbc3a2e67d39fa68f",
                "e1ddfe1b5d145ef1986e4011f0f0d743",
            ),
            (
                smooth(32),
                "a5a35b8c1d045e5d2f115876c5ded245",
                "bd94d01cec025e776d741d2705cf9024",
                "31096576a3046c16dd997c811c317b8d",
            ),
            (
                noise(14, 224, 224),
                "3c42e54eed7c1aa262b2ac929e2875a1",
                "7ca0ffcab87b14a54f48240801347318",
                "3c42e54eed7c1aa262b2ac929e2875a1",
            ),
        ];
        for (image, input, at_256, at_224) in cases {
            assert_eq!(md5(&image), input, "the test's own input");
            assert_eq!(md5(&resize_crop(&image, 256, 224)), at_256);
            assert_eq!(md5(&resize_crop(&image, 224, 224)), at_224);
        }
    }

    #[test]
    fn a_resized_pixel_can_be_checked_by_hand() {
        let image = resize_crop(&noise(13, 300, 401), 256, 224);
        assert_eq!(image.pixels[..3], [93, 175, 215]);
        assert_eq!(image.pixels[(112 * 224 + 112) * 3..][..3], [189, 91, 72]);
        assert_eq!(image.pixels[(223 * 224 + 223) * 3..], [140, 156, 62]);
        assert_eq!(preprocess(&noise(13, 300, 401), Preprocess::ResizeCrop, 224), image);
    }

    /// The copy for every processor against the one that this one uses, at sizes that fill no vector.
    #[test]
    fn both_copies_of_the_loops_give_the_same_bytes() {
        for (height, width, columns, rows) in [(7, 5, 33, 2), (40, 31, 9, 70), (3, 64, 11, 3)] {
            let image = noise(21, height, width);
            let whole = |side: usize| Window { side, skip: 0, take: side };
            let (across, down) = (taps(width, whole(columns)), taps(height, whole(rows)));
            assert_eq!(both_passes(&image, &across, &down), resize(&image, columns, rows));
        }
    }

    #[test]
    fn a_crop_is_the_same_part_of_the_whole() {
        let image = noise(22, 50, 41);
        let whole = resize(&image, 60, 73);
        let part =
            resample(&image, Window { side: 60, skip: 7, take: 20 }, Window { side: 73, skip: 9, take: 31 });
        let rows = whole.pixels.chunks_exact(60 * 3).skip(9).take(31);
        assert!(rows.flat_map(|row| &row[21..81]).eq(&part.pixels));
    }

    #[test]
    fn a_half_goes_to_the_even_neighbour_as_in_python() {
        assert_eq!([0, 1, 2, 3, 4, 5, 75, 118].map(half_to_even), [0, 0, 1, 2, 2, 2, 38, 59]);
    }

    #[test]
    fn direct_gives_a_square_of_the_whole_image() {
        let image = preprocess(&noise(1, 20, 50), Preprocess::Direct, 14);
        assert_eq!((image.width, image.height, image.pixels.len()), (14, 14, 14 * 14 * 3));
    }
}
