//! The launcher's loop: read, decide, do, sleep. What it remembers from pass to pass saves words and vain tries, and
//! nothing is lost with it: which pilots there are stands in the batch system, what waits in the server.

use super::{
    assets::{self, Told},
    decide::{self, Doing, Offer, Pilot, Situation},
    server::{Reader, Waiting, Worker},
    slurm::{Job, JobState, Slurm},
};
use anyhow::Result;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Pause after a pilot that failed, and the longest: each failure doubles it.
const PAUSE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(1800));
/// How long a run may wait beside a free worker that could have it before it counts as waiting for something else.
const UNTAKEN: Duration = Duration::from_secs(30);
/// Longest that a job is taken to have run: it only has to be longer than any.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Slurm's reasons for waiting that say nothing but that others were first.
const PATIENT: [&str; 6] = ["None", "Priority", "Resources", "Dependency", "BeginTime", "Cleaning"];

/// Looks and does until told to stop; once, if that is what was asked.
///
/// # Errors
/// A pass that failed, if there is to be one only.
pub async fn keep(slurm: &Slurm, reader: Reader, stop: CancellationToken) -> Result<()> {
    let devices = slurm.args.devices();
    tracing::info!(server = slurm.server, max_pilots = slurm.args.max_pilots, ?devices, "launching pilots");
    if ["//127.", "//localhost", "//[::1]"].iter().any(|loopback| slurm.server.contains(loopback)) {
        tracing::warn!(
            server = slurm.server,
            "pilots will look for the server on their own node; --pilot-server gives the name that nodes know it by"
        );
    }
    let mut launcher = Launcher { slurm, reader, memory: Memory::default() };
    loop {
        let done = launcher.pass().await;
        if slurm.args.once {
            return done;
        }
        if let Err(error) = done {
            launcher.memory.say_also(format!("this pass failed, and the next tries again: {error:#}"));
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(slurm.args.poll_seconds)) => {}
            () = stop.cancelled() => {
                tracing::info!("launching no more; the pilots end by themselves");
                return Ok(());
            }
        }
    }
}

struct Launcher<'a> {
    slurm: &'a Slurm,
    reader: Reader,
    memory: Memory,
}

impl Launcher<'_> {
    /// One look, and what follows from it.
    async fn pass(&mut self) -> Result<()> {
        let slurm = self.slurm;
        let jobs = slurm.jobs().await?;
        let waiting = self.reader.waiting().await?;
        let workers = self.reader.workers().await?;
        let data = slurm.args.pilot.data.clone();
        let here = tokio::task::spawn_blocking(move || assets::seen_here(&data)).await?;
        let now = Instant::now();
        let mut said = self.memory.look_back(slurm, &jobs, &workers, now);
        let (waiting, stuck) = self.memory.without_untaken(waiting, now);
        said.extend(stuck);

        let decision = decide::decide(&situation(slurm, &jobs, &waiting, &workers, here.as_ref()));
        let dead = dead_nodes(slurm, &jobs, &workers);
        self.memory.note_fits(&decision.fits, &waiting, now);
        said.extend(decision.never.iter().map(|(run, why)| format!("no pilot for the run {run}: {why}")));
        let held = jobs.iter().filter(|job| job.state == JobState::Pending);
        let held = held.filter(|job| !PATIENT.contains(&job.reason.as_str()));
        said.extend(held.map(|job| format!("Slurm does not start pilot {}: {}", job.id, job.reason)));

        if !decision.cancel.is_empty() {
            tracing::info!(jobs = ?decision.cancel, "taking back pilots that are not needed");
            slurm.cancel(&decision.cancel).await?;
            self.memory.pilots.retain(|job, _| !decision.cancel.contains(job));
        }
        if self.memory.not_before.is_none_or(|at| at <= now) {
            for slot in decision.submit {
                match slurm.submit(slot, &dead).await {
                    Ok(job) => {
                        tracing::info!(job, slot, waiting = waiting.len(), "submitted a pilot");
                        let since = OffsetDateTime::now_utc();
                        self.memory.pilots.insert(job, Seen { slot, since, registered: false });
                    }
                    Err(error) => {
                        self.memory.failed(now);
                        said.push(format!("no pilot was submitted: {error:#}"));
                        break;
                    }
                }
            }
        }
        self.memory.say(said);
        Ok(())
    }
}

/// What is known, for the decision.
fn situation(
    slurm: &Slurm,
    jobs: &[Job],
    waiting: &[Waiting],
    workers: &[Worker],
    here: Option<&BTreeMap<String, OffsetDateTime>>,
) -> Situation {
    let told =
        workers.iter().filter(|worker| slurm.is_ours(&worker.name)).max_by_key(|worker| worker.seen_at);
    let told = told.map(|worker| Told { seen_at: worker.seen_at, assets: worker.assets() });
    let offer =
        Offer { devices: slurm.args.devices().len() as u32, assets: assets::held(told.as_ref(), here) };
    let pilots = jobs.iter().map(|job| {
        let doing = match (job.state, worker_of(slurm, job, workers).map(|worker| worker.state.as_str())) {
            (JobState::Pending, _) => Doing::Waiting,
            (JobState::Running, None) => Doing::Starting,
            (JobState::Running, Some("ready")) => Doing::Working,
            (JobState::Running, Some(_)) | (JobState::Ending, _) => Doing::Leaving,
        };
        Pilot { job: job.id, slot: job.slot, doing }
    });
    Situation {
        waiting: waiting.iter().map(|waiting| waiting.need.clone()).collect(),
        free: workers.iter().filter_map(Worker::free).collect(),
        pilots: pilots.collect(),
        offer,
        max_pilots: slurm.args.max_pilots,
    }
}

/// The worker that a job's pilot is, once the server has heard of it. The pilot before it on that node was the same
/// worker, so only one that was heard of since the job began counts.
fn worker_of<'a>(slurm: &Slurm, job: &Job, workers: &'a [Worker]) -> Option<&'a Worker> {
    let name = slurm.worker_name(job.slot, &job.node);
    let since = began(job);
    workers.iter().find(|worker| worker.name == name && worker.seen_at >= since)
}

/// When a job got its node, or this moment if it waits.
fn began(job: &Job) -> OffsetDateTime {
    let elapsed = job.elapsed.min(LONGEST.as_secs());
    OffsetDateTime::now_utc() - Duration::from_secs(elapsed)
}

/// Nodes where a pilot has fallen silent. Slurm takes them for alive until its own timeout, and would start the next
/// pilot on the node that has so much room.
fn dead_nodes(slurm: &Slurm, jobs: &[Job], workers: &[Worker]) -> Vec<String> {
    let silent = |job: &&Job| {
        let worker = worker_of(slurm, job, workers);
        job.state == JobState::Running
            && worker.is_some_and(|worker| ["suspect", "lost"].contains(&worker.state.as_str()))
    };
    let nodes: BTreeSet<&str> = jobs.iter().filter(silent).map(|job| job.node.as_str()).collect();
    nodes.into_iter().map(str::to_owned).collect()
}

/// What a launcher remembers.
#[derive(Default)]
struct Memory {
    /// The pilots seen last, by job.
    pilots: BTreeMap<u64, Seen>,
    failures: u32,
    not_before: Option<Instant>,
    /// Runs that a free worker could have been given: since when, and why the server says that they wait.
    untaken: BTreeMap<String, (Instant, String)>,
    said: BTreeSet<String>,
}

struct Seen {
    slot: u32,
    /// A moment after which its worker, and no earlier one of its slot, was heard of.
    since: OffsetDateTime,
    /// Whether the server has heard of it.
    registered: bool,
}

impl Memory {
    /// Compares the pilots with those of the pass before. One that is gone without the server having heard of it has
    /// failed: the next waits a while, so that a broken set-up does not become a stream of jobs.
    fn look_back(&mut self, slurm: &Slurm, jobs: &[Job], workers: &[Worker], now: Instant) -> Vec<String> {
        let mut said = Vec::new();
        let mut one_came = false;
        for (job, seen) in &mut self.pilots {
            let name = slurm.worker_name(seen.slot, "");
            let heard =
                workers.iter().any(|worker| worker.name.starts_with(&name) && worker.seen_at >= seen.since);
            let came = !seen.registered && heard;
            (seen.registered, one_came) = (seen.registered || came, one_came || came);
            if !seen.registered && jobs.iter().all(|other| other.id != *job) {
                let log = slurm.log(seen.slot);
                said.push(format!("pilot {job} ended before the server heard of it; its output is in {log}"));
            }
        }
        if !said.is_empty() {
            self.failed(now);
        } else if one_came {
            (self.failures, self.not_before) = (0, None);
        }
        let pilots = std::mem::take(&mut self.pilots);
        self.pilots = jobs
            .iter()
            .map(|job| {
                let registered = job.state != JobState::Pending && worker_of(slurm, job, workers).is_some();
                let registered = registered || pilots.get(&job.id).is_some_and(|seen| seen.registered);
                (job.id, Seen { slot: job.slot, since: began(job), registered })
            })
            .collect();
        said
    }

    fn failed(&mut self, now: Instant) {
        let pause = PAUSE.0.saturating_mul(1 << self.failures.min(16)).min(PAUSE.1);
        self.failures += 1;
        self.not_before = Some(now + pause);
        tracing::warn!(failures = self.failures, seconds = pause.as_secs(), "the next pilot waits");
    }

    /// The runs without those that a free worker was not given for so long: they wait for something that no pilot
    /// brings, until the server says another reason.
    fn without_untaken(&mut self, waiting: Vec<Waiting>, now: Instant) -> (Vec<Waiting>, Vec<String>) {
        let whys: BTreeMap<&str, &str> =
            waiting.iter().map(|waiting| (waiting.need.run.as_str(), waiting.why.as_str())).collect();
        self.untaken.retain(|run, (_, why)| whys.get(run.as_str()) == Some(&why.as_str()));
        let stuck = |waiting: &Waiting| {
            self.untaken
                .get(&waiting.need.run)
                .is_some_and(|(since, _)| now.duration_since(*since) >= UNTAKEN)
        };
        let (stuck, waiting): (Vec<Waiting>, Vec<Waiting>) = waiting.into_iter().partition(stuck);
        let tell = |Waiting { need, why }: Waiting| {
            format!(
                "no pilot for the run {}: a free worker holds its assets and was not given it ({why})",
                need.run
            )
        };
        (waiting, stuck.into_iter().map(tell).collect())
    }

    /// Notes since when runs could have had a free worker.
    fn note_fits(&mut self, fits: &[String], waiting: &[Waiting], now: Instant) {
        let fits: BTreeSet<&str> = fits.iter().map(String::as_str).collect();
        for Waiting { need, why } in waiting {
            if !fits.contains(need.run.as_str()) {
                self.untaken.remove(&need.run);
            } else if !self.untaken.contains_key(&need.run) {
                self.untaken.insert(need.run.clone(), (now, why.clone()));
            }
        }
    }

    /// Says what is new; what is still so has been said.
    fn say(&mut self, now: impl IntoIterator<Item = String>) {
        let now: BTreeSet<String> = now.into_iter().collect();
        now.difference(&self.said).for_each(|said| tracing::warn!("{said}"));
        self.said = now;
    }

    /// Says one thing more, once.
    fn say_also(&mut self, said: String) {
        if !self.said.contains(&said) {
            tracing::warn!("{said}");
            self.said.insert(said);
        }
    }
}

#[cfg(test)]
mod tests;
