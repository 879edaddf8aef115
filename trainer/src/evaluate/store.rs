//! Features on disk: what an encoder says of a dataset's images, kept under everything that decides it. A sweep writes
//! them batch by batch, so its memory does not grow with the dataset, a sweep that was stopped goes on behind the last
//! whole batch, and what one run has computed no other run of this worker computes again: θ0's features (α = 0) above all.
//!
//! A finished file is `[images, dim]` f32, little-endian, so that it can be mapped as one tensor, then the checks: the
//! key as a line of JSON, the first eight bytes of sha256(batch number ‖ batch) for each batch, the length of all that,
//! and a magic word. While it is written the checks grow in a file of their own. Nothing is read that its check does not
//! vouch for: a torn end is cut off, a damaged file deleted and made again.

mod partial;
#[cfg(test)]
mod tests;

pub use partial::Partial;

use anyhow::{Context, Result, ensure};
use causeway_protocol::{Alpha, NumericsStamp, sha256_hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tch::{Device, Kind, Tensor};

/// Most bytes of features that a folder keeps, unless told otherwise.
pub const MOST_BYTES: u64 = 8 << 30;
/// Ends a finished file.
const MAGIC: &[u8; 8] = b"CSWYFEA1";
/// Length of the checks, and the magic word.
const FOOT: u64 = 16;
/// Bytes of a batch's check.
const CHECK: usize = 8;
/// Of a finished file's name.
const FINISHED: &str = "features";

/// Where features are kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Place {
    /// The folder; several processes may share it.
    pub folder: PathBuf,
    /// Most bytes that stay there: what was unused longest goes first. What a sweep is working on may exceed it.
    pub most_bytes: u64,
}

/// What features are of and what made them. Equal keys promise equal bits.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Key {
    /// Digest of θ0.
    pub backbone: String,
    /// Digest of the checkpoint; none at α = 0.
    pub checkpoint: Option<String>,
    /// α.
    pub alpha: Alpha,
    /// Digest of the dataset.
    pub dataset: String,
    /// How an image becomes a feature: [`causeway_protocol::Evaluation::feature_id`].
    pub features: String,
    /// What computed.
    pub stamp: NumericsStamp,
    /// The build and the processor: a stamp tells the version, and of a GPU not the processor that feeds it.
    pub made_by: String,
    /// The first image, a multiple of the stamp's batch.
    pub from: usize,
    /// Behind the last image.
    pub to: usize,
    /// Width of a feature.
    pub dim: usize,
}

impl Key {
    /// Number of batches.
    pub fn batches(&self) -> usize {
        (self.to - self.from).div_ceil(self.batch_size())
    }

    /// Number of images in the first batches.
    pub fn images_in(&self, batches: usize) -> usize {
        (batches * self.batch_size()).min(self.to - self.from)
    }

    fn batch_size(&self) -> usize {
        self.stamp.batch_size.max(1) as usize
    }

    /// Bytes of a row.
    fn row(&self) -> usize {
        self.dim * size_of::<f32>()
    }

    /// Where a batch's bytes are.
    fn bytes_of(&self, batch: usize) -> Range<u64> {
        let at = |batch: usize| (self.images_in(batch) * self.row()) as u64;
        at(batch)..at(batch + 1)
    }

    fn data_bytes(&self) -> u64 {
        self.bytes_of(self.batches()).start
    }

    /// The checks' first line.
    fn line(&self) -> Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self).context("writing a key as JSON")?;
        line.push(b'\n');
        Ok(line)
    }

    fn name(&self) -> Result<String> {
        Ok(sha256_hex(&self.line()?))
    }
}

/// A batch's check.
fn check(batch: usize, bytes: &[u8]) -> [u8; CHECK] {
    let sum = Sha256::new().chain_update((batch as u64).to_le_bytes()).chain_update(bytes).finalize();
    let mut check = [0; CHECK];
    check.copy_from_slice(&sum[..CHECK]);
    check
}

/// How many of the first batches are in the file as their checks say.
fn whole_batches(file: &File, key: &Key, checks: &[u8]) -> usize {
    let mut bytes = Vec::new();
    let is_whole = |(batch, expected): &(usize, &[u8])| {
        let place = key.bytes_of(*batch);
        bytes.resize((place.end - place.start) as usize, 0);
        file.read_exact_at(&mut bytes, place.start).is_ok() && check(*batch, &bytes) == **expected
    };
    checks.chunks_exact(CHECK).take(key.batches()).enumerate().take_while(is_whole).count()
}

/// A folder of features.
#[derive(Clone, Debug)]
pub struct Store {
    place: Place,
}

/// Features that are complete and sound.
#[derive(Debug)]
pub struct Features {
    file: File,
    images: usize,
    dim: usize,
}

impl Features {
    /// The features, mapped from the file: they are read when they are looked at, and need no memory of their own.
    /// `[images, dim]`, f32
    ///
    /// # Errors
    /// A system that cannot map the file.
    pub fn tensor(&self) -> Result<Tensor> {
        // By its descriptor: the name may have been removed to make room.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let values = (self.images * self.dim) as i64;
        let flat = Tensor::f_from_file(&path, false, values, (Kind::Float, Device::Cpu));
        let flat = flat.context("mapping features into memory")?;
        Ok(flat.reshape([self.images as i64, self.dim as i64]))
    }

    /// The bytes of a batch.
    fn batch(&self, key: &Key, batch: usize) -> Result<Vec<u8>> {
        let place = key.bytes_of(batch);
        let mut bytes = vec![0; (place.end - place.start) as usize];
        self.file.read_exact_at(&mut bytes, place.start).context("reading features")?;
        Ok(bytes)
    }
}

impl Store {
    /// Opens the folder, or makes it.
    pub fn open(place: &Place) -> Result<Store> {
        let folder = &place.folder;
        fs::create_dir_all(folder)
            .with_context(|| format!("making the folder of features {}", folder.display()))?;
        Ok(Store { place: place.clone() })
    }

    /// Where the finished file of a key is or will be.
    pub fn file(&self, key: &Key) -> Result<PathBuf> {
        Ok(self.place.folder.join(key.name()?).with_extension(FINISHED))
    }

    /// Features that were finished before. A file that is not what its checks say is deleted.
    pub fn find(&self, key: &Key) -> Result<Option<Features>> {
        let path = self.file(key)?;
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
        };
        if !is_sound(&file, key)? {
            remove(&path);
            return Ok(None);
        }
        // The time of the last use, by which the oldest go. Where it cannot be set, the file only looks older.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(Features { file, images: key.to - key.from, dim: key.dim }))
    }

    /// Begins to write features, or goes on behind the last whole batch of a process that was stopped.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn begin(&self, key: &Key) -> Result<Partial> {
        ensure!(key.from < key.to && key.dim > 0, "{} to {} are no images", key.from, key.to);
        self.make_room(key.data_bytes());
        Partial::open(self, key)
    }

    /// The same, unless another process is writing them.
    ///
    /// # Errors
    /// As for `begin`.
    pub fn begin_alone(&self, key: &Key) -> Result<Option<Partial>> {
        ensure!(key.from < key.to && key.dim > 0, "{} to {} are no images", key.from, key.to);
        self.make_room(key.data_bytes());
        Partial::open_alone(self, key)
    }

    /// Puts the features of neighbouring ranges of images together, as one sweep would have written them. None where one
    /// of them is not here.
    ///
    /// # Errors
    /// Ranges that are not the whole one after the other, or do not end where a batch does.
    pub fn merge(&self, whole: &Key, ranges: &[Range<usize>]) -> Result<Option<Features>> {
        if let Some(found) = self.find(whole)? {
            return Ok(Some(found));
        }
        let ends = ranges.iter().map(|range| range.end);
        let begins = std::iter::once(whole.from).chain(ends);
        let in_turn = begins.zip(ranges).all(|(begin, range)| {
            let aligned = (range.start - whole.from).is_multiple_of(whole.batch_size());
            range.start == begin && range.start < range.end && aligned
        });
        ensure!(
            in_turn && ranges.last().is_some_and(|last| last.end == whole.to),
            "{ranges:?} are not the images {} to {} one after the other, in batches of {}",
            whole.from,
            whole.to,
            whole.batch_size()
        );
        let key = |range: &Range<usize>| Key { from: range.start, to: range.end, ..whole.clone() };
        let mut parts = Vec::new();
        for range in ranges {
            let Some(part) = self.find(&key(range))? else { return Ok(None) };
            parts.push((key(range), part));
        }
        let mut merged = self.begin(whole)?;
        let batches = parts.iter().flat_map(|(key, part)| (0..key.batches()).map(move |at| (key, part, at)));
        for (key, part, at) in batches.skip(merged.done()) {
            merged.append(&part.batch(key, at)?)?;
        }
        merged.finish().map(Some)
    }

    /// Takes in the finished file of a key that was made elsewhere.
    ///
    /// # Errors
    /// A file that is not that, whole and sound.
    pub fn take_in(&self, key: &Key, file: &Path) -> Result<Features> {
        let path = self.file(key)?;
        let mine = path.with_extension(format!("{}.new", std::process::id()));
        fs::copy(file, &mine).with_context(|| format!("copying {}", file.display()))?;
        fs::rename(&mine, &path).with_context(|| format!("writing {}", path.display()))?;
        self.find(key)?.with_context(|| format!("{} does not hold the features it should", file.display()))
    }

    /// Deletes what was unused longest until so many more bytes fit, except what a process is writing.
    fn make_room(&self, bytes: u64) {
        let mut files = self.files();
        files.sort_by_key(|(used, ..)| *used);
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in files {
            if total.saturating_add(bytes) <= self.place.most_bytes {
                return;
            }
            if partial::delete_unless_written(&path) {
                total -= size;
            }
        }
    }

    /// Last use, size and path of the finished files and of those being written.
    fn files(&self) -> Vec<(SystemTime, u64, PathBuf)> {
        let entries = fs::read_dir(&self.place.folder).into_iter().flatten().flatten();
        let file = |entry: fs::DirEntry| {
            let path = entry.path();
            let ending = path.extension()?.to_str()?;
            let metadata = entry.metadata().ok()?;
            let ours = [FINISHED, partial::WRITING].contains(&ending);
            ours.then_some((metadata.modified().ok()?, metadata.len(), path))
        };
        entries.filter_map(file).collect()
    }
}

/// Whether a finished file holds the key's features, every batch as its check says.
fn is_sound(file: &File, key: &Key) -> Result<bool> {
    let (line, data) = (key.line()?, key.data_bytes());
    let length = line.len() + key.batches() * CHECK;
    if file.metadata().context("looking at features")?.len() != data + length as u64 + FOOT {
        return Ok(false);
    }
    let mut end = vec![0; length + FOOT as usize];
    file.read_exact_at(&mut end, data).context("reading features")?;
    let (checks, foot) = end.split_at(length);
    let framed = checks.starts_with(&line) && foot == foot_of(length);
    Ok(framed && whole_batches(file, key, &checks[line.len()..]) == key.batches())
}

fn foot_of(length: usize) -> [u8; FOOT as usize] {
    let mut foot = [0; FOOT as usize];
    foot[..8].copy_from_slice(&(length as u64).to_le_bytes());
    foot[8..].copy_from_slice(MAGIC);
    foot
}

/// Removes a file that is no use. One that stays costs disk, not correctness.
fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}
