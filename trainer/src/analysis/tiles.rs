//! Small images in one JPEG, row by row: one blob, one request of a browser, and each tile a window on it.

use crate::data::dataset::Source;
use crate::data::image::RgbImage;
use crate::data::resize::resize;
use anyhow::{Context, Result};
use causeway_protocol::{BlobRef, Tiles, sha256_hex};
use image::codecs::jpeg::JpegEncoder;
use std::path::Path;

/// Name of the file in the attempt's folder.
pub const FILE_NAME: &str = "neighbours.jpg";
/// Longest side of a tile, pixels.
const SIDE_MAX: usize = 96;
/// Sides are multiples of this, the largest block that JPEG codes together: no tile bleeds into the next.
const SIDE_STEP: usize = 16;
/// What is around an image that is no square, and behind the last tile.
const GREY: u8 = 127;
/// JPEG's quality: good enough to see why two images are alike.
const QUALITY: u8 = 88;

/// Draws some images into one file. None where there are none.
///
/// # Errors
/// An image that cannot be read, or a file that cannot be written.
pub fn write(folder: &Path, sources: &[&Source]) -> Result<Option<Tiles>> {
    let images = sources.iter().map(|source| source.decode()).collect::<Result<Vec<_>>>()?;
    let Some(largest) = images.iter().map(|image| image.width.max(image.height)).max() else {
        return Ok(None);
    };
    let side = largest.min(SIDE_MAX).next_multiple_of(SIDE_STEP).min(SIDE_MAX);
    let columns = (images.len() as f64).sqrt().ceil() as usize;
    let rows = images.len().div_ceil(columns);
    let mut sheet = RgbImage {
        width: columns * side,
        height: rows * side,
        pixels: vec![GREY; columns * side * rows * side * 3],
    };
    for (tile, image) in images.iter().enumerate() {
        paste(&mut sheet, &fit(image, side), (tile % columns * side, tile / columns * side), side);
    }
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, QUALITY)
        .encode(&sheet.pixels, sheet.width as u32, sheet.height as u32, image::ExtendedColorType::Rgb8)
        .context("writing the small images as JPEG")?;
    let path = folder.join(FILE_NAME);
    std::fs::write(&path, &bytes).with_context(|| format!("writing {}", path.display()))?;
    let blob = BlobRef { sha256: sha256_hex(&bytes), bytes: bytes.len() as u64, file: FILE_NAME.to_owned() };
    Ok(Some(Tiles { blob, side: side as u32, columns: columns as u32, rows: rows as u32 }))
}

/// The whole image within a square that its longer side fills.
fn fit(image: &RgbImage, side: usize) -> RgbImage {
    let longest = image.width.max(image.height);
    let scaled = |length: usize| (length * side).div_ceil(longest).clamp(1, side);
    resize(image, scaled(image.width), scaled(image.height))
}

/// Puts an image into the middle of a tile.
fn paste(sheet: &mut RgbImage, image: &RgbImage, (left, top): (usize, usize), side: usize) {
    let (left, top) = (left + (side - image.width) / 2, top + (side - image.height) / 2);
    for (row, pixels) in image.pixels.chunks_exact(image.width * 3).enumerate() {
        let begin = ((top + row) * sheet.width + left) * 3;
        sheet.pixels[begin..begin + pixels.len()].copy_from_slice(pixels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::image::decode;

    fn grey(width: usize, height: usize, value: u8) -> Source {
        Source::Grey { bytes: vec![value; width * height].into(), begin: 0, width, height }
    }

    #[test]
    fn each_image_is_in_the_middle_of_its_tile() {
        let folder = tempfile::tempdir().unwrap();
        let images = [grey(28, 28, 0), grey(28, 28, 255), grey(28, 14, 200)];
        let tiles = write(folder.path(), &images.iter().collect::<Vec<_>>()).unwrap().unwrap();
        assert_eq!((tiles.side, tiles.columns, tiles.rows), (32, 2, 2));
        let bytes = std::fs::read(folder.path().join(FILE_NAME)).unwrap();
        assert_eq!((tiles.blob.sha256, tiles.blob.bytes), (sha256_hex(&bytes), bytes.len() as u64));
        let sheet = decode(&bytes).unwrap();
        let at = |x: usize, y: usize| i32::from(sheet.pixels[(y * sheet.width + x) * 3]);
        // JPEG rounds: an edge rings by some levels.
        for (x, y, value) in [(16, 16, 0), (48, 16, 255), (16, 48, 200), (16, 36, 127), (48, 48, 127)] {
            assert!((at(x, y) - value).abs() <= 12, "{x} {y}: {} for {value}", at(x, y));
        }
        assert_eq!(write(folder.path(), &[]).unwrap(), None);
    }

    #[test]
    fn large_images_are_shrunk_whole() {
        let folder = tempfile::tempdir().unwrap();
        let tiles = write(folder.path(), &[&grey(400, 100, 50)]).unwrap().unwrap();
        assert_eq!((tiles.side, tiles.columns, tiles.rows), (96, 1, 1));
        let image = fit(&grey(400, 100, 50).decode().unwrap(), 96);
        assert_eq!((image.width, image.height), (96, 24));
    }
}
