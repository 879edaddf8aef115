//! Where an image's pixels are: a file, a place in an archive, a row of a table, or an array in memory. Sets of image
//! files are read when an image is needed, so memory does not grow with them; CIFAR, SVHN and MNIST are arrays that fit.

use super::image::{RgbImage, decode, decode_file};
use super::parquet_table::Table;
use anyhow::{Context, Result, bail, ensure};
use flate2::read::DeflateDecoder;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest image file that is inflated, bytes: a bound on memory when an archive is damaged or hostile.
const INFLATED_MAX: u64 = 256 << 20;

/// Where an image's pixels are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// An image file and its digest, where known.
    File {
        /// The file.
        path: PathBuf,
        /// Its sha256.
        sha256: Option<String>,
    },
    /// An image file inside a tar or zip.
    Member {
        /// The archive.
        file: Arc<Path>,
        /// The image's path in it.
        name: String,
        /// Where its bytes begin.
        begin: u64,
        /// How many there are.
        length: u64,
        /// Whether they are deflated, as a zip may hold them.
        deflated: bool,
    },
    /// An image file in a column of a parquet file.
    Row {
        /// The file.
        table: Arc<Table>,
        /// Which row.
        row: usize,
    },
    /// `[height, width]` in a larger array.
    Grey {
        /// The array.
        bytes: Arc<[u8]>,
        /// Where the image begins.
        begin: usize,
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// `[3, height, width]` in a larger array.
    Planes {
        /// The file that the array was read from.
        file: Arc<Path>,
        /// Place of the image in it, from 0.
        at: usize,
        /// The array.
        bytes: Arc<[u8]>,
        /// Where the image begins.
        begin: usize,
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
    },
}

impl Source {
    /// The image, 8-bit RGB.
    pub fn decode(&self) -> Result<RgbImage> {
        match self {
            Source::File { path, sha256 } => decode_file(path, sha256.as_deref()),
            Source::Member { .. } | Source::Row { .. } => {
                let context = || format!("the image {}", self.name());
                let bytes = self.encoded().with_context(context)?;
                decode(&bytes)
                    .with_context(|| format!("{} cannot be decoded; replace it or take it out", context()))
            }
            Source::Grey { bytes, begin, width, height } => {
                Ok(RgbImage::from_grey(*width, *height, &bytes[*begin..begin + width * height]))
            }
            Source::Planes { bytes, begin, width, height, .. } => {
                Ok(RgbImage::from_planes(*width, *height, &bytes[*begin..begin + 3 * width * height]))
            }
        }
    }

    /// The bytes of the image file; an error where the image is a place in an array.
    pub fn encoded(&self) -> Result<Vec<u8>> {
        match self {
            Source::File { path, .. } => Ok(std::fs::read(path)?),
            Source::Member { file, begin, length, deflated, .. } => {
                let bytes = read_range(file, *begin, *length)?;
                if *deflated { inflate(&bytes) } else { Ok(bytes) }
            }
            Source::Row { table, row } => table.bytes(*row),
            Source::Grey { .. } | Source::Planes { .. } => bail!("{} is in no image file", self.name()),
        }
    }

    /// What a report calls the image: its file, or its place in the array.
    pub fn name(&self) -> String {
        match self {
            Source::File { path, .. } => path.display().to_string(),
            Source::Member { file, name, .. } => format!("{}:{name}", file.display()),
            Source::Row { table, row } => format!("{}, row {row}", table.path().display()),
            Source::Grey { begin, width, height, .. } => format!("image {}", begin / (width * height).max(1)),
            Source::Planes { file, at, .. } => format!("{}, image {at}", file.display()),
        }
    }
}

/// Some bytes of a file.
pub fn read_range(path: &Path, begin: u64, length: u64) -> Result<Vec<u8>> {
    let context = || format!("reading {length} bytes at byte {begin} of {}", path.display());
    let file = File::open(path).with_context(context)?;
    let mut bytes = vec![0; usize::try_from(length).with_context(context)?];
    file.read_exact_at(&mut bytes, begin).with_context(context)?;
    Ok(bytes)
}

fn inflate(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut inflated = Vec::with_capacity(bytes.len());
    let mut decoder = DeflateDecoder::new(bytes).take(INFLATED_MAX + 1);
    decoder.read_to_end(&mut inflated).context("its place in the zip is damaged; fetch the zip again")?;
    ensure!(inflated.len() as u64 <= INFLATED_MAX, "it inflates to more than {INFLATED_MAX} bytes");
    Ok(inflated)
}
