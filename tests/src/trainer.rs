//! A real `causeway-trainer work` beside a server.

use crate::{
    Authority, Server,
    process::{Process, attempts, binary, repository},
};
use anyhow::Result;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A running agent and its state folder.
#[derive(Debug)]
pub struct Trainer {
    process: Option<Process>,
    name: String,
    server_url: String,
    ca: Option<PathBuf>,
    token_file: PathBuf,
    state: PathBuf,
    data: Vec<PathBuf>,
    options: &'static [&'static str],
    log: PathBuf,
}

impl Trainer {
    /// Starts an agent that holds the demo's assets and those under `more`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(server: &Server, more: &[&Path]) -> Result<Trainer> {
        Trainer::start_as("test", server, more)
    }

    /// Starts an agent that also runs commands.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn with_commands(server: &Server) -> Result<Trainer> {
        Trainer::with_commands_through(server, &server.url())
    }

    /// The same, with the server at another address.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn with_commands_through(server: &Server, url: &str) -> Result<Trainer> {
        Trainer::launch("commands", server, url, &[], &["--allow-commands"])
    }

    /// The same under a name; each name has a state folder of its own.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_as(name: &str, server: &Server, more: &[&Path]) -> Result<Trainer> {
        Trainer::launch(name, server, &server.url(), more, &[])
    }

    fn launch(
        name: &str,
        server: &Server,
        url: &str,
        more: &[&Path],
        options: &'static [&'static str],
    ) -> Result<Trainer> {
        let mut data = vec![demo_data()];
        data.extend(more.iter().map(|path| path.to_path_buf()));
        let mut trainer = Trainer {
            process: None,
            name: name.to_owned(),
            server_url: url.to_owned(),
            ca: server.authority().map(Authority::file),
            token_file: server.state().join("worker.token"),
            state: server.folder().join(format!("worker-{name}")),
            data,
            options,
            log: server.folder().join(format!("trainer-{name}.log")),
        };
        trainer.restart()?;
        Ok(trainer)
    }

    /// Starts the agent again on the same state folder.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        let mut command = Command::new(binary("causeway-trainer"));
        command
            .args(["work", "--server", &self.server_url, "--name", &self.name])
            .args(self.options)
            .envs(self.ca.iter().map(|file| ("CAUSEWAY_CA", file)))
            .arg("--token-file")
            .arg(&self.token_file)
            .arg("--state")
            .arg(&self.state)
            // Fixed, so that numbers do not depend on what else runs on this machine.
            .args(["--threads", "1"]);
        for folder in &self.data {
            command.arg("--data").arg(folder);
        }
        self.process = Some(Process::start(&mut command, &self.log)?);
        Ok(())
    }

    /// Its state folder.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// `kill -9` of the agent alone.
    ///
    /// # Errors
    /// If it was not running.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
        }
        Ok(())
    }

    /// SIGTERM and wait.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.terminate()?;
        }
        Ok(())
    }

    /// Process ids of the training processes of this agent, found by their command line.
    pub fn attempts(&self) -> Vec<i32> {
        attempts(&self.state).into_iter().map(|(pid, _)| pid).collect()
    }

    /// `kill -9` of every training process; says how many there were.
    pub fn kill_attempts(&self) -> usize {
        let pids = self.attempts();
        for pid in &pids {
            // SAFETY: a process whose command line names this test's own folder.
            unsafe { libc::kill(*pid, libc::SIGKILL) };
        }
        pids.len()
    }
}

impl Drop for Trainer {
    fn drop(&mut self) {
        let _ = self.stop();
        self.kill_attempts();
        // Shown by the test runner if the test failed.
        eprintln!("--- the trainer's log\n{}", fs::read_to_string(&self.log).unwrap_or_default());
    }
}

/// Where set-up puts the demo's assets.
pub fn demo_data() -> PathBuf {
    repository().join(".deps/data")
}

/// A small fine-tuning of the real ViT-S/14 on the real captions: seconds on one core.
pub fn small_finetune() -> Value {
    json!({
        "experiment": "small",
        "kind": "finetune",
        "weights": {"theta0": {"asset": "vit-s14-imgfocus"}},
        "method": {"kind": "adapter"},
        "captions": {"asset": "tux-captions", "text_encoder": "minilm-l6"},
        "objective": {"contrastive": {}},
        "training": {"steps": 12, "batch_size": 8, "learning_rate": 1e-3, "image_size": 56, "resume_every": 3,
                     "flip": true},
        "evaluation": {"datasets": [{"asset": "tux-held-out", "role": "target"},
                                    {"asset": "digits-200", "role": "ood"}],
                       "alphas": [0, 0.5, 1], "k": [1, 20], "image_size": 56}
    })
}
