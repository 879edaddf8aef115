//! SVHN's cropped digits, format 2: `X`, u8 `[32, 32, 3, images]` in columns, and `y`, where the label 10 is the digit 0.

use super::cifar::{PIXELS, SIDE};
use super::mat::{self, Values};
use super::source::Source;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The digits.
pub const CLASSES: u32 = 10;

/// The images of some files, in order, with their labels.
pub fn read(paths: &[PathBuf]) -> Result<Vec<(Source, u32)>> {
    let mut images = Vec::new();
    for path in paths {
        let context = || format!("reading {}; is it one of SVHN's *_32x32.mat?", path.display());
        images.extend(file(path).with_context(context)?);
    }
    Ok(images)
}

fn file(path: &Path) -> Result<Vec<(Source, u32)>> {
    let [pixels, labels] = mat::read(path, ["X", "y"])?;
    // A single image has no fourth dimension.
    let count = match pixels.dims[..] {
        [SIDE, SIDE, 3] => 1,
        [SIDE, SIDE, 3, count] => count,
        _ => bail!("`X` has the shape {:?}, not [{SIDE}, {SIDE}, 3, images]", pixels.dims),
    };
    let Values::Bytes(mut pixels) = pixels.values else { bail!("`X` holds numbers that are no bytes") };
    pixels.chunks_exact_mut(SIDE * SIDE).for_each(transpose);
    let labels = labels.values.into_numbers();
    ensure!(labels.len() == count, "it holds {count} images but {} labels", labels.len());
    let (shared, pixels): (Arc<Path>, Arc<[u8]>) = (path.into(), pixels.into());
    let image = |(at, label): (usize, f64)| {
        let digit = (0..=10).find(|digit| f64::from(*digit) == label);
        let digit = digit.with_context(|| format!("image {at}: the label is {label}, not 1 to 10"))?;
        let (file, bytes, begin) = (shared.clone(), pixels.clone(), at * PIXELS);
        Ok((Source::Planes { file, at, bytes, begin, width: SIDE, height: SIDE }, digit % CLASSES))
    };
    labels.into_iter().enumerate().map(image).collect()
}

/// A plane of columns becomes one of rows.
fn transpose(plane: &mut [u8]) {
    for row in 0..SIDE {
        for column in row + 1..SIDE {
            plane.swap(row * SIDE + column, column * SIDE + row);
        }
    }
}
