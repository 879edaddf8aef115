//! The state of a run changes here and nowhere else, by the table in the protocol.

use crate::{App, Error, Result, error::found};
use causeway_protocol::RunState;
use sqlx::PgConnection;
use uuid::Uuid;

/// Changes a run's state: the only place that does. Ends set `finished_at`; a state that may not follow is a bug or a
/// race that the caller lost, and changes nothing.
///
/// # Errors
/// 409 if the table forbids the move.
pub async fn change_state(conn: &mut PgConnection, id: Uuid, next: RunState, reason: &str) -> Result<()> {
    let row =
        sqlx::query!("select state from run where id = $1 for update", id).fetch_optional(&mut *conn).await?;
    let state = found(row, || format!("no run {id}"))?.state;
    let state: RunState = state.parse().map_err(anyhow::Error::msg)?;
    if !state.may_become(next) {
        return Err(Error::Conflict(format!("a {state} run cannot become {next}")));
    }
    sqlx::query!(
        // What a run was stopped for, if somebody said it, says more than that it was stopped.
        "update run set state = $2, reason = case when $2 = 'cancelled' then coalesce(cancel_reason, $3) else $3 end,
                started_at = case when $2 = 'running' then coalesce(started_at, now()) else started_at end,
                finished_at = case when $4 then now() end
         where id = $1",
        id,
        next.as_str(),
        reason,
        next.is_terminal(),
    )
    .execute(&mut *conn)
    .await?;
    if next.is_terminal() {
        // Nothing resumes from here any more; the blobs are swept later.
        sqlx::query!("delete from resume_state where run_id = $1", id).execute(&mut *conn).await?;
        super::parts::end(conn, id).await?;
    }
    Ok(())
}

/// Cancels a run.
///
/// # Errors
/// 404 if there is none, 409 if it has ended.
pub async fn cancel_run(app: &App, id: Uuid) -> Result<()> {
    let mut tx = app.pool.begin().await?;
    request_cancel(&mut tx, id, None).await?;
    tx.commit().await?;
    app.wake.ring();
    Ok(())
}

/// The same in the caller's transaction, with the reason that the run will end with.
///
/// # Errors
/// As `cancel_run`.
pub async fn request_cancel(conn: &mut PgConnection, id: Uuid, reason: Option<&str>) -> Result<()> {
    let row =
        sqlx::query!("select state from run where id = $1 for update", id).fetch_optional(&mut *conn).await?;
    let state: RunState = found(row, || format!("no run {id}"))?.state.parse().map_err(anyhow::Error::msg)?;
    if let (Some(reason), false) = (reason, state.is_terminal()) {
        sqlx::query!("update run set cancel_reason = coalesce(cancel_reason, $2) where id = $1", id, reason)
            .execute(&mut *conn)
            .await?;
    }
    match state {
        RunState::Queued => change_state(conn, id, RunState::Cancelled, "cancelled while queued").await,
        RunState::Running => {
            sqlx::query!("update run set cancel_requested = true where id = $1", id).execute(conn).await?;
            Ok(())
        }
        ended => Err(Error::Conflict(format!("the run has {ended} already"))),
    }
}
