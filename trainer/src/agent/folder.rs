//! The folder of an attempt on its worker: `STATE/attempts/<run>-<n>/` with the lease and the process in `lease.json`,
//! the assignment, journal, logs, blobs and result. It is there until the server has acknowledged the attempt's end,
//! so that an agent that is restarted finds everything it left.

use super::process::{Process, boot_id};
use crate::attempt::{Assignment, BLOBS};
use anyhow::{Context, Result};
use causeway_protocol::LeaseGrant;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the agent's notes in an attempt's folder.
const FILE_NAME: &str = "lease.json";

/// What an agent writes down about an attempt.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// The lease.
    pub grant: LeaseGrant,
    /// Which boot of the machine the process id is from.
    pub boot: String,
    /// The training process, once started.
    pub process: Option<Process>,
}

impl Held {
    /// Makes the folder of a fresh lease, with nothing of an earlier use left in it.
    pub fn begin(attempts: &Path, grant: LeaseGrant) -> Result<(PathBuf, Held)> {
        let folder = attempts.join(format!("{}-{}", grant.run_id, grant.attempt));
        let make = || {
            if folder.exists() {
                fs::remove_dir_all(&folder)?;
            }
            fs::create_dir_all(folder.join(BLOBS))
        };
        make().with_context(|| format!("making the folder {}", folder.display()))?;
        let held = Held { grant, boot: boot_id(), process: None };
        held.write(&folder)?;
        Ok((folder, held))
    }

    /// Writes the notes, whole or not at all.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE_NAME);
        let write = || {
            let temporary = path.with_extension("json.new");
            fs::write(&temporary, serde_json::to_vec_pretty(self)?)?;
            fs::rename(&temporary, &path)
        };
        write().with_context(|| format!("writing {}", path.display()))
    }

    /// Reads the notes of an earlier agent.
    pub fn read(folder: &Path) -> Result<Held> {
        let path = folder.join(FILE_NAME);
        let context = || format!("reading {}", path.display());
        serde_json::from_slice(&fs::read(&path).with_context(context)?).with_context(context)
    }

    /// The process, if it is still the same one and runs; also one that was started but not yet written down.
    pub fn living(&self, folder: &Path) -> Option<Process> {
        match self.process {
            Some(process) => Some(process).filter(|process| self.boot == boot_id() && process.is_alive()),
            None => Process::find(folder),
        }
    }

    /// Whether a process has been started in the folder.
    pub fn was_started(&self, folder: &Path) -> bool {
        self.process.is_some() || folder.join(crate::journal::FILE_NAME).exists()
    }

    /// Names of the blobs that the process will read.
    pub fn blobs(&self) -> Vec<&str> {
        let grant = &self.grant;
        let resume = grant.resume.iter().map(|resume| resume.blob.sha256.as_str());
        let checkpoint = grant.checkpoint.iter().map(|blob| blob.sha256.as_str());
        grant.spec.blobs().into_iter().chain(resume).chain(checkpoint).collect()
    }

    /// Puts the assignment into the folder.
    pub fn assign(&self, folder: &Path, data: &[PathBuf], threads: u32) -> Result<()> {
        Assignment { lease: self.grant.clone(), data: data.to_vec(), threads }.write(folder)
    }
}

/// The attempts that an earlier agent left, by folder.
pub fn left_behind(attempts: &Path) -> Result<Vec<(PathBuf, Result<Held>)>> {
    fs::create_dir_all(attempts).with_context(|| format!("making the folder {}", attempts.display()))?;
    let entries =
        fs::read_dir(attempts).with_context(|| format!("reading the folder {}", attempts.display()))?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    Ok(folders.into_iter().map(|folder| (folder.clone(), Held::read(&folder))).collect())
}

/// Deletes an attempt's folder. One that cannot be deleted is told and left; it costs disk, not correctness.
pub fn delete(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder) {
        tracing::warn!(folder = %folder.display(), %error, "cannot delete an attempt's folder");
    }
}
