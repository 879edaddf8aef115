//! Who works on what. One transaction under an advisory lock takes back what is lost, looks at devices and queue, decides
//! ([`plan`]), and hands out leases; `POST /leases` only returns what was assigned here. Running it in several servers at
//! once is harmless: the lock makes them take turns.

mod assign;
mod cluster;
mod dependencies;
mod fit;
mod order;
pub mod plan;
mod preempt;
mod queue;
mod rescue;
pub mod retry;

pub use assign::YIELD_SECONDS;
pub use queue::{__path_list_queue, QueueEntry, Reasons, list_queue, queue, refuse_impossible, why_waiting};
pub use rescue::{end_attempt, give_back};

use crate::{App, Result};
use sqlx::PgConnection;
use std::time::Duration;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long a lease lasts unless renewed, seconds on Postgres's clock, unless the server is told otherwise.
pub const LEASE_SECONDS: f64 = 30.0;
/// A gap of the database longer than this makes every lease good for a fresh period.
const GAP: Duration = Duration::from_secs(5);
/// Pause between two passes, at the least and at the most, else as long as the last one took: what comes in meanwhile
/// shares the next, and a long queue leaves the database half of its time for those who work it off.
const PAUSE: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Any number; the same in every server.
const LOCK: i64 = 0x0043_4155_5345_5741;

/// A worker not heard of for so long gets no new work and is shown as suspect; its leases still hold.
pub fn suspect_seconds(lease_seconds: f64) -> f64 {
    lease_seconds / 2.0
}

/// Expires and assigns until told to stop.
pub async fn run(app: App, stop: CancellationToken) {
    let mut good = tokio::time::Instant::now();
    let mut fresh = true; // at the start, nobody could renew while no server was there
    loop {
        let mut wake = app.wake.listen_as_scheduler();
        let began = tokio::time::Instant::now();
        match pass(&app, fresh || good.elapsed() > GAP).await {
            Ok(()) => {
                good = tokio::time::Instant::now();
                fresh = false;
            }
            Err(error) => tracing::warn!(%error, "scheduling pass failed; the next one tries again"),
        }
        let pause = began.elapsed().clamp(PAUSE, PAUSE_MAX);
        tokio::select! {
            () = async { tokio::join!(tokio::time::sleep(pause), wake.heard()); } => {}
            () = stop.cancelled() => return,
        }
    }
}

/// One pass. With `extend`, every lease gets a fresh period first: after a gap no worker could have renewed.
///
/// # Errors
/// If the database does not answer; nothing has changed then.
pub async fn pass(app: &App, extend: bool) -> Result<()> {
    let mut tx = app.pool.begin().await?;
    sqlx::query!("select pg_advisory_xact_lock($1)", LOCK).execute(&mut *tx).await?;
    if extend {
        sqlx::query!(
            "update lease set expires_at = greatest(expires_at, now() + make_interval(secs => $1))",
            app.lease_seconds
        )
        .execute(&mut *tx)
        .await?;
    }
    // After the lock: now() is when the transaction began.
    let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(&mut *tx).await?;
    let done = step(&mut tx, now, app.lease_seconds).await?;
    tx.commit().await?;
    if done.others {
        app.wake.ring();
    } else {
        app.wake.ring_workers(&done.workers);
    }
    Ok(())
}

/// What a pass has done.
#[derive(Debug)]
pub struct Done {
    /// Workers with a new lease.
    pub workers: Vec<Uuid>,
    /// Whether anything else changed: leases that were taken back, runs that were asked to yield.
    pub others: bool,
}

/// What a pass does, at a given time, inside a transaction that holds the lock.
///
/// # Errors
/// If the database does not answer.
pub async fn step(conn: &mut PgConnection, now: OffsetDateTime, lease_seconds: f64) -> Result<Done> {
    let mut leases = cluster::leases(conn).await?;
    let rescued = rescue::expired(conn, now, lease_seconds, &leases).await?;
    let late = rescue::past_limit(conn, now, &leases).await?;
    let settled = dependencies::settle(conn).await?;
    let waiting = cluster::waiting(conn, now).await?;
    assign::count_use(conn, now).await?;
    if waiting.is_empty() {
        return Ok(Done { workers: Vec::new(), others: rescued || late || settled });
    }
    if rescued || late {
        leases = cluster::leases(conn).await?;
    }
    let mut cluster = cluster::read(conn, now, lease_seconds, &leases).await?;
    let plan = plan::plan(&mut cluster, &waiting);
    assign::start(conn, &plan.starts, now, lease_seconds).await?;
    for one in &plan.yields {
        assign::ask_to_yield(conn, one, now).await?;
    }
    let members = plan.starts.iter().flat_map(|start| &start.members);
    let workers = members.map(|member| member.worker).collect();
    Ok(Done { workers, others: rescued || late || settled || !plan.yields.is_empty() })
}
