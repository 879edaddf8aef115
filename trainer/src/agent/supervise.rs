//! One attempt on this worker, from its lease to its acknowledged end: blobs fetched, process started, lease renewed,
//! lines shipped, orders obeyed, the end told.

use super::Settings;
use super::client::{Client, Lease, Refusal};
use super::folder::{self, Held};
use super::process::{Exit, Watched, crash_reason, out_of_memory_kills};
use super::ship::Shipper;
use crate::attempt::BLOBS;
use crate::attempt::ending::{EXIT_DISK_FULL, Ending, is_disk_full};
use anyhow::{Context, Result};
use causeway_protocol::{FinishLease, Order, Outcome};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// How long the server is asked to hold a heartbeat at most; never longer than a third of the lease, which it renews when
/// it arrives.
const HEARTBEAT_WAIT_MS: u64 = 10_000;
/// Least time between two heartbeats, if the server answers at once.
const HEARTBEAT_PAUSE: Duration = Duration::from_secs(1);
/// Time that a process gets to die when its work counts no more.
const GRACE: Duration = Duration::from_secs(5);
/// How much later than its training process an agent may hear that it is to end.
const MOMENT: Duration = Duration::from_secs(1);
/// Time to tell the server about the end when the agent itself is ending.
const FAREWELL: Duration = Duration::from_secs(5);

/// What interrupts an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Signal {
    /// The server says stop.
    Stop,
    /// The server says: keep the state and give the devices back, within so many milliseconds.
    Yield(u64),
    /// The lease is another's.
    Stale,
    /// The agent is ending.
    Shutdown,
}

/// How an attempt leaves this worker.
enum Left {
    /// The process ended, or was ended.
    Ended(FinishLease),
    /// Nothing more may be said under this lease.
    Fenced,
}

/// An attempt being watched over.
pub struct Supervisor {
    client: Client,
    settings: Arc<Settings>,
    folder: PathBuf,
    held: Held,
    lease: Lease,
    signals: mpsc::Receiver<Signal>,
    /// Heartbeats and the wait for a shutdown; they end with the attempt.
    _background: JoinSet<()>,
    out_of_memory_kills: u64,
    /// When the machine is to be left, once the agent is ending.
    leave_by: Option<Instant>,
}

impl Supervisor {
    /// Begins to renew the lease. Needs a runtime.
    pub fn new(client: Client, settings: Arc<Settings>, folder: PathBuf, held: Held) -> Supervisor {
        let lease = Lease { id: held.grant.id, epoch: held.grant.epoch };
        let (sender, signals) = mpsc::channel(8);
        let mut background = JoinSet::new();
        let wait_ms = HEARTBEAT_WAIT_MS.min(held.grant.expires_in_ms / 3);
        background.spawn_local(heartbeats(client.clone(), lease, wait_ms, sender.clone()));
        let mut shutdown = settings.shutdown.clone();
        background.spawn_local(async move {
            if shutdown.wait_for(|down| *down).await.is_ok() {
                let _ = sender.send(Signal::Shutdown).await;
            }
        });
        let out_of_memory_kills = out_of_memory_kills();
        Supervisor {
            client,
            settings,
            folder,
            held,
            lease,
            signals,
            _background: background,
            out_of_memory_kills,
            leave_by: None,
        }
    }

    /// Works on a fresh lease to its end.
    pub async fn begin(mut self) {
        let left = tokio::select! {
            prepared = prepare(&self.client, self.lease, &self.held, &self.folder, &self.settings) => match prepared {
                Ok(Ok(process)) => {
                    self.held.process = process.process();
                    self.note_process();
                    None.ok_or(process)
                }
                Ok(Err(error)) => Ok(Left::Ended(end_of(self.lease, &error))),
                Err(Refusal::Stale) => Ok(Left::Fenced),
                Err(refusal) => Ok(self.end(Outcome::Failed, refusal.to_string())),
            },
            signal = self.signals.recv() => Ok(match signal {
                Some(Signal::Stop) => self.end(Outcome::Cancelled, "stopped on request before it began".to_owned()),
                Some(Signal::Yield(_)) => self.end(Outcome::Yielded, "gave way before it began".to_owned()),
                Some(Signal::Shutdown) => self.end(Outcome::Yielded, "the worker shut down".to_owned()),
                Some(Signal::Stale) | None => Left::Fenced,
            }),
        };
        match left {
            Ok(left) => self.leave(left).await,
            Err(process) => self.watch(process, 0).await,
        }
    }

    /// Goes on with an attempt that an earlier agent left.
    pub async fn adopt(mut self) {
        let living = self.held.living(&self.folder);
        tracing::info!(folder = %self.folder.display(), process = ?living, "found an attempt of an earlier agent");
        let renewed = tokio::select! {
            renewed = self.client.renew(self.lease) => renewed,
            Some(Signal::Shutdown) = self.signals.recv() => {
                // Whoever starts next finds the folder as we did; a process without an agent is ended all the same.
                return self.kill(living.map_or(Watched::Gone, Watched::Adopted)).await;
            }
        };
        match (renewed, living) {
            (Ok(renewed), Some(process)) => {
                self.held.process = Some(process);
                self.note_process();
                self.watch(Watched::Adopted(process), renewed.shipped_seq).await;
            }
            (Ok(renewed), None) if self.held.was_started(&self.folder) => {
                self.watch(Watched::Gone, renewed.shipped_seq).await;
            }
            (Ok(_), None) => self.begin().await,
            (Err(refusal), living) => {
                tracing::info!(%refusal, "the lease of the attempt is gone");
                self.kill(living.map_or(Watched::Gone, Watched::Adopted)).await;
                folder::delete(&self.folder);
            }
        }
    }

    fn note_process(&self) {
        if let Err(error) = self.held.write(&self.folder) {
            // A later agent then finds the process by its command line.
            tracing::warn!(error = format!("{error:#}"), "cannot write down the process");
        }
    }

    /// Watches the process to its end, ships what it writes, and tells how it ended.
    async fn watch(mut self, mut process: Watched, shipped_seq: u64) {
        let pid = process.process().map(|process| process.pid);
        let run = self.held.grant.run_id;
        tracing::info!(%run, attempt = self.held.grant.attempt, pid, "working");
        let (ended, is_ended) = watch::channel(false);
        let shipper = Shipper::new(self.client.clone(), self.lease, &self.folder, shipped_seq);
        let mut shipping = tokio::task::spawn_local(shipper.run(is_ended));
        let mut why: Option<Signal> = None;
        let mut kill_at: Option<Instant> = None;
        let mut refused: Option<Refusal> = None;
        let exit = loop {
            tokio::select! {
                exit = process.ended() => break exit,
                Some(signal) = self.signals.recv() => {
                    if signal == Signal::Stale {
                        tracing::warn!(%run, "the lease is gone; ending its process");
                        shipping.abort();
                        self.kill(process).await;
                        return self.leave(Left::Fenced).await;
                    }
                    tracing::info!(%run, ?signal, "ending the process");
                    let (order, by) = match signal {
                        // It keeps its state first, if it trains.
                        Signal::Shutdown => (libc::SIGTERM, self.leave_by()),
                        Signal::Yield(ms) => (libc::SIGTERM, Instant::now() + Duration::from_millis(ms)),
                        Signal::Stop | Signal::Stale => (libc::SIGINT, Instant::now() + GRACE),
                    };
                    // The server repeats what it asks for with every heartbeat; saying it once is enough.
                    let known = matches!((why, signal), (Some(Signal::Yield(_) | Signal::Shutdown), Signal::Yield(_)));
                    if !known && why != Some(signal) {
                        process.signal(order);
                        why = Some(signal);
                    }
                    kill_at = Some(kill_at.map_or(by, |at| at.min(by)));
                }
                () = tokio::time::sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                    process.signal(libc::SIGKILL);
                    kill_at = Some(Instant::now() + GRACE);
                }
                shipped = &mut shipping, if refused.is_none() => {
                    let refusal = refusal_of(shipped);
                    tracing::error!(%run, %refusal, "what the process writes is not taken; ending it");
                    process.signal(if refusal == Refusal::Stale { libc::SIGKILL } else { libc::SIGINT });
                    kill_at.get_or_insert(Instant::now() + GRACE);
                    refused = Some(refusal);
                }
            }
        };
        if why.is_none() && exit.signal == Some(libc::SIGTERM) {
            // A batch system signals every process of a job; our own signal may be a moment behind.
            let signal = tokio::time::timeout(MOMENT, self.signals.recv()).await.ok().flatten();
            why = signal.filter(|signal| *signal == Signal::Shutdown);
        }
        let _ = ended.send(true);
        let end = self.outcome(exit, why);
        tracing::info!(%run, outcome = ?end.outcome, reason = end.reason, "the process has ended");
        let left = match refused {
            None => self.ship_rest(&mut shipping, end, why).await,
            Some(Refusal::Stale) => Some(Left::Fenced),
            Some(refusal) => Some(Left::Ended(FinishLease {
                outcome: Outcome::Failed,
                reason: refusal.to_string(),
                ..end
            })),
        };
        shipping.abort();
        match left {
            Some(left) => self.leave(left).await,
            None => tracing::info!(%run, "the next agent ships the rest"),
        }
    }

    /// Waits until everything is shipped. None if the agent is ending and cannot wait.
    async fn ship_rest(
        &mut self,
        shipping: &mut JoinHandle<Result<(), Refusal>>,
        end: FinishLease,
        why: Option<Signal>,
    ) -> Option<Left> {
        let mut give_up = (why == Some(Signal::Shutdown)).then(|| self.farewell());
        loop {
            tokio::select! {
                shipped = &mut *shipping => return Some(match shipped {
                    Ok(Ok(())) => Left::Ended(end),
                    other => match refusal_of(other) {
                        Refusal::Stale => Left::Fenced,
                        refusal => {
                            Left::Ended(FinishLease { outcome: Outcome::Failed, reason: refusal.to_string(), ..end })
                        }
                    },
                }),
                Some(signal) = self.signals.recv() => match signal {
                    Signal::Stale => return Some(Left::Fenced),
                    Signal::Shutdown => drop(give_up.get_or_insert(self.farewell())),
                    Signal::Stop | Signal::Yield(_) => {} // it has ended already
                },
                () = tokio::time::sleep_until(give_up.unwrap_or_else(Instant::now)), if give_up.is_some() => {
                    return None;
                }
            }
        }
    }

    /// When the machine is to be left; set by the first call after the agent was told to end.
    fn leave_by(&mut self) -> Instant {
        *self.leave_by.get_or_insert(Instant::now() + self.settings.grace)
    }

    /// Until when the end is told to the server: what a process has kept is to arrive there.
    fn farewell(&mut self) -> Instant {
        self.leave_by().max(Instant::now() + FAREWELL)
    }

    /// How the attempt ended: by the process's own result, else by what ended it.
    fn outcome(&self, exit: Exit, why: Option<Signal>) -> FinishLease {
        let (outcome, reason) = match (Ending::read(&self.folder), why) {
            (Ok(Some(ending)), _) => (ending.outcome, ending.reason),
            (Err(error), _) => (Outcome::Crashed, format!("{error:#}")),
            (Ok(None), Some(Signal::Stop)) => (Outcome::Cancelled, "stopped on request".to_owned()),
            // Outside the training loop everything is on disk at any moment, and the signal ends the process.
            (Ok(None), Some(Signal::Yield(_))) => (Outcome::Yielded, "gave way".to_owned()),
            (Ok(None), Some(_)) if exit.signal == Some(libc::SIGKILL) => (
                Outcome::Interrupted,
                "the worker shut down before the attempt could keep its state".to_owned(),
            ),
            (Ok(None), Some(_)) => (Outcome::Yielded, "the worker shut down".to_owned()),
            (Ok(None), None) if exit.code == Some(EXIT_DISK_FULL) => {
                (Outcome::Failed, "the worker's disk is full; make room and submit the run again".to_owned())
            }
            (Ok(None), None) => {
                let out_of_memory =
                    exit.signal == Some(libc::SIGKILL) && out_of_memory_kills() > self.out_of_memory_kills;
                let outcome = if out_of_memory { Outcome::Interrupted } else { Outcome::Crashed };
                (outcome, crash_reason(exit, out_of_memory, &self.folder))
            }
        };
        FinishLease { epoch: self.lease.epoch, outcome, reason, exit_code: exit.code, signal: exit.signal }
    }

    fn end(&self, outcome: Outcome, reason: String) -> Left {
        tracing::info!(run = %self.held.grant.run_id, ?outcome, reason, "the attempt ends before its process began");
        let epoch = self.lease.epoch;
        Left::Ended(FinishLease { epoch, outcome, reason, exit_code: None, signal: None })
    }

    /// Tells the server and deletes the folder. While the server has not acknowledged the end, the folder stays.
    async fn leave(mut self, left: Left) {
        if let Left::Ended(end) = left {
            let finished = async { self.client.finish(self.lease, &end).await };
            let shutdown = async {
                while self.signals.recv().await.is_some_and(|signal| signal != Signal::Shutdown) {}
                tokio::time::sleep(FAREWELL).await;
            };
            let mut down = self.settings.shutdown.clone();
            let already_down = *down.borrow_and_update();
            tokio::select! {
                finished = finished => match finished {
                    Ok(()) => {}
                    // The answer to an earlier try was lost, or another attempt has begun: either way it is over.
                    Err(Refusal::Stale) => tracing::info!("the lease was gone before it could be finished"),
                    Err(refusal) => tracing::error!(%refusal, "the server does not take the end of an attempt"),
                },
                () = shutdown, if !already_down => return,
                () = tokio::time::sleep(FAREWELL), if already_down => return,
            }
        }
        folder::delete(&self.folder);
    }

    /// Ends a process whose word counts no more.
    async fn kill(&mut self, mut process: Watched) {
        process.signal(libc::SIGINT);
        if tokio::time::timeout(GRACE, process.ended()).await.is_err() {
            process.signal(libc::SIGKILL);
            process.ended().await;
        }
    }
}

/// The end of an attempt that this machine could not even begin. A full disk is told as the reason of the run; after
/// anything else another attempt may do better.
pub fn end_of(lease: Lease, error: &anyhow::Error) -> FinishLease {
    let outcome = if is_disk_full(error) { Outcome::Failed } else { Outcome::Crashed };
    let reason = Ending::failed(error).reason;
    FinishLease { epoch: lease.epoch, outcome, reason, exit_code: None, signal: None }
}

fn refusal_of(shipped: Result<Result<(), Refusal>, tokio::task::JoinError>) -> Refusal {
    match shipped {
        Ok(Err(refusal)) => refusal,
        Ok(Ok(())) => Refusal::Refused("shipping ended before the process".to_owned()),
        Err(error) => Refusal::Refused(format!("shipping crashed: {error}")),
    }
}

/// Fetches the blobs and starts the process. The outer error is the server's refusal, the inner one this machine's.
async fn prepare(
    client: &Client,
    lease: Lease,
    held: &Held,
    folder: &std::path::Path,
    settings: &Settings,
) -> Result<Result<Watched>, Refusal> {
    for sha256 in held.blobs() {
        let file = folder.join(BLOBS).join(sha256);
        if let Err(error) = client.download(lease, sha256, &file).await? {
            return Ok(Err(error.context(format!("fetching the blob {sha256}"))));
        }
    }
    let start = || {
        held.assign(folder, settings)?;
        Watched::start(folder)
    };
    Ok(start().context("beginning the attempt"))
}

/// Renews the lease for as long as the attempt lasts, and passes the server's orders on.
async fn heartbeats(client: Client, lease: Lease, wait_ms: u64, signals: mpsc::Sender<Signal>) {
    loop {
        let asked = Instant::now();
        let signal = match client.heartbeat(lease, wait_ms).await {
            Ok(answer) => match answer.order {
                Order::Continue => None,
                Order::Stop => Some(Signal::Stop),
                Order::Yield => Some(Signal::Yield(answer.yield_within_ms.unwrap_or(0))),
            },
            Err(Refusal::Stale) => Some(Signal::Stale),
            Err(refusal) => {
                tracing::warn!(%refusal, "a heartbeat was refused");
                None
            }
        };
        if let Some(signal) = signal
            && (signals.send(signal).await.is_err() || signal == Signal::Stale)
        {
            return;
        }
        tokio::time::sleep_until(asked + HEARTBEAT_PAUSE).await;
    }
}
