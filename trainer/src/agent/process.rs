//! The training process as its agent sees it: started in a session of its own, its output in files and not in pipes, so
//! that it outlives an agent that is killed; found again by process id and start time; ended as a group.

use crate::attempt::PROCESS_ENVIRONMENT;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// File of a process's standard output in its folder.
pub const STDOUT: &str = "stdout.log";
/// File of its standard error.
pub const STDERR: &str = "stderr.log";

/// What a training process may know of its agent's environment. No tokens.
const ENVIRONMENT: [&str; 8] = [
    "PATH",
    "HOME",
    "LANG",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
];
/// Prefixes of the variables that set the number of threads and their places.
const ENVIRONMENT_PREFIXES: [&str; 5] = ["OMP_", "GOMP_", "MKL_", "KMP_", "MALLOC_"];

/// How often a process that is not our child is looked at.
const POLL: Duration = Duration::from_millis(200);
/// Bytes at the end of stderr that are searched for the last line.
const STDERR_END: usize = 16 * 1024;

/// A process, told apart from a later one with the same id by when it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Process id, which is also its group's.
    pub pid: i32,
    /// When it started, clock ticks since boot.
    pub start_ticks: u64,
}

impl Process {
    /// The process of that id, if it lives.
    pub fn of(pid: i32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may itself hold spaces and parentheses.
        let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
        let state = fields.next()?;
        let start_ticks = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Process { pid, start_ticks })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Process::of(self.pid) == Some(self)
    }

    /// The process that works in an attempt's folder, by its command line. For the moment between starting one and
    /// writing down its id, in which an agent may be killed.
    pub fn find(folder: &Path) -> Option<Process> {
        let pids = fs::read_dir("/proc").ok()?.flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.find_map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let mut words = line.split(|byte| *byte == 0).skip(1);
            let ours =
                words.next() == Some(b"attempt") && words.next() == Some(folder.as_os_str().as_bytes());
            ours.then(|| Process::of(pid)).flatten()
        })
    }

    /// Sends a signal to the whole group, if the process still runs.
    pub fn signal(self, signal: i32) {
        if self.is_alive() {
            // SAFETY: kill takes two integers and touches no memory of ours.
            let sent = unsafe { libc::kill(-self.pid, signal) };
            if sent != 0 {
                tracing::warn!(pid = self.pid, signal, error = %std::io::Error::last_os_error(), "cannot signal");
            }
        }
    }
}

/// How a process ended, as far as its agent knows: nothing of a process that was not its child.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Exit {
    /// Exit code, if it exited.
    pub code: Option<i32>,
    /// Signal, if one ended it.
    pub signal: Option<i32>,
}

/// A process under watch.
pub enum Watched {
    /// Our child.
    Child(Child, Process),
    /// The child of the agent before us.
    Adopted(Process),
    /// One that had ended when we came.
    Gone,
}

impl Watched {
    /// Starts the training process of an attempt's folder.
    pub fn start(folder: &Path) -> Result<Watched> {
        let log = |name: &str| -> Result<File> {
            let path = folder.join(name);
            let file = OpenOptions::new().create(true).append(true).open(&path);
            file.with_context(|| format!("opening {}", path.display()))
        };
        // The program that this agent is, even when a newer one has been put in its place since it started.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("causeway-trainer")
            .arg("attempt")
            .arg(folder)
            .current_dir(folder)
            .env_clear()
            .envs(PROCESS_ENVIRONMENT)
            .envs(environment())
            .stdin(Stdio::null())
            .stdout(log(STDOUT)?)
            .stderr(log(STDERR)?);
        // SAFETY: setsid is async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(|| match libc::setsid() {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        let child = command.spawn().context("starting the training process")?;
        let pid = child.id().context("the training process has no id")? as i32;
        // Unreadable only if it has ended already; then no signal will be sent either.
        let process = Process::of(pid).unwrap_or(Process { pid, start_ticks: 0 });
        Ok(Watched::Child(child, process))
    }

    /// The process, for its agent's notes.
    pub fn process(&self) -> Option<Process> {
        match self {
            Watched::Child(_, process) | Watched::Adopted(process) => Some(*process),
            Watched::Gone => None,
        }
    }

    /// Sends a signal to its group.
    pub fn signal(&self, signal: i32) {
        if let Some(process) = self.process() {
            process.signal(signal);
        }
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> Exit {
        match self {
            Watched::Child(child, _) => match child.wait().await {
                Ok(status) => Exit { code: status.code(), signal: status.signal() },
                Err(error) => {
                    tracing::error!(%error, "cannot wait for the training process");
                    Exit::default()
                }
            },
            Watched::Adopted(process) => {
                while process.is_alive() {
                    tokio::time::sleep(POLL).await;
                }
                Exit::default()
            }
            Watched::Gone => Exit::default(),
        }
    }
}

fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        ENVIRONMENT.contains(&&*name) || ENVIRONMENT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    })
}

/// Names this boot of the machine: process ids and start times repeat after another.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// How many processes the kernel has killed for want of memory since boot.
pub fn out_of_memory_kills() -> u64 {
    let counters = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let counter = counters.lines().find_map(|line| line.strip_prefix("oom_kill "));
    counter.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// Why a process that left no result ended, in a sentence.
pub fn crash_reason(exit: Exit, out_of_memory: bool, folder: &Path) -> String {
    let mut reason = match exit {
        Exit { signal: Some(signal), .. } => {
            format!("the training process was killed by {}", signal_name(signal))
        }
        Exit { code: Some(code), .. } => format!("the training process ended with exit code {code}"),
        Exit { .. } => {
            "the training process vanished; how it ended went with the agent that started it".to_owned()
        }
    };
    if out_of_memory {
        reason += "; the kernel killed a process for want of memory meanwhile";
    }
    if let Some(line) = last_words(folder) {
        reason += &format!("; its last words: {line}");
    }
    reason
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGILL => "SIGILL",
        libc::SIGINT => "SIGINT",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGTERM => "SIGTERM",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

/// The last line that the process of a folder printed on stderr.
pub fn last_words(folder: &Path) -> Option<String> {
    last_line(&folder.join(STDERR))
}

fn last_line(path: &Path) -> Option<String> {
    let text = fs::read(path).ok()?;
    let end = String::from_utf8_lossy(&text[text.len().saturating_sub(STDERR_END)..]).into_owned();
    let line = end.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().take(500).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_and_not_only_by_its_id() {
        let pid = std::process::id() as i32;
        let own = Process::of(pid).unwrap();
        assert!(own.is_alive());
        assert!(
            !Process { start_ticks: own.start_ticks + 1, ..own }.is_alive(),
            "a later process with the same id"
        );
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        while Process::of(pid).is_some() {
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait().unwrap(); // until here it was a zombie, which does not count as alive
    }

    #[test]
    fn a_process_is_found_by_the_folder_it_works_in() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Process::find(folder.path()), None);
        // A shell that runs a script named `attempt` has the command line of a training process. It waits for input.
        fs::write(folder.path().join("attempt"), "read line").unwrap();
        let mut command = std::process::Command::new("sh");
        command.arg("attempt").arg(folder.path()).current_dir(folder.path()).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let pid = child.id() as i32;
        // On a busy machine the kernel shows a new program's command line a moment later than its process.
        let patience = std::time::Instant::now() + Duration::from_secs(10);
        let found = loop {
            match Process::find(folder.path()) {
                None if std::time::Instant::now() < patience => std::thread::sleep(Duration::from_millis(5)),
                found => break found,
            }
        };
        assert!(found.is_some());
        assert_eq!(found, Process::of(pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(Process::find(folder.path()), None);
    }

    #[test]
    fn a_crash_is_told_with_its_signal_and_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let killed = Exit { code: None, signal: Some(9) };
        let reason = crash_reason(killed, false, folder.path());
        assert_eq!(reason, "the training process was killed by signal 9 (SIGKILL)");
        fs::write(folder.path().join(STDERR), "one\npanicked at x.rs:1: no\n\n").unwrap();
        let reason = crash_reason(Exit { code: Some(101), signal: None }, true, folder.path());
        assert_eq!(
            reason,
            "the training process ended with exit code 101; the kernel killed a process for want of memory \
             meanwhile; its last words: panicked at x.rs:1: no"
        );
    }
}
