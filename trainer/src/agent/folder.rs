//! The folder of an attempt on its worker: `STATE/attempts/<run>-<n>/` with the lease and the process in `lease.json`,
//! the assignment, journal, logs, blobs and result. It is there until the server has acknowledged the attempt's end,
//! so that an agent that is restarted finds everything it left.

use super::Settings;
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
        let features = grant.features.iter().map(|file| file.blob.sha256.as_str());
        grant.spec.blobs().into_iter().chain(resume).chain(checkpoint).chain(features).collect()
    }

    /// Puts the assignment into the folder.
    pub fn assign(&self, folder: &Path, settings: &Settings) -> Result<()> {
        Assignment {
            lease: self.grant.clone(),
            data: settings.data.clone(),
            threads: settings.threads,
            cache: Some(settings.cache.clone()),
            server: Some(settings.server.clone()),
        }
        .write(folder)
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

#[cfg(test)]
mod tests {
    use super::*;
    use causeway_protocol::{BlobRef, ResumeFrom, parse_spec};
    use serde_json::json;

    fn grant() -> LeaseGrant {
        let spec = json!({
            "experiment": "e", "kind": "evaluate",
            "weights": {"theta0": {"asset": "vit"}, "theta1": {"blob": "a".repeat(64)}},
            "evaluation": {"datasets": [{"asset": "d", "role": "ood"}]}
        });
        let blob = BlobRef { sha256: "b".repeat(64), bytes: 1, file: "resume.safetensors".to_owned() };
        let lease = json!({
            "id": uuid::Uuid::nil(), "run_id": uuid::Uuid::nil(), "attempt": 2, "epoch": 7, "device": "cpu",
            "spec": parse_spec(spec).unwrap(), "phase": "evaluate", "resume": ResumeFrom { step: 3, blob },
            "checkpoint": null, "known_points": [], "expires_in_ms": 30_000
        });
        serde_json::from_value(lease).unwrap()
    }

    #[test]
    fn an_agent_that_is_restarted_finds_what_was_held() {
        let attempts = tempfile::tempdir().unwrap();
        let (folder, mut held) = Held::begin(attempts.path(), grant()).unwrap();
        assert!(folder.ends_with("00000000-0000-0000-0000-000000000000-2"));
        assert_eq!(held.blobs(), ["a".repeat(64), "b".repeat(64)]);
        assert!(!held.was_started(&folder) && held.living(&folder).is_none());
        held.process = Process::of(std::process::id() as i32);
        held.write(&folder).unwrap();
        let mut found = left_behind(attempts.path()).unwrap();
        assert_eq!(found.len(), 1);
        let again = found.remove(0).1.unwrap();
        assert_eq!(again, held);
        assert!(again.living(&folder).is_some());
        let other_boot = Held { boot: "another".to_owned(), ..again };
        assert!(other_boot.living(&folder).is_none(), "process ids repeat after a boot");
        assert!(other_boot.was_started(&folder));
    }

    #[test]
    fn a_folder_without_a_sound_lease_is_told_apart() {
        let attempts = tempfile::tempdir().unwrap();
        fs::create_dir(attempts.path().join("x")).unwrap();
        fs::write(attempts.path().join("x/lease.json"), "{").unwrap();
        assert!(left_behind(attempts.path()).unwrap()[0].1.is_err());
    }
}
