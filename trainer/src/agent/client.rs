//! The server, as the agent sees it. A server that does not answer, or answers with an error of its own, is asked again
//! for ever: a control-plane error never ends a training process. Only a refusal reaches the caller.

use crate::random::SplitMix64;
use anyhow::{Context, Result, ensure};
use causeway_protocol::hex;
use causeway_protocol::{
    EventBatch, EventsAccepted, FinishLease, HeartbeatAnswer, HeartbeatRequest, LeaseGrant, LeaseRequest,
    RegisterWorker, RenewedLease,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

/// Shortest and longest wait before asking again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Wait after a 401: the token has to be put right by a person.
const BACKOFF_TOKEN: Duration = Duration::from_secs(10);
/// How often a failure that goes on is logged again.
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);
/// How long a server may say that its disk is full before that is the end of the attempt.
const FULL_PATIENCE: Duration = Duration::from_secs(30);
/// How long an answer may take on top of what the server was asked to wait.
const ANSWER: Duration = Duration::from_secs(30);
/// The same for a heartbeat.
const HEARTBEAT_ANSWER: Duration = Duration::from_secs(5);
/// Slowest upload or download that is waited for, bytes per second.
const BLOB_RATE: u64 = 256 * 1024;

/// Why the server will not do what it was asked, however often.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The lease is another's now, or gone.
    Stale,
    /// Not in this state; it may be different later.
    Conflict(String),
    /// It understood and said no.
    Refused(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Stale => f.write_str("the lease is gone"),
            Refusal::Conflict(detail) | Refusal::Refused(detail) => f.write_str(detail),
        }
    }
}

/// What the agent needs of a problem+json body.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Problem {
    #[serde(rename = "type")]
    kind: String,
    title: String,
    detail: String,
}

/// A lease and its fence.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// The lease.
    pub id: Uuid,
    /// Its epoch.
    pub epoch: i64,
}

/// The servers' addresses and how to speak to them. They share a database, so any of them will do.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    bases: Arc<[String]>,
    /// The one that is asked now.
    at: Arc<AtomicUsize>,
    token_file: PathBuf,
}

impl Client {
    /// A client of the servers at these URLs: where one does not answer the next is asked. The token is read from its file
    /// for each request, so that it may be replaced.
    pub fn new(urls: &[String], token_file: &Path) -> Result<Client> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .user_agent(concat!("causeway-trainer/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("making the HTTP client")?;
        ensure!(!urls.is_empty(), "a worker needs a server");
        let bases = urls.iter().map(|url| format!("{}/api/v1", url.trim_end_matches('/'))).collect();
        Ok(Client { http, bases, at: Arc::default(), token_file: token_file.to_owned() })
    }

    /// Makes the worker known.
    pub async fn register(&self, worker: &RegisterWorker) -> Result<(), Refusal> {
        let path = format!("workers/{}", worker.id);
        let build = || self.request(Method::PUT, &path).json(worker).timeout(ANSWER);
        Ok(self.send("register", build, nothing).await?)
    }

    /// Asks for work.
    pub async fn request_lease(&self, request: &LeaseRequest) -> Result<Option<LeaseGrant>, Refusal> {
        let timeout = Duration::from_millis(request.wait_ms) + ANSWER;
        let build = || self.request(Method::POST, "leases").json(request).timeout(timeout);
        let read = async |response: Response| match response.status() {
            StatusCode::NO_CONTENT => Ok(None),
            _ => response.json().await.map(Some),
        };
        Ok(self.send("ask for work", build, read).await?)
    }

    /// Renews the lease and waits for an order. An answer that takes much longer than it should is not waited for: the
    /// lease would run out behind a connection on which nothing arrives any more.
    pub async fn heartbeat(&self, lease: Lease, wait_ms: u64) -> Result<HeartbeatAnswer, Refusal> {
        let request = HeartbeatRequest { epoch: lease.epoch, wait_ms };
        let timeout = Duration::from_millis(wait_ms) + HEARTBEAT_ANSWER;
        self.post(lease, "heartbeat", &request, timeout, Response::json).await
    }

    /// Renews the lease of an attempt that was found again.
    pub async fn renew(&self, lease: Lease) -> Result<RenewedLease, Refusal> {
        self.post(lease, "renew", &json!({"epoch": lease.epoch}), ANSWER, Response::json).await
    }

    /// Ships journal and log lines.
    pub async fn ship(&self, lease: Lease, batch: &EventBatch) -> Result<EventsAccepted, Refusal> {
        self.post(lease, "events", batch, ANSWER, Response::json).await
    }

    /// Ends the attempt.
    pub async fn finish(&self, lease: Lease, end: &FinishLease) -> Result<(), Refusal> {
        self.post(lease, "finish", end, ANSWER, nothing).await
    }

    /// Posts something on behalf of a lease. A lease that the server does not know is as stale as one of another
    /// epoch.
    async fn post<T>(
        &self,
        lease: Lease,
        what: &str,
        request: &impl Serialize,
        timeout: Duration,
        read: impl AsyncFn(Response) -> reqwest::Result<T>,
    ) -> Result<T, Refusal> {
        let path = format!("leases/{}/{what}", lease.id);
        let build = || self.request(Method::POST, &path).json(request).timeout(timeout);
        self.send(what, build, read).await.map_err(|answer| match answer.status {
            StatusCode::NOT_FOUND | StatusCode::GONE => Refusal::Stale,
            _ => answer.into(),
        })
    }

    /// Sends a blob, unless the server has it.
    pub async fn upload(&self, lease: Lease, sha256: &str, file: &Path) -> Result<(), Refusal> {
        let path = format!("leases/{}/blobs/{sha256}?epoch={}", lease.id, lease.epoch);
        let head = || self.request(Method::HEAD, &path).timeout(ANSWER);
        match self.send("look for a blob", head, nothing).await {
            Ok(()) => return Ok(()),
            // There, from another run: this one need not be able to read it.
            Err(Answer { status: StatusCode::FORBIDDEN, .. }) => return Ok(()),
            Err(Answer { status: StatusCode::NOT_FOUND, .. }) => {}
            Err(answer) => return Err(answer.into()),
        }
        let open = || -> std::io::Result<(std::fs::File, u64)> {
            let file = std::fs::File::open(file)?;
            let bytes = file.metadata()?.len();
            Ok((file, bytes))
        };
        if let Err(error) = open() {
            return Err(Refusal::Refused(format!("reading {}: {error}", file.display())));
        }
        let put = || {
            let request = self.request(Method::PUT, &path);
            match open() {
                Ok((file, bytes)) => request
                    .header(reqwest::header::CONTENT_LENGTH, bytes)
                    .body(tokio::fs::File::from_std(file))
                    .timeout(blob_timeout(bytes)),
                // Deleted between two tries: an empty body, which the server refuses by its digest.
                Err(_) => request,
            }
        };
        Ok(self.send("upload a blob", put, nothing).await?)
    }

    /// Fetches a blob into a file. The inner error is this machine's: a full disk, or bytes that are not what their
    /// name says.
    pub async fn download(
        &self,
        lease: Lease,
        sha256: &str,
        file: &Path,
    ) -> Result<anyhow::Result<()>, Refusal> {
        let path = format!("leases/{}/blobs/{sha256}?epoch={}", lease.id, lease.epoch);
        let build = || self.request(Method::GET, &path);
        let read = async |response| save(response, sha256, file).await;
        Ok(self.send("download a blob", build, read).await?)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let token = std::fs::read_to_string(&self.token_file).unwrap_or_default();
        let base = &self.bases[self.at.load(Ordering::Relaxed) % self.bases.len()];
        self.http.request(method, format!("{base}/{path}")).bearer_auth(token.trim())
    }

    /// Sends a request until the server has answered for good and the answer is read: a server that is killed in the
    /// middle of its answer is asked again.
    async fn send<T>(
        &self,
        what: &str,
        build: impl Fn() -> RequestBuilder,
        read: impl AsyncFn(Response) -> reqwest::Result<T>,
    ) -> Result<T, Answer> {
        let begin = Instant::now();
        let mut complained: Option<Instant> = None;
        let mut backoff = BACKOFF.0;
        loop {
            let told = |error| (format!("{:#}", anyhow::Error::new(error)), backoff);
            let asked = self.at.load(Ordering::Relaxed);
            let (failure, wait) = match build().send().await {
                Ok(response) if response.status().is_success() => match read(response).await {
                    Ok(answer) => {
                        if complained.is_some() {
                            tracing::info!(
                                what,
                                seconds = begin.elapsed().as_secs(),
                                "the server answers again"
                            );
                        }
                        return Ok(answer);
                    }
                    Err(error) => told(error),
                },
                Ok(response) => {
                    let answer = Answer::read(what, response).await;
                    let full = answer.status == StatusCode::INSUFFICIENT_STORAGE;
                    if !answer.may_change() || (full && begin.elapsed() > FULL_PATIENCE) {
                        return Err(answer);
                    }
                    match answer.status {
                        StatusCode::UNAUTHORIZED => {
                            let file = self.token_file.display();
                            (
                                format!("the token in {file} is not a worker token of this server"),
                                BACKOFF_TOKEN,
                            )
                        }
                        _ => (answer.to_string(), backoff),
                    }
                }
                Err(error) => told(error),
            };
            if complained.is_none_or(|at| at.elapsed() > COMPLAIN_EVERY) {
                tracing::warn!(what, failure, "the server does not do it; trying on");
                complained = Some(Instant::now());
            }
            // To the next server, unless another request has gone there already.
            let _ =
                self.at.compare_exchange(asked, asked.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
            tokio::time::sleep(jittered(wait)).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }
}

/// An answer that is not a success.
#[derive(Debug)]
struct Answer {
    what: String,
    status: StatusCode,
    kind: String,
    detail: String,
}

impl Answer {
    async fn read(what: &str, response: Response) -> Answer {
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        let Problem { kind, title, detail } = serde_json::from_str(&text).unwrap_or_default();
        Answer { what: what.to_owned(), status, kind, detail: if detail.is_empty() { title } else { detail } }
    }

    /// Whether the same request may get another answer later.
    fn may_change(&self) -> bool {
        self.status.is_server_error()
            || matches!(
                self.status,
                StatusCode::UNAUTHORIZED | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
            )
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the server answered {} to \"{}\": {}", self.status, self.what, self.detail)
    }
}

impl From<Answer> for Refusal {
    fn from(answer: Answer) -> Refusal {
        match answer.status {
            StatusCode::CONFLICT if answer.kind.ends_with("stale-lease") => Refusal::Stale,
            StatusCode::CONFLICT => Refusal::Conflict(answer.to_string()),
            _ => Refusal::Refused(answer.to_string()),
        }
    }
}

async fn nothing(response: Response) -> reqwest::Result<()> {
    response.bytes().await.map(drop)
}

/// Writes the body of an answer to a file that gets its name once it is whole and right.
async fn save(mut response: Response, sha256: &str, file: &Path) -> reqwest::Result<anyhow::Result<()>> {
    let temporary = file.with_extension("part");
    let mut writer = match tokio::fs::File::create(&temporary).await {
        Ok(created) => created,
        Err(error) => return Ok(Err(error).with_context(|| format!("creating {}", temporary.display()))),
    };
    let mut hash = Sha256::new();
    while let Some(piece) = response.chunk().await? {
        hash.update(&piece);
        if let Err(error) = writer.write_all(&piece).await {
            return Ok(Err(error).with_context(|| format!("writing {}", temporary.display())));
        }
    }
    let finish = async || -> anyhow::Result<()> {
        writer.sync_all().await.with_context(|| format!("writing {}", temporary.display()))?;
        let found = hex(&hash.finalize());
        ensure!(found == sha256, "the server sent the blob {sha256} with the sha256 {found}");
        tokio::fs::rename(&temporary, file).await.with_context(|| format!("renaming {}", temporary.display()))
    };
    Ok(finish().await)
}

/// Longest an upload may take.
fn blob_timeout(bytes: u64) -> Duration {
    ANSWER + Duration::from_secs(bytes / BLOB_RATE)
}

/// Half to all of a wait, so that many agents do not ask in step.
fn jittered(wait: Duration) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    wait.mul_f64(0.5 + 0.5 * SplitMix64::new(now.as_nanos() as u64).uniform())
}
