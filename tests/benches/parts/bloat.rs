//! What 100,000 runs that do nothing leave behind in the tables of the queue, and what that costs a decision; then as many
//! again while a session holds an old snapshot open, so that nothing dead may be taken away. The statements are those of
//! the server: `scheduler::step`, `leases::grant`, `leases::finish`. `RUNS` makes it shorter; a plain `make bench` takes
//! 10,000.

use super::{report, simulate::cluster};
use anyhow::{Context, Result, ensure};
use causeway_protocol::{FinishLease, LeaseRequest, Outcome};
use causeway_server::{App, Hosts, blobs::Blobs, leases, scheduler, wake::Wake};
use causeway_tests::Server;
use sqlx::{Connection, PgPool, Row};
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use uuid::Uuid;

/// Runs, named and in a plain `make bench`.
const RUNS: usize = 100_000;
const RUNS_SHORT: usize = 10_000;
/// Runs that are put into the queue at once: as many as there are devices.
const ROUND: usize = 1000;
/// Agents that fetch and finish.
const AGENTS: usize = 8;
/// Decisions that are timed.
const DECISIONS: usize = 50;
/// The tables that every run writes.
const TABLES: [&str; 4] = ["lease", "device", "run", "attempt"];

/// The part `bloat`.
pub async fn bloat() -> Result<()> {
    let most = if std::env::var_os("BENCH").is_some() { RUNS } else { RUNS_SHORT };
    let runs = std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(most);
    let mut server = Server::start().await?;
    server.kill()?; // its Postgres stays
    let pool = server.database().await?;
    let project = cluster(&pool, OffsetDateTime::now_utc()).await?[0];
    let app = App {
        pool: pool.clone(),
        blobs: Blobs::open(&server.state().join("blobs"))?,
        wake: Wake::default(),
        reasons: Default::default(),
        hosts: Hosts::default(),
        tls: false,
        lease_seconds: 3600.0,
        stop: Default::default(),
    };
    decisions(&app, project, "before").await?;
    pass_through(&app, project, runs).await?;
    sizes(&pool, "after", &format!("after {runs} runs")).await?;
    decisions(&app, project, "after").await?;

    let mut idle = pool.acquire().await?.detach();
    let mut snapshot = idle.begin_with("begin isolation level repeatable read").await?;
    sqlx::query("select count(*) from lease").execute(&mut *snapshot).await?;
    pass_through(&app, project, runs).await?;
    sizes(&pool, "held", &format!("after {runs} more while a session held a snapshot")).await?;
    decisions(&app, project, "held").await?;
    snapshot.rollback().await?;
    Ok(())
}

/// Puts so many runs into the queue.
async fn submit(pool: &PgPool, (project, experiment): (Uuid, Uuid), runs: usize) -> Result<()> {
    let spec = causeway_protocol::parse_spec(serde_json::json!(
        {"experiment": "e", "kind": "command", "name": "nothing", "command": {"argv": ["true"]}}
    ));
    let spec = spec.ok().context("a spec")?;
    sqlx::query(
        "insert into run (id, experiment_id, name, kind, method, seed, spec, variant, state, phase, priority,
                          max_attempts, project_id, labels, needs)
         select gen_random_uuid(), $1, 'nothing', 'command', 'command', 0, $2, 'v', 'queued', 'train', 0, 3, $3,
                '{commands}', '{}' from generate_series(1, $4)",
    )
    .bind(experiment)
    .bind(sqlx::types::Json(&spec))
    .bind(project)
    .bind(runs as i32)
    .execute(pool)
    .await?;
    Ok(())
}

async fn assign(app: &App) -> Result<()> {
    let mut tx = app.pool.begin().await?;
    let now: OffsetDateTime = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *tx).await?;
    scheduler::step(&mut tx, now, app.lease_seconds).await?;
    tx.commit().await?;
    Ok(())
}

/// Every lease that was assigned is fetched and finished.
async fn work(app: &App) -> Result<usize> {
    let workers: Vec<Uuid> =
        sqlx::query_scalar("select distinct worker_id from lease").fetch_all(&app.pool).await?;
    let mut tasks = JoinSet::new();
    for agent in 0..AGENTS {
        let app = app.clone();
        let workers: Vec<Uuid> = workers.iter().copied().skip(agent).step_by(AGENTS).collect();
        tasks.spawn(async move {
            let mut ended = 0;
            for worker_id in workers {
                let request = LeaseRequest { worker_id, held: Vec::new(), wait_ms: 0 };
                while let Some(grant) = leases::grant(&app, &request).await? {
                    let end = FinishLease {
                        epoch: grant.epoch,
                        outcome: Outcome::Succeeded,
                        reason: String::new(),
                        exit_code: Some(0),
                        signal: None,
                    };
                    leases::finish(&app, grant.id, end).await?;
                    ended += 1;
                }
            }
            anyhow::Ok(ended)
        });
    }
    let mut ended = 0;
    while let Some(task) = tasks.join_next().await {
        ended += task??;
    }
    Ok(ended)
}

async fn pass_through(app: &App, project: (Uuid, Uuid), runs: usize) -> Result<()> {
    let start = Instant::now();
    let mut ended = 0;
    while ended < runs {
        submit(&app.pool, project, ROUND).await?;
        assign(app).await?;
        ended += work(app).await?;
    }
    let rate = ended as f64 / start.elapsed().as_secs_f64();
    report("bloat_runs", rate, "runs/s", "assigned, fetched and finished, without HTTP");
    Ok(())
}

/// How long a decision takes when every device is held and a thousand runs wait; then all of them are worked off.
async fn decisions(app: &App, project: (Uuid, Uuid), name: &str) -> Result<()> {
    submit(&app.pool, project, 2 * ROUND).await?;
    assign(app).await?;
    let mut times = Vec::new();
    for _ in 0..DECISIONS {
        let mut tx = app.pool.begin().await?;
        let now: OffsetDateTime = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *tx).await?;
        let start = Instant::now();
        scheduler::step(&mut tx, now, app.lease_seconds).await?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        tx.rollback().await?;
    }
    times.sort_by(f64::total_cmp);
    for (quantile, share) in [("p50", 0.5), ("p99", 0.99)] {
        let time = times[(share * (times.len() - 1) as f64) as usize];
        report(
            &format!("bloat_decision_{name}_{quantile}"),
            time,
            "ms",
            "1,000 runs at work and 1,000 waiting",
        );
    }
    let mut ended = work(app).await?;
    assign(app).await?;
    ended += work(app).await?;
    ensure!(ended == 2 * ROUND, "{ended} runs ended");
    Ok(())
}

async fn sizes(pool: &PgPool, name: &str, what: &str) -> Result<()> {
    sqlx::query("select pg_stat_force_next_flush()").execute(pool).await?;
    tokio::time::sleep(Duration::from_secs(2)).await; // the other sessions tell their counts
    for table in TABLES {
        let row = sqlx::query(
            "select pg_relation_size(relid)::float8, pg_indexes_size(relid)::float8, n_live_tup::float8, n_dead_tup::float8,
                    coalesce(100.0 * n_tup_hot_upd / nullif(n_tup_upd, 0), 0)::float8, autovacuum_count::float8
             from pg_stat_user_tables where relname = $1",
        )
        .bind(table)
        .fetch_one(pool)
        .await?;
        let figures = ["table", "indexes", "live", "dead", "hot", "vacuums"];
        for ((at, figure), unit) in figures.iter().enumerate().zip(["MB", "MB", "rows", "rows", "%", ""]) {
            let divisor = if unit == "MB" { 1e6 } else { 1.0 };
            let value = row.get::<f64, _>(at) / divisor;
            report(&format!("bloat_{name}_{table}_{figure}"), value, unit, what);
        }
    }
    Ok(())
}
