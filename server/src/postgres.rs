//! The server's own Postgres, for everyone who has none: a cluster in the state folder, from pinned binaries, on a
//! Unix socket that only its owner can reach. `serve` starts it, restarts it when it dies, adopts it when an earlier
//! server was killed and left it running, and shuts it down cleanly.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::process::{Child, Command};

/// The one major version whose cluster format the state folder holds.
const MAJOR: &str = "18";
/// Longest path of a Unix socket, bytes (sun_path less its end).
const SOCKET_PATH_MAX: usize = 107;
/// How long a start may take, for example after a crash with much to replay.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the cluster, its binaries and its socket are.
#[derive(Clone, Debug)]
pub struct Embedded {
    bin: PathBuf,
    data: PathBuf,
    socket: PathBuf,
    log: PathBuf,
}

/// A running postmaster: ours, or one that an earlier server left behind.
#[derive(Debug)]
enum Postmaster {
    Child(Child),
    Adopted(i32),
}

impl Embedded {
    /// A cluster below `state`, made if it is not there, with the binaries in `bin`.
    ///
    /// # Errors
    /// Missing or wrong binaries, another major version's cluster, or a folder that cannot be written.
    pub async fn prepare(state: &Path, bin: &Path) -> Result<Embedded> {
        let state = state.canonicalize().with_context(|| format!("state folder {}", state.display()))?;
        let postgres = Embedded {
            bin: bin.canonicalize().with_context(|| format!("Postgres binaries in {}", bin.display()))?,
            data: state.join("postgres"),
            socket: socket_folder(&state)?,
            log: state.join("postgres.log"),
        };
        let version = postgres.data.join("PG_VERSION");
        if version.exists() {
            let found = fs::read_to_string(&version)?;
            if found.trim() != MAJOR {
                bail!(
                    "{} holds a cluster of Postgres {}, this server runs {MAJOR}: move the data with pg_dump and \
                     pg_restore, or point --state at another folder",
                    postgres.data.display(),
                    found.trim()
                );
            }
        } else {
            postgres.init().await?;
        }
        Ok(postgres)
    }

    /// The connection URL.
    pub fn url(&self) -> String {
        let socket: String = self.socket.to_string_lossy().bytes().map(percent_encode).collect();
        format!("postgres://causeway@{socket}/postgres")
    }

    async fn init(&self) -> Result<()> {
        // Into a temporary folder first: an interrupted initdb must not look like a cluster.
        let fresh = self.data.with_extension("new");
        if fresh.exists() {
            fs::remove_dir_all(&fresh)?;
        }
        let output = self
            .command("initdb")?
            .args(["--username=causeway", "--auth=trust", "--encoding=UTF8", "--locale=C", "--pgdata"])
            .arg(&fresh)
            .output()
            .await
            .context("running initdb")?;
        if !output.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        fs::rename(&fresh, &self.data)?;
        Ok(())
    }

    /// A command of this Postgres. It refuses to run as root, so root runs it in a user namespace of its own, in
    /// which the same files belong to an ordinary user.
    fn command(&self, name: &str) -> Result<Command> {
        let program = self.bin.join(name);
        if !program.exists() {
            bail!(
                "no {name} in {}: give --postgres-bin, or a DATABASE_URL of a running Postgres",
                self.bin.display()
            );
        }
        // SAFETY: geteuid has no preconditions.
        let root = unsafe { libc::geteuid() } == 0;
        if !root {
            return Ok(Command::new(program));
        }
        let namespace = ["--user", "--map-user=1000", "--map-group=1000"];
        let works = std::process::Command::new("unshare").args(namespace).arg("true").output();
        if !works.is_ok_and(|output| output.status.success()) {
            bail!(
                "Postgres refuses to run as root and this machine allows no user namespaces: start the server as an \
                 ordinary user, or give a DATABASE_URL"
            );
        }
        let mut command = Command::new("unshare");
        command.args(namespace).arg(program);
        Ok(command)
    }

    async fn start(&self) -> Result<Postmaster> {
        if let Some(pid) = self.running_postmaster() {
            tracing::info!(pid, "adopted the Postgres that an earlier server left running");
            return Ok(Postmaster::Adopted(pid));
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = self.command("postgres")?;
        command
            .arg("-D")
            .arg(&self.data)
            .args(["-c", "listen_addresses=", "-c", "max_connections=100", "-c", "log_min_messages=warning"])
            // What a pass of the scheduler reads is in memory: at the default it reads whole tables instead of rows. The
            // tables of the queue turn over in minutes, so what is dead in them is looked for more often than once in one.
            .args(["-c", "random_page_cost=1.1", "-c", "autovacuum_naptime=10s"])
            .arg("-c")
            .arg(format!("unix_socket_directories={}", self.socket.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own: Ctrl-C in the terminal is for the server, which then stops Postgres in order.
            .process_group(0);
        let child = command.spawn().context("starting Postgres")?;
        Ok(Postmaster::Child(child))
    }

    /// The pid in postmaster.pid if that process is alive and is a postgres working on this very folder.
    fn running_postmaster(&self) -> Option<i32> {
        let pid: i32 =
            fs::read_to_string(self.data.join("postmaster.pid")).ok()?.lines().next()?.parse().ok()?;
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (cwd == self.data && name.trim() == "postgres").then_some(pid)
    }

    async fn wait_until_it_answers(&self, postmaster: &mut Postmaster) -> Result<()> {
        let deadline = tokio::time::Instant::now() + START_TIMEOUT;
        let mut last = String::new();
        while tokio::time::Instant::now() < deadline {
            match sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(&self.url()).await {
                Ok(pool) => {
                    pool.close().await;
                    return Ok(());
                }
                Err(error) => last = error.to_string(),
            }
            if let Postmaster::Child(child) = postmaster
                && let Some(status) = child.try_wait()?
            {
                bail!("Postgres ended at once ({status}); its log: {}", self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!(
            "Postgres did not answer within {} s: {last}; its log: {}",
            START_TIMEOUT.as_secs(),
            self.log_tail()
        );
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }

    /// Starts Postgres and keeps it running until `stop` is told; then shuts it down cleanly. Returns once it answers;
    /// the rest goes on in a task.
    ///
    /// # Errors
    /// If the first start fails.
    pub async fn supervise(
        self,
        stop: tokio_util::sync::CancellationToken,
    ) -> Result<tokio::task::JoinHandle<()>> {
        let mut postmaster = self.start().await?;
        self.wait_until_it_answers(&mut postmaster).await?;
        Ok(tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = postmaster.ended() => {}
                    () = stop.cancelled() => break,
                }
                tracing::warn!("Postgres ended; starting it again");
                let mut wait = Duration::from_millis(200);
                postmaster = loop {
                    match self.start().await {
                        Ok(mut started) => match self.wait_until_it_answers(&mut started).await {
                            Ok(()) => break started,
                            Err(error) => tracing::error!("{error:#}"),
                        },
                        Err(error) => tracing::error!("{error:#}"),
                    }
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = stop.cancelled() => return,
                    }
                    wait = (wait * 2).min(Duration::from_secs(10));
                };
            }
            postmaster.shut_down().await;
        }))
    }
}

impl Postmaster {
    fn pid(&self) -> Option<i32> {
        match self {
            Postmaster::Child(child) => child.id().and_then(|id| i32::try_from(id).ok()),
            Postmaster::Adopted(pid) => Some(*pid),
        }
    }

    async fn ended(&mut self) {
        match self {
            Postmaster::Child(child) => {
                let _ = child.wait().await;
            }
            Postmaster::Adopted(pid) => {
                while Path::new(&format!("/proc/{pid}")).exists() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// A fast shutdown: sessions are ended, a checkpoint is written, nothing needs replaying at the next start.
    async fn shut_down(mut self) {
        let Some(pid) = self.pid() else { return };
        // SAFETY: signalling a process that we started or adopted.
        unsafe { libc::kill(pid, libc::SIGINT) };
        if tokio::time::timeout(Duration::from_secs(30), self.ended()).await.is_err() {
            tracing::error!(pid, "Postgres did not shut down within 30 s; it is left to finish by itself");
        }
    }
}

/// A private folder for the socket: in the state folder if the path is short enough, else in the temporary folder
/// under a name derived from the state folder's.
fn socket_folder(state: &Path) -> Result<PathBuf> {
    let near = state.join("socket");
    let far = || {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64; // FNV-1a: only to name a folder
        for byte in state.as_os_str().as_encoded_bytes() {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        std::env::temp_dir().join(format!("causeway-{hash:016x}"))
    };
    let fits = near.as_os_str().len() + "/.s.PGSQL.5432.lock".len() <= SOCKET_PATH_MAX;
    let folder = if fits { near } else { far() };
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("making {}", folder.display()));
        }
        _ => {}
    }
    let meta = fs::symlink_metadata(&folder)?;
    // SAFETY: geteuid has no preconditions.
    let ours = meta.is_dir() && meta.uid() == unsafe { libc::geteuid() } && meta.mode() & 0o077 == 0;
    if !ours {
        bail!("{} must be a folder of this user with mode 0700: remove it and start again", folder.display());
    }
    Ok(folder)
}

fn percent_encode(byte: u8) -> String {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    }
}
