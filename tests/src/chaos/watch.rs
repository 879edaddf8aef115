//! What is looked at all the time: journals are kept before their agents delete them, no attempt has two processes, and
//! the rules that the database itself watches are not broken.

use super::{
    check::{Violation, recorded},
    cluster::Cluster,
};
use anyhow::Result;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

/// Time between two looks; shorter than any attempt lasts.
const EVERY: Duration = Duration::from_millis(100);
/// Looks between two at the database.
const DATABASE: u64 = 10;

/// What has been seen.
#[derive(Default)]
pub struct Seen {
    /// Runs that have not ended.
    pub open: Arc<AtomicI64>,
    /// Runs by state.
    pub runs: Mutex<BTreeMap<String, i64>>,
    /// Violations that only show while they last.
    pub violations: Mutex<Vec<Violation>>,
    /// Violations in the database so far.
    pub recorded: AtomicI64,
    /// True once nothing more is to be seen.
    pub over: AtomicBool,
}

/// Looks until it is over.
///
/// # Errors
/// If a journal cannot be kept.
pub async fn watch(cluster: Arc<Cluster>, seen: Arc<Seen>) -> Result<()> {
    let mut twice: BTreeMap<PathBuf, u32> = BTreeMap::new();
    for look in 0.. {
        if seen.over.load(Ordering::Relaxed) {
            return Ok(());
        }
        for agent in &cluster.agents {
            keep_journals(&agent.seen, &agent.kept())?;
            let mut processes: BTreeMap<PathBuf, usize> = BTreeMap::new();
            for (_, folder) in agent.attempts() {
                *processes.entry(folder).or_default() += 1;
            }
            twice.retain(|folder, _| !folder.starts_with(&agent.state) || processes.get(folder) > Some(&1));
            for (folder, _) in processes.into_iter().filter(|(_, count)| *count > 1) {
                let looks = twice.entry(folder.clone()).or_default();
                *looks += 1;
                if *looks == 3 {
                    let detail = format!("two processes work in {}", folder.display());
                    let violation = Violation { rule: "one process an attempt".into(), detail };
                    seen.violations.lock().unwrap_or_else(PoisonError::into_inner).push(violation);
                }
            }
        }
        if look % DATABASE == 0 {
            // A database that does not answer is one of the faults.
            let _ = tokio::time::timeout(Duration::from_secs(3), count(&cluster, &seen)).await;
        }
        tokio::time::sleep(EVERY).await;
    }
    Ok(())
}

async fn count(cluster: &Cluster, seen: &Seen) -> Result<()> {
    let mut session = cluster.database().await?;
    let states = "select state, count(*) from run group by state";
    let rows: Vec<(String, i64)> = sqlx::query_as(states).fetch_all(&mut session).await?;
    let open = |state: &str| ["queued", "running", "paused"].contains(&state);
    seen.open.store(rows.iter().filter(|row| open(&row.0)).map(|row| row.1).sum(), Ordering::Relaxed);
    *seen.runs.lock().unwrap_or_else(PoisonError::into_inner) = rows.into_iter().collect();
    let violations = recorded(&mut session).await?.len();
    seen.recorded.store(violations as i64, Ordering::Relaxed);
    Ok(())
}

/// A second name for each journal: what is written to it later is seen under both, and the agent deletes only its own.
fn keep_journals(state: &std::path::Path, kept: &std::path::Path) -> Result<()> {
    fs::create_dir_all(kept)?;
    for entry in fs::read_dir(state.join("attempts")).into_iter().flatten().flatten() {
        let journal = entry.path().join("journal.jsonl");
        let Ok(file) = fs::metadata(&journal) else { continue };
        let name = format!("{}.{}.jsonl", entry.file_name().to_string_lossy(), file.ino());
        let copy = kept.join(name);
        if !copy.exists() {
            let _ = fs::hard_link(&journal, &copy); // gone in this moment: the next look finds what is there then
        }
    }
    Ok(())
}
