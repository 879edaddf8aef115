//! A month of a cluster, with the real assignment code on a real Postgres: 1,000 GPUs on 125 workers, 100,000 runs of four
//! projects, one pass for each simulated minute. What is simulated is time, the workers and the work; every decision is
//! `scheduler::step`'s.

use super::report;
use anyhow::{Context, Result};
use causeway_server::{
    runs,
    scheduler::{self, Cause},
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
/// Runs that are submitted in all.
const RUNS: usize = 100_000;
/// Days; `DAYS` in the environment makes it shorter, with as much less to do.
const DAYS: usize = 30;
/// Share of the cluster's time that is asked for.
const LOAD: f64 = 0.92;
/// Weights of the projects.
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

/// A run at work or waiting.
struct Work {
    job: usize,
    /// Minutes still to do.
    rest: i64,
    submitted: usize,
    /// When it last began, if it runs.
    began: Option<usize>,
    first_began: Option<usize>,
}

/// Simulates the month.
pub async fn simulate() -> Result<()> {
    let days = std::env::var("DAYS").ok().and_then(|days| days.parse().ok()).unwrap_or(DAYS);
    let mut server = Server::start().await?;
    server.kill()?; // its Postgres stays
    let pool = server.database().await?;
    let start = OffsetDateTime::from_unix_timestamp(1_800_000_000)?;
    let projects = cluster(&pool, start).await?;
    let jobs = jobs(days);
    let minutes = days * 24 * 60;
    let mut works: HashMap<Uuid, Work> = HashMap::new();
    let (mut steps, mut next) = (Vec::with_capacity(minutes), 0);
    let (mut used, mut yields) = (vec![0i64; WEIGHTS.len()], 0u64);
    let mut waits: BTreeMap<(usize, i32), Vec<f64>> = BTreeMap::new();
    let clock = Instant::now();
    for minute in 0..minutes {
        let now = start + Duration::minutes(minute as i64);
        let from = next;
        while next < jobs.len() && jobs[next].minute <= minute {
            next += 1;
        }
        for (at, id) in (from..next).zip(submit(&pool, &jobs[from..next], &projects, now).await?) {
            works.insert(id, Work { job: at, rest: jobs[at].minutes, submitted: minute, began: None, first_began: None });
        }
        finish(&pool, &mut works, minute, now).await?;
        yields += give_way(&pool, &mut works, minute, now).await?;
        let before = Instant::now();
        let mut tx = pool.begin().await?;
        scheduler::step(&mut tx, now, LEASE_SECONDS).await?;
        tx.commit().await?;
        steps.push(before.elapsed().as_secs_f64() * 1e3);
        for row in sqlx::query("select run_id from lease where not delivered and rank = 0").fetch_all(&pool).await? {
            if let Some(work) = works.get_mut(&row.get(0)) {
                work.began = Some(minute);
                if work.first_began.is_none() {
                    work.first_began = Some(minute);
                    let job = &jobs[work.job];
                    waits.entry((job.project, job.priority)).or_default().push((minute - work.submitted) as f64);
                }
            }
        }
        sqlx::query("update lease set delivered = true where not delivered").execute(&pool).await?;
        for work in works.values().filter(|work| work.began.is_some()) {
            let job = &jobs[work.job];
            used[job.project] += i64::from(job.size.0 * job.size.1);
        }
    }
    let total = (WORKERS * GPUS * minutes) as f64;
    report("simulate_seconds", clock.elapsed().as_secs_f64(), "s", &format!("{minutes} passes, {} runs", jobs.len()));
    report("simulate_use", 100.0 * used.iter().sum::<i64>() as f64 / total, "%", "of the cluster's time was worked in");
    steps.sort_by(f64::total_cmp);
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        report(&format!("simulate_pass_{name}"), steps[(share * (steps.len() - 1) as f64) as usize], "ms", "a pass");
    }
    report("simulate_yields", yields as f64, "", "times that a run gave way to one of higher priority");
    for ((project, priority), mut of) in waits {
        of.sort_by(f64::total_cmp);
        let at = |share: f64| of[(share * (of.len() - 1) as f64) as usize];
        let what = format!("project of weight {}, priority {priority}: {} runs, p50", WEIGHTS[project], of.len());
        report(&format!("simulate_wait_{project}_{priority}"), at(0.5), "min", &what);
        report(&format!("simulate_wait_{project}_{priority}_p95"), at(0.95), "min", "p95 of those");
    }
    let shares: Vec<f64> = used.iter().zip(WEIGHTS).map(|(used, weight)| *used as f64 / weight).collect();
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    let what = "Jain's index of device time for weight, 1 is fair: projects ask in proportion to nothing, all the same";
    report("simulate_fairness", sum * sum / (shares.len() as f64 * squares), "", what);
    Ok(())
}

async fn cluster(pool: &PgPool, start: OffsetDateTime) -> Result<Vec<(Uuid, Uuid)>> {
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
        sqlx::query("insert into worker_pulse (worker_id, seen_at) values ($1, 'infinity')").bind(id).execute(pool).await?;
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

/// The month's runs in the order of their submission; the same every time.
fn jobs(days: usize) -> Vec<Job> {
    let mut state = 1u64;
    let mut uniform = move || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64
    };
    let count = RUNS * days / DAYS;
    let devices: f64 = SIZES.iter().map(|(nodes, gpus, share)| f64::from(nodes * gpus) * share).sum();
    let mean = (WORKERS * GPUS * days * 24 * 60) as f64 * LOAD / (count as f64 * devices);
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
            let normal = (-2.0 * uniform().max(1e-12).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
            // A lognormal of that mean.
            let minutes = mean * (SPREAD * normal - SPREAD * SPREAD / 2.0).exp();
            Job {
                minute: (uniform() * (days * 24 * 60) as f64) as usize,
                project: (uniform() * WEIGHTS.len() as f64) as usize % WEIGHTS.len(),
                size: (size.0, size.1),
                priority,
                minutes: (minutes as i64).clamp(1, 14 * 24 * 60),
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
        .execute(pool)
        .await?;
        ids.push(id);
    }
    Ok(ids)
}

/// Runs whose work is done end.
async fn finish(pool: &PgPool, works: &mut HashMap<Uuid, Work>, minute: usize, now: OffsetDateTime) -> Result<()> {
    let done: Vec<Uuid> = works
        .iter()
        .filter(|(_, work)| work.began.is_some_and(|began| (minute - began) as i64 >= work.rest))
        .map(|(id, _)| *id)
        .collect();
    if done.is_empty() {
        return Ok(());
    }
    let mut tx = pool.begin().await?;
    sqlx::query("update attempt set state = 'succeeded', ended_at = $2 where run_id = any($1) and ended_at is null")
        .bind(&done)
        .bind(now)
        .execute(&mut *tx)
        .await?;
    sqlx::query("delete from lease where run_id = any($1)").bind(&done).execute(&mut *tx).await?;
    for id in done {
        runs::change_state(&mut tx, id, causeway_protocol::RunState::Succeeded, "").await?;
        works.remove(&id);
    }
    tx.commit().await?;
    Ok(())
}

/// Runs that were asked to yield a minute ago have saved what they did.
async fn give_way(pool: &PgPool, works: &mut HashMap<Uuid, Work>, minute: usize, now: OffsetDateTime) -> Result<u64> {
    let asked = sqlx::query(
        "select r.id, a.id from run r join lease l on l.run_id = r.id and l.rank = 0 join attempt a on a.id = l.attempt_id
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
    Ok(asked.len() as u64)
}
