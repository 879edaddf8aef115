//! Chaos: a cluster of real processes under load, faults from a seed, and a checker that reads afterwards what came of it.
//! `docs/chaos.md` says what is done and what is promised.

mod agent;
mod check;
mod cluster;
mod faults;
mod load;
mod node;
mod postgres;
mod proxy;
mod random;
mod values;
mod watch;

pub use agent::{Agent, Kind};
pub use check::{Evidence, Violation, check};
pub use cluster::{Cluster, LEASE_SECONDS};
pub use faults::{ALL, Fault, freeze_leader, inject};
pub use load::{Book, Program};
pub use node::Node;
pub use random::Random;
pub use values::WRONG;
pub use watch::{Seen, watch};

use crate::{process::wait_for, trainer::small_finetune};
use anyhow::{Context, Result};
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Longest that runs may take to end once nothing breaks any more: a crashed run waits up to a minute for its next try,
/// and one that does not give way in time loses its lease after two.
const SETTLE_SECONDS: u64 = 300;
/// Time between two lines about how it goes.
const TELL: Duration = Duration::from_secs(5);
/// Faults between two fine-tunings.
const TUNE_EVERY: usize = 20;

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Faults in all.
    pub faults: usize,
    /// What they are drawn from.
    pub seed: u64,
    /// Time between two, on average.
    pub pace: Duration,
    /// After so long nothing more is broken.
    pub at_most: Duration,
    /// Servers.
    pub servers: usize,
    /// Agents.
    pub agents: &'static [Kind],
    /// Whether real trainings run among the programs.
    pub tunings: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// What the faults were drawn from.
    pub seed: u64,
    /// Faults that were done, by kind.
    pub faults: BTreeMap<Fault, usize>,
    /// Runs by state.
    pub runs: BTreeMap<String, i64>,
    /// Promises that were not kept.
    pub violations: Vec<Violation>,
    /// How long it took.
    pub seconds: u64,
    /// Where everything is, if a promise was not kept.
    pub folder: Option<PathBuf>,
}

/// Breaks a cluster as often as told, lets it settle, and checks it.
///
/// # Errors
/// If the cluster cannot be had, or a repair fails; a promise that was not kept is no error but in the report.
pub async fn rampage(options: Options) -> Result<Report> {
    let started = Instant::now();
    let folder = tempfile::Builder::new().prefix("chaos").tempdir()?;
    println!("seed {}, state in {}", options.seed, folder.path().display());
    let torn = Torn::start(&folder, &options).await;
    let result = async { torn?.run(&options, started).await }.await;
    match result {
        Ok(mut report) => {
            report.seconds = started.elapsed().as_secs();
            report.folder = (!report.violations.is_empty()).then(|| folder.keep());
            Ok(report)
        }
        Err(error) => Err(error).with_context(|| format!("the state is kept in {}", folder.keep().display())),
    }
}

/// A cluster that is being broken, and all that goes on with it.
struct Torn {
    cluster: Arc<Cluster>,
    book: Book,
    seen: Arc<Seen>,
    random: Random,
    watching: tokio::task::JoinHandle<Result<()>>,
    faults: BTreeMap<Fault, usize>,
    tunings: usize,
}

impl Torn {
    async fn start(folder: &TempDir, options: &Options) -> Result<Torn> {
        let cluster = Arc::new(Cluster::start(folder.path(), options.servers, options.agents).await?);
        let seen = Arc::new(Seen::default());
        let watching = tokio::spawn(watch(cluster.clone(), seen.clone()));
        let (book, random, faults) = (Book::default(), Random::new(options.seed), BTreeMap::new());
        Ok(Torn { cluster, book, seen, random, watching, faults, tunings: 0 })
    }

    async fn run(mut self, options: &Options, started: Instant) -> Result<Report> {
        if options.tunings {
            // One while all is well, which the later ones are compared with.
            self.tune().await?;
            self.cluster.all_ended(240).await?;
        }
        let open = self.seen.open.clone();
        let mut loading =
            tokio::spawn(load::load(self.cluster.clone(), self.book.clone(), self.random.branch(), open));
        self.break_it(options, started, &mut loading).await?;
        loading.abort();
        println!("no more faults; waiting for every run to end");
        self.cluster.repaired().await?;
        load::resume_all(&self.cluster, &mut self.random).await?;
        let settled = self.cluster.all_ended(SETTLE_SECONDS).await;
        let report = self.report(options.seed, settled.err()).await;
        self.seen.over.store(true, Ordering::Relaxed);
        self.watching.await??;
        self.cluster.stop().await?;
        report
    }

    /// Injects the faults: each kind once in a random order, then again in another.
    async fn break_it(
        &mut self,
        options: &Options,
        started: Instant,
        loading: &mut tokio::task::JoinHandle<Result<()>>,
    ) -> Result<()> {
        let (mut round, mut told) = (Vec::new(), Instant::now());
        let mut done = 0;
        while done < options.faults && started.elapsed() < options.at_most {
            if loading.is_finished() {
                return loading.await?.context("the load has ended");
            }
            let fault = match round.pop() {
                Some(fault) => fault,
                None => {
                    round = self.random.shuffled(&ALL);
                    continue;
                }
            };
            let pause =
                self.random.ms(options.pace.as_millis() as u64 / 2..options.pace.as_millis() as u64 * 3 / 2);
            tokio::time::sleep(pause).await;
            let own = self.random.branch();
            if inject(&self.cluster, &self.book, fault, own).await? {
                *self.faults.entry(fault).or_default() += 1;
                done += 1;
                if options.tunings && done % TUNE_EVERY == 0 {
                    self.tune().await?;
                }
            } else {
                round.insert(0, fault); // another time
            }
            if told.elapsed() > TELL {
                self.tell(started, done);
                told = Instant::now();
            }
        }
        Ok(())
    }

    /// Submits a real training, always the same one.
    async fn tune(&mut self) -> Result<()> {
        self.tunings += 1;
        let key = format!("tuning-{}", self.tunings);
        let mut spec = small_finetune();
        (spec["name"], spec["max_attempts"], spec["priority"]) = (json!(key), json!(20), json!(1));
        self.book.submit(&self.cluster, &mut self.random, &key, None, &spec).await
    }

    fn tell(&self, started: Instant, done: usize) {
        let runs = self.seen.runs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let seen = self.seen.violations.lock().unwrap_or_else(PoisonError::into_inner).len();
        let violations = seen as i64 + self.seen.recorded.load(Ordering::Relaxed);
        let runs: Vec<String> = runs.iter().map(|(state, count)| format!("{count} {state}")).collect();
        println!(
            "{:4} s  {done} faults  {violations} violations  runs: {}",
            started.elapsed().as_secs(),
            runs.join(", ")
        );
    }

    async fn report(&self, seed: u64, unsettled: Option<anyhow::Error>) -> Result<Report> {
        let mut session =
            wait_for("the database", 30, || async { Ok(self.cluster.database().await.ok()) }).await?;
        let mut violations = check(&mut session, &self.evidence()).await?;
        if !violations.is_empty() {
            self.cluster.agents.iter().try_for_each(Agent::save_journals)?;
        }
        violations.append(&mut self.seen.violations.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(error) = unsettled {
            violations.push(Violation { rule: "no run hangs".to_owned(), detail: format!("{error:#}") });
        }
        let states = "select state, count(*) from run group by state";
        let runs: Vec<(String, i64)> = sqlx::query_as(states).fetch_all(&mut session).await?;
        let (faults, runs) = (self.faults.clone(), runs.into_iter().collect());
        Ok(Report { seed, faults, runs, violations, seconds: 0, folder: None })
    }

    fn evidence(&self) -> Evidence {
        evidence(&self.cluster, &self.book)
    }
}

/// What a cluster's database is compared with.
pub fn evidence(cluster: &Cluster, book: &Book) -> Evidence {
    let journals = cluster.agents.iter().map(Agent::kept).filter(|folder| folder.exists());
    Evidence { submitted: book.entries(), blobs: cluster.blobs(), journals: journals.collect() }
}

impl Report {
    /// Faults in all.
    pub fn fault_count(&self) -> usize {
        self.faults.values().sum()
    }

    /// Tables for a person, and a line of JSON for a program.
    pub fn print(&self) {
        println!("\nfaults");
        self.faults.iter().for_each(|(fault, count)| println!("{count:6}  {fault:?}"));
        println!("\nruns");
        self.runs.iter().for_each(|(state, count)| println!("{count:6}  {state}"));
        if let Some(folder) = &self.folder {
            println!("\nviolations; the state is kept in {}", folder.display());
            self.violations.iter().for_each(|one| println!("  {}: {}", one.rule, one.detail));
        }
        let runs: i64 = self.runs.values().sum();
        println!(
            "\n{}",
            json!({"seed": self.seed, "faults": self.fault_count(), "runs": runs, "violations": self.violations.len(),
                   "seconds": self.seconds})
        );
    }
}
