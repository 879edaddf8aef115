//! Runs: a spec comes in, and from then on the state changes in one function, by the table in the protocol.

use crate::{
    ApiJson, App, Error, Result, auth::Identity, error::found, estimate, estimate::Estimate, experiments,
    page::Page, scheduler,
};
use axum::{
    Extension, Json,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
};
use causeway_protocol::{Kind, Method, Phase, Problem, RunState, Spec, WeightSource, parse_spec};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// Longest Idempotency-Key, bytes.
const IDEMPOTENCY_KEY_MAX: usize = 255;

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
    /// `finetune` or `evaluate`.
    pub kind: String,
    /// The method's word; `evaluate` for runs that train nothing.
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
    /// Steps the checkpoint was trained for.
    pub checkpoint_step: Option<i64>,
    /// Why a queued run waits.
    pub waiting: Option<String>,
    /// The attempts, first to last.
    pub attempt_list: Vec<Attempt>,
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
    /// The device.
    pub device: String,
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

/// Answer to a POST of a run.
#[derive(Debug, Serialize, ToSchema)]
pub struct CreatedRun {
    /// The run.
    #[serde(flatten)]
    pub run: Run,
    /// What it will cost.
    pub estimate: Estimate,
}

/// Submit a run. The spec is answered with every default filled in. With an `Idempotency-Key`, sending it again
/// answers the first run instead of making another.
#[utoipa::path(post, path = "/api/v1/runs", operation_id = "create_run", tag = "runs", request_body = Spec,
    params(("Idempotency-Key" = Option<String>, Header, description = "Any text that names this submission")),
    responses((status = 201, body = CreatedRun), (status = 200, body = CreatedRun, description = "Made earlier under this key"),
        (status = 422, body = crate::error::ProblemDetails)))]
pub async fn create_run(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    headers: HeaderMap,
    ApiJson(document): ApiJson<serde_json::Value>,
) -> Result<impl IntoResponse> {
    let spec = parse_spec(document).map_err(Error::Invalid)?;
    let key = match headers.get("idempotency-key").map(|value| value.to_str()) {
        None => None,
        Some(Ok(key)) if !key.is_empty() && key.len() <= IDEMPOTENCY_KEY_MAX => Some(key),
        Some(_) => return Err(Error::BadRequest("Idempotency-Key must be 1 to 255 ASCII characters".into())),
    };
    let (id, made) = insert_run(&app.pool, &spec, identity.token_id, key).await?;
    app.wake.ring();
    let run = get_run(&app, id).await?;
    let estimate = estimate::estimate(&app.pool, &spec).await?;
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(CreatedRun { run, estimate })))
}

/// Puts a run into the queue; the second value is false if the key named one already.
///
/// # Errors
/// A key used for another spec, or a blob that is not there.
pub async fn insert_run(
    pool: &PgPool,
    spec: &Spec,
    token_id: Uuid,
    key: Option<&str>,
) -> Result<(Uuid, bool)> {
    let document = serde_json::to_value(spec).map_err(anyhow::Error::from)?;
    let body_sha256 = Sha256::digest(document.to_string());
    let mut tx = pool.begin().await?;
    if let Some(key) = key {
        // Two submissions under one key must not both find nothing.
        sqlx::query!("select pg_advisory_xact_lock(hashtextextended($1, 0))", format!("{token_id}/{key}"))
            .execute(&mut *tx)
            .await?;
        let earlier = sqlx::query!(
            "select run_id, body_sha256 from idempotency_key where token_id = $1 and key = $2",
            token_id,
            key
        )
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(earlier) = earlier {
            if earlier.body_sha256 != body_sha256.as_slice() {
                return Err(Error::Conflict(format!(
                    "the Idempotency-Key `{key}` was used for another spec"
                )));
            }
            return Ok((earlier.run_id, false));
        }
    }
    refuse_missing_blobs(&mut tx, spec).await?;
    let experiment_id = experiments::ensure_experiment(&mut tx, &spec.experiment).await?;
    let id = Uuid::now_v7();
    let phase = if spec.kind == Kind::Finetune { Phase::Train } else { Phase::Evaluate };
    sqlx::query!(
        "insert into run (id, experiment_id, name, kind, method, seed, spec, variant, state, phase, priority,
                          max_attempts, note, tags)
         values ($1, $2, $3, $4, $5, $6, $7, $8, 'queued', $9, $10, $11, $12, $13)",
        id,
        experiment_id,
        spec.name,
        spec.kind.as_str(),
        spec.method.as_ref().map_or("evaluate", Method::as_str),
        i64::try_from(spec.seed).map_err(anyhow::Error::from)?,
        document,
        variant(spec)?,
        phase.as_str(),
        spec.priority,
        i32::try_from(spec.max_attempts).map_err(anyhow::Error::from)?,
        spec.note,
        &spec.tags,
    )
    .execute(&mut *tx)
    .await?;
    if let Some(key) = key {
        sqlx::query!(
            "insert into idempotency_key (token_id, key, body_sha256, run_id) values ($1, $2, $3, $4)",
            token_id,
            key,
            body_sha256.as_slice(),
            id
        )
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await?;
    Ok((id, true))
}

async fn refuse_missing_blobs(conn: &mut PgConnection, spec: &Spec) -> Result<()> {
    let mut problems = Vec::new();
    let ends =
        [("weights.theta0", Some(&spec.weights.theta0)), ("weights.theta1", spec.weights.theta1.as_ref())];
    for (field, source) in ends {
        let Some(WeightSource::Blob(sha256)) = source else { continue };
        let there =
            sqlx::query_scalar!(r#"select exists (select from blob where sha256 = $1) as "there!""#, sha256)
                .fetch_one(&mut *conn)
                .await?;
        if !there {
            let rule =
                "names a blob the server does not have: PUT it to /api/v1/blobs/{sha256} first".to_owned();
            problems.push(Problem { field: format!("{field}.blob"), rule });
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::Invalid(problems)) }
}

/// Names what a line of a figure is: everything equal but the seed and the words around it.
fn variant(spec: &Spec) -> Result<String> {
    let mut bare = spec.clone();
    (bare.seed, bare.priority, bare.max_attempts) = (0, 0, 0);
    (bare.name, bare.note, bare.experiment) = (String::new(), String::new(), String::new());
    bare.tags.clear();
    let text = serde_json::to_string(&bare).map_err(anyhow::Error::from)?;
    Ok(Sha256::digest(text)[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

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
        "update run set state = $2, reason = $3,
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
        sqlx::query!("delete from resume_state where run_id = $1", id).execute(conn).await?;
    }
    Ok(())
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
             and ($5::uuid is null or r.id < $5)
           order by r.id desc limit $6"#,
        filter.experiment,
        filter.state,
        filter.method,
        filter.tag,
        filter.cursor,
        limit + 1,
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
                  r.spec, r.note, r.backbone, r.trainable, r.checkpoint_step
           from run r join experiment e on e.id = r.experiment_id left join run_progress p on p.run_id = r.id
           where r.id = $1"#,
        id
    )
    .fetch_optional(pool)
    .await?;
    let row = found(row, || format!("no run {id}"))?;
    let attempt_list = sqlx::query_as!(
        Attempt,
        "select a.number, a.state, a.phase, a.resumed_step, a.visible_through, w.name as worker, a.device,
                a.environment, a.reason, a.exit_code, a.signal, a.assigned_at, a.started_at, a.ended_at
         from attempt a join worker w on w.id = a.worker_id where a.run_id = $1 order by a.number",
        id
    )
    .fetch_all(pool)
    .await?;
    let waiting = if row.state == RunState::Queued.as_str() {
        let reasons = scheduler::why_waiting(pool, app.lease_seconds).await?;
        reasons.into_iter().find(|(run, _)| *run == id).map(|(_, reason)| reason)
    } else {
        None
    };
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
        checkpoint_step: row.checkpoint_step,
        waiting,
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

/// Cancel a run: at once if it is queued, within a second or so if a worker is at it.
#[utoipa::path(post, path = "/api/v1/runs/{id}/cancel", operation_id = "cancel_run", tag = "runs",
    params(("id" = Uuid, Path)),
    responses((status = 200, body = Run), (status = 409, body = crate::error::ProblemDetails)))]
pub async fn cancel_run_handler(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<Run>> {
    cancel_run(&app, id).await?;
    get_run(&app, id).await.map(Json)
}

/// Cancels a run.
///
/// # Errors
/// 404 if there is none, 409 if it has ended.
pub async fn cancel_run(app: &App, id: Uuid) -> Result<()> {
    let mut tx = app.pool.begin().await?;
    let row =
        sqlx::query!("select state from run where id = $1 for update", id).fetch_optional(&mut *tx).await?;
    let state: RunState = found(row, || format!("no run {id}"))?.state.parse().map_err(anyhow::Error::msg)?;
    match state {
        RunState::Queued => change_state(&mut tx, id, RunState::Cancelled, "cancelled while queued").await?,
        RunState::Running => {
            sqlx::query!("update run set cancel_requested = true where id = $1", id)
                .execute(&mut *tx)
                .await?;
        }
        ended => return Err(Error::Conflict(format!("the run has {ended} already"))),
    }
    tx.commit().await?;
    app.wake.ring();
    Ok(())
}
