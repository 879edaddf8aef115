//! What is taken back: leases that ran out, and runs that did not yield in time or are past their limit.

use super::cluster::Lease;
use super::retry::{Cause, Standing};
use crate::{Result, runs};
use causeway_protocol::RunState;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

/// What becomes of a run whose attempt is over without success: back to the queue, set aside, or the end. Counts what
/// the end costs it. `reason` is that of the attempt.
///
/// # Errors
/// If the run is not running.
pub async fn give_back(conn: &mut PgConnection, id: Uuid, cause: Cause, reason: &str) -> Result<RunState> {
    let run = sqlx::query!(
        "select attempts, max_attempts, setbacks, cancel_requested, yield_for from run where id = $1 for update",
        id
    )
    .fetch_one(&mut *conn)
    .await?;
    let standing = Standing {
        attempts: run.attempts,
        max_attempts: run.max_attempts,
        setbacks: run.setbacks,
        cancel_requested: run.cancel_requested,
        pausing: run.yield_for.as_deref() == Some("pause"),
    };
    let (standing, next, why) = standing.after(cause, reason);
    sqlx::query!(
        "update run set attempts = $2, setbacks = $3, yield_for = null, yield_by = null where id = $1",
        id,
        standing.attempts,
        standing.setbacks
    )
    .execute(&mut *conn)
    .await?;
    runs::change_state(conn, id, next, &why).await?;
    Ok(next)
}

/// An attempt is over: its leases go, on however many workers, and with them the right to write.
///
/// # Errors
/// If the database does not answer.
pub async fn end_attempt(conn: &mut PgConnection, attempt: Uuid) -> Result<()> {
    sqlx::query!("delete from lease where attempt_id = $1", attempt).execute(conn).await?;
    Ok(())
}

/// Takes back those of the leases that ran out or whose run did not yield in time; true if there were any. A worker of several
/// that goes silent ends the attempt on all.
///
/// # Errors
/// If the database does not answer.
pub async fn expired(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    lease_seconds: f64,
    leases: &[Lease],
) -> Result<bool> {
    let overdue =
        sqlx::query_scalar!("select id from run where yield_for is not null and yield_by < $1", now)
            .fetch_all(&mut *conn)
            .await?;
    let ran_out = leases.iter().filter(|lease| lease.expires_at < now || overdue.contains(&lease.run));
    let ran_out: Vec<Uuid> = ran_out.map(|lease| lease.id).collect();
    if ran_out.is_empty() {
        return Ok(false);
    }
    // Once more under a lock: a heartbeat may have come.
    let expired = sqlx::query!(
        r#"select l.run_id, l.attempt_id, l.delivered, w.name as worker, r.yield_by < $1 as "overdue?"
           from lease l join run r on r.id = l.run_id join worker w on w.id = l.worker_id
           where l.id = any($2) and (l.expires_at < $1 or r.yield_for is not null and r.yield_by < $1)
           order by l.attempt_id, l.delivered desc, l.rank for update of l"#,
        now,
        &ran_out
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut done: Vec<Uuid> = Vec::new();
    for lease in &expired {
        if done.contains(&lease.attempt_id) {
            continue;
        }
        done.push(lease.attempt_id);
        end_attempt(conn, lease.attempt_id).await?;
        let overdue = lease.overdue.unwrap_or(false);
        let (cause, reason) = if overdue {
            (Cause::NotYielded, format!("{} did not give its devices back in time", lease.worker))
        } else {
            (Cause::LostWorker, format!("no heartbeat from {} for {lease_seconds} s", lease.worker))
        };
        tracing::warn!(run = %lease.run_id, worker = lease.worker, reason, "lease taken back");
        if lease.delivered {
            sqlx::query!(
                "update attempt set state = 'lost', reason = $2, cause = $3, ended_at = $4 where id = $1",
                lease.attempt_id,
                reason,
                cause.as_str(),
                now
            )
            .execute(&mut *conn)
            .await?;
            give_back(conn, lease.run_id, cause, &reason).await?;
        } else {
            // Nobody ever picked it up: that is no try at the run.
            sqlx::query!("delete from attempt where id = $1", lease.attempt_id).execute(&mut *conn).await?;
            give_back(conn, lease.run_id, Cause::Yielded, &reason).await?;
        }
    }
    Ok(!expired.is_empty())
}

/// Fails the runs of those leases that have taken longer than they said; true if there were any.
///
/// # Errors
/// If the database does not answer.
pub async fn past_limit(conn: &mut PgConnection, now: OffsetDateTime, leases: &[Lease]) -> Result<bool> {
    let late = leases.iter().filter(|lease| lease.ends_at.is_some_and(|ends| ends < now));
    let late: Vec<Uuid> = late.map(|lease| lease.id).collect();
    if late.is_empty() {
        return Ok(false);
    }
    // Those that were not taken back a moment ago.
    let rows = sqlx::query!(
        r#"select distinct on (r.id) r.id, r.limit_seconds as "limit!", l.attempt_id as attempt
           from lease l join run r on r.id = l.run_id where l.id = any($1) order by r.id"#,
        &late
    )
    .fetch_all(&mut *conn)
    .await?;
    for row in &rows {
        let reason = format!("it took longer than the {} minutes of resources.minutes", row.limit / 60);
        end_attempt(conn, row.attempt).await?;
        sqlx::query!(
            "update attempt set state = 'failed', reason = $2, cause = $3, ended_at = $4 where id = $1",
            row.attempt,
            reason,
            Cause::Bug.as_str(),
            now
        )
        .execute(&mut *conn)
        .await?;
        runs::change_state(conn, row.id, RunState::Failed, &reason).await?;
    }
    Ok(!rows.is_empty())
}
