//! A file on its way to a server, piece by piece. How long to be patient is for the sender to decide: it asks how many bytes
//! have arrived, sends the piece that follows, and after a cut asks again.

use anyhow::{Context, Result};
use causeway_protocol::{UPLOAD_LENGTH, UPLOAD_OFFSET, UPLOAD_PIECE_BYTES};
use reqwest::{
    Body, RequestBuilder,
    header::{CONTENT_LENGTH, HeaderMap},
};
use std::{
    io::SeekFrom,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
};
use tokio_util::io::ReaderStream;

/// Read buffer, bytes.
const BUFFER: usize = 1 << 20;
/// How long an answer may take on top of the bytes.
const ANSWER: Duration = Duration::from_secs(30);
/// Slowest line that takes a piece in one request, bytes per second; a slower one takes it in several.
const LINE_RATE: u64 = 256 * 1024;
/// Slowest server, reading a whole blob back and hashing it, bytes per second.
const HASH_RATE: u64 = 64 << 20;

/// A file to upload.
#[derive(Clone, Debug)]
pub struct Upload {
    path: PathBuf,
    /// Its length.
    pub bytes: u64,
}

impl Upload {
    /// Looks at the file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(path: &Path) -> Result<Upload> {
        let file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let bytes = file.metadata().with_context(|| format!("reading {}", path.display()))?.len();
        Ok(Upload { path: path.to_owned(), bytes })
    }

    /// How many bytes of the file have arrived, by the headers of the server's answer to HEAD; none if they do not say so.
    pub fn arrived(&self, headers: &HeaderMap) -> u64 {
        let told = headers.get(UPLOAD_OFFSET).and_then(|value| value.to_str().ok());
        told.and_then(|told| told.parse().ok()).unwrap_or(0).min(self.bytes)
    }

    /// How many bytes the piece has that begins there.
    fn piece(&self, offset: u64) -> u64 {
        UPLOAD_PIECE_BYTES.min(self.bytes.saturating_sub(offset))
    }

    /// Longest that the piece which begins there may take: the last one is answered when the whole blob has been hashed.
    fn timeout(&self, offset: u64) -> Duration {
        let piece = self.piece(offset);
        let hashed = if offset + piece == self.bytes { self.bytes } else { 0 };
        ANSWER + Duration::from_secs(piece / LINE_RATE + hashed / HASH_RATE)
    }

    /// Gives a PATCH the piece that begins there.
    ///
    /// # Errors
    /// If the file cannot be read, for example because it is gone.
    pub async fn send(&self, request: RequestBuilder, offset: u64) -> Result<RequestBuilder> {
        let context = || format!("reading {}", self.path.display());
        let mut file = File::open(&self.path).await.with_context(context)?;
        file.seek(SeekFrom::Start(offset)).await.with_context(context)?;
        let piece = file.take(self.piece(offset));
        Ok(request
            .timeout(self.timeout(offset))
            .header(UPLOAD_OFFSET, offset)
            .header(UPLOAD_LENGTH, self.bytes)
            .header(CONTENT_LENGTH, self.piece(offset))
            .body(Body::wrap_stream(ReaderStream::with_capacity(piece, BUFFER))))
    }
}
