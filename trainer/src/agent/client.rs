//! The server, as the agent sees it. A server that does not answer, or answers with an error of its own, is asked again
//! for ever: a control-plane error never ends a training process. Only a refusal reaches the caller.

use crate::random::SplitMix64;
use anyhow::{Context, Result, ensure};
use causeway_connect::{Trust, explain};
use causeway_protocol::{
    EventBatch, EventsAccepted, FinishLease, HeartbeatAnswer, HeartbeatRequest, LeaseGrant, LeaseRequest,
    RegisterWorker, RenewedLease,
};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
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
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// The same for a heartbeat.
const HEARTBEAT_ANSWER: Duration = Duration::from_secs(5);

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
    pub fn new(urls: &[String], trust: &Trust, token_file: &Path) -> Result<Client> {
        let (first, others) = urls.split_first().context("a worker needs the address of a server")?;
        let scheme = trust.check(first)?.scheme().to_owned();
        for url in others {
            ensure!(
                trust.check(url)?.scheme() == scheme,
                "{first} and {url}: give all servers as https or all as http"
            );
        }
        let http = trust
            .client(first)?
            .connect_timeout(Duration::from_secs(5))
            .user_agent(concat!("causeway-trainer/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("making the HTTP client")?;
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
        what: &'static str,
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

    /// A request with the token, which is read anew each time.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let token = std::fs::read_to_string(&self.token_file).unwrap_or_default();
        let base = &self.bases[self.asked() % self.bases.len()];
        self.http.request(method, format!("{base}/{path}")).bearer_auth(token.trim())
    }

    /// Sends a request until the server has answered for good and the answer is read: a server that is killed in the
    /// middle of its answer is asked again.
    pub(super) async fn send<T>(
        &self,
        what: &'static str,
        build: impl Fn() -> RequestBuilder,
        read: impl AsyncFn(Response) -> reqwest::Result<T>,
    ) -> Result<T, Answer> {
        let mut patience = self.patience(what);
        loop {
            match self.once(what, build(), &read).await {
                Ok(answer) => {
                    patience.rewarded();
                    return Ok(answer);
                }
                Err(failure) => patience.after(failure).await?,
            }
        }
    }

    /// Sends a request once.
    pub(super) async fn once<T>(
        &self,
        what: &str,
        request: RequestBuilder,
        read: impl AsyncFn(Response) -> reqwest::Result<T>,
    ) -> Result<T, Failure> {
        let broken = |error| Failure::Broken(explain(error));
        let response = request.send().await.map_err(broken)?;
        if response.status().is_success() {
            read(response).await.map_err(broken)
        } else {
            Err(Failure::Answered(Answer::read(what, response).await))
        }
    }

    /// Patience for something that has not failed yet.
    pub(super) fn patience(&self, what: &'static str) -> Patience<'_> {
        let (begin, complained, backoff) = (Instant::now(), None, BACKOFF.0);
        Patience { what, client: self, asked: self.asked(), begin, complained, backoff }
    }

    fn asked(&self) -> usize {
        self.at.load(Ordering::Relaxed)
    }
}

/// Why a request came to nothing.
pub(super) enum Failure {
    /// There is no answer, or not all of it.
    Broken(String),
    /// It is no success.
    Answered(Answer),
}

/// How one goes on after a failure: later, and without an end where time may help.
pub(super) struct Patience<'a> {
    what: &'static str,
    client: &'a Client,
    /// The server that was asked.
    asked: usize,
    begin: Instant,
    complained: Option<Instant>,
    backoff: Duration,
}

impl Patience<'_> {
    /// Waits until it is time to try again.
    ///
    /// # Errors
    /// The answer, if another try would get the same.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<(), Answer> {
        let (failure, wait) = match failure {
            Failure::Broken(error) => (error, self.backoff),
            Failure::Answered(answer) => {
                let full = answer.status == StatusCode::INSUFFICIENT_STORAGE;
                if !answer.may_change() || (full && self.begin.elapsed() > FULL_PATIENCE) {
                    return Err(answer);
                }
                match answer.status {
                    StatusCode::UNAUTHORIZED => {
                        let file = self.client.token_file.display();
                        (format!("the token in {file} is not a worker token of this server"), BACKOFF_TOKEN)
                    }
                    _ => (answer.to_string(), self.backoff),
                }
            }
        };
        if self.complained.is_none_or(|at| at.elapsed() > COMPLAIN_EVERY) {
            tracing::warn!(what = self.what, failure, "the server does not do it; trying on");
            self.complained = Some(Instant::now());
        }
        // To the next server, unless another request has gone there already.
        let next = self.asked.wrapping_add(1);
        let _ = self.client.at.compare_exchange(self.asked, next, Ordering::Relaxed, Ordering::Relaxed);
        tokio::time::sleep(jittered(wait)).await;
        self.asked = self.client.asked();
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
        Ok(())
    }

    /// It has worked.
    pub(super) fn rewarded(&self) {
        if self.complained.is_some() {
            let seconds = self.begin.elapsed().as_secs();
            tracing::info!(what = self.what, seconds, "the server answers again");
        }
    }
}

/// An answer that is not a success.
#[derive(Debug)]
pub(super) struct Answer {
    what: String,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    kind: String,
    detail: String,
}

impl Answer {
    async fn read(what: &str, response: Response) -> Answer {
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.unwrap_or_default();
        let Problem { kind, title, detail } = serde_json::from_str(&text).unwrap_or_default();
        let detail = if detail.is_empty() { title } else { detail };
        Answer { what: what.to_owned(), status, headers, kind, detail }
    }

    /// Whether the server names its problem so.
    pub(super) fn is(&self, kind: &str) -> bool {
        self.kind.ends_with(kind)
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
            StatusCode::CONFLICT if answer.is("stale-lease") => Refusal::Stale,
            StatusCode::CONFLICT => Refusal::Conflict(answer.to_string()),
            _ => Refusal::Refused(answer.to_string()),
        }
    }
}

pub(super) async fn nothing(response: Response) -> reqwest::Result<()> {
    response.bytes().await.map(drop)
}

/// Half to all of a wait, so that many agents do not ask in step.
fn jittered(wait: Duration) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    wait.mul_f64(0.5 + 0.5 * SplitMix64::new(now.as_nanos() as u64).uniform())
}
