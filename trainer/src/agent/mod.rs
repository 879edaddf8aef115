//! The agent of a worker: `work`. It makes the worker known, asks for leases while it has free devices, and watches over
//! one training process per lease. It holds no tensors and no state that is not on disk: killed and started again, it
//! goes on with what it finds.

mod client;
mod folder;
mod logs;
mod process;
mod ship;
mod supervise;
mod transfer;

pub use process::last_words;

use crate::attempt::FEATURES;
use crate::attempt::environment::{VERSION, cores, host};
use crate::data::asset::Library;
use crate::device;
use crate::evaluate::store::Place;
use anyhow::{Context, Result, ensure};
use causeway_connect::Trust;
use causeway_protocol::{COMMANDS_LABEL, LeaseGrant, LeaseRequest, RegisterWorker};
use client::{Client, Lease};
use folder::Held;
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use supervise::Supervisor;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{Id, JoinSet, LocalSet};
use tokio::time::Instant;
use uuid::Uuid;

/// How long the server is asked to hold a request for work.
const LEASE_WAIT_MS: u64 = 10_000;
/// How often the data folders are looked through for assets that came or went.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How long the server may take to hear that this worker is leaving; the attempts end meanwhile.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);
/// Wait after a request for work that was refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(2);

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct Work {
    /// URLs of the server, or of several that share a database.
    pub servers: Vec<String>,
    /// Whom it believes.
    pub trust: Trust,
    /// File with a worker token.
    pub token_file: PathBuf,
    /// Folder of the worker's id and attempts.
    pub state: PathBuf,
    /// Where assets are.
    pub data: Vec<PathBuf>,
    /// Name on pages; the host's if not given.
    pub name: Option<String>,
    /// Devices, each for one attempt at a time.
    pub devices: Vec<String>,
    /// What runs may ask for by name.
    pub labels: Vec<String>,
    /// Whether it runs commands: programs that whoever may submit a run chooses.
    pub allow_commands: bool,
    /// Where other workers reach this one; the host's name if not given.
    pub address: Option<String>,
    /// Threads of one attempt; the cores shared out among the devices if not given.
    pub threads: Option<u32>,
    /// Most bytes of features that are kept for later runs, beside the attempts.
    pub cache_bytes: u64,
    /// Ends after so long without work.
    pub idle: Option<Duration>,
    /// How long attempts may take to keep their state and ship it when the agent is told to end.
    pub grace: Duration,
}

/// What every attempt on this worker has in common.
pub struct Settings {
    /// URL of the server, which commands may report to.
    server: String,
    /// Where assets are, absolute.
    data: Vec<PathBuf>,
    threads: u32,
    /// Where features are kept, for all attempts.
    cache: Place,
    /// How long an attempt may take to leave once the agent is to end.
    grace: Duration,
    /// True once the agent is to end.
    shutdown: watch::Receiver<bool>,
}

/// Runs the agent until SIGTERM or SIGINT, or until it has been idle for as long as it may.
pub fn work(work: Work) -> Result<()> {
    // One thread: the agent waits nearly all the time, and leaves the cores to the training processes.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting the runtime")?;
    LocalSet::new().block_on(&runtime, Agent::run(work))
}

struct Agent {
    client: Client,
    settings: Arc<Settings>,
    worker: RegisterWorker,
    attempts: PathBuf,
    tasks: JoinSet<()>,
    /// The leases being worked on, by task.
    leases: HashMap<Id, Uuid>,
    /// Ends after so long without work.
    idle: Option<Duration>,
}

impl Agent {
    async fn run(work: Work) -> Result<()> {
        ensure!(!work.devices.is_empty(), "a worker needs a device");
        let client = Client::new(&work.servers, &work.trust, &work.token_file)?;
        for name in &work.devices {
            device::open(name)?;
        }
        let state = absolute(&work.state)?;
        let _lock = lock(&state)?;
        let data = work.data.iter().map(|folder| absolute(folder)).collect::<Result<Vec<_>>>()?;
        let threads = work.threads.unwrap_or(cores() / work.devices.len() as u32).max(1);
        let cache = Place { folder: state.join(FEATURES), most_bytes: work.cache_bytes };
        let (shutdown_sender, shutdown) = watch::channel(false);
        tokio::task::spawn_local(wait_for_signal(shutdown_sender));
        let (library, assets) = look(&data).await?;
        ensure!(
            !work.labels.iter().any(|label| label == COMMANDS_LABEL),
            "the label `{COMMANDS_LABEL}` comes with --allow-commands"
        );
        let commands = work.allow_commands.then(|| COMMANDS_LABEL.to_owned());
        let worker = RegisterWorker {
            id: worker_id(&state)?,
            name: work.name.unwrap_or_else(host),
            host: host(),
            version: VERSION.to_owned(),
            devices: device::reports(&work.devices),
            labels: work.labels.into_iter().chain(commands).collect(),
            address: work.address.unwrap_or_else(host),
            assets,
            draining: false,
        };
        tracing::info!(worker = %worker.id, name = worker.name, assets = worker.assets.len(), threads, "starting");
        let mut agent = Agent {
            client,
            settings: Arc::new(Settings {
                server: work.servers.first().cloned().unwrap_or_default(),
                data,
                threads,
                cache,
                grace: work.grace,
                shutdown,
            }),
            worker,
            attempts: state.join("attempts"),
            tasks: JoinSet::new(),
            leases: HashMap::new(),
            idle: work.idle,
        };
        agent.adopt()?;
        agent.serve(library).await;
        tracing::info!("ending");
        agent.leave().await;
        while agent.tasks.join_next().await.is_some() {}
        Ok(())
    }

    /// Goes on with the attempts of the agent before this one.
    fn adopt(&mut self) -> Result<()> {
        for (folder, held) in folder::left_behind(&self.attempts)? {
            match held {
                Ok(held) => {
                    let lease = held.grant.id;
                    let task = self.tasks.spawn_local(self.supervisor(folder, held).adopt());
                    self.leases.insert(task.id(), lease);
                }
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "deleting an attempt's folder without a lease"
                    );
                    folder::delete(&folder);
                }
            }
        }
        Ok(())
    }

    fn supervisor(&self, folder: PathBuf, held: Held) -> Supervisor {
        Supervisor::new(self.client.clone(), self.settings.clone(), folder, held)
    }

    /// Registers, then takes leases until the shutdown or until there has been no work for too long. A server that does
    /// not answer gives no work either.
    async fn serve(&mut self, mut library: Vec<String>) {
        let mut shutdown = self.settings.shutdown.clone();
        let mut registered = false;
        let mut look_at = tokio::time::interval(LOOK_EVERY);
        look_at.reset();
        let mut worked = Instant::now();
        loop {
            let idle_end = self.idle.filter(|_| self.leases.is_empty()).map(|idle| worked + idle);
            let free = self.leases.len() < self.worker.devices.len();
            let (client, worker) = (self.client.clone(), &self.worker);
            let request = LeaseRequest {
                worker_id: worker.id,
                held: self.leases.values().copied().collect(),
                wait_ms: LEASE_WAIT_MS,
            };
            let next = async {
                if !registered {
                    return client.register(worker).await.map(|()| Next::Registered);
                }
                client.request_lease(&request).await.map(|grant| Next::Lease(grant.map(Box::new)))
            };
            tokio::select! {
                _ = shutdown.wait_for(|down| *down) => return,
                () = tokio::time::sleep_until(idle_end.unwrap_or(worked)), if idle_end.is_some() => {
                    return tracing::info!(seconds = worked.elapsed().as_secs(), "no work for as long as I may wait");
                }
                Some(ended) = self.tasks.join_next_with_id() => {
                    self.ended(ended);
                    worked = Instant::now();
                }
                next = next, if free || !registered => match next {
                    Ok(Next::Registered) => registered = true,
                    Ok(Next::Lease(Some(grant))) => self.begin(*grant),
                    Ok(Next::Lease(None)) => {}
                    Err(refusal) => {
                        // A server with a fresh database does not know the worker any more.
                        tracing::warn!(%refusal, "the server refused; registering again");
                        registered = false;
                        tokio::time::sleep(REFUSED_PAUSE).await;
                    }
                },
                _ = look_at.tick() => match look_again(&self.settings.data, &library).await {
                    Ok(Some((changed, assets))) => {
                        tracing::info!(assets = assets.len(), "the assets have changed");
                        (library, self.worker.assets, registered) = (changed, assets, false);
                    }
                    Ok(None) => {}
                    Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot look for assets"),
                },
            }
        }
    }

    /// Says that this worker takes nothing more, so that what it gives back goes to another.
    async fn leave(&mut self) {
        self.worker.draining = true;
        match tokio::time::timeout(LEAVE_PATIENCE, self.client.register(&self.worker)).await {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => tracing::warn!(%refusal, "the server did not take the goodbye"),
            Err(_) => tracing::warn!("the server does not answer; ending without a goodbye"),
        }
    }

    fn begin(&mut self, grant: LeaseGrant) {
        let lease = Lease { id: grant.id, epoch: grant.epoch };
        let (run, attempt) = (grant.run_id, grant.attempt);
        tracing::info!(%run, attempt, phase = %grant.phase, device = grant.device, "leased");
        let task = match Held::begin(&self.attempts, grant) {
            Ok((folder, held)) => self.tasks.spawn_local(self.supervisor(folder, held).begin()),
            Err(error) => {
                tracing::error!(%run, error = format!("{error:#}"), "cannot begin an attempt");
                let (client, end) = (self.client.clone(), supervise::end_of(lease, &error));
                self.tasks.spawn_local(async move {
                    if let Err(refusal) = client.finish(lease, &end).await {
                        tracing::warn!(%run, %refusal, "the end of the attempt was not taken");
                    }
                })
            }
        };
        self.leases.insert(task.id(), lease.id);
    }

    fn ended(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let task = match &ended {
            Ok((task, ())) => *task,
            Err(error) => {
                tracing::error!(%error, "the supervisor of an attempt crashed");
                error.id()
            }
        };
        self.leases.remove(&task);
    }
}

/// An answer of the server.
enum Next {
    Registered,
    Lease(Option<Box<LeaseGrant>>),
}

async fn wait_for_signal(shutdown: watch::Sender<bool>) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return tracing::error!("cannot listen for SIGTERM and SIGINT");
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("told to end; ending the training processes");
    let _ = shutdown.send(true);
    // Keeps the channel open until everyone has heard.
    shutdown.closed().await;
}

type Assets = Vec<causeway_protocol::AssetSummary>;

/// The digests of the manifests under the data folders, and the assets.
async fn look(data: &[PathBuf]) -> Result<(Vec<String>, Assets)> {
    let data = data.to_vec();
    let look = move || {
        let library = Library::find(&data);
        let (assets, problems) = library.summaries();
        problems.iter().for_each(|problem| tracing::warn!(problem, "an asset cannot be used"));
        (manifests(&library), assets)
    };
    tokio::task::spawn_blocking(look).await.context("looking for assets")
}

/// The same, if any manifest has come, gone or changed.
async fn look_again(data: &[PathBuf], before: &[String]) -> Result<Option<(Vec<String>, Assets)>> {
    let folders = data.to_vec();
    let now = tokio::task::spawn_blocking(move || manifests(&Library::find(&folders))).await?;
    if now == before { Ok(None) } else { look(data).await.map(Some) }
}

fn manifests(library: &Library) -> Vec<String> {
    library.assets.values().map(|asset| asset.digest.clone()).collect()
}

/// The worker's id: made once, kept on its disk.
fn worker_id(state: &Path) -> Result<Uuid> {
    let path = state.join("worker.id");
    let context = || format!("the worker's id in {}", path.display());
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().with_context(context),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = Uuid::now_v7();
            let temporary = path.with_extension("new");
            fs::write(&temporary, format!("{id}\n")).with_context(context)?;
            fs::rename(&temporary, &path).with_context(context)?;
            Ok(id)
        }
        Err(error) => Err(error).with_context(context),
    }
}

/// One agent per state folder: two would end each other's processes. The lock goes with the agent, however it ends.
fn lock(state: &Path) -> Result<File> {
    let path = state.join("agent.lock");
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    // SAFETY: flock takes a descriptor that is open for as long as `file` lives.
    let locked = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    ensure!(locked == 0, "another agent works in {}; give this one its own --state", state.display());
    Ok(file)
}

fn absolute(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("making the folder {}", folder.display()))?;
    folder.canonicalize().with_context(|| format!("the folder {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_keeps_its_id() {
        let state = tempfile::tempdir().unwrap();
        let id = worker_id(state.path()).unwrap();
        assert_eq!(worker_id(state.path()).unwrap(), id);
        fs::write(state.path().join("worker.id"), "no id").unwrap();
        assert!(worker_id(state.path()).is_err(), "a damaged id is not silently replaced");
    }

    #[test]
    fn a_state_folder_has_one_agent() {
        let state = tempfile::tempdir().unwrap();
        let first = lock(state.path()).unwrap();
        assert!(lock(state.path()).unwrap_err().to_string().contains("another agent"));
        drop(first);
        lock(state.path()).unwrap();
    }
}
