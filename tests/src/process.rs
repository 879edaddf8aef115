//! Processes that end with the test.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A child process in a group of its own; dropping it kills the group, whatever became of the test.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a command, its output appended to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Process> {
        use std::os::unix::process::CommandExt;
        let file = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        Ok(Process { child })
    }

    /// Process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: our own child; its id is not used again before it has been waited for.
        unsafe { libc::kill(self.pid(), signal) };
    }

    /// `kill -9` of this process alone.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Errors
    /// If it does not end within 20 s.
    pub fn terminate(&mut self) -> Result<std::process::ExitStatus> {
        // SAFETY: signalling our own child, which has not been waited for.
        unsafe { libc::kill(self.pid(), libc::SIGTERM) };
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("it does not end")
    }

    /// Whether it is still there.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: the group was made for this child.
        unsafe { libc::kill(-self.pid(), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// Training processes of an agent, by the state folder in their command line; each with its attempt's folder.
pub fn attempts(state: &Path) -> Vec<(i32, PathBuf)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let mut arguments = line.split('\0').skip(1);
        let folder = arguments.next().filter(|word| *word == "attempt").and_then(|_| arguments.next())?;
        Path::new(folder).starts_with(state).then(|| (pid, PathBuf::from(folder)))
    });
    pids.collect()
}

/// A binary of this workspace, built beside the tests or the program that asks.
///
/// # Panics
/// If it has not been built.
pub fn binary(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("a running test has a path");
    let built = this.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.exists());
    built.unwrap_or_else(|| panic!("{name} is not built: run `make test`, or cargo build --release first"))
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository").to_owned()
}

/// Waits until `look` gives something, at most `seconds`.
///
/// # Errors
/// If it does not, saying what was waited for.
pub async fn wait_for<T, F: Future<Output = Result<Option<T>>>>(
    what: &str,
    seconds: u64,
    mut look: impl FnMut() -> F,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if start.elapsed() > Duration::from_secs(seconds) {
            bail!("waited {seconds} s for {what}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
