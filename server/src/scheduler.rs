//! Who works on what. One transaction under an advisory lock looks at the free devices and at the queue in its total
//! order, and hands out leases; `POST /leases` only returns what was assigned here. The same pass takes back the
//! leases that ran out. Running it in several servers at once is harmless: the lock makes them take turns.

use crate::{App, Error, Result, runs};
use causeway_protocol::{AssetSummary, RunState, Spec};
use serde::Serialize;
use sqlx::{PgConnection, PgPool, types::Json};
use std::{collections::HashSet, time::Duration};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use uuid::Uuid;

/// How long a lease lasts unless renewed, seconds on Postgres's clock, unless the server is told otherwise.
pub const LEASE_SECONDS: f64 = 30.0;
/// A gap of the database longer than this makes every lease good for a fresh period.
const GAP: Duration = Duration::from_secs(5);
/// Runs looked at in one pass.
const PASS_MAX: i64 = 1000;
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
        let mut wake = app.wake.listen();
        match pass(&app, fresh || good.elapsed() > GAP).await {
            Ok(()) => {
                good = tokio::time::Instant::now();
                fresh = false;
            }
            Err(error) => tracing::warn!(%error, "scheduling pass failed; the next one tries again"),
        }
        tokio::select! {
            () = wake.heard() => {}
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
    let rescued = rescue(&mut tx, app.lease_seconds).await?;
    let assigned = assign(&mut tx, app.lease_seconds).await?;
    tx.commit().await?;
    if rescued || assigned {
        app.wake.ring();
    }
    Ok(())
}

/// Takes back the leases that ran out.
async fn rescue(conn: &mut PgConnection, lease_seconds: f64) -> Result<bool> {
    let expired = sqlx::query!(
        r#"select l.id, l.run_id, l.attempt_id, l.delivered, w.name as worker, r.attempts, r.max_attempts, r.cancel_requested
           from lease l join run r on r.id = l.run_id join worker w on w.id = l.worker_id
           where l.expires_at < now() order by l.expires_at for update of l"#
    )
    .fetch_all(&mut *conn)
    .await?;
    for lease in &expired {
        sqlx::query!("delete from lease where id = $1", lease.id).execute(&mut *conn).await?;
        let silent = format!("no heartbeat from {} for {lease_seconds} s", lease.worker);
        let mut attempts = lease.attempts;
        if lease.delivered {
            sqlx::query!(
                "update attempt set state = 'lost', reason = $2, ended_at = now() where id = $1",
                lease.attempt_id,
                silent
            )
            .execute(&mut *conn)
            .await?;
        } else {
            // Nobody ever picked it up: that is no try at the run.
            sqlx::query!("delete from attempt where id = $1", lease.attempt_id).execute(&mut *conn).await?;
            sqlx::query!("update run set attempts = attempts - 1 where id = $1", lease.run_id)
                .execute(&mut *conn)
                .await?;
            attempts -= 1;
        }
        tracing::warn!(run = %lease.run_id, worker = lease.worker, "lease expired");
        let (next, reason) = if lease.cancel_requested {
            (RunState::Cancelled, "cancelled".to_owned())
        } else if attempts < lease.max_attempts {
            (RunState::Queued, String::new())
        } else {
            (RunState::Lost, format!("{silent}, and all {} attempts are used up", lease.max_attempts))
        };
        runs::change_state(conn, lease.run_id, next, &reason).await?;
    }
    Ok(!expired.is_empty())
}

struct FreeDevice {
    worker: Uuid,
    device: String,
    assets: HashSet<String>,
}

/// Gives ready runs to free devices.
async fn assign(conn: &mut PgConnection, lease_seconds: f64) -> Result<bool> {
    let mut free = free_devices(conn, lease_seconds).await?;
    if free.is_empty() {
        return Ok(false);
    }
    let ready = sqlx::query!(
        r#"select id, phase, epoch, attempts, spec as "spec: Json<Spec>" from run
           where state = 'queued' and ready_at <= now()
             and not exists (select from run part where part.part_of = run.id and part.state in ('queued', 'running'))
           order by priority desc, queue_position, id limit $1 for update skip locked"#,
        PASS_MAX
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut any = false;
    for run in ready {
        let Some(place) = free.iter().position(|slot| lacking(&run.spec, &slot.assets).is_empty()) else {
            continue;
        };
        let slot = free.remove(place);
        let attempt_id = Uuid::now_v7();
        runs::change_state(conn, run.id, RunState::Running, "").await?;
        sqlx::query!("update run set epoch = epoch + 1, attempts = attempts + 1 where id = $1", run.id)
            .execute(&mut *conn)
            .await?;
        // The number comes from the table: an attempt that nobody picked up has left no gap behind.
        let number = sqlx::query_scalar!(
            r#"insert into attempt (id, run_id, number, worker_id, device, epoch, state, phase)
               values ($1, $2, (select coalesce(max(number), 0) + 1 from attempt where run_id = $2), $3, $4, $5,
                       'assigned', $6)
               returning number"#,
            attempt_id,
            run.id,
            slot.worker,
            slot.device,
            run.epoch + 1,
            run.phase,
        )
        .fetch_one(&mut *conn)
        .await?;
        sqlx::query!(
            "insert into lease (id, run_id, attempt_id, attempt, worker_id, device, epoch, expires_at)
             values ($1, $2, $3, $4, $5, $6, $7, now() + make_interval(secs => $8))",
            Uuid::new_v4(), // not guessable from the time, unlike v7
            run.id,
            attempt_id,
            number,
            slot.worker,
            slot.device,
            run.epoch + 1,
            lease_seconds,
        )
        .execute(&mut *conn)
        .await?;
        any = true;
        if free.is_empty() {
            break;
        }
    }
    Ok(any)
}

async fn free_devices(conn: &mut PgConnection, lease_seconds: f64) -> Result<Vec<FreeDevice>> {
    let rows = sqlx::query!(
        r#"select w.id, d.device as "device!", w.assets as "assets: Json<Vec<AssetSummary>>"
           from worker w join worker_pulse p on p.worker_id = w.id cross join lateral unnest(w.devices) d(device)
           where p.seen_at > now() - make_interval(secs => $1) and not w.draining
             and not exists (select from lease l where l.worker_id = w.id and l.device = d.device)
           order by w.registered_at, w.id, d.device"#,
        suspect_seconds(lease_seconds)
    )
    .fetch_all(conn)
    .await?;
    let devices = rows.into_iter().map(|row| FreeDevice {
        worker: row.id,
        device: row.device,
        assets: row.assets.0.into_iter().map(|asset| asset.name).collect(),
    });
    Ok(devices.collect())
}

/// The assets of a spec that are not among `held`.
fn lacking<'a>(spec: &'a Spec, held: &HashSet<String>) -> Vec<&'a str> {
    spec.assets().into_iter().filter(|name| !held.contains(*name)).collect()
}

/// A place in the queue.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueEntry {
    /// Place, from 1.
    pub place: usize,
    /// The run.
    pub run_id: Uuid,
    /// Its name.
    pub name: String,
    /// Its experiment.
    pub experiment: String,
    /// Higher goes first.
    pub priority: i32,
    /// The one reason it waits.
    pub why: String,
}

/// The waiting runs in the order in which they will be dispatched, each with the reason it waits.
#[utoipa::path(get, path = "/api/v1/queue", operation_id = "list_queue", tag = "queue",
    responses((status = 200, body = Vec<QueueEntry>)))]
pub async fn list_queue(
    axum::extract::State(app): axum::extract::State<App>,
) -> Result<axum::Json<Vec<QueueEntry>>> {
    queue(&app.pool, app.lease_seconds).await.map(axum::Json)
}

/// The waiting runs in the order of dispatch, at most 1,000.
///
/// # Errors
/// If the database does not answer.
pub async fn queue(pool: &PgPool, lease_seconds: f64) -> Result<Vec<QueueEntry>> {
    let mut conn = pool.acquire().await.map_err(Error::from)?;
    let ready = sqlx::query!(
        r#"select r.id, r.name, e.name as experiment, r.priority, r.spec as "spec: Json<Spec>",
                  ceil(extract(epoch from r.ready_at - now()))::int8 as "pause!",
                  (select count(*) from run part where part.part_of = r.id) as "parts!",
                  (select count(*) from run part where part.part_of = r.id
                     and part.state in ('queued', 'running')) as "parts_left!"
           from run r join experiment e on e.id = r.experiment_id where r.state = 'queued'
           order by r.priority desc, r.queue_position, r.id limit $1"#,
        PASS_MAX
    )
    .fetch_all(&mut *conn)
    .await?;
    let workers = sqlx::query!(
        r#"select w.name, w.assets as "assets: Json<Vec<AssetSummary>>" from worker w
           join worker_pulse p on p.worker_id = w.id where p.seen_at > now() - make_interval(secs => $1) and not w.draining"#,
        suspect_seconds(lease_seconds)
    )
    .fetch_all(&mut *conn)
    .await?;
    let held: Vec<HashSet<String>> = workers
        .iter()
        .map(|worker| worker.assets.0.iter().map(|asset| asset.name.clone()).collect())
        .collect();
    let mut ahead = 0;
    let entries = ready.into_iter().enumerate().map(|(index, run)| {
        let missing = held.iter().map(|assets| lacking(&run.spec, assets)).min_by_key(Vec::len);
        let why = match missing {
            _ if run.parts_left > 0 => {
                format!("waits for {} of its {} parts", run.parts_left, run.parts)
            }
            None => "no worker is ready: start one with `causeway-trainer work`".to_owned(),
            Some(missing) if !missing.is_empty() => {
                format!("no ready worker holds {}", missing.join(", "))
            }
            Some(_) if run.pause > 0 => {
                format!("its last attempt crashed; the next is due in {} s", run.pause)
            }
            Some(_) => {
                ahead += 1;
                match ahead {
                    1 => "next, when a device frees".to_owned(),
                    n => format!("{} ahead of it", n - 1),
                }
            }
        };
        QueueEntry {
            place: index + 1,
            run_id: run.id,
            name: run.name,
            experiment: run.experiment,
            priority: run.priority,
            why,
        }
    });
    Ok(entries.collect())
}

/// For each waiting run, the one reason it waits.
///
/// # Errors
/// If the database does not answer.
pub async fn why_waiting(pool: &PgPool, lease_seconds: f64) -> Result<Vec<(Uuid, String)>> {
    Ok(queue(pool, lease_seconds).await?.into_iter().map(|entry| (entry.run_id, entry.why)).collect())
}
