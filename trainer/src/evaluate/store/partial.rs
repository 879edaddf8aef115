//! Features being written: the batches so far in one file, their checks in another beside it. The process that writes
//! holds a lock on the first, which the system takes back however the process ends; another one that cannot wait writes the
//! same features into files of its own.

use super::{CHECK, Features, Key, Store, check, foot_of, remove, whole_batches};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Ending of the batches so far.
pub(super) const WRITING: &str = "writing";
/// Ending of their checks.
const CHECKS: &str = "checks";

/// Features being written.
#[derive(Debug)]
pub struct Partial {
    store: Store,
    key: Key,
    /// The batches so far. Locked.
    file: File,
    path: PathBuf,
    checks: File,
    /// Length of the checks' first line.
    head: u64,
    done: usize,
}

impl Partial {
    /// Opens the first file that nobody writes.
    pub(super) fn open(store: &Store, key: &Key) -> Result<Partial> {
        let base = store.place.folder.join(key.name()?);
        let free = (0..).find_map(|slot| locked(&base, slot).transpose()).context("no name is free")??;
        Partial::of(store, key, free)
    }

    /// Opens the features, unless another process is writing them.
    pub(super) fn open_alone(store: &Store, key: &Key) -> Result<Option<Partial>> {
        let base = store.place.folder.join(key.name()?);
        locked(&base, 0)?.map(|free| Partial::of(store, key, free)).transpose()
    }

    fn of(store: &Store, key: &Key, (file, path): (File, PathBuf)) -> Result<Partial> {
        let checks = read_write(&path.with_extension(CHECKS))?;
        let mut partial = Partial {
            store: store.clone(),
            key: key.clone(),
            file,
            path,
            checks,
            head: key.line()?.len() as u64,
            done: 0,
        };
        partial.resume().context("looking for what an earlier process has written")?;
        Ok(partial)
    }

    /// Finds the whole batches of an earlier process and cuts off what is behind them.
    fn resume(&mut self) -> Result<()> {
        let line = self.key.line()?;
        let mut checks = Vec::new();
        self.checks.seek(SeekFrom::Start(0))?;
        self.checks.read_to_end(&mut checks)?;
        match checks.strip_prefix(line.as_slice()) {
            Some(checks) => self.done = whole_batches(&self.file, &self.key, checks),
            None => {
                self.checks.set_len(0)?;
                self.checks.write_all_at(&line, 0)?;
            }
        }
        self.checks.set_len(self.place_of_check(self.done))?;
        Ok(self.file.set_len(self.key.bytes_of(self.done).start)?)
    }

    /// How many batches are written.
    pub fn done(&self) -> usize {
        self.done
    }

    /// What is written.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Adds the next batch, `[batch, dim]` f32 as little-endian bytes. A full disk is tried once more after features that
    /// nobody uses have been deleted.
    ///
    /// # Errors
    /// A batch of another size; a disk that stays full.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let place = self.key.bytes_of(self.done);
        ensure!(
            self.done < self.key.batches() && bytes.len() as u64 == place.end - place.start,
            "batch {} of {} has {} bytes of features, not {}",
            self.done + 1,
            self.key.batches(),
            bytes.len(),
            place.end - place.start
        );
        let write = |partial: &Partial| {
            partial.file.write_all_at(bytes, place.start)?;
            partial.checks.write_all_at(&check(partial.done, bytes), partial.place_of_check(partial.done))
        };
        let written = match write(self) {
            Err(error) if error.kind() == ErrorKind::StorageFull => {
                self.store.make_room(u64::MAX);
                write(self)
            }
            written => written,
        };
        written.with_context(|| format!("writing features to {}", self.path.display()))?;
        self.done += 1;
        Ok(())
    }

    /// Closes the file under its final name.
    ///
    /// # Errors
    /// Batches that are missing; a file that cannot be written.
    pub fn finish(mut self) -> Result<Features> {
        let Key { from, to, dim, .. } = self.key;
        ensure!(self.done == self.key.batches(), "{} of {} batches are there", self.done, self.key.batches());
        let target = self.store.file(&self.key)?;
        let mut close = || {
            let mut end = Vec::new();
            self.checks.seek(SeekFrom::Start(0))?;
            self.checks.read_to_end(&mut end)?;
            end.extend(foot_of(end.len()));
            self.file.write_all_at(&end, self.key.data_bytes())?;
            self.file.sync_all()?;
            fs::rename(&self.path, &target)
        };
        close().with_context(|| format!("finishing the features {}", target.display()))?;
        remove(&self.path.with_extension(CHECKS));
        self.store.make_room(0);
        Ok(Features { file: self.file, images: to - from, dim })
    }

    fn place_of_check(&self, batch: usize) -> u64 {
        self.head + (batch * CHECK) as u64
    }
}

/// The file of a slot, locked; none where another process writes it.
fn locked(base: &Path, slot: u32) -> Result<Option<(File, PathBuf)>> {
    let path = base.with_extension(format!("{slot}.{WRITING}"));
    loop {
        let file = read_write(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
        }
        // Between opening and locking it may have been finished, or deleted to make room.
        if is_still(&file, &path) {
            return Ok(Some((file, path)));
        }
    }
}

fn read_write(path: &Path) -> Result<File> {
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    open.with_context(|| format!("opening {}", path.display()))
}

fn is_still(file: &File, path: &Path) -> bool {
    let same = |there: fs::Metadata| file.metadata().is_ok_and(|here| here.ino() == there.ino());
    fs::metadata(path).is_ok_and(same)
}

/// Deletes a file of the store, unless a process is writing it.
pub(super) fn delete_unless_written(path: &Path) -> bool {
    if path.extension().is_some_and(|ending| ending == WRITING) {
        let Ok(file) = File::open(path) else { return false };
        if file.try_lock().is_err() || !is_still(&file, path) {
            return false;
        }
        remove(&path.with_extension(CHECKS));
        return fs::remove_file(path).is_ok();
    }
    fs::remove_file(path).is_ok()
}
