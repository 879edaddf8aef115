//! A decision becomes rows: an attempt, a lease for each of its workers, and the devices they hold.

use super::cluster::HALF_LIFE;
use super::fit::Member;
use super::plan::{Start, Yield};
use crate::{Result, runs};
use causeway_protocol::RunState;
use serde_json::json;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

/// How long a run has to save its state when another needs its devices, seconds.
pub const YIELD_SECONDS: f64 = 120.0;
/// Least time between two counts of what projects use, seconds.
const COUNT_EVERY: f64 = 10.0;

/// Gives runs their devices, in a handful of statements, whatever their number.
///
/// # Errors
/// If a run is not waiting any more, or a device is not free: the pass that saw them holds the lock, so neither
/// happens.
pub async fn start(
    conn: &mut PgConnection,
    starts: &[Start],
    now: OffsetDateTime,
    lease_seconds: f64,
) -> Result<()> {
    if starts.is_empty() {
        return Ok(());
    }
    let runs: Vec<Uuid> = starts.iter().map(|start| start.run).collect();
    runs::change_states(conn, &runs, RunState::Running, "").await?;
    sqlx::query!("update run set epoch = epoch + 1, attempts = attempts + 1 where id = any($1)", &runs)
        .execute(&mut *conn)
        .await?;
    let attempts: Vec<Uuid> = starts.iter().map(|_| Uuid::now_v7()).collect();
    insert_attempts(conn, starts, &attempts, &runs, now).await?;
    lend(conn, starts, &attempts, now, lease_seconds).await
}

async fn insert_attempts(
    conn: &mut PgConnection,
    starts: &[Start],
    attempts: &[Uuid],
    runs: &[Uuid],
    now: OffsetDateTime,
) -> Result<()> {
    let first =
        |start: &Start| start.members.first().map(|member| (member.worker, member.devices.join(", ")));
    let (workers, devices): (Vec<Uuid>, Vec<String>) = starts.iter().filter_map(first).unzip();
    let members: Vec<String> = starts.iter().map(members).collect();
    // The number comes from the table: an attempt that nobody picked up has left no gap behind.
    sqlx::query!(
        "insert into attempt (id, run_id, number, worker_id, device, epoch, state, phase, members, assigned_at)
         select a.id, r.id, (select coalesce(max(number), 0) + 1 from attempt where run_id = r.id), a.worker, a.device,
                r.epoch, 'assigned', r.phase, nullif(a.members, '')::jsonb, $6
         from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[]) a(id, run, worker, device, members)
         join run r on r.id = a.run",
        attempts,
        runs,
        &workers,
        &devices,
        &members,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The workers of an attempt on several, as JSON; else nothing.
fn members(start: &Start) -> String {
    if start.members.len() < 2 {
        return String::new();
    }
    let member = |member: &Member| json!({"worker": member.worker, "devices": member.devices});
    serde_json::Value::from(start.members.iter().map(member).collect::<Vec<_>>()).to_string()
}

/// A lease for each worker of each attempt, and the devices it holds.
async fn lend(
    conn: &mut PgConnection,
    starts: &[Start],
    attempts: &[Uuid],
    now: OffsetDateTime,
    lease_seconds: f64,
) -> Result<()> {
    let (mut leases, mut of_attempt, mut workers, mut ranks) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut holders, mut hosts, mut devices) = (Vec::new(), Vec::new(), Vec::new());
    for (start, attempt) in starts.iter().zip(attempts) {
        for (rank, member) in (0..).zip(&start.members) {
            let lease = Uuid::new_v4(); // not guessable from the time, unlike v7
            leases.push(lease);
            of_attempt.push(*attempt);
            workers.push(member.worker);
            ranks.push(rank);
            for device in &member.devices {
                holders.push(lease);
                hosts.push(member.worker);
                devices.push(device.clone());
            }
        }
    }
    sqlx::query!(
        "insert into lease (id, run_id, attempt_id, attempt, worker_id, epoch, rank, expires_at, assigned_at, ends_at)
         select l.id, a.run_id, a.id, a.number, l.worker, a.epoch, l.rank, $5::timestamptz + make_interval(secs => $6),
                a.assigned_at, a.assigned_at + make_interval(secs => r.limit_seconds)
         from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::int[]) l(id, attempt, worker, rank)
         join attempt a on a.id = l.attempt join run r on r.id = a.run_id",
        &leases,
        &of_attempt,
        &workers,
        &ranks,
        now,
        lease_seconds,
    )
    .execute(&mut *conn)
    .await?;
    let taken = sqlx::query!(
        "update device d set lease_id = h.lease from unnest($1::uuid[], $2::uuid[], $3::text[]) h(lease, worker, name)
         where d.worker_id = h.worker and d.name = h.name and d.lease_id is null",
        &holders,
        &hosts,
        &devices
    )
    .execute(conn)
    .await?;
    if taken.rows_affected() != devices.len() as u64 {
        return Err(anyhow::anyhow!("a device that was to be given away was not free").into());
    }
    Ok(())
}

/// Asks a run to give its devices back to another.
///
/// # Errors
/// If the database does not answer.
pub async fn ask_to_yield(conn: &mut PgConnection, one: &Yield, now: OffsetDateTime) -> Result<()> {
    tracing::info!(run = %one.run, to = %one.to, "asked to yield");
    sqlx::query!(
        "update run set yield_for = 'preempt', yield_by = $2::timestamptz + make_interval(secs => $3)
         where id = $1 and yield_for is null",
        one.run,
        now,
        YIELD_SECONDS
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Charges projects for the devices they hold, up to now; what is older counts for less.
///
/// # Errors
/// If the database does not answer.
pub async fn count_use(conn: &mut PgConnection, now: OffsetDateTime) -> Result<()> {
    sqlx::query!(
        "with held as (
             select r.project_id, count(*)::float8 as devices
             from device d join lease l on l.id = d.lease_id join run r on r.id = l.run_id and r.state = 'running'
             group by 1
         )
         update project p
         set usage = p.usage * 0.5 ^ (extract(epoch from $1::timestamptz - p.usage_at)::float8 / $2)
                     + coalesce((select devices from held where held.project_id = p.id), 0)
                       * extract(epoch from $1::timestamptz - p.usage_at)::float8,
             usage_at = $1
         where p.usage_at < $1::timestamptz - make_interval(secs => $3)",
        now,
        HALF_LIFE,
        COUNT_EVERY
    )
    .execute(conn)
    .await?;
    Ok(())
}
