//! The state of a run changes here and nowhere else, by the table in the protocol.

use crate::{Error, Result, error::found};
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
