//! The state of a run changes here and nowhere else, by the table in the protocol.

use crate::{Error, Result, error::found};
use causeway_protocol::RunState;
use sqlx::PgConnection;
use uuid::Uuid;

/// Changes a run's state. Ends set `finished_at`; a state that may not follow is a bug or a race that the caller lost, and
/// changes nothing.
///
/// # Errors
/// 409 if the table forbids the move.
pub async fn change_state(conn: &mut PgConnection, id: Uuid, next: RunState, reason: &str) -> Result<()> {
    change_states(conn, &[id], next, reason).await
}

/// Changes the state of several runs, all or none: the only place that does.
///
/// # Errors
/// 409 if the table forbids the move of one of them.
pub async fn change_states(
    conn: &mut PgConnection,
    ids: &[Uuid],
    next: RunState,
    reason: &str,
) -> Result<()> {
    let rows = sqlx::query!("select id, state from run where id = any($1) order by id for update", ids)
        .fetch_all(&mut *conn)
        .await?;
    for id in ids {
        let row = rows.iter().find(|row| row.id == *id);
        let state: RunState =
            found(row, || format!("no run {id}"))?.state.parse().map_err(anyhow::Error::msg)?;
        if !state.may_become(next) {
            return Err(Error::Conflict(format!("a {state} run cannot become {next}")));
        }
    }
    sqlx::query!(
        // What a run was stopped for, if somebody said it, says more than that it was stopped.
        "update run set state = $2, reason = case when $2 = 'cancelled' then coalesce(cancel_reason, $3) else $3 end,
                started_at = case when $2 = 'running' then coalesce(started_at, now()) else started_at end,
                finished_at = case when $4 then now() end
         where id = any($1)",
        ids,
        next.as_str(),
        reason,
        next.is_terminal(),
    )
    .execute(&mut *conn)
    .await?;
    if next.is_terminal() {
        // Nothing resumes from here any more; the blobs are swept later.
        sqlx::query!("delete from resume_state where run_id = any($1)", ids).execute(&mut *conn).await?;
        super::parts::end(conn, ids).await?;
    }
    Ok(())
}
