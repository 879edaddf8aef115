//! How an attempt ended, as its process leaves it behind: `result.json`, on disk before the process exits. A process
//! that leaves none crashed. Room for the file is taken at the start, so that a full disk can still be told.

use super::interrupt::Interrupted;
use anyhow::{Context, Result};
use causeway_protocol::Outcome;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Name of the file in the attempt's folder.
const FILE_NAME: &str = "result.json";
/// Holds the room until the end.
const RESERVED: &str = "result.reserved";
/// Room for the result, bytes.
const ROOM: usize = 4096;
/// Longest reason that is kept, characters: with JSON's escapes it fits into the room.
const REASON_MAX: usize = 1000;

/// Exit code of a process whose attempt failed for good.
pub const EXIT_FAILED: i32 = 3;
/// Exit code of a process that found the disk too full to say anything else: errno's ENOSPC.
pub const EXIT_DISK_FULL: i32 = 28;
/// Exit code after a panic, Rust's own.
pub const EXIT_PANIC: i32 = 101;

/// The end of an attempt in its process's words.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ending {
    /// Succeeded, handed over, yielded, failed or, of a command, crashed.
    pub outcome: Outcome,
    /// Why, in a sentence; empty on success.
    pub reason: String,
}

impl Ending {
    /// Everything was done.
    pub fn succeeded() -> Ending {
        Ending { outcome: Outcome::Succeeded, reason: String::new() }
    }

    /// Training is over, and the parts of the evaluation go on.
    pub fn handed_over() -> Ending {
        Ending { outcome: Outcome::HandedOver, reason: String::new() }
    }

    /// It left when it was told to; another attempt goes on from its state.
    pub fn yielded(interrupted: &Interrupted) -> Ending {
        Ending { outcome: Outcome::Yielded, reason: interrupted.to_string() }
    }

    /// The program ended otherwise than it should; another attempt may do better.
    pub fn crashed(reason: &str) -> Ending {
        Ending { outcome: Outcome::Crashed, reason: cut(reason) }
    }

    /// Another attempt would fail in the same way.
    pub fn failed(error: &anyhow::Error) -> Ending {
        let mut reason: String = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
        if is_disk_full(error) {
            reason = format!("the worker's disk is full; make room and submit the run again ({reason})");
        }
        Ending { outcome: Outcome::Failed, reason: cut(&reason) }
    }

    /// What the process of this folder left behind; none if it has not ended, or crashed.
    pub fn read(folder: &Path) -> Result<Option<Ending>> {
        let path = folder.join(FILE_NAME);
        let context = || format!("reading {}", path.display());
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).with_context(context),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(context),
        }
    }

    /// Takes the room, and removes the result of an earlier process in the same folder.
    pub fn reserve(folder: &Path) -> Result<()> {
        let result = std::fs::remove_file(folder.join(FILE_NAME));
        if let Err(error) = result
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("removing {FILE_NAME} in {}", folder.display()));
        }
        let write = || {
            let mut file = File::create(folder.join(RESERVED))?;
            file.write_all(&[b' '; ROOM])?;
            file.sync_all()
        };
        write().with_context(|| format!("reserving room for {FILE_NAME} in {}", folder.display()))
    }

    /// Writes the result into the room and gives it its name: after this it is there, whole, whatever happens.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let write = || {
            let mut text = serde_json::to_vec(self)?;
            // JSON may end in spaces; overwriting the room in full asks the file system for nothing new.
            text.resize(text.len().max(ROOM), b' ');
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(false).open(folder.join(RESERVED))?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(folder.join(RESERVED), folder.join(FILE_NAME))?;
            File::open(folder)?.sync_all()
        };
        write().with_context(|| format!("writing {FILE_NAME} in {}", folder.display()))
    }
}

/// As much of a reason as there is room for.
fn cut(reason: &str) -> String {
    if reason.chars().count() > REASON_MAX {
        return reason.chars().take(REASON_MAX - 1).chain(['…']).collect();
    }
    reason.to_owned()
}

/// Whether a full disk is among an error's causes, also where a library kept only its text.
pub fn is_disk_full(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
            || cause.to_string().contains("No space left on device")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_whole_and_replaces_an_earlier_one() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Ending::read(folder.path()).unwrap(), None);
        Ending::reserve(folder.path()).unwrap();
        let failed = Ending::failed(&anyhow::anyhow!("line one\nline two").context("reading a file"));
        assert_eq!(failed.reason, "reading a file: line one line two");
        failed.write(folder.path()).unwrap();
        assert_eq!(Ending::read(folder.path()).unwrap(), Some(failed));
        Ending::reserve(folder.path()).unwrap();
        assert_eq!(Ending::read(folder.path()).unwrap(), None);
        Ending::succeeded().write(folder.path()).unwrap();
        assert_eq!(Ending::read(folder.path()).unwrap(), Some(Ending::succeeded()));
    }

    #[test]
    fn a_full_disk_is_told_as_such_through_any_error() {
        let io = std::io::Error::from_raw_os_error(libc::ENOSPC);
        let told = Ending::failed(&anyhow::Error::new(io).context("writing the checkpoint"));
        assert!(told.reason.starts_with("the worker's disk is full; make room"), "{}", told.reason);
        let text = anyhow::anyhow!("unexpected pos: No space left on device");
        assert!(is_disk_full(&text));
        assert!(!is_disk_full(&anyhow::anyhow!("a NaN loss")));
    }

    #[test]
    fn a_long_reason_still_fits_into_the_room() {
        let folder = tempfile::tempdir().unwrap();
        let failed = Ending::failed(&anyhow::anyhow!("€\"".repeat(5000)));
        failed.write(folder.path()).unwrap();
        assert_eq!(std::fs::metadata(folder.path().join(FILE_NAME)).unwrap().len(), ROOM as u64);
        assert_eq!(Ending::read(folder.path()).unwrap(), Some(failed));
    }
}
