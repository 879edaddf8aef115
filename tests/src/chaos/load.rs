//! What people do while things break: they submit runs, under keys so that a repeat is none, and set some aside or stop
//! them.

use super::{
    cluster::{Cluster, PROJECTS},
    random::Random,
};
use anyhow::{Result, bail};
use reqwest::Method;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What a run's program computes; see `program.sh`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Program {
    /// The run's seed.
    pub seed: u64,
    /// Steps it takes.
    pub steps: u64,
}

impl Program {
    /// The number it reports at a step.
    pub fn number(self, step: u64) -> f64 {
        ((self.seed * 7919 + step * 104_729) % 1_000_003) as f64 + 0.5
    }

    /// The file it leaves.
    pub fn model(self) -> String {
        format!("model of seed {} after {} steps\n", self.seed, self.steps)
    }

    /// The run, under a name.
    pub fn spec(self, name: &str, priority: i64, project: &str) -> Value {
        json!({
            "experiment": "chaos", "kind": "command", "name": name, "seed": self.seed, "priority": priority,
            "project": project, "max_attempts": 20,
            "command": {"argv": ["sh", "-c", include_str!("program.sh")],
                        "environment": {"STEPS": self.steps.to_string(), "PACE": "0.1"}}
        })
    }
}

/// What has been submitted, by key, which is also the run's name.
#[derive(Clone, Default, Debug)]
pub struct Book(Arc<Mutex<BTreeMap<String, Entry>>>);

/// A submission.
#[derive(Clone, Default, Debug)]
pub struct Entry {
    /// Its program; none for a fine-tuning.
    pub program: Option<Program>,
    /// The runs that the servers answered it with: one, if all is well.
    pub runs: BTreeSet<String>,
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that was submitted.
    pub fn entries(&self) -> BTreeMap<String, Entry> {
        self.lock().clone()
    }

    /// Submits a run until a server has taken it.
    ///
    /// # Errors
    /// If it is refused, or no server takes it for two minutes.
    pub async fn submit(
        &self,
        cluster: &Cluster,
        random: &mut Random,
        key: &str,
        program: Option<Program>,
        spec: &Value,
    ) -> Result<()> {
        for _ in 0..240 {
            if self.try_submit(cluster, random.below(64), key, program, spec).await? {
                return Ok(());
            }
            tokio::time::sleep(random.ms(200..800)).await;
        }
        bail!("no server takes the run {key}")
    }

    /// Submits a run once, to one server; false if that does not answer or cannot at the moment.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn try_submit(
        &self,
        cluster: &Cluster,
        server: usize,
        key: &str,
        program: Option<Program>,
        spec: &Value,
    ) -> Result<bool> {
        self.lock().entry(key.to_owned()).or_default().program = program;
        let Ok((status, run)) = cluster.request(server, "user", Method::POST, "/runs", Some(key), spec).await
        else {
            return Ok(false);
        };
        if status.is_client_error() {
            bail!("the run {key} was refused: {status} {run}");
        }
        let id = run["id"].as_str().filter(|_| status.is_success());
        if let Some(id) = id {
            self.lock().entry(key.to_owned()).or_default().runs.insert(id.to_owned());
        }
        Ok(id.is_some())
    }
}

/// Runs that wait or run while things break, beyond which nothing is submitted.
const OPEN_MAX: i64 = 14;
/// Time between two submissions.
const PACE: std::ops::Range<u64> = 150..500;

/// Submits runs of different priorities and projects, and lays hands on some of them, until it is stopped.
///
/// # Errors
/// If a run is refused.
pub async fn load(
    cluster: Arc<Cluster>,
    book: Book,
    mut random: Random,
    open: Arc<std::sync::atomic::AtomicI64>,
) -> Result<()> {
    for number in 1.. {
        tokio::time::sleep(random.ms(PACE)).await;
        if open.load(std::sync::atomic::Ordering::Relaxed) >= OPEN_MAX {
            continue;
        }
        let program = Program { seed: number, steps: 6 + random.below(30) as u64 };
        let priority = random.below(5) as i64 - 2;
        let project = PROJECTS.get(random.below(3)).unwrap_or(&"default");
        let key = format!("load-{number}");
        let spec = program.spec(&key, priority, project);
        book.submit(&cluster, &mut random, &key, Some(program), &spec).await?;
        let run = book.entries()[&key].runs.first().cloned().unwrap_or_default();
        match random.below(12) {
            0 => drop(tokio::spawn(set_aside(cluster.clone(), random.branch(), run))),
            1 => drop(tokio::spawn(stop(cluster.clone(), random.branch(), run))),
            2 => act(&cluster, &mut random, &run, "front").await,
            _ => {}
        }
    }
    Ok(())
}

/// Something a person does to a run, once; it may have ended by now.
async fn act(cluster: &Cluster, random: &mut Random, run: &str, action: &str) {
    let path = format!("/runs/{run}/{action}");
    let _ = cluster.request(random.below(64), "user", Method::POST, &path, None, &json!({})).await;
}

async fn set_aside(cluster: Arc<Cluster>, mut random: Random, run: String) {
    tokio::time::sleep(random.ms(500..4000)).await;
    act(&cluster, &mut random, &run, "pause").await;
    tokio::time::sleep(random.ms(1000..5000)).await;
    act(&cluster, &mut random, &run, "resume").await;
}

async fn stop(cluster: Arc<Cluster>, mut random: Random, run: String) {
    tokio::time::sleep(random.ms(500..5000)).await;
    act(&cluster, &mut random, &run, "cancel").await;
}

/// Lets every run that is set aside go on, as often as it takes.
///
/// # Errors
/// If the database does not answer.
pub async fn resume_all(cluster: &Cluster, random: &mut Random) -> Result<()> {
    // What was being set aside when the load ended is so now.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut session = cluster.database().await?;
    let ids = "select id::text from run where state = 'paused' or yield_for = 'pause'";
    for _ in 0..60 {
        let paused: Vec<String> = sqlx::query_scalar(ids).fetch_all(&mut session).await?;
        if paused.is_empty() {
            return Ok(());
        }
        for run in paused {
            act(cluster, random, &run, "resume").await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}
