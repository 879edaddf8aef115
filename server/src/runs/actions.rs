//! What people do to runs: cancel, set aside, go on, move to the front, do again. All of it changes the queue or asks a
//! worker to stop; nothing is lost by any of it.

use super::{Run, change_state, get_run, insert_run};
use crate::{ApiJson, App, Error, Result, auth::Identity, error::found, scheduler};
use axum::{
    Extension, Json,
    extract::{Path, State},
    http::StatusCode,
};
use causeway_protocol::{RunState, Spec, parse_spec};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

/// Most runs in one cancellation.
const CANCEL_MAX: usize = 10_000;

/// The state of a run, whose row is locked.
async fn lock(conn: &mut PgConnection, id: Uuid) -> Result<RunState> {
    let row = sqlx::query!("select state from run where id = $1 for update", id).fetch_optional(conn).await?;
    Ok(found(row, || format!("no run {id}"))?.state.parse().map_err(anyhow::Error::msg)?)
}

/// What is done to one run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It ends: at once where nobody works on it, else its worker is told to stop.
    Cancel,
    /// It is set aside: at once where nobody works on it, else its worker saves its state first.
    Pause,
    /// It goes back into the queue.
    Resume,
    /// It goes before all others of its priority and project.
    Front,
}

/// Does something to a run, and tells those who may wait for it.
///
/// # Errors
/// 404 if there is none, 409 if its state does not allow it.
pub async fn act(app: &App, id: Uuid, action: Action) -> Result<()> {
    let mut tx = app.pool.begin().await?;
    match action {
        Action::Cancel => request_cancel(&mut tx, id, None).await?,
        Action::Pause => pause(&mut tx, id).await?,
        Action::Resume => resume(&mut tx, id).await?,
        Action::Front => to_front(&mut tx, id).await?,
    }
    tx.commit().await?;
    app.wake.ring();
    Ok(())
}

/// Cancels a run in the caller's transaction, with the reason that it will end with: at once where nobody works on it,
/// else its worker is told to stop.
///
/// # Errors
/// 404 if there is none, 409 if it has ended.
pub async fn request_cancel(conn: &mut PgConnection, id: Uuid, reason: Option<&str>) -> Result<()> {
    let state = lock(conn, id).await?;
    if let (Some(reason), false) = (reason, state.is_terminal()) {
        sqlx::query!("update run set cancel_reason = coalesce(cancel_reason, $2) where id = $1", id, reason)
            .execute(&mut *conn)
            .await?;
    }
    match state {
        RunState::Queued => change_state(conn, id, RunState::Cancelled, "cancelled while queued").await,
        RunState::Paused => change_state(conn, id, RunState::Cancelled, "cancelled while paused").await,
        RunState::Running => {
            sqlx::query!("update run set cancel_requested = true where id = $1", id).execute(conn).await?;
            Ok(())
        }
        ended => Err(Error::Conflict(format!("the run has {ended} already"))),
    }
}

/// Cancel a run: at once if it is queued, within a second or so if a worker is at it.
#[utoipa::path(post, path = "/api/v1/runs/{id}/cancel", operation_id = "cancel_run", tag = "runs",
    params(("id" = Uuid, Path)),
    responses((status = 200, body = Run), (status = 409, body = crate::error::ProblemDetails)))]
pub async fn cancel_run_handler(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<Run>> {
    act(&app, id, Action::Cancel).await?;
    get_run(&app, id).await.map(Json)
}

/// Which runs to cancel: those named, or all of an experiment that have not ended.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelRuns {
    /// These.
    #[serde(default)]
    pub runs: Vec<Uuid>,
    /// All of this experiment's.
    #[serde(default)]
    pub experiment: Option<Uuid>,
}

/// How many were cancelled.
#[derive(Debug, Serialize, ToSchema)]
pub struct Cancelled {
    /// Runs that ended, or whose workers were told to stop. Runs that had ended already are not counted.
    pub cancelled: usize,
}

/// Cancel many runs at once: all of them or, if one is unknown, none.
#[utoipa::path(post, path = "/api/v1/runs/cancel", operation_id = "cancel_runs", tag = "runs",
    request_body = CancelRuns, responses((status = 200, body = Cancelled), (status = 404, body = crate::error::ProblemDetails)))]
pub async fn cancel_runs(
    State(app): State<App>,
    ApiJson(which): ApiJson<CancelRuns>,
) -> Result<Json<Cancelled>> {
    if which.runs.is_empty() == which.experiment.is_none() {
        return Err(Error::BadRequest("name either `runs` or an `experiment`".into()));
    }
    if which.runs.len() > CANCEL_MAX {
        return Err(Error::BadRequest(format!("at most {CANCEL_MAX} runs at once")));
    }
    let mut tx = app.pool.begin().await?;
    let mut ids = which.runs;
    if let Some(experiment) = which.experiment {
        ids = sqlx::query_scalar!(
            "select id from run where experiment_id = $1 and state in ('queued', 'running', 'paused')",
            experiment
        )
        .fetch_all(&mut *tx)
        .await?;
    }
    // In one order, so that two such requests do not wait for each other.
    ids.sort_unstable();
    ids.dedup();
    let mut cancelled = 0;
    for id in ids {
        match request_cancel(&mut tx, id, None).await {
            Ok(()) => cancelled += 1,
            Err(Error::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
    }
    tx.commit().await?;
    app.wake.ring();
    Ok(Json(Cancelled { cancelled }))
}

/// Set a run aside. What a worker has done of it is saved, and `resume` goes on from there.
#[utoipa::path(post, path = "/api/v1/runs/{id}/pause", operation_id = "pause_run", tag = "runs",
    params(("id" = Uuid, Path)),
    responses((status = 200, body = Run), (status = 409, body = crate::error::ProblemDetails)))]
pub async fn pause_run(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<Run>> {
    act(&app, id, Action::Pause).await?;
    get_run(&app, id).await.map(Json)
}

async fn pause(conn: &mut PgConnection, id: Uuid) -> Result<()> {
    match lock(conn, id).await? {
        RunState::Queued => change_state(conn, id, RunState::Paused, "").await,
        RunState::Running => {
            // One that yields to another already is set aside instead of going back to the queue.
            sqlx::query!(
                "update run set yield_for = 'pause',
                        yield_by = coalesce(yield_by, now() + make_interval(secs => $2)) where id = $1",
                id,
                scheduler::YIELD_SECONDS
            )
            .execute(conn)
            .await?;
            Ok(())
        }
        RunState::Paused => Err(Error::Conflict("the run is paused already".into())),
        ended => Err(Error::Conflict(format!("the run has {ended} already"))),
    }
}

/// Put a paused run back into the queue, at its old place. One that is still saving its state goes on afterwards.
#[utoipa::path(post, path = "/api/v1/runs/{id}/resume", operation_id = "resume_run", tag = "runs",
    params(("id" = Uuid, Path)),
    responses((status = 200, body = Run), (status = 409, body = crate::error::ProblemDetails)))]
pub async fn resume_run(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<Run>> {
    act(&app, id, Action::Resume).await?;
    get_run(&app, id).await.map(Json)
}

async fn resume(conn: &mut PgConnection, id: Uuid) -> Result<()> {
    match lock(conn, id).await? {
        RunState::Paused => change_state(conn, id, RunState::Queued, "").await,
        RunState::Running => {
            let touched =
                sqlx::query!("update run set yield_for = 'drain' where id = $1 and yield_for = 'pause'", id)
                    .execute(conn)
                    .await?;
            match touched.rows_affected() {
                0 => Err(Error::Conflict("the run is not paused".into())),
                _ => Ok(()),
            }
        }
        state => Err(Error::Conflict(format!("the run is not paused, it is {state}"))),
    }
}

/// Move a waiting run before all others of its priority and project.
#[utoipa::path(post, path = "/api/v1/runs/{id}/front", operation_id = "move_run_to_front", tag = "runs",
    params(("id" = Uuid, Path)),
    responses((status = 200, body = Run), (status = 409, body = crate::error::ProblemDetails)))]
pub async fn move_run_to_front(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<Run>> {
    act(&app, id, Action::Front).await?;
    get_run(&app, id).await.map(Json)
}

async fn to_front(conn: &mut PgConnection, id: Uuid) -> Result<()> {
    let state = lock(conn, id).await?;
    if !matches!(state, RunState::Queued | RunState::Paused) {
        let rule = format!("only a waiting run has a place in the queue; it is {state}");
        return Err(Error::Conflict(rule));
    }
    sqlx::query!(
        "update run set queue_position = least(0, (select min(queue_position) from run where state = 'queued')) - 1
                 where id = $1",
        id
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A run made from another.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneRun {
    /// What is different, as a JSON merge patch (RFC 7396) of the spec.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub changes: serde_json::Value,
}

/// Submit the spec of a run again, changed or as it is: after a failure, or to try a variation. The run itself stays as
/// it ended.
#[utoipa::path(post, path = "/api/v1/runs/{id}/clone", operation_id = "clone_run", tag = "runs",
    params(("id" = Uuid, Path)), request_body = CloneRun,
    responses((status = 201, body = Run), (status = 422, body = crate::error::ProblemDetails)))]
pub async fn clone_run(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    Path(id): Path<Uuid>,
    ApiJson(request): ApiJson<CloneRun>,
) -> Result<(StatusCode, Json<Run>)> {
    let clone = submit_again(&app, identity.token_id, id, &request.changes).await?;
    Ok((StatusCode::CREATED, Json(get_run(&app, clone).await?)))
}

/// Submits the spec of a run again, with changes.
///
/// # Errors
/// 404 for an unknown run, 422 where the changed spec breaks a rule, 409 for a part of another run.
pub async fn submit_again(app: &App, token: Uuid, id: Uuid, changes: &serde_json::Value) -> Result<Uuid> {
    let row =
        sqlx::query!("select spec, part_of from run where id = $1", id).fetch_optional(&app.pool).await?;
    let row = found(row, || format!("no run {id}"))?;
    if row.part_of.is_some() {
        return Err(Error::Conflict("this run is a part of another: do that one again".into()));
    }
    let mut document = row.spec;
    // A name that nobody gave tells the seed and the method, which may be what changes.
    let unnamed = Spec::deserialize(&document).is_ok_and(|spec| spec.name == spec.usual_name());
    if let Some(fields) = document.as_object_mut().filter(|_| unnamed) {
        fields.remove("name");
    }
    merge(&mut document, changes);
    let spec = parse_spec(document).map_err(Error::Invalid)?;
    let mut tx = app.pool.begin().await?;
    scheduler::refuse_impossible(&mut tx, &spec, app.lease_seconds).await?;
    let (clone, _) = insert_run(&mut tx, &spec, token, None).await?;
    sqlx::query!("update run set made_from = $2 where id = $1", clone, id).execute(&mut *tx).await?;
    tx.commit().await?;
    app.wake.ring();
    Ok(clone)
}

/// RFC 7396.
fn merge(target: &mut serde_json::Value, patch: &serde_json::Value) {
    match patch {
        serde_json::Value::Object(patch) => {
            if !target.is_object() {
                *target = serde_json::json!({});
            }
            let Some(object) = target.as_object_mut() else { return };
            for (key, value) in patch {
                if value.is_null() {
                    object.remove(key);
                } else {
                    merge(object.entry(key.clone()).or_insert(serde_json::Value::Null), value);
                }
            }
        }
        serde_json::Value::Null => {} // no patch at all
        other => *target = other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::merge;
    use serde_json::json;

    #[test]
    fn a_patch_changes_what_it_names_and_removes_what_it_nulls() {
        let mut spec = json!({"seed": 1, "training": {"steps": 5, "flip": true}, "tags": ["a"]});
        merge(&mut spec, &json!({"training": {"steps": 9, "flip": null}, "tags": []}));
        assert_eq!(spec, json!({"seed": 1, "training": {"steps": 9}, "tags": []}));
        merge(&mut spec, &json!(null));
        assert_eq!(spec["seed"], 1);
    }
}
