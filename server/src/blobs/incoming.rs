//! Uploads in progress. What has come of a blob lies in `incoming/`, and its length is where the upload goes on: after a cut
//! line, after a restart, at another server that shares the folder. A write locks the file and goes to its end only, so of
//! two that send the same bytes each goes on where the other has got to. A file gets its blob's name when it is whole, its
//! bytes have been read back and hashed, and they are on disk.

use super::{BLOB_MAX, BUFFER, storage};
use crate::{Error, Result};
use anyhow::Context;
use axum::{
    body::{Body, Bytes},
    http::HeaderMap,
};
use causeway_protocol::{UPLOAD_LENGTH, UPLOAD_OFFSET};
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a half file waits for the rest.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Which bytes a request brings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// How many come before them.
    pub offset: u64,
    /// How many the whole blob has.
    pub length: u64,
}

impl Piece {
    /// Reads it from the headers of a request.
    ///
    /// # Errors
    /// 400 without both numbers or if they contradict each other, 413 for a blob that is too large.
    pub fn of(headers: &HeaderMap) -> Result<Piece> {
        let number = |name: &str| {
            let text = headers.get(name).and_then(|value| value.to_str().ok());
            text.and_then(|text| text.parse::<u64>().ok())
                .ok_or_else(|| Error::BadRequest(format!("{name}: give a number of bytes")))
        };
        let piece = Piece { offset: number(UPLOAD_OFFSET)?, length: number(UPLOAD_LENGTH)? };
        if piece.length > BLOB_MAX {
            return Err(Error::TooLarge(format!("a blob has at most {BLOB_MAX} bytes")));
        }
        if piece.offset > piece.length {
            return Err(Error::BadRequest(format!("{UPLOAD_OFFSET} is beyond {UPLOAD_LENGTH}")));
        }
        Ok(piece)
    }
}

/// The half file of one blob.
#[derive(Clone, Debug)]
pub struct Incoming(PathBuf);

impl Incoming {
    /// The file at this path; nothing need be there yet.
    pub fn at(path: PathBuf) -> Incoming {
        Incoming(path)
    }

    /// How much has come.
    pub async fn bytes(&self) -> Result<u64> {
        match tokio::fs::metadata(&self.0).await {
            Ok(data) => Ok(data.len()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
            Err(error) => Err(storage(error)),
        }
    }

    /// Takes a piece, and answers how much there is then. What came before a cut is kept.
    ///
    /// # Errors
    /// 409 where the file does not end at the piece's offset, 413 for more bytes than the blob has, 408 for a cut.
    pub async fn take(&self, piece: Piece, body: Body) -> Result<u64> {
        let mut end = self.append(piece.offset, Vec::new()).await?;
        let mut stream = body.into_data_stream();
        loop {
            let (buffer, more) = fill(&mut stream, piece.length - end).await;
            end = self.append(end, buffer).await?;
            match more {
                More::Comes => {}
                More::Ends => return Ok(end),
                More::TooMuch => {
                    return Err(Error::TooLarge(format!("the body goes on after {} bytes", piece.length)));
                }
                More::Broke(error) => {
                    return Err(Error::BrokenOff(format!("{end} bytes have arrived, then {error}")));
                }
            }
        }
    }

    async fn append(&self, at: u64, bytes: Vec<u8>) -> Result<u64> {
        let path = self.0.clone();
        blocking(move || append(&path, at, &bytes)).await
    }

    /// Makes the blob of what has come.
    ///
    /// # Errors
    /// 409 if it is not whole, 400 if its bytes are not what its name says; the half file is gone then.
    pub async fn finish(&self, length: u64, sha256: &str, blob: PathBuf) -> Result<()> {
        let (path, sha256) = (self.0.clone(), sha256.to_owned());
        blocking(move || finish(&path, length, &sha256, &blob)).await
    }

    /// Forgets what has come.
    pub async fn forget(&self) {
        let _ = tokio::fs::remove_file(&self.0).await;
    }
}

/// What follows the bytes at hand.
enum More {
    /// Perhaps others.
    Comes,
    /// Nothing.
    Ends,
    /// Others than the blob has.
    TooMuch,
    /// Nothing that would arrive.
    Broke(axum::Error),
}

/// Gathers bytes for one write, at most `room`.
async fn fill(
    stream: &mut (impl StreamExt<Item = Result<Bytes, axum::Error>> + Unpin),
    room: u64,
) -> (Vec<u8>, More) {
    let mut buffer = Vec::new();
    while buffer.len() < BUFFER {
        match stream.next().await {
            None => return (buffer, More::Ends),
            Some(Err(error)) => return (buffer, More::Broke(error)),
            Some(Ok(chunk)) if (buffer.len() + chunk.len()) as u64 > room => return (buffer, More::TooMuch),
            Some(Ok(chunk)) => buffer.extend_from_slice(&chunk),
        }
    }
    (buffer, More::Comes)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("writing a blob")?
}

fn append(path: &Path, at: u64, bytes: &[u8]) -> Result<u64> {
    let (mut file, here) = locked(path).map_err(storage)?;
    if here != at {
        return Err(Error::UploadOffset { here, given: at });
    }
    file.write_all(bytes).map_err(storage)?;
    Ok(here + bytes.len() as u64)
}

fn finish(path: &Path, length: u64, sha256: &str, blob: &Path) -> Result<()> {
    let (mut file, here) = locked(path).map_err(storage)?;
    if here != length {
        return Err(Error::UploadOffset { here, given: length });
    }
    let found = hash(&mut file).map_err(storage)?;
    if found != sha256 {
        fs::remove_file(path).map_err(storage)?;
        return Err(Error::DigestMismatch(format!(
            "the bytes' sha256 is {found}, not {sha256}; nothing was kept"
        )));
    }
    file.sync_all().map_err(storage)?;
    let folder = blob.parent().context("blob path")?;
    fs::create_dir_all(folder).map_err(storage)?;
    fs::rename(path, blob).map_err(storage)?;
    // The rename is durable once the folder is.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(storage)
}

/// The file and its length, for nobody else until it is closed; the lock goes with its holder, however that one ends.
fn locked(path: &Path) -> io::Result<(File, u64)> {
    loop {
        let file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        file.lock()?;
        let held = file.metadata()?;
        // Whoever had the lock before may have made a blob of this file, or removed it.
        if fs::metadata(path).is_ok_and(|named| named.ino() == held.ino()) {
            return Ok((file, held.len()));
        }
    }
}

fn hash(file: &mut File) -> io::Result<String> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; BUFFER]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(causeway_protocol::hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Removes the half files of a folder that nobody has added to for a day.
///
/// # Errors
/// If the folder cannot be read.
pub fn expire(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(changed) = entry.metadata().and_then(|data| data.modified()) else { continue };
        if changed.elapsed().is_ok_and(|age| age > KEPT) {
            tracing::info!(file = %entry.path().display(), "an upload was not finished within a day");
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_file_grows_at_its_end_only_and_is_named_when_it_is_right() {
        let folder = tempfile::tempdir().unwrap();
        let (half, blob) = (folder.path().join("half"), folder.path().join("ab/blob"));
        assert_eq!(append(&half, 0, b"one ").unwrap(), 4);
        assert!(matches!(append(&half, 0, b"one ").unwrap_err(), Error::UploadOffset { here: 4, given: 0 }));
        assert_eq!(append(&half, 4, b"two").unwrap(), 7);
        let sha256 = causeway_protocol::sha256_hex(b"one two");
        assert!(matches!(finish(&half, 9, &sha256, &blob).unwrap_err(), Error::UploadOffset { here: 7, .. }));
        finish(&half, 7, &sha256, &blob).unwrap();
        assert_eq!((fs::read(&blob).unwrap(), half.exists()), (b"one two".to_vec(), false));
        append(&half, 0, b"other").unwrap();
        assert!(matches!(finish(&half, 5, &sha256, &blob).unwrap_err(), Error::DigestMismatch(_)));
        assert!(!half.exists(), "wrong bytes are not kept");
    }

    #[test]
    fn a_writer_that_waited_while_the_blob_was_made_does_not_write_into_it() {
        let folder = tempfile::tempdir().unwrap();
        let (half, blob) = (folder.path().join("half"), folder.path().join("ab/blob"));
        append(&half, 0, b"whole").unwrap();
        let (file, _) = locked(&half).unwrap();
        let late = std::thread::spawn({
            let half = half.clone();
            move || append(&half, 5, b" and more")
        });
        std::thread::sleep(Duration::from_millis(100));
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::rename(&half, &blob).unwrap();
        drop(file);
        assert!(matches!(late.join().unwrap().unwrap_err(), Error::UploadOffset { here: 0, given: 5 }));
        assert_eq!(fs::read(&blob).unwrap(), b"whole");
    }

    #[test]
    fn half_files_are_kept_for_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        for path in [&old, &new] {
            append(path, 0, b"half").unwrap();
        }
        let yesterday = std::time::SystemTime::now() - KEPT - Duration::from_secs(60);
        File::options().write(true).open(&old).unwrap().set_modified(yesterday).unwrap();
        expire(folder.path()).unwrap();
        assert_eq!((old.exists(), new.exists()), (false, true));
    }
}
