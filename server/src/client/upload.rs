//! A file to the server, named by its digest. What has arrived stays there for a day: a cut line is waited out, and the same
//! command later goes on from there.

use super::http::Server;
use anyhow::{Context, Result, anyhow, bail, ensure};
use causeway_connect::{Upload, explain};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Method, StatusCode};
use sha2::{Digest, Sha256};
use std::{fs::File, io::Read, path::Path, time::Duration};

/// Tries in a row in which nothing arrives, before it is given up.
const TRIES: u32 = 8;
/// Pause before the second try; each doubles it.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the server may take to say what it has.
const PATIENCE: Duration = Duration::from_secs(30);

/// Uploads a file unless it is there, and gives its sha256.
///
/// # Errors
/// If the file cannot be read, the server refuses it, or nothing arrives any more.
pub async fn upload(server: &Server, path: &Path) -> Result<String> {
    let file = Upload::open(path)?;
    let sha256 = digest(path)?;
    let bar = ProgressBar::new(file.bytes)
        .with_style(ProgressStyle::with_template("uploading {msg}  {bytes}/{total_bytes}  {bytes_per_sec}")?);
    bar.set_message(path.display().to_string());
    let mut progress = Progress { furthest: 0, failures: 0 };
    loop {
        let sent = next(server, &file, &format!("/blobs/{sha256}"), &mut progress).await;
        bar.set_position(progress.furthest);
        let error = match sent.with_context(|| format!("uploading {}", path.display()))? {
            Sent::Whole => break,
            Sent::Piece => continue,
            Sent::Cut(error) => error,
        };
        progress.failures += 1;
        ensure!(
            progress.failures < TRIES,
            "uploading {}: {error:#}; given up after {TRIES} tries. {} of {} bytes are there for a day: the same command \
             goes on from there",
            path.display(),
            progress.furthest,
            file.bytes
        );
        tokio::time::sleep(PAUSE * 2u32.pow(progress.failures - 1)).await;
    }
    bar.finish_and_clear();
    Ok(sha256)
}

/// How far it has come.
struct Progress {
    /// Bytes that have arrived.
    furthest: u64,
    /// Tries since then.
    failures: u32,
}

/// What became of a piece.
enum Sent {
    /// The server has all of the file.
    Whole,
    /// It has the piece, and wants more.
    Piece,
    /// It did not arrive, or not all of it.
    Cut(anyhow::Error),
}

/// Sends the piece that the server lacks.
async fn next(server: &Server, file: &Upload, address: &str, progress: &mut Progress) -> Result<Sent> {
    let there = match server.request(Method::HEAD, address).timeout(PATIENCE).send().await {
        Ok(there) => there,
        Err(error) => return Ok(Sent::Cut(anyhow!(explain(error)))),
    };
    let offset = match there.status() {
        StatusCode::NOT_FOUND => file.arrived(there.headers()),
        status if status.is_success() => return Ok(Sent::Whole),
        status if status.is_server_error() => return Ok(Sent::Cut(anyhow!("the server answers {status}"))),
        status => bail!("the server answers {status}"),
    };
    if offset > progress.furthest {
        *progress = Progress { furthest: offset, failures: 0 };
    }
    let request = file.send(server.request(Method::PATCH, address), offset).await?;
    let answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) => return Ok(Sent::Cut(anyhow!(explain(error)))),
    };
    let status = answer.status();
    match Server::check(answer).await {
        Ok(_) if status == StatusCode::NO_CONTENT => Ok(Sent::Piece),
        Ok(_) => Ok(Sent::Whole),
        // Another sends it too, or the server is in trouble: both may pass.
        Err(error) if status == StatusCode::CONFLICT || status.is_server_error() => Ok(Sent::Cut(error)),
        Err(error) => Err(error),
    }
}

fn digest(path: &Path) -> Result<String> {
    let context = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0u8; 1 << 20]);
    loop {
        match file.read(&mut buffer).with_context(context)? {
            0 => return Ok(causeway_protocol::hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}
