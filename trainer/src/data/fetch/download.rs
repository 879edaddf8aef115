//! One file over HTTP, as slow and broken lines have it: what came is kept in `NAME.part` and asked for no more, a server
//! that will not continue is begun again, silence and errors of the server are waited out, and nothing has its final
//! name before its checksum is right.

use super::digests::{Digests, digests};
use super::progress::Progress;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;
use ureq::http::StatusCode;
use ureq::{Agent, Body};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;
/// Chunks that wait to be written.
const CHUNKS: usize = 8;

/// How patient a download is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How often it is tried again without a byte that came.
    pub tries: u32,
    /// Pause before the first of these; the next are twice as long each.
    pub pause: Duration,
    /// How long a connection may be silent.
    pub silence: Duration,
}

impl Patience {
    /// About two minutes of pauses.
    pub const USUAL: Patience =
        Patience { tries: 7, pause: Duration::from_secs(1), silence: Duration::from_secs(60) };
}

/// A file to fetch.
pub struct Download<'a> {
    /// Where from.
    pub url: String,
    /// Where to.
    pub path: PathBuf,
    /// As its owner publishes it.
    pub md5: &'a str,
    /// How patient to be.
    pub patience: Patience,
}

/// Why a try ended.
enum Ended {
    /// Trying again may help.
    Again(anyhow::Error),
    /// It will not.
    Never(anyhow::Error),
}

impl Download<'_> {
    /// Fetches the file, or goes on with what an earlier call left. Returns its digests.
    pub fn run(&self, agent: &Agent) -> Result<Digests> {
        if self.path.is_file() {
            let found = digests(&self.path)?;
            if found.md5 == self.md5 {
                return Ok(found);
            }
            bail!(
                "{} is there, but its md5 is {}, not {}; move it away to fetch it again",
                self.path.display(),
                found.md5,
                self.md5
            );
        }
        let part = self.part();
        let context = || format!("writing {}", part.display());
        let mut file =
            OpenOptions::new().create(true).append(true).read(true).open(&part).with_context(context)?;
        file.try_lock().with_context(|| format!("{}: another fetch is writing it", part.display()))?;
        // A second time from the start, if what was continued does not fit together.
        for second in [false, true] {
            self.fill(agent, &mut file)?;
            file.sync_all().with_context(context)?;
            let found = digests(&part)?;
            if found.md5 == self.md5 {
                std::fs::rename(&part, &self.path).with_context(context)?;
                return Ok(found);
            }
            file.set_len(0).with_context(context)?;
            let told = format!("{} has the md5 {}, its owner says {}", self.url, found.md5, self.md5);
            if second {
                drop(file);
                std::fs::remove_file(&part).with_context(context)?;
                bail!(
                    "{told}, twice: the server gives another file, or damages it; try another with --mirror"
                );
            }
            eprintln!("{told}; fetching it once more from the start");
        }
        bail!("{} was not fetched", self.url)
    }

    fn part(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!("{name}.part"))
    }

    /// Tries until the file is whole.
    fn fill(&self, agent: &Agent, file: &mut File) -> Result<()> {
        let (mut failures, mut pause) = (0, self.patience.pause);
        loop {
            let before = file.metadata()?.len();
            let error = match self.attempt(agent, file) {
                Ok(()) => return Ok(()),
                Err(Ended::Never(error)) => return Err(error),
                Err(Ended::Again(error)) => error,
            };
            let now = file.metadata()?.len();
            if now > before {
                (failures, pause) = (0, self.patience.pause);
            }
            failures += 1;
            ensure!(
                failures < self.patience.tries,
                "{error:#}; given up after {failures} tries, {now} bytes are kept: the same command goes on from there"
            );
            eprintln!("{error:#}; trying again in {pause:.0?} from byte {now}");
            std::thread::sleep(pause);
            pause *= 2;
        }
    }

    fn attempt(&self, agent: &Agent, file: &mut File) -> Result<(), Ended> {
        let held = file.metadata().map_err(never)?.len();
        let mut request = agent.get(&self.url);
        if held > 0 {
            request = request.header("Range", format!("bytes={held}-"));
        }
        let place = || format!("fetching {}", self.url);
        let response = request.call().map_err(|error| Ended::Again(anyhow!(error).context(place())))?;
        let status = response.status();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let length = header("content-length").and_then(|length| length.parse::<u64>().ok());
        let (begin, total) = match status {
            StatusCode::OK => (0, length),
            StatusCode::PARTIAL_CONTENT => {
                let range = header("content-range").and_then(range).filter(|(begin, _)| *begin == held);
                let Some((begin, total)) = range else {
                    file.set_len(0).map_err(never)?;
                    return Err(Ended::Again(anyhow!("{}: the server continues somewhere else", place())));
                };
                (begin, total)
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                // Nothing is left, or the file there is shorter than what is here.
                let total =
                    header("content-range").and_then(|range| range.strip_prefix("bytes */")?.parse().ok());
                if total == Some(held) {
                    return Ok(());
                }
                file.set_len(0).map_err(never)?;
                return Err(Ended::Again(anyhow!(
                    "{}: the file there is not the one that was begun",
                    place()
                )));
            }
            other => {
                let error = anyhow!("{}: the server answers {other}", place());
                let passing = other.is_server_error()
                    || matches!(other, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
                if passing {
                    return Err(Ended::Again(error));
                }
                return Err(Ended::Never(
                    error.context("the file is not there; try another server with --mirror"),
                ));
            }
        };
        if begin == 0 {
            // The server ignores ranges, or nothing was here: from the start.
            file.set_len(0).map_err(never)?;
        }
        if let Some(total) = total {
            super::space::check(&self.path, total.saturating_sub(begin)).map_err(Ended::Never)?;
        }
        file.seek(SeekFrom::End(0)).map_err(never)?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut progress = Progress::new(name, begin, total);
        let chunks = chunks(response.into_body());
        let mut written = begin;
        loop {
            let chunk = match chunks.recv_timeout(self.patience.silence) {
                Ok(Ok(chunk)) => chunk,
                Ok(Err(error)) => return Err(Ended::Again(anyhow!(error).context(place()))),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Ended::Again(anyhow!(
                        "{}: no byte for {:.0?}",
                        place(),
                        self.patience.silence
                    )));
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            file.write_all(&chunk).context("writing what was fetched").map_err(Ended::Never)?;
            written += chunk.len() as u64;
            progress.at(written);
        }
        match total {
            Some(total) if written < total => {
                Err(Ended::Again(anyhow!("{}: the line was cut after {written} of {total} bytes", place())))
            }
            _ => Ok(()),
        }
    }
}

fn never(error: std::io::Error) -> Ended {
    Ended::Never(error.into())
}

/// `bytes 100-999/1000`: where it begins, and the whole length, where told.
fn range(header: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = header.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

/// Reads a body in a thread of its own, so that silence can be told from slowness. A thread whose line never speaks again
/// is left behind; it holds one chunk.
fn chunks(body: Body) -> Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = sync_channel(CHUNKS);
    std::thread::spawn(move || {
        let mut reader = body.into_reader();
        loop {
            let mut chunk = vec![0; CHUNK];
            let read = reader.read(&mut chunk).map(|length| {
                chunk.truncate(length);
                chunk
            });
            let last = read.as_ref().map_or(true, Vec::is_empty);
            if read.as_ref().is_ok_and(Vec::is_empty) || sender.send(read).is_err() || last {
                return;
            }
        }
    });
    receiver
}

/// The client: redirects are followed, statuses are ours to judge.
pub fn agent(silence: Duration) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(silence))
        .timeout_recv_response(Some(silence))
        .user_agent(concat!("causeway-trainer/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

/// Whether a path has an unfinished download beside it.
pub fn unfinished(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_string_lossy();
    std::fs::metadata(path.with_file_name(format!("{name}.part"))).ok().map(|part| part.len())
}
