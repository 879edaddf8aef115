//! A decision becomes rows: an attempt, a lease for each of its workers, and the devices they hold.

use super::cluster::HALF_LIFE;
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

/// Gives a run its devices.
///
/// # Errors
/// If the run is not waiting any more, or a device is not free: the pass that saw them holds the lock, so neither
/// happens.
pub async fn start(
    conn: &mut PgConnection,
    start: &Start,
    now: OffsetDateTime,
    lease_seconds: f64,
) -> Result<()> {
    let Some(first) = start.members.first() else { return Ok(()) };
    runs::change_state(conn, start.run, RunState::Running, "").await?;
    let run = sqlx::query!(
        "update run set epoch = epoch + 1, attempts = attempts + 1 where id = $1 returning epoch, phase",
        start.run
    )
    .fetch_one(&mut *conn)
    .await?;
    let members = (start.members.len() > 1).then(|| {
        let member =
            |member: &super::fit::Member| json!({"worker": member.worker, "devices": member.devices});
        serde_json::Value::from(start.members.iter().map(member).collect::<Vec<_>>())
    });
    let attempt = Uuid::now_v7();
    // The number comes from the table: an attempt that nobody picked up has left no gap behind.
    let number = sqlx::query_scalar!(
        r#"insert into attempt (id, run_id, number, worker_id, device, epoch, state, phase, members, assigned_at)
           values ($1, $2, (select coalesce(max(number), 0) + 1 from attempt where run_id = $2), $3, $4, $5,
                   'assigned', $6, $7, $8)
           returning number"#,
        attempt,
        start.run,
        first.worker,
        first.devices.join(", "),
        run.epoch,
        run.phase,
        members,
        now,
    )
    .fetch_one(&mut *conn)
    .await?;
    for (rank, member) in start.members.iter().enumerate() {
        let lease = Uuid::new_v4(); // not guessable from the time, unlike v7
        sqlx::query!(
            "insert into lease (id, run_id, attempt_id, attempt, worker_id, epoch, rank, expires_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8::timestamptz + make_interval(secs => $9))",
            lease,
            start.run,
            attempt,
            number,
            member.worker,
            run.epoch,
            i32::try_from(rank).map_err(anyhow::Error::from)?,
            now,
            lease_seconds,
        )
        .execute(&mut *conn)
        .await?;
        let taken = sqlx::query!(
            "update device set lease_id = $1 where worker_id = $2 and name = any($3) and lease_id is null",
            lease,
            member.worker,
            &member.devices
        )
        .execute(&mut *conn)
        .await?;
        if taken.rows_affected() != member.devices.len() as u64 {
            return Err(anyhow::anyhow!("a device of worker {} was not free", member.worker).into());
        }
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
             from device d join lease l on l.id = d.lease_id join run r on r.id = l.run_id group by 1
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
