//! Runs as they are read and edited. A spec comes in through `submit`; from then on the state changes in one function
//! of `state`.

mod actions;
pub mod parts;
mod state;
mod submit;

pub use actions::{
    __path_cancel_run_handler, __path_cancel_runs, __path_clone_run, __path_move_run_to_front,
    __path_pause_run, __path_resume_run, Action, act, cancel_run_handler, cancel_runs, clone_run,
    move_run_to_front, pause_run, request_cancel, resume_run, submit_again,
};
pub use state::{change_state, change_states};
pub use submit::{
    __path_create_run, CreatedRun, create_run, idempotency_key, insert_run, refuse_missing_blobs,
};

use self::parts::PartSummary;
use crate::{ApiJson, App, Error, Result, error::found, page::Page, scheduler};
use axum::{
    Json,
    extract::{Path, Query, State},
};
use causeway_protocol::{Problem, RunState, Spec};
use serde::{Deserialize, Serialize};
use sqlx::types::Json as SqlJson;
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// A run in a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RunSummary {
    /// Id.
    pub id: Uuid,
    /// Its experiment.
    pub experiment_id: Uuid,
    /// Its experiment's name.
    pub experiment: String,
    /// Name.
    pub name: String,
    /// `pretrain`, `finetune` or `evaluate`.
    pub kind: String,
    /// The method's word; `mae` for a pretraining, `evaluate` for runs that train nothing.
    pub method: String,
    /// Seed.
    pub seed: i64,
    /// State.
    pub state: String,
    /// `train` or `evaluate`.
    pub phase: String,
    /// Higher goes first.
    pub priority: i32,
    /// Attempts so far.
    pub attempts: i32,
    /// Attempts at most.
    pub max_attempts: i32,
    /// Whether somebody asked to stop it.
    pub cancel_requested: bool,
    /// Why it ended, in a sentence.
    pub reason: String,
    /// Labels.
    pub tags: Vec<String>,
    /// Digest of the checkpoint, once there is one.
    pub checkpoint: Option<String>,
    /// How far the phase is (`RunProgress`).
    pub progress: Option<serde_json::Value>,
    /// When it was submitted.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When its first attempt began.
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
}

/// A run with everything about it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Run {
    /// What lists show.
    #[serde(flatten)]
    pub summary: RunSummary,
    /// The spec with every default filled in.
    #[schema(value_type = Spec)]
    pub spec: serde_json::Value,
    /// Free text.
    pub note: String,
    /// Digest of θ0, once a worker has read it.
    pub backbone: Option<String>,
    /// Values that training may change.
    pub trainable: Option<i64>,
    /// Digest of the ordered (pixel sha256, caption) list it was trained on.
    pub captions: Option<String>,
    /// Images it was trained on.
    pub training_images: Option<i64>,
    /// Steps the checkpoint was trained for.
    pub checkpoint_step: Option<i64>,
    /// Why a queued run waits.
    pub waiting: Option<String>,
    /// What it has been asked to give its devices back for: `pause`, `preempt` or `drain`.
    pub yield_for: Option<String>,
    /// The run it was made from.
    pub made_from: Option<Uuid>,
    /// The runs it waits for, or has waited for.
    pub after: Vec<NeededRun>,
    /// The run whose evaluation this is a part of.
    pub part_of: Option<Uuid>,
    /// The parts that its evaluation is spread over.
    pub parts: Vec<PartSummary>,
    /// The attempts, first to last.
    pub attempt_list: Vec<Attempt>,
}

/// A run that another waits for, or has waited for.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NeededRun {
    /// Id.
    pub id: Uuid,
    /// Name.
    pub name: String,
    /// State.
    pub state: String,
}

/// One try at a run.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Attempt {
    /// From 1.
    pub number: i32,
    /// State.
    pub state: String,
    /// The phase it began in.
    pub phase: String,
    /// Steps earlier attempts had done.
    pub resumed_step: i64,
    /// Values beyond this step were done again later and are hidden.
    pub visible_through: Option<i64>,
    /// The worker's name.
    pub worker: String,
    /// Its devices there.
    pub device: String,
    /// Its workers by rank, if there are several.
    #[schema(value_type = Vec<AttemptMember>)]
    pub members: SqlJson<Vec<AttemptMember>>,
    /// What ended it, where it did not succeed: `bug`, `lost_worker`, `interrupted`, `yielded` or `not_yielded`. Only
    /// the first spends one of the run's attempts.
    pub cause: Option<String>,
    /// What it ran on (`Environment`).
    pub environment: Option<serde_json::Value>,
    /// Why it ended.
    pub reason: String,
    /// Exit code of its process.
    pub exit_code: Option<i32>,
    /// Signal that ended its process.
    pub signal: Option<i32>,
    /// When a device was given to it.
    #[serde(with = "time::serde::rfc3339")]
    pub assigned_at: OffsetDateTime,
    /// When a worker picked it up.
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
}

/// One worker of an attempt on several.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AttemptMember {
    /// Its id.
    pub worker: Uuid,
    /// Its name.
    pub name: String,
    /// Its devices.
    pub devices: Vec<String>,
}

/// Which runs to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct RunFilter {
    /// Only this experiment's.
    pub experiment: Option<Uuid>,
    /// Only runs in this state.
    pub state: Option<String>,
    /// Only runs of this method.
    pub method: Option<String>,
    /// Only runs with this tag.
    pub tag: Option<String>,
    /// The parts of this run's evaluation, which are in no other list.
    pub part_of: Option<Uuid>,
    /// At most so many, 1 to 500; 100 by default.
    pub limit: Option<i64>,
    /// The `next` of the page before.
    pub cursor: Option<Uuid>,
}

/// List runs, newest first.
#[utoipa::path(get, path = "/api/v1/runs", operation_id = "list_runs", tag = "runs", params(RunFilter),
    responses((status = 200, body = Page<RunSummary>)))]
pub async fn list_runs(
    State(app): State<App>,
    Query(filter): Query<RunFilter>,
) -> Result<Json<Page<RunSummary>>> {
    if let Some(state) = &filter.state {
        state.parse::<RunState>().map_err(|error| Error::BadRequest(format!("state: {error}")))?;
    }
    let limit = crate::page::limit(filter.limit)?;
    let rows = sqlx::query_as!(
        RunSummary,
        r#"select r.id, r.experiment_id, e.name as experiment, r.name, r.kind, r.method, r.seed, r.state, r.phase,
                  r.priority, r.attempts, r.max_attempts, r.cancel_requested, r.reason, r.tags, r.checkpoint,
                  p.progress as "progress?", r.created_at, r.started_at, r.finished_at
           from run r join experiment e on e.id = r.experiment_id left join run_progress p on p.run_id = r.id
           where ($1::uuid is null or r.experiment_id = $1) and ($2::text is null or r.state = $2)
             and ($3::text is null or r.method = $3) and ($4::text is null or $4 = any(r.tags))
             and ($5::uuid is null or r.id < $5) and r.part_of is not distinct from $7
           order by r.id desc limit $6"#,
        filter.experiment,
        filter.state,
        filter.method,
        filter.tag,
        filter.cursor,
        limit + 1,
        filter.part_of,
    )
    .fetch_all(&app.pool)
    .await?;
    Ok(Json(Page::new(rows, limit, |run| run.id.to_string())))
}

/// One run.
#[utoipa::path(get, path = "/api/v1/runs/{id}", operation_id = "get_run", tag = "runs", params(("id" = Uuid, Path)),
    responses((status = 200, body = Run), (status = 404, body = crate::error::ProblemDetails)))]
pub async fn get_run_handler(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<Run>> {
    get_run(&app, id).await.map(Json)
}

/// Reads one run with its attempts.
///
/// # Errors
/// 404 if there is none.
pub async fn get_run(app: &App, id: Uuid) -> Result<Run> {
    let pool = &app.pool;
    let row = sqlx::query!(
        r#"select r.id, r.experiment_id, e.name as experiment, r.name, r.kind, r.method, r.seed, r.state, r.phase,
                  r.priority, r.attempts, r.max_attempts, r.cancel_requested, r.reason, r.tags, r.checkpoint,
                  p.progress as "progress?", r.created_at, r.started_at, r.finished_at,
                  r.spec, r.note, r.backbone, r.trainable, r.checkpoint_step, r.captions, r.training_images,
                  r.part_of, r.yield_for, r.made_from
           from run r join experiment e on e.id = r.experiment_id left join run_progress p on p.run_id = r.id
           where r.id = $1"#,
        id
    )
    .fetch_optional(pool)
    .await?;
    let row = found(row, || format!("no run {id}"))?;
    let attempt_list = sqlx::query_as!(
        Attempt,
        r#"select a.number, a.state, a.phase, a.resumed_step, a.visible_through, w.name as worker, a.device,
                  coalesce((select jsonb_agg(m.one || jsonb_build_object('name', of_rank.name) order by m.rank)
                            from jsonb_array_elements(a.members) with ordinality m(one, rank)
                            join worker of_rank on of_rank.id = (m.one ->> 'worker')::uuid), '[]')
                      as "members!: SqlJson<Vec<AttemptMember>>",
                  a.cause, a.environment, a.reason, a.exit_code, a.signal, a.assigned_at, a.started_at, a.ended_at
           from attempt a join worker w on w.id = a.worker_id where a.run_id = $1 order by a.number"#,
        id
    )
    .fetch_all(pool)
    .await?;
    let after = sqlx::query_as!(
        NeededRun,
        "select n.id, n.name, n.state from run_dependency d join run n on n.id = d.needs_run where d.run_id = $1
         order by n.id",
        id
    )
    .fetch_all(pool)
    .await?;
    let waiting =
        if row.state == RunState::Queued.as_str() { scheduler::why_waiting(app, id).await? } else { None };
    let summary = RunSummary {
        id: row.id,
        experiment_id: row.experiment_id,
        experiment: row.experiment,
        name: row.name,
        kind: row.kind,
        method: row.method,
        seed: row.seed,
        state: row.state,
        phase: row.phase,
        priority: row.priority,
        attempts: row.attempts,
        max_attempts: row.max_attempts,
        cancel_requested: row.cancel_requested,
        reason: row.reason,
        tags: row.tags,
        checkpoint: row.checkpoint,
        progress: row.progress,
        created_at: row.created_at,
        started_at: row.started_at,
        finished_at: row.finished_at,
    };
    Ok(Run {
        summary,
        spec: row.spec,
        note: row.note,
        backbone: row.backbone,
        trainable: row.trainable,
        captions: row.captions,
        training_images: row.training_images,
        checkpoint_step: row.checkpoint_step,
        waiting,
        yield_for: row.yield_for,
        made_from: row.made_from,
        after,
        part_of: row.part_of,
        parts: parts::parts(pool, id).await?,
        attempt_list,
    })
}

/// What may be changed about a run: the words around it, and its place in the queue.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunPatch {
    /// Free text.
    pub note: Option<String>,
    /// All labels.
    pub tags: Option<Vec<String>>,
    /// Higher goes first.
    pub priority: Option<i32>,
}

/// Change a run's note, tags or priority.
#[utoipa::path(patch, path = "/api/v1/runs/{id}", operation_id = "update_run", tag = "runs", params(("id" = Uuid, Path)),
    request_body = RunPatch, responses((status = 200, body = Run)))]
pub async fn update_run(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    ApiJson(patch): ApiJson<RunPatch>,
) -> Result<Json<Run>> {
    let current = get_run(&app, id).await?;
    let mut spec: Spec = serde_json::from_value(current.spec).map_err(anyhow::Error::from)?;
    spec.note = patch.note.unwrap_or(current.note);
    spec.tags = patch.tags.unwrap_or(current.summary.tags);
    spec.priority = patch.priority.unwrap_or(current.summary.priority);
    let problems: Vec<Problem> = spec
        .problems()
        .into_iter()
        .filter(|problem| ["note", "tags", "priority"].iter().any(|field| problem.field.starts_with(field)))
        .collect();
    if !problems.is_empty() {
        return Err(Error::Invalid(problems));
    }
    sqlx::query!(
        "update run set note = $2, tags = $3, priority = $4 where id = $1",
        id,
        spec.note,
        &spec.tags,
        spec.priority
    )
    .execute(&app.pool)
    .await?;
    app.wake.ring();
    get_run(&app, id).await.map(Json)
}
