//! A month of a cluster, with the real assignment code on a real Postgres: 1,000 GPUs on 125 workers, 100,000 runs of four
//! projects, one pass for each simulated minute. What is simulated is time, the workers and the work; every decision is
//! `scheduler::step`'s. `BENCH=simulate` is the whole month, or `DAYS` of it; a plain `make bench` simulates one day.

use super::report;
use anyhow::{Context, Result};
use causeway_server::{
    runs,
    scheduler::{self, retry::Cause},
};
use causeway_tests::Server;
use sqlx::{PgPool, Row};
use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// Workers, and GPUs on each.
const WORKERS: usize = 125;
const GPUS: usize = 8;
const CLUSTER: f64 = (WORKERS * GPUS) as f64;
/// Runs that are submitted in a month, and its days.
const RUNS: usize = 100_000;
const MONTH: usize = 30;
const DAY: usize = 24 * 60;
/// Share of the cluster's time that is asked for, and how much more than that at noon, and less at midnight: by day more
/// is asked for than there is.
const LOAD: f64 = 0.92;
const RHYTHM: f64 = 0.6;
/// Weights of the projects. All ask for the same.
const WEIGHTS: [f64; 4] = [4.0, 3.0, 2.0, 1.0];
/// What runs ask for: workers, devices on each, share of the runs.
const SIZES: [(i32, i32, f64); 5] = [(1, 1, 0.60), (1, 2, 0.20), (1, 4, 0.10), (1, 8, 0.08), (2, 8, 0.02)];
/// Their priorities and shares.
const PRIORITIES: [(i32, f64); 3] = [(0, 0.90), (5, 0.08), (10, 0.02)];
/// Spread of the logarithm of how long a run takes.
const SPREAD: f64 = 1.0;
/// Share of the runs that say how long they take at most: half again as long as they do.
const LIMITED: f64 = 0.7;
/// Nobody goes silent here: a lease lasts longer than the month.
const LEASE_SECONDS: f64 = 1e8;

/// One run to come.
struct Job {
    minute: usize,
    project: usize,
    size: (i32, i32),
    priority: i32,
    minutes: i64,
    limited: bool,
}

impl Job {
    fn devices(&self) -> f64 {
        f64::from(self.size.0 * self.size.1)
    }
}

/// A run at work or waiting.
struct Work {
    job: usize,
    /// Minutes still to do.
    rest: i64,
    /// When it last began, if it runs.
    began: Option<usize>,
    /// Whether it has ever begun.
    picked: bool,
}

/// What is noted while the month passes.
#[derive(Default)]
struct Notes {
    /// Milliseconds of each pass.
    passes: Vec<f64>,
    /// Device-minutes that were worked in, by project.
    used: [f64; WEIGHTS.len()],
    /// Over the minutes in which a project had runs waiting: the devices it held, and those due to it.
    held: [f64; WEIGHTS.len()],
    due: [f64; WEIGHTS.len()],
    /// Minutes from submission to the first start, by project and priority.
    waits: BTreeMap<(usize, i32), Vec<f64>>,
    yields: usize,
    longest_queue: usize,
    ended: usize,
}

/// Simulates the month.
pub async fn simulate() -> Result<()> {
    let whole = if std::env::var_os("BENCH").is_some() { MONTH } else { 1 };
    let days = std::env::var("DAYS").ok().and_then(|days| days.parse().ok()).unwrap_or(whole);
    let mut server = Server::start().await?;
    server.kill()?; // its Postgres stays
    let pool = server.database().await?;
    let start = OffsetDateTime::from_unix_timestamp(1_800_000_000)?;
    let projects = cluster(&pool, start).await?;
    let jobs = jobs(days);
    let mut works: HashMap<Uuid, Work> = HashMap::new();
    let (mut notes, mut next) = (Notes::default(), 0);
    let clock = Instant::now();
    for minute in 0..days * DAY {
        let now = start + Duration::minutes(minute as i64);
        let from = next;
        while next < jobs.len() && jobs[next].minute <= minute {
            next += 1;
        }
        for (job, id) in (from..next).zip(submit(&pool, &jobs[from..next], &projects, now).await?) {
            works.insert(id, Work { job, rest: jobs[job].minutes, began: None, picked: false });
        }
        notes.ended += finish(&pool, &mut works, minute, now).await?;
        notes.yields += give_way(&pool, &mut works, minute, now).await?;
        let before = Instant::now();
        let mut tx = pool.begin().await?;
        scheduler::step(&mut tx, now, LEASE_SECONDS).await?;
        tx.commit().await?;
        notes.passes.push(before.elapsed().as_secs_f64() * 1e3);
        for run in pick_up(&pool).await? {
            let work = works.get_mut(&run).context("a run that nobody knows")?;
            work.began = Some(minute);
            if !std::mem::replace(&mut work.picked, true) {
                let job = &jobs[work.job];
                notes
                    .waits
                    .entry((job.project, job.priority))
                    .or_default()
                    .push((minute - job.minute) as f64);
            }
        }
        notes.minute(&works, &jobs);
        if (minute + 1) % DAY == 0 {
            eprintln!(
                "day {} of {days}: {:.0} s, {} runs ended",
                minute / DAY + 1,
                clock.elapsed().as_secs_f64(),
                notes.ended
            );
        }
    }
    let seconds = clock.elapsed().as_secs_f64();
    let what = format!("{days} days, {} runs, of which {} ended", jobs.len(), notes.ended);
    report("simulate_seconds", seconds, "s", &what);
    notes.tell((days * DAY) as f64);
    Ok(())
}

impl Notes {
    fn minute(&mut self, works: &HashMap<Uuid, Work>, jobs: &[Job]) {
        let (mut held, mut asked) = ([0.0; WEIGHTS.len()], [0.0; WEIGHTS.len()]);
        let mut waiting = 0;
        for work in works.values() {
            let job = &jobs[work.job];
            match work.began {
                Some(_) => held[job.project] += job.devices(),
                None => {
                    asked[job.project] += job.devices();
                    waiting += 1;
                }
            }
        }
        self.longest_queue = self.longest_queue.max(waiting);
        let wants: Vec<f64> = held.iter().zip(&asked).map(|(held, asked)| held + asked).collect();
        let due = due(&wants);
        for project in 0..WEIGHTS.len() {
            self.used[project] += held[project];
            if asked[project] > 0.0 {
                self.held[project] += held[project];
                self.due[project] += due[project];
            }
        }
    }

    fn tell(mut self, minutes: f64) {
        let used = 100.0 * self.used.iter().sum::<f64>() / (CLUSTER * minutes);
        report("simulate_use", used, "%", "of the cluster's time was worked in");
        report("simulate_queue", self.longest_queue as f64, "runs", "waited at once at the most");
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("most", 1.0)] {
            let what = "a pass: begin, everything read, decided and written, commit";
            report(&format!("simulate_pass_{name}"), at(&mut self.passes, share), "ms", what);
        }
        report(
            "simulate_yields",
            self.yields as f64,
            "",
            "times that a run gave way to one of higher priority",
        );
        for ((project, priority), mut of) in self.waits {
            let weight = WEIGHTS[project];
            let what =
                format!("from submission to start, weight {weight}, priority {priority}, {} runs", of.len());
            for (name, share) in [("p50", 0.5), ("p95", 0.95)] {
                report(
                    &format!("simulate_wait_{project}_{priority}_{name}"),
                    at(&mut of, share),
                    "min",
                    &what,
                );
            }
        }
        for (project, weight) in WEIGHTS.iter().enumerate().filter(|(project, _)| self.due[*project] > 0.0) {
            let what = format!(
                "weight {weight}: devices held for those due to it, over the minutes its runs waited"
            );
            report(&format!("simulate_share_{project}"), self.held[project] / self.due[project], "x", &what);
        }
    }
}

/// What is due to each project: devices by weight, to none more than it wants, and what one does not want to the others
/// (weighted max-min fairness).
fn due(wants: &[f64]) -> Vec<f64> {
    let mut due = wants.to_vec();
    let mut open: Vec<usize> = (0..wants.len()).collect();
    let mut left = CLUSTER;
    loop {
        let level = left / open.iter().map(|project| WEIGHTS[*project]).sum::<f64>();
        let (content, greedy): (Vec<usize>, Vec<usize>) =
            open.iter().partition(|project| wants[**project] <= level * WEIGHTS[**project]);
        if content.is_empty() || greedy.is_empty() {
            greedy.into_iter().for_each(|project| due[project] = level * WEIGHTS[project]);
            return due;
        }
        left -= content.iter().map(|project| wants[*project]).sum::<f64>();
        open = greedy;
    }
}

fn at(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(share * (values.len() - 1) as f64) as usize]
}

/// The workers and the projects with an experiment each; gives the ids of those.
pub async fn cluster(pool: &PgPool, start: OffsetDateTime) -> Result<Vec<(Uuid, Uuid)>> {
    for worker in 0..WORKERS {
        let id = Uuid::from_u128(1 + worker as u128);
        sqlx::query(
            "insert into worker (id, name, host, version, assets, labels, registered_at)
             values ($1, $2, $2, '0', '[]', '{commands}', $3)",
        )
        .bind(id)
        .bind(format!("w{worker}"))
        .bind(start)
        .execute(pool)
        .await?;
        sqlx::query("insert into worker_pulse (worker_id, seen_at) values ($1, 'infinity')")
            .bind(id)
            .execute(pool)
            .await?;
        sqlx::query(
            "insert into device (worker_id, name, ordinal, memory)
             select $1, 'cuda:' || i, i, 80000000000 from generate_series(0, $2) i",
        )
        .bind(id)
        .bind(GPUS as i32 - 1)
        .execute(pool)
        .await?;
    }
    let mut projects = Vec::new();
    for (at, weight) in WEIGHTS.into_iter().enumerate() {
        let (project, experiment) = (Uuid::now_v7(), Uuid::now_v7());
        sqlx::query("insert into project (id, name, weight, usage_at) values ($1, $2, $3, $4)")
            .bind(project)
            .bind(format!("p{at}"))
            .bind(weight)
            .bind(start)
            .execute(pool)
            .await?;
        sqlx::query("insert into experiment (id, project_id, name) values ($1, $2, 'e')")
            .bind(experiment)
            .bind(project)
            .execute(pool)
            .await?;
        projects.push((project, experiment));
    }
    Ok(projects)
}

/// The runs in the order of their submission; the same every time.
fn jobs(days: usize) -> Vec<Job> {
    let mut state = 1u64;
    let mut uniform = move || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64
    };
    let count = RUNS * days / MONTH;
    let devices: f64 = SIZES.iter().map(|(nodes, gpus, share)| f64::from(nodes * gpus) * share).sum();
    let mean = CLUSTER * (days * DAY) as f64 * LOAD / (count as f64 * devices);
    let pick = |shares: &[f64], at: f64| {
        let mut below = 0.0;
        shares.iter().position(|share| {
            below += share;
            at < below
        })
    };
    let mut jobs: Vec<Job> = (0..count)
        .map(|_| {
            let size = SIZES[pick(&SIZES.map(|size| size.2), uniform()).unwrap_or(0)];
            let priority = PRIORITIES[pick(&PRIORITIES.map(|it| it.1), uniform()).unwrap_or(0)].0;
            let normal =
                (-2.0 * uniform().max(1e-12).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
            // A lognormal of that mean.
            let minutes = mean * (SPREAD * normal - SPREAD * SPREAD / 2.0).exp();
            let minute = loop {
                let minute = (uniform() * (days * DAY) as f64) as usize;
                let hour = -(std::f64::consts::TAU * minute as f64 / DAY as f64).cos();
                if uniform() * (1.0 + RHYTHM) < 1.0 + RHYTHM * hour {
                    break minute;
                }
            };
            Job {
                minute,
                project: (uniform() * WEIGHTS.len() as f64) as usize % WEIGHTS.len(),
                size: (size.0, size.1),
                priority,
                minutes: (minutes as i64).clamp(1, (14 * DAY) as i64),
                limited: uniform() < LIMITED,
            }
        })
        .collect();
    jobs.sort_by_key(|job| job.minute);
    jobs
}

async fn submit(
    pool: &PgPool,
    jobs: &[Job],
    projects: &[(Uuid, Uuid)],
    now: OffsetDateTime,
) -> Result<Vec<Uuid>> {
    let mut ids = Vec::with_capacity(jobs.len());
    let mut tx = pool.begin().await?;
    for job in jobs {
        let id = Uuid::now_v7();
        let limit = job.limited.then(|| i32::try_from(job.minutes * 90)).transpose()?;
        sqlx::query(
            "insert into run (id, experiment_id, name, kind, method, seed, spec, variant, state, phase, priority,
                              max_attempts, project_id, devices, nodes, labels, needs, limit_seconds, created_at, ready_at)
             values ($1, $2, 'r', 'command', 'command', 0, '{}', 'v', 'queued', 'train', $3, 3, $4, $5, $6,
                     '{commands}', '{}', $7, $8, $8)",
        )
        .bind(id)
        .bind(projects[job.project].1)
        .bind(job.priority)
        .bind(projects[job.project].0)
        .bind(job.size.1)
        .bind(job.size.0)
        .bind(limit)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        ids.push(id);
    }
    tx.commit().await?;
    Ok(ids)
}

/// The workers fetch what was assigned to them; gives the runs.
async fn pick_up(pool: &PgPool) -> Result<Vec<Uuid>> {
    let rows = sqlx::query("update lease set delivered = true where not delivered returning run_id, rank")
        .fetch_all(pool)
        .await?;
    Ok(rows.iter().filter(|row| row.get::<i32, _>("rank") == 0).map(|row| row.get("run_id")).collect())
}

/// Runs whose work is done end; gives their number.
async fn finish(
    pool: &PgPool,
    works: &mut HashMap<Uuid, Work>,
    minute: usize,
    now: OffsetDateTime,
) -> Result<usize> {
    let is_done = |work: &Work| work.began.is_some_and(|began| (minute - began) as i64 >= work.rest);
    let done: Vec<Uuid> = works.iter().filter(|(_, work)| is_done(work)).map(|(id, _)| *id).collect();
    if done.is_empty() {
        return Ok(0);
    }
    let mut tx = pool.begin().await?;
    sqlx::query(
        "update attempt set state = 'succeeded', ended_at = $2 where run_id = any($1) and ended_at is null",
    )
    .bind(&done)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    sqlx::query("delete from lease where run_id = any($1)").bind(&done).execute(&mut *tx).await?;
    for id in &done {
        runs::change_state(&mut tx, *id, causeway_protocol::RunState::Succeeded, "").await?;
        works.remove(id);
    }
    tx.commit().await?;
    Ok(done.len())
}

/// Runs that were asked to yield a minute ago have saved what they did; gives their number.
async fn give_way(
    pool: &PgPool,
    works: &mut HashMap<Uuid, Work>,
    minute: usize,
    now: OffsetDateTime,
) -> Result<usize> {
    let asked = sqlx::query(
        "select r.id, l.attempt_id from run r join lease l on l.run_id = r.id and l.rank = 0
         where r.yield_for is not null",
    )
    .fetch_all(pool)
    .await?;
    let mut tx = pool.begin().await?;
    for row in &asked {
        let (run, attempt): (Uuid, Uuid) = (row.get(0), row.get(1));
        scheduler::end_attempt(&mut tx, attempt).await?;
        sqlx::query("update attempt set state = 'yielded', ended_at = $2 where id = $1")
            .bind(attempt)
            .bind(now)
            .execute(&mut *tx)
            .await?;
        scheduler::give_back(&mut tx, run, Cause::Yielded, "").await?;
        let work = works.get_mut(&run).context("a run that nobody knows")?;
        let began = work.began.take().context("it was at work")?;
        work.rest -= (minute - began) as i64;
    }
    tx.commit().await?;
    Ok(asked.len())
}
