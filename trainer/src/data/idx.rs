//! LeCun's idx format of MNIST and Fashion-MNIST, plain or gzipped: a big-endian header (two zero bytes, 8 for u8, the
//! number of dimensions, then each dimension as u32) and the bytes.

use super::source::Source;
use anyhow::{Context, Result, ensure};
use flate2::read::MultiGzDecoder;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Most bytes of one file after unpacking; MNIST's are 47 million.
const BYTES_MAX: u64 = 4 << 30;

/// The images of one file with the labels of another.
pub fn read(images: &Path, labels: &Path) -> Result<Vec<(Source, u32)>> {
    let (dims, pixels) = read_array(images, 3)?;
    let (label_dims, labels_read) = read_array(labels, 1)?;
    ensure!(
        dims[0] == label_dims[0],
        "{} holds {} images but {} holds {} labels; they do not belong together",
        images.display(),
        dims[0],
        labels.display(),
        label_dims[0]
    );
    let (height, width) = (dims[1], dims[2]);
    ensure!(height > 0 && width > 0, "{} holds images without pixels", images.display());
    let pixels: Arc<[u8]> = pixels.into();
    let image = |at: usize| Source::Grey { bytes: pixels.clone(), begin: at * width * height, width, height };
    Ok(labels_read.iter().enumerate().map(|(at, label)| (image(at), u32::from(*label))).collect())
}

fn read_array(path: &Path, dimensions: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let bytes =
        read_bytes(path).with_context(|| format!("reading {}; is the file complete?", path.display()))?;
    let header = 4 + 4 * dimensions;
    ensure!(
        bytes.len() >= header && bytes[..4] == [0, 0, 8, dimensions as u8],
        "{} is no idx file of bytes with {dimensions} dimensions",
        path.display()
    );
    let dims: Vec<usize> = bytes[4..header]
        .chunks_exact(4)
        .map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]) as usize)
        .collect();
    let expected = dims.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
    let found = bytes.len() - header;
    ensure!(
        expected == Some(found),
        "{} is damaged: its header promises {dims:?} values, it holds {found}; fetch it again",
        path.display()
    );
    Ok((dims, bytes[header..].to_vec()))
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path)?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut unpacked = Vec::new();
    MultiGzDecoder::new(bytes.as_slice()).take(BYTES_MAX).read_to_end(&mut unpacked)?;
    Ok(unpacked)
}
