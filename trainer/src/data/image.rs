//! An image in memory, and how it gets there from a file: 8-bit RGB, alpha composited on white, grey repeated.

use super::jpeg;
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::{hex, sha256_hex};
use image::{DynamicImage, ImageFormat, ImageReader, Limits};
use sha2::{Digest, Sha256};
use std::io::Cursor;
use std::path::Path;

/// Longest side of an image that is decoded, pixels: a bound on memory, far above any dataset here.
pub const SIDE_MAX: u32 = 16_384;

/// 8-bit RGB, rows from the top, three bytes a pixel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RgbImage {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`
    pub pixels: Vec<u8>,
}

impl RgbImage {
    /// From one byte a pixel, repeated in the three channels. `grey` is `[height, width]`.
    pub fn from_grey(width: usize, height: usize, grey: &[u8]) -> RgbImage {
        let pixels = grey.iter().flat_map(|value| [*value; 3]).collect();
        RgbImage { width, height, pixels }
    }

    /// From three planes one after the other, as CIFAR stores them. `planes` is `[3, height, width]`.
    pub fn from_planes(width: usize, height: usize, planes: &[u8]) -> RgbImage {
        let (red, rest) = planes.split_at(width * height);
        let (green, blue) = rest.split_at(width * height);
        let pixels = red.iter().zip(green).zip(blue).flat_map(|((r, g), b)| [*r, *g, *b]).collect();
        RgbImage { width, height, pixels }
    }

    /// sha256 over width and height (u32, little endian) and the pixels: what a dataset's digest names an image by,
    /// whatever file format it came in.
    pub fn pixel_sha256(&self) -> [u8; 32] {
        let mut sha = Sha256::new();
        sha.update((self.width as u32).to_le_bytes());
        sha.update((self.height as u32).to_le_bytes());
        sha.update(&self.pixels);
        sha.finalize().into()
    }

    /// [`RgbImage::pixel_sha256`], 64 hex digits.
    pub fn pixel_digest(&self) -> String {
        hex(&self.pixel_sha256())
    }
}

/// Reads and decodes an image file. Where its sha256 is known it is checked first, so that a damaged file is named
/// even if it still decodes.
pub fn decode_file(path: &Path, sha256: Option<&str>) -> Result<RgbImage> {
    let bytes = std::fs::read(path)
        .with_context(|| format!("reading the image {}; is the dataset complete?", path.display()))?;
    if let Some(expected) = sha256 {
        let found = sha256_hex(&bytes);
        ensure!(
            found == expected,
            "the image {} is damaged: its sha256 is {found}, its list says {expected}; fetch it again",
            path.display()
        );
    }
    decode(&bytes).with_context(|| {
        format!("the image {} cannot be decoded; replace it or take it out of the dataset", path.display())
    })
}

/// Decodes PNG, JPEG, BMP or WebP, told apart by their first bytes.
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    match reader.format() {
        None => bail!("it is not a PNG, JPEG, BMP or WebP file"),
        Some(ImageFormat::Jpeg) => {
            if let Some(image) = jpeg::decode(bytes)? {
                return Ok(image);
            }
        }
        Some(_) => {}
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_MAX);
    limits.max_image_height = Some(SIDE_MAX);
    reader.limits(limits);
    let image = reader.decode()?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    ensure!(width > 0 && height > 0, "it has no pixels");
    let pixels = if image.color().has_alpha() { on_white(image) } else { image.into_rgb8().into_raw() };
    Ok(RgbImage { width, height, pixels })
}

/// c·a + 255·(255 − a), divided by 255 and rounded to nearest: exact at both ends.
fn on_white(image: DynamicImage) -> Vec<u8> {
    let blend = |colour: u8, alpha: u8| {
        let (colour, alpha) = (u32::from(colour), u32::from(alpha));
        ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    let rgba = image.into_rgba8();
    rgba.pixels().flat_map(|p| [blend(p[0], p[3]), blend(p[1], p[3]), blend(p[2], p[3])]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, Rgb, Rgba, RgbaImage};

    fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn alpha_is_composited_on_white_and_grey_repeated() {
        let alphas = [(255, [10, 20, 30]), (0, [255, 255, 255]), (51, [206, 208, 210])];
        for (alpha, expected) in alphas {
            let image = RgbaImage::from_pixel(2, 1, Rgba([10, 20, 30, alpha]));
            assert_eq!(decode(&png(image)).unwrap().pixels[..3], expected, "alpha {alpha}");
        }
        let grey = decode(&png(GrayImage::from_pixel(3, 2, Luma([77])))).unwrap();
        assert_eq!((grey.width, grey.height, grey.pixels), (3, 2, vec![77; 18]));
    }

    #[test]
    fn damaged_files_are_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let bytes = png(GrayImage::from_pixel(30, 20, Luma([77])));
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = format!("{:#}", decode_file(&path, None).unwrap_err());
        assert!(error.contains("a.png cannot be decoded; replace it"), "{error}");
        let error = format!("{:#}", decode_file(&path, Some("00")).unwrap_err());
        assert!(error.contains("damaged") && error.contains("fetch it again"), "{error}");
        let error = format!("{:#}", decode_file(&folder.path().join("b.png"), None).unwrap_err());
        assert!(error.contains("b.png") && error.contains("complete?"), "{error}");
    }

    #[test]
    fn a_jpeg_that_was_cut_off_is_refused_as_pillow_does() {
        let noisy =
            image::RgbImage::from_fn(64, 48, |x, y| Rgb([(x * y) as u8, (x * 31) as u8, (y * 77) as u8]));
        let mut bytes = Cursor::new(Vec::new());
        noisy.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        let bytes = bytes.into_inner();
        decode(&bytes).unwrap();
        for end in [bytes.len() - 2, bytes.len() / 2] {
            let error = decode(&bytes[..end]).unwrap_err().to_string();
            assert!(error.contains("cut off"), "{error}");
        }
        // The whole file as a thumbnail in a comment of the half one, and something after the end.
        let comment = [&[0xff, 0xfe], &(bytes.len() as u16 + 2).to_be_bytes()[..], &bytes].concat();
        let with = |scan: &[u8]| [&bytes[..2], &comment, &scan[2..]].concat();
        assert!(decode(&with(&bytes[..bytes.len() / 2])).is_err());
        decode(&with(&[&bytes[..], b"trailing"].concat())).unwrap();
    }

    #[test]
    fn the_pixel_digest_tells_shapes_apart() {
        let wide = RgbImage { width: 2, height: 1, pixels: vec![0; 6] };
        let high = RgbImage { width: 1, height: 2, pixels: vec![0; 6] };
        assert_ne!(wide.pixel_digest(), high.pixel_digest());
        let planes = RgbImage::from_planes(2, 1, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(planes.pixels, [1, 3, 5, 2, 4, 6]);
    }
}
