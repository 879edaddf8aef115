//! How an attempt ends: what its worker says, what the database has, and what becomes of its run.

use super::{Fenced, fence};
use crate::{
    App, Result, analysis, ingest, runs,
    scheduler::{
        end_attempt, give_back,
        retry::{Cause, Then, Verdict, verdict},
    },
};
use causeway_protocol::{FinishLease, Outcome, RunState, Spec};
use sqlx::{PgConnection, types::Json as SqlJson};
use uuid::Uuid;

/// Longest pause before a crashed run is tried again, seconds; the first is one second, and each doubles it.
const PAUSE_MAX: f64 = 60.0;

/// Ends an attempt, or a member's share of one.
///
/// # Errors
/// `StaleLease` if the lease is gone or another epoch's; nothing has changed then.
pub async fn finish(app: &App, id: Uuid, end: FinishLease) -> Result<()> {
    let mut tx = app.pool.begin().await?;
    let lease = fence(&mut tx, id, end.epoch).await?;
    let others = end_lease(&mut tx, &lease, end).await?;
    tx.commit().await?;
    if others {
        app.wake.ring(); // those of its other workers have ended with it
    } else {
        app.wake.ring_scheduler();
    }
    Ok(())
}

/// What an end is judged by.
struct Ending {
    cancel_requested: bool,
    spec: SqlJson<Spec>,
    backbone: Option<String>,
    checkpoint: Option<String>,
    is_part: bool,
    /// Whether other workers of the attempt are at work.
    others: bool,
    /// Whether its evaluation is spread over parts.
    parts: bool,
}

/// What a run that says it succeeded still lacks: points, then analyses.
async fn missing(conn: &mut PgConnection, id: Uuid, run: &Ending) -> Result<Option<String>> {
    if run.is_part {
        return Ok(None); // it brings features; the whole computes what is missing
    }
    let digest = |digest: &Option<String>| digest.clone().unwrap_or_default();
    let (backbone, checkpoint) = (digest(&run.backbone), digest(&run.checkpoint));
    match ingest::missing_points(conn, id, &run.spec, &backbone, &checkpoint).await? {
        None => analysis::missing(conn, id, &run.spec).await,
        points => Ok(points),
    }
}

/// True if the attempt had other workers.
async fn end_lease(conn: &mut PgConnection, lease: &Fenced, mut end: FinishLease) -> Result<bool> {
    let run = sqlx::query_as!(
        Ending,
        r#"select cancel_requested, spec as "spec: SqlJson<Spec>", backbone, checkpoint, part is not null as "is_part!",
                  exists (select from lease l where l.attempt_id = $2 and l.id <> $3) as "others!",
                  exists (select from run p where p.part_of = run.id) as "parts!"
           from run where id = $1 for update"#,
        lease.run_id,
        lease.attempt_id,
        lease.id
    )
    .fetch_one(&mut *conn)
    .await?;
    if end.outcome == Outcome::Succeeded && run.others {
        // One of several workers is done; the attempt is when the last one is.
        sqlx::query!("delete from lease where id = $1", lease.id).execute(conn).await?;
        return Ok(true);
    }
    if end.outcome == Outcome::Succeeded
        && let Some(missing) = missing(conn, lease.run_id, &run).await?
    {
        (end.outcome, end.reason) = (Outcome::Crashed, missing);
    }
    if end.outcome == Outcome::HandedOver && !run.parts {
        let reason = "the attempt hands its evaluation over, but the run has no parts".to_owned();
        (end.outcome, end.reason) = (Outcome::Failed, reason);
    }
    let Verdict { attempt, cause, run: then } = verdict(end.outcome, run.cancel_requested);
    sqlx::query!(
        "update attempt set state = $2, reason = $3, exit_code = $4, signal = $5, cause = $6, ended_at = now()
         where id = $1",
        lease.attempt_id,
        attempt.as_str(),
        end.reason,
        end.exit_code,
        end.signal,
        cause.map(Cause::as_str),
    )
    .execute(&mut *conn)
    .await?;
    // Of all its workers: what the others still say is not heard any more.
    end_attempt(conn, lease.attempt_id).await?;
    match then {
        Then::Ends(state) => {
            let reason = match state {
                RunState::Failed => &end.reason,
                RunState::Cancelled => "cancelled",
                _ => "",
            };
            runs::change_state(conn, lease.run_id, state, reason).await?;
        }
        Then::GivenBack(cause) => {
            let next = give_back(conn, lease.run_id, cause, &end.reason).await?;
            if cause == Cause::Bug && next == RunState::Queued {
                pause(conn, lease.run_id).await?;
            }
        }
    }
    Ok(run.others || run.parts)
}

/// What made a run crash may pass: each try waits longer than the one before.
async fn pause(conn: &mut PgConnection, run: Uuid) -> Result<()> {
    sqlx::query!(
        "update run set ready_at = now() + make_interval(secs => least($2, 2 ^ (attempts - 1)))
         where id = $1",
        run,
        PAUSE_MAX
    )
    .execute(conn)
    .await?;
    Ok(())
}
