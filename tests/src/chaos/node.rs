//! A server or an agent of the cluster: a process that is killed, stopped and started again.

use super::proxy::Ports;
use crate::process::{Process, wait_for};
use anyhow::{Context, Result};
use serde_json::Value;
use std::{fs, path::PathBuf, process::Command, sync::atomic::Ordering};

/// Where a server says that it is up.
#[derive(Debug)]
pub struct Announced {
    /// The file with its URL.
    pub file: PathBuf,
    /// Its place among the servers.
    pub index: usize,
    /// Where the others look for it.
    pub ports: Ports,
}

/// A process with the command that starts it.
pub struct Node {
    /// What messages call it.
    pub name: String,
    /// What it prints.
    pub log: PathBuf,
    /// How it is started.
    pub command: Box<dyn Fn() -> Command + Send + Sync>,
    /// Of a server.
    pub announced: Option<Announced>,
    /// The process, unless it is down.
    pub process: Option<Process>,
}

impl Node {
    /// Starts it; a server is waited for, and started again while it gives up, for example because there is no Postgres.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn start(&mut self) -> Result<()> {
        for _ in 0..60 {
            if let Some(announced) = &self.announced {
                let _ = fs::remove_file(&announced.file);
            }
            let mut process = Process::start(&mut (self.command)(), &self.log)?;
            let Some(announced) = &self.announced else {
                self.process = Some(process);
                return Ok(());
            };
            let port = wait_for(&format!("{} to say where it is", self.name), 90, || {
                let said = fs::read(&announced.file).ok().and_then(|text| port(&text));
                let gone = said.is_none() && !process.running();
                async move { Ok(said.or(gone.then_some(0))) }
            })
            .await?;
            if port != 0 {
                announced.ports[announced.index].store(port, Ordering::Relaxed);
                self.process = Some(process);
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        Err(anyhow::anyhow!("{} does not start: {log}", self.name))
    }

    /// `kill -9` of this process alone.
    pub fn kill(&mut self) {
        if let Some(announced) = &self.announced {
            announced.ports[announced.index].store(0, Ordering::Relaxed);
        }
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
        }
    }

    /// SIGTERM and wait.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.terminate().map(drop).with_context(|| self.name.clone()),
            None => Ok(()),
        }
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, signal: i32) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }
}

fn port(announced: &[u8]) -> Option<u16> {
    let said: Value = serde_json::from_slice(announced).ok()?;
    said["url"].as_str()?.rsplit(':').next()?.parse().ok()
}
