//! Runs that wait for runs: a fine-tuning for the pretraining it starts from, an evaluation for the checkpoint it is of.

use crate::{Result, runs, runs::parts};
use causeway_protocol::{Kind, RunState, Spec, WeightSource};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

/// Lets those go on whose last run has succeeded, and cancels those that wait for one that never will; true if there were
/// any.
///
/// # Errors
/// If the database does not answer.
pub async fn settle(conn: &mut PgConnection) -> Result<bool> {
    let ready = sqlx::query_scalar!(
        r#"select distinct d.run_id as "run!" from run_dependency d join run r on r.id = d.run_id
           where not d.resolved and r.state in ('queued', 'paused')
             and not exists (select from run_dependency o join run needed on needed.id = o.needs_run
                             where o.run_id = d.run_id and needed.state <> 'succeeded')"#
    )
    .fetch_all(&mut *conn)
    .await?;
    for run in &ready {
        resolve(conn, *run).await?;
    }
    Ok(hopeless(conn).await? || !ready.is_empty())
}

/// Runs that the spec names as weights have their checkpoints by now: from here on the spec says which.
async fn resolve(conn: &mut PgConnection, run: Uuid) -> Result<()> {
    let spec = sqlx::query_scalar!(r#"select spec as "spec: Json<Spec>" from run where id = $1"#, run)
        .fetch_one(&mut *conn)
        .await?;
    let mut spec = spec.0;
    let mut changed = false;
    for source in [Some(&mut spec.weights.theta0), spec.weights.theta1.as_mut()].into_iter().flatten() {
        let WeightSource::Run(maker) = source else { continue };
        let checkpoint = sqlx::query_scalar!("select checkpoint from run where id = $1", *maker)
            .fetch_one(&mut *conn)
            .await?;
        // A run that made none, an evaluation, is refused at submission.
        let Some(checkpoint) = checkpoint else { continue };
        *source = WeightSource::Blob(checkpoint);
        changed = true;
    }
    if changed {
        let document = serde_json::to_value(&spec).map_err(anyhow::Error::from)?;
        sqlx::query!("update run set spec = $2 where id = $1", run, document).execute(&mut *conn).await?;
    }
    sqlx::query!("update run_dependency set resolved = true where run_id = $1", run)
        .execute(&mut *conn)
        .await?;
    if spec.kind == Kind::Evaluate {
        parts::spread(conn, run, None).await?;
    }
    Ok(())
}

/// Cancels the waiting runs that wait for one which ended without success; true if there were any.
async fn hopeless(conn: &mut PgConnection) -> Result<bool> {
    let rows = sqlx::query!(
        "select distinct on (r.id) r.id, needed.name, needed.state
         from run_dependency d join run r on r.id = d.run_id join run needed on needed.id = d.needs_run
         where not d.resolved and r.state in ('queued', 'paused') and needed.state in ('failed', 'cancelled', 'lost') order by r.id"
    )
    .fetch_all(&mut *conn)
    .await?;
    for row in &rows {
        let reason = format!("it waited for {}, which has {}", row.name, ended(&row.state));
        runs::change_state(conn, row.id, RunState::Cancelled, &reason).await?;
    }
    Ok(!rows.is_empty())
}

fn ended(state: &str) -> &str {
    match state {
        "lost" => "been lost",
        "cancelled" => "been cancelled",
        other => other,
    }
}
