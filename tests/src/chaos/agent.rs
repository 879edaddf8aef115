//! An agent of the cluster with what belongs to its host: a network, a clock and a disk.

use super::{
    node::Node,
    proxy::{Ports, Proxy},
};
use crate::{
    process::{Process, attempts, binary, repository, wait_for},
    trainer::demo_data,
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};
use tokio::sync::Mutex;

/// Size of a small disk.
const DISK: &str = "24m";

/// What an agent is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It has one device and the demo's assets.
    Plain,
    /// It has two devices, and runs commands only.
    Two,
    /// Its state is on a small disk.
    SmallDisk,
}

/// A running agent.
pub struct Agent {
    /// Its process.
    pub node: Arc<Mutex<Node>>,
    /// Its state folder, as its processes name it.
    pub state: PathBuf,
    /// The same folder, as it is reached from here.
    pub seen: PathBuf,
    /// Its way to the servers.
    pub proxy: Arc<Proxy>,
    /// The file with the seconds by which its clock is wrong.
    pub clock: PathBuf,
    /// Holds the small disk.
    disk: Option<Process>,
}

impl Agent {
    /// Starts an agent.
    ///
    /// # Errors
    /// If it cannot be started, for example because this system allows no small disk.
    pub async fn start(folder: &Path, index: usize, kind: Kind, token: &Path, ports: Ports) -> Result<Agent> {
        let state = folder.join(format!("w{index}"));
        fs::create_dir_all(&state)?;
        let disk = if kind == Kind::SmallDisk { Some(small_disk(folder, &state).await?) } else { None };
        let (seen, holder) = match &disk {
            Some(disk) => {
                let root = PathBuf::from(format!("/proc/{}/root", disk.pid()));
                (root.join(state.strip_prefix("/")?), Some(disk.pid()))
            }
            None => (state.clone(), None),
        };
        let clock = folder.join(format!("clock{index}"));
        fs::write(&clock, "0")?;
        let library = wrong_clock(folder)?;
        let proxy = Arc::new(Proxy::start(ports).await?);
        let (port, token, own, shift) = (proxy.port, token.to_owned(), state.clone(), clock.clone());
        let data = if kind == Kind::Plain { demo_data() } else { folder.join("none") };
        let command = move || {
            let program = binary("causeway-trainer");
            let mut command = match holder {
                Some(pid) => {
                    let mut command = Command::new("nsenter");
                    command.args(["--preserve-credentials", "-U", "-m", "-t", &pid.to_string()]).arg(program);
                    command
                }
                None => Command::new(program),
            };
            command.args(["work", "--server", &format!("http://127.0.0.1:{port}"), "--allow-commands"]);
            command.args(["--threads", "1", "--grace-seconds", "3", "--name", &format!("agent {index}")]);
            command.args(["--devices", if kind == Kind::Two { "cpu:0,cpu:1" } else { "cpu:0" }]);
            command.arg("--token-file").arg(&token).arg("--state").arg(&own).arg("--data").arg(&data);
            command.env("LD_PRELOAD", &library).env("CHAOS_CLOCK", &shift);
            command
        };
        let mut node = Node {
            name: format!("agent {index}"),
            log: folder.join(format!("agent{index}.log")),
            command: Box::new(command),
            announced: None,
            process: None,
        };
        node.start().await?;
        Ok(Agent { node: Arc::new(Mutex::new(node)), state, seen, proxy, clock, disk })
    }

    /// Its training processes, each with its attempt's folder.
    pub fn attempts(&self) -> Vec<(i32, PathBuf)> {
        attempts(&self.state)
    }

    /// The folder of copies of its attempts' journals.
    pub fn kept(&self) -> PathBuf {
        self.seen.join("kept")
    }

    /// Copies what is on its small disk to where it stays.
    ///
    /// # Errors
    /// If a file cannot be copied.
    pub fn save_journals(&self) -> Result<()> {
        let to = self.state.join("kept");
        if !self.has_small_disk() {
            return Ok(());
        }
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(self.kept())?.flatten() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    }

    /// Whether its disk can be filled.
    pub fn has_small_disk(&self) -> bool {
        self.disk.is_some()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Ok(mut node) = self.node.try_lock() {
            node.kill();
        }
        for (pid, _) in self.attempts() {
            // SAFETY: a process group whose leader works in this agent's own folder.
            unsafe { libc::kill(-pid, libc::SIGKILL) };
        }
    }
}

/// A small disk at `state`, in a mount namespace that lasts as long as the process that holds it. It needs no root: in a
/// user namespace of one's own one may mount.
async fn small_disk(folder: &Path, state: &Path) -> Result<Process> {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
    command.arg(format!(
        "mount -t tmpfs -o size={DISK} tmpfs \"$0\" && touch \"$0/mounted\" && exec sleep 86400"
    ));
    let mut disk = Process::start(command.arg(state), &folder.join("disk.log"))?;
    let mounted =
        PathBuf::from(format!("/proc/{}/root", disk.pid())).join(state.strip_prefix("/")?).join("mounted");
    wait_for("the small disk", 10, || {
        let (there, alive) = (mounted.exists(), disk.running());
        async move {
            ensure!(alive, "this system lets nobody mount a small disk in a namespace of their own");
            Ok(there.then_some(()))
        }
    })
    .await
    .with_context(|| fs::read_to_string(folder.join("disk.log")).unwrap_or_default())?;
    Ok(disk)
}

/// The library that makes a clock wrong, built with the compiler that Rust links with.
fn wrong_clock(folder: &Path) -> Result<PathBuf> {
    let library = folder.join("clock.so");
    if !library.exists() {
        let source = repository().join("tests/src/chaos/clock.c");
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
        let output = command.output().context("running cc, for the clock that is wrong")?;
        ensure!(output.status.success(), "clock.c: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(library)
}
