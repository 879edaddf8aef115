//! Files to the server and from it; both go on where they were cut. Of an upload the server keeps what has arrived, and is
//! asked how much that is.

use super::client::{ANSWER, Answer, Client, Failure, Lease, Refusal, nothing};
use anyhow::{Context, Result, bail};
use causeway_connect::Upload;
use causeway_protocol::hex;
use reqwest::header::RANGE;
use reqwest::{Method, Response, StatusCode};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;
use tokio::fs::OpenOptions;
use tokio::io::AsyncWriteExt;

impl Client {
    /// Sends a blob, unless the server has it.
    pub async fn upload(&self, lease: Lease, sha256: &str, file: &Path) -> Result<(), Refusal> {
        let unreadable = |error: anyhow::Error| Refusal::Refused(format!("{error:#}"));
        let upload = Upload::open(file).map_err(unreadable)?;
        let path = blob(lease, sha256);
        let status = async |response: Response| Ok(response.status());
        let (mut patience, mut furthest, mut damaged) = (self.patience("upload a blob"), 0, false);
        loop {
            let Some(offset) = self.arrived(&path, &upload).await? else { return Ok(()) };
            if offset > furthest {
                (patience, furthest) = (self.patience("upload a blob"), offset);
            }
            let request =
                upload.send(self.request(Method::PATCH, &path), offset).await.map_err(unreadable)?;
            let failure = match self.once("upload a blob", request, status).await {
                Ok(StatusCode::NO_CONTENT) => continue,
                Ok(_) => return Ok(()),
                Err(failure) => failure,
            };
            match failure {
                Failure::Answered(answer) if answer.is("digest-mismatch") && !damaged => {
                    // What had arrived was damaged, on the way or on the server's disk: once more from the start.
                    tracing::warn!(%answer, "sending a blob again");
                    (damaged, furthest) = (true, 0);
                }
                Failure::Answered(answer) if answer.is("mismatching-upload-offset") => {
                    patience.after(Failure::Broken(answer.to_string())).await?; // another sends it too
                }
                failure => patience.after(failure).await?,
            }
        }
    }

    /// How much of a blob has arrived; none if the server has all of it.
    async fn arrived(&self, path: &str, upload: &Upload) -> Result<Option<u64>, Refusal> {
        let head = || self.request(Method::HEAD, path).timeout(ANSWER);
        match self.send("look for a blob", head, nothing).await {
            Ok(()) => Ok(None),
            // There, from another run: this one need not be able to read it.
            Err(Answer { status: StatusCode::FORBIDDEN, .. }) => Ok(None),
            Err(Answer { status: StatusCode::NOT_FOUND, headers, .. }) => Ok(Some(upload.arrived(&headers))),
            // An answer to HEAD has no body that would say more.
            Err(Answer { status: StatusCode::CONFLICT, .. }) => Err(Refusal::Stale),
            Err(answer) => Err(answer.into()),
        }
    }

    /// Fetches a blob into a file, and goes on with what an earlier try has left. The inner error is this machine's: a full
    /// disk, or bytes that are not what their name says.
    pub async fn download(&self, lease: Lease, sha256: &str, file: &Path) -> Result<Result<()>, Refusal> {
        let part = file.with_extension("part");
        let build = || {
            let request = self.request(Method::GET, &blob(lease, sha256));
            match std::fs::metadata(&part).map_or(0, |data| data.len()) {
                0 => request,
                bytes => request.header(RANGE, format!("bytes={bytes}-")),
            }
        };
        let read = async |response| save(response, &part).await;
        let saved = self.send("download a blob", build, read).await?;
        Ok(match saved {
            Ok(()) => name(&part, sha256, file).await,
            Err(error) => Err(error).with_context(|| format!("writing {}", part.display())),
        })
    }
}

fn blob(lease: Lease, sha256: &str) -> String {
    format!("leases/{}/blobs/{sha256}?epoch={}", lease.id, lease.epoch)
}

/// Adds the body of an answer to a file, or begins the file with it. What came before a cut stays.
async fn save(mut response: Response, part: &Path) -> reqwest::Result<std::io::Result<()>> {
    let continues = response.status() == StatusCode::PARTIAL_CONTENT;
    let mut options = OpenOptions::new();
    options.create(true).append(continues).write(true).truncate(!continues);
    let mut writer = match options.open(part).await {
        Ok(writer) => writer,
        Err(error) => return Ok(Err(error)),
    };
    loop {
        let written = match response.chunk().await {
            Ok(Some(piece)) => writer.write_all(&piece).await,
            Ok(None) => return Ok(writer.sync_all().await),
            Err(error) => {
                // The next try asks for what follows, so all that came must be in the file by then.
                return if let Err(error) = writer.flush().await { Ok(Err(error)) } else { Err(error) };
            }
        };
        if written.is_err() {
            return Ok(written);
        }
    }
}

/// Gives a file its name if it is whole and right, and removes it otherwise.
async fn name(part: &Path, sha256: &str, file: &Path) -> Result<()> {
    let hashed = part.to_owned();
    let found = tokio::task::spawn_blocking(move || sha256_of(&hashed)).await.context("hashing")?;
    let found = found.with_context(|| format!("reading {}", part.display()))?;
    if found != sha256 {
        let _ = tokio::fs::remove_file(part).await;
        bail!("the server sent the blob {sha256} with the sha256 {found}");
    }
    tokio::fs::rename(part, file).await.with_context(|| format!("renaming {}", part.display()))
}

fn sha256_of(path: &Path) -> std::io::Result<String> {
    let (mut file, mut hash, mut buffer) = (std::fs::File::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}
