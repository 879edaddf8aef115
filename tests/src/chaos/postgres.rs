//! A Postgres that belongs to no server, so that it can be killed by itself.

use crate::process::{Process, repository, wait_for};
use anyhow::{Context, Result};
use causeway_server::postgres::Embedded;
use sqlx::{Connection, PgConnection};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Connections in all: the pools of three servers, and a few. A fault takes what is left.
pub const CONNECTIONS: usize = 80;

/// The cluster in a folder, and its postmaster.
#[derive(Debug)]
pub struct Postgres {
    folder: PathBuf,
    base: String,
    process: Option<Process>,
}

impl Postgres {
    /// Makes a cluster in `folder` and starts it.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn start(folder: &Path) -> Result<Postgres> {
        fs::create_dir_all(folder)?;
        let cluster = Embedded::prepare(folder, &repository().join(".deps/postgres/bin")).await?;
        let mut postgres = Postgres { folder: folder.canonicalize()?, base: cluster.url(), process: None };
        postgres.restart().await?;
        Ok(postgres)
    }

    /// Its URL for a role; `causeway` may do anything, and keeps places that others cannot take.
    pub fn url(&self, role: &str) -> String {
        self.base.replacen("causeway@", &format!("{role}@"), 1)
    }

    /// A session of the superuser.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn connect(url: &str) -> Result<PgConnection> {
        let connecting = tokio::time::timeout(Duration::from_secs(5), PgConnection::connect(url));
        Ok(connecting.await.context("Postgres does not answer")??)
    }

    /// Ends it at once, by a signal: SIGQUIT is its immediate shutdown, SIGKILL needs no word for it.
    pub fn kill(&mut self, signal: i32) {
        if let Some(mut process) = self.process.take() {
            process.signal(signal);
            for _ in 0..100 {
                if process.running() {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    /// Starts it again; what a killed one left is recovered first.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn restart(&mut self) -> Result<()> {
        let log = self.folder.join("postgres.log");
        let url = self.url("causeway");
        for _ in 0..40 {
            let mut process = Process::start(&mut self.command(), &log)?;
            // The backends of a killed postmaster end on their own, and until then no other starts.
            let up = wait_for("Postgres", 60, || async {
                Ok(Postgres::connect(&url).await.is_ok().then_some(true))
            });
            let answer = tokio::select! {
                up = up => up?,
                () = ended(&mut process) => false,
            };
            if answer {
                self.process = Some(process);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        Err(anyhow::anyhow!("Postgres does not start again")).context(fs::read_to_string(log)?)
    }

    /// Postgres refuses to be root, so root runs it in a user namespace, as the product does.
    fn command(&self) -> Command {
        let program = repository().join(".deps/postgres/bin/postgres");
        // SAFETY: geteuid has no preconditions.
        let mut command = if unsafe { libc::geteuid() } == 0 {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-user=1000", "--map-group=1000"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        let socket = format!("unix_socket_directories={}", self.folder.join("socket").display());
        command.arg("-D").arg(self.folder.join("postgres")).args(["-c", "listen_addresses=", "-c", &socket]);
        command.args(["-c", &format!("max_connections={CONNECTIONS}"), "-c", "log_min_messages=warning"]);
        command
    }
}

async fn ended(process: &mut Process) {
    while process.running() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
