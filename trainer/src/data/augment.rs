//! Random crops and mirrors as the reference implementations make them, each a function of (seed, step, position in the
//! batch) alone: a step is repeated exactly without the steps before it, on any number of threads.

use super::image::RgbImage;
use super::resize::{preprocess, resize};
use crate::random::SplitMix64;
use crate::weights::initial;
use causeway_protocol::Preprocess;

/// How often a crop is drawn before the centre is taken (torchvision).
const TRIES: usize = 10;
/// torchvision's, and everyone's: width / height of a crop.
pub const RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);

/// What is done to a training image.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Augment {
    /// Which part of the image becomes the encoder's input.
    pub frame: Frame,
    /// Mirror with probability ½.
    pub flip: bool,
}

/// Which part of an image becomes the encoder's input.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Frame {
    /// Always the same, as an evaluation does it.
    Fixed(Preprocess),
    /// A random part of the area, of a random shape, resized to the square: torchvision's `RandomResizedCrop`.
    RandomCrop {
        /// Least and greatest share of the image's area.
        scale: (f64, f64),
        /// Least and greatest width / height.
        ratio: (f64, f64),
    },
}

impl Augment {
    /// No randomness: the whole image.
    pub const NONE: Augment = Augment { frame: Frame::Fixed(Preprocess::Direct), flip: false };
    /// MAE's pretraining: a fifth of the image or more, mirrored.
    pub const MAE: Augment =
        Augment { frame: Frame::RandomCrop { scale: (0.2, 1.0), ratio: RATIO }, flip: true };
    /// open_clip's training transform: nearly the whole image, never mirrored, because captions say left and right.
    pub const CLIP: Augment =
        Augment { frame: Frame::RandomCrop { scale: (0.9, 1.0), ratio: RATIO }, flip: false };
    /// torchvision's default, for supervised training on ImageNet.
    pub const SUPERVISED: Augment =
        Augment { frame: Frame::RandomCrop { scale: (0.08, 1.0), ratio: RATIO }, flip: true };

    /// The encoder's square input of side `size`. `position` is the image's place in the batch of the whole run, so
    /// that it does not depend on how a batch is shared out.
    pub fn apply(&self, image: &RgbImage, size: usize, seed: u64, step: u64, position: usize) -> RgbImage {
        let mut random = initial::stream(seed, &format!("augment/{step}/{position}"));
        let mut square = match self.frame {
            Frame::Fixed(how) => preprocess(image, how, size),
            Frame::RandomCrop { scale, ratio } => {
                let area = random_box(image.width, image.height, scale, ratio, &mut random);
                resize(&crop(image, area), size, size)
            }
        };
        if self.flip && random.below(2) == 1 {
            mirror(&mut square);
        }
        square
    }
}

/// A part of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    /// Columns to its left.
    pub left: usize,
    /// Rows above it.
    pub top: usize,
    /// Its width.
    pub width: usize,
    /// Its height.
    pub height: usize,
}

/// torchvision's `RandomResizedCrop.get_params`: up to ten times an area uniform in `scale` and a shape log-uniform in
/// `ratio`; if none fits into the image, its centre, cut to the nearest allowed shape.
pub fn random_box(
    width: usize,
    height: usize,
    scale: (f64, f64),
    ratio: (f64, f64),
    random: &mut SplitMix64,
) -> Area {
    let area = (width * height) as f64;
    for _ in 0..TRIES {
        let target = area * between(scale, random);
        let shape = between((ratio.0.ln(), ratio.1.ln()), random).exp();
        // Python rounds a half to the even neighbour.
        let crop_width = (target * shape).sqrt().round_ties_even() as usize;
        let crop_height = (target / shape).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
            let top = random.below((height - crop_height + 1) as u64) as usize;
            let left = random.below((width - crop_width + 1) as u64) as usize;
            return Area { left, top, width: crop_width, height: crop_height };
        }
    }
    centre(width, height, ratio)
}

/// The greatest part around the centre whose shape is allowed.
fn centre(width: usize, height: usize, ratio: (f64, f64)) -> Area {
    let shape = width as f64 / height as f64;
    let (crop_width, crop_height) = if shape < ratio.0 {
        (width, (width as f64 / ratio.0).round_ties_even() as usize)
    } else if shape > ratio.1 {
        ((height as f64 * ratio.1).round_ties_even() as usize, height)
    } else {
        (width, height)
    };
    let (crop_width, crop_height) = (crop_width.clamp(1, width), crop_height.clamp(1, height));
    Area {
        left: (width - crop_width) / 2,
        top: (height - crop_height) / 2,
        width: crop_width,
        height: crop_height,
    }
}

fn between((low, high): (f64, f64), random: &mut SplitMix64) -> f64 {
    low + (high - low) * random.uniform()
}

/// A part of an image by itself. Pillow resizes after cropping, so pixels beyond the box have no influence.
pub fn crop(image: &RgbImage, area: Area) -> RgbImage {
    let rows = image.pixels.chunks_exact(image.width * 3).skip(area.top).take(area.height);
    let inside = area.left * 3..(area.left + area.width) * 3;
    let mut pixels = Vec::with_capacity(area.width * area.height * 3);
    rows.for_each(|row| pixels.extend_from_slice(&row[inside.clone()]));
    RgbImage { width: area.width, height: area.height, pixels }
}

/// Left becomes right.
pub fn mirror(image: &mut RgbImage) {
    for row in image.pixels.chunks_exact_mut(image.width * 3) {
        let (mut left, mut right) = (0, image.width - 1);
        while left < right {
            (0..3).for_each(|channel| row.swap(left * 3 + channel, right * 3 + channel));
            (left, right) = (left + 1, right - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pixel (x, y) is (x, y, 7).
    fn coordinates(width: usize, height: usize) -> RgbImage {
        let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 7])).collect();
        RgbImage { width, height, pixels }
    }

    const MAE_CROP: ((f64, f64), (f64, f64)) = ((0.2, 1.0), RATIO);

    #[test]
    fn the_box_is_what_torchvisions_rule_gives_for_the_same_draws() {
        // torchvision's get_params written out in Python with SplitMix64's draws in place of torch's: the first box
        // fits at once, the second at the third try, the third at the fifth.
        let found = |width, height, seed| {
            random_box(width, height, MAE_CROP.0, MAE_CROP.1, &mut SplitMix64::new(seed))
        };
        assert_eq!(found(640, 480, 7), Area { left: 131, top: 21, width: 345, height: 456 });
        assert_eq!(found(200, 100, 1), Area { left: 39, top: 0, width: 114, height: 98 });
        assert_eq!(found(200, 100, 7), Area { left: 16, top: 13, width: 76, height: 80 });
    }

    #[test]
    fn an_image_too_long_for_any_box_gives_its_centre() {
        // Whole area of 400 × 10: a shape of 4/3 at most would need a height of 55.
        let long = random_box(400, 10, (1.0, 1.0), RATIO, &mut SplitMix64::new(1));
        // int(round(10 · 4/3)) = 13 wide, (400 − 13) // 2 = 193.
        assert_eq!(long, Area { left: 193, top: 0, width: 13, height: 10 });
        let high = random_box(10, 400, (1.0, 1.0), RATIO, &mut SplitMix64::new(1));
        assert_eq!(high, Area { left: 0, top: 193, width: 10, height: 13 });
        let square = random_box(7, 7, (2.0, 3.0), RATIO, &mut SplitMix64::new(1));
        assert_eq!(square, Area { left: 0, top: 0, width: 7, height: 7 });
        let pixel = random_box(1, 1, (0.01, 0.02), RATIO, &mut SplitMix64::new(1));
        assert_eq!((pixel.width, pixel.height), (1, 1));
    }

    #[test]
    fn areas_shapes_and_places_are_distributed_as_they_should_be() {
        // A square with scale up to ½ and shapes up to 4/3: every first try fits, √(½ · 4/3) < 1.
        let (side, n) = (1000, 20_000);
        let mut random = SplitMix64::new(3);
        let boxes: Vec<Area> =
            (0..n).map(|_| random_box(side, side, (0.1, 0.5), RATIO, &mut random)).collect();
        let mean = |value: &dyn Fn(&Area) -> f64| boxes.iter().map(value).sum::<f64>() / n as f64;
        let area = mean(&|b| (b.width * b.height) as f64 / 1e6);
        // Uniform on (0.1, 0.5): mean 0.3, deviation 0.1155, of the mean of 20,000 0.0008.
        assert!((area - 0.3).abs() < 0.004, "{area}");
        let log_shape = mean(&|b| (b.width as f64 / b.height as f64).ln());
        // Uniform on ±0.2877: deviation 0.166, of the mean 0.0012.
        assert!(log_shape.abs() < 0.006, "{log_shape}");
        let place = mean(&|b| b.left as f64 / (side - b.width) as f64);
        assert!((place - 0.5).abs() < 0.01, "{place}");
        let extreme = boxes.iter().map(|b| b.width as f64 / b.height as f64).fold(0.0, f64::max);
        assert!(extreme > 1.32 && extreme < 1.34, "{extreme}");
    }

    #[test]
    fn a_crop_is_resized_without_looking_beyond_it() {
        let image = coordinates(40, 30);
        let area = Area { left: 5, top: 4, width: 20, height: 10 };
        let cut = crop(&image, area);
        assert_eq!((cut.width, cut.height, &cut.pixels[..3]), (20, 10, &[5, 4, 7][..]));
        assert_eq!(cut.pixels[cut.pixels.len() - 3..], [24, 13, 7]);
        // The step's own stream, repeated by hand.
        let mut random = initial::stream(9, "augment/12/3");
        let area = random_box(40, 30, MAE_CROP.0, MAE_CROP.1, &mut random);
        let mut expected = resize(&crop(&image, area), 16, 16);
        if random.below(2) == 1 {
            mirror(&mut expected);
        }
        assert_eq!(Augment::MAE.apply(&image, 16, 9, 12, 3), expected);
    }

    #[test]
    fn mirroring_twice_changes_nothing_and_happens_half_the_time() {
        let image = coordinates(5, 2);
        let mut mirrored = image.clone();
        mirror(&mut mirrored);
        assert_eq!(mirrored.pixels[..6], [4, 0, 7, 3, 0, 7]);
        let how = Augment { flip: true, ..Augment::NONE };
        let (plain, other) = (resize(&image, 5, 5), resize(&mirrored, 5, 5));
        let flips = (0..1000)
            .filter(|step| {
                let found = how.apply(&image, 5, 1, *step, 0);
                assert!(found == plain || found == other);
                found == other
            })
            .count();
        // 1,000 coins: four standard deviations are 63.
        assert!(flips.abs_diff(500) < 63, "{flips}");
        mirror(&mut mirrored);
        assert_eq!(mirrored, image);
        assert_eq!(Augment::NONE.apply(&image, 5, 1, 2, 3), plain);
    }

    #[test]
    fn another_step_position_or_seed_is_another_crop() {
        let image = coordinates(200, 200);
        let crop = |seed, step, position| Augment::MAE.apply(&image, 32, seed, step, position);
        assert_eq!(crop(1, 2, 3), crop(1, 2, 3));
        for other in [crop(2, 2, 3), crop(1, 3, 3), crop(1, 2, 4)] {
            assert_ne!(other, crop(1, 2, 3));
        }
    }
}
