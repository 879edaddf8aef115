//! A spec comes in: checked, given every default, and put into the queue once, however often it is sent.

use super::{Run, get_run, parts};
use crate::{
    ApiJson, App, Error, Result, auth::Identity, estimate, estimate::Estimate, experiments, projects,
    scheduler,
};
use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
};
use causeway_protocol::{Kind, Phase, Problem, Resources, Spec, WeightSource, hex, parse_spec};
use serde::Serialize;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

/// Longest Idempotency-Key, bytes.
const IDEMPOTENCY_KEY_MAX: usize = 255;

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
    let key = idempotency_key(&headers)?;
    let mut tx = app.pool.begin().await?;
    let (id, made) = insert_run(&mut tx, &spec, identity.token_id, key).await?;
    if made {
        // A repeat is answered whatever workers there are by now.
        scheduler::refuse_impossible(&mut tx, &spec, app.lease_seconds).await?;
    }
    tx.commit().await?;
    app.wake.ring_scheduler();
    let run = get_run(&app, id).await?;
    let estimate = estimate::estimate(&app.pool, &spec).await?;
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(CreatedRun { run, estimate })))
}

/// The `Idempotency-Key` of a request.
///
/// # Errors
/// 400 for one that is empty, too long or no ASCII.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>> {
    match headers.get("idempotency-key").map(|value| value.to_str()) {
        None => Ok(None),
        Some(Ok(key)) if !key.is_empty() && key.len() <= IDEMPOTENCY_KEY_MAX => Ok(Some(key)),
        Some(_) => Err(Error::BadRequest("Idempotency-Key must be 1 to 255 ASCII characters".into())),
    }
}

/// Puts a run into the queue, in the caller's transaction; the second value is false if the key named one already.
///
/// # Errors
/// A key used for another spec, or a blob that is not there.
pub async fn insert_run(
    conn: &mut PgConnection,
    spec: &Spec,
    token_id: Uuid,
    key: Option<&str>,
) -> Result<(Uuid, bool)> {
    let document = serde_json::to_value(spec).map_err(anyhow::Error::from)?;
    let body_sha256 = Sha256::digest(document.to_string());
    if let Some(key) = key {
        // Two submissions under one key must not both find nothing.
        sqlx::query!("select pg_advisory_xact_lock(hashtextextended($1, 0))", format!("{token_id}/{key}"))
            .execute(&mut *conn)
            .await?;
        let earlier = sqlx::query!(
            "select run_id, body_sha256 from idempotency_key where token_id = $1 and key = $2",
            token_id,
            key
        )
        .fetch_optional(&mut *conn)
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
    refuse_missing_blobs(conn, spec).await?;
    let needed = needed_runs(conn, spec).await?;
    let project_id = projects::find_project(conn, &spec.project).await?;
    let experiment_id = experiments::ensure_experiment(conn, project_id, &spec.experiment).await?;
    let needs: Vec<String> = spec.assets().into_iter().map(str::to_owned).collect();
    let count = |count: u32| i32::try_from(count).map_err(anyhow::Error::from);
    let id = Uuid::now_v7();
    let phase = if spec.kind == Kind::Evaluate { Phase::Evaluate } else { Phase::Train };
    sqlx::query!(
        "insert into run (id, experiment_id, name, kind, method, seed, spec, variant, state, phase, priority,
                          max_attempts, note, tags, project_id, submitted_by, devices, nodes, device_memory, labels,
                          needs, limit_seconds)
         values ($1, $2, $3, $4, $5, $6, $7, $8, 'queued', $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
                 $21)",
        id,
        experiment_id,
        spec.name,
        spec.kind.as_str(),
        spec.trained(),
        i64::try_from(spec.seed).map_err(anyhow::Error::from)?,
        document,
        variant(spec, &needed)?,
        phase.as_str(),
        spec.priority,
        i32::try_from(spec.max_attempts).map_err(anyhow::Error::from)?,
        spec.note,
        &spec.tags,
        project_id,
        token_id,
        count(spec.resources.gpus)?,
        count(spec.resources.nodes)?,
        spec.resources.memory_bytes(),
        &spec.labels(),
        &needs,
        spec.resources.minutes.map(|minutes| count(minutes * 60)).transpose()?,
    )
    .execute(&mut *conn)
    .await?;
    for run in &needed {
        sqlx::query!("insert into run_dependency (run_id, needs_run) values ($1, $2)", id, run.id)
            .execute(&mut *conn)
            .await?;
    }
    if spec.kind == Kind::Evaluate && spec.waits_for().is_empty() {
        parts::spread(conn, id, None).await?;
    }
    if let Some(key) = key {
        sqlx::query!(
            "insert into idempotency_key (token_id, key, body_sha256, run_id) values ($1, $2, $3, $4)",
            token_id,
            key,
            body_sha256.as_slice(),
            id
        )
        .execute(&mut *conn)
        .await?;
    }
    Ok((id, true))
}

/// A run that another waits for.
struct NeededRun {
    id: Uuid,
    kind: String,
    state: String,
    variant: String,
}

/// The runs that a spec waits for, as they are.
async fn needed_runs(conn: &mut PgConnection, spec: &Spec) -> Result<Vec<NeededRun>> {
    let ids = spec.waits_for();
    let found = sqlx::query_as!(
        NeededRun,
        "select id, kind, state, variant from run where id = any($1) order by id",
        &ids
    )
    .fetch_all(conn)
    .await?;
    let mut problems = Vec::new();
    for id in &ids {
        let ends = [
            ("weights.theta0.run", Some(&spec.weights.theta0)),
            ("weights.theta1.run", spec.weights.theta1.as_ref()),
        ];
        let as_weights =
            ends.iter().find(|(_, source)| *source == Some(&WeightSource::Run(*id))).map(|(field, _)| *field);
        let field = as_weights.unwrap_or("after").to_owned();
        let rule = match found.iter().find(|run| run.id == *id) {
            None => format!("names no run that there is: {id}"),
            Some(run) if matches!(run.state.as_str(), "failed" | "cancelled" | "lost") => {
                format!("names run {id}, which has ended without success ({})", run.state)
            }
            Some(run) if as_weights.is_some() && run.kind == "evaluate" => {
                format!("names run {id}, an evaluation, which makes no checkpoint")
            }
            Some(_) => continue,
        };
        problems.push(Problem { field, rule });
    }
    if problems.is_empty() { Ok(found) } else { Err(Error::Invalid(problems)) }
}

/// Refuses a spec that names a blob the server does not have.
///
/// # Errors
/// 422 with the fields.
pub async fn refuse_missing_blobs(conn: &mut PgConnection, spec: &Spec) -> Result<()> {
    let mut problems = Vec::new();
    let ends =
        [("weights.theta0", Some(&spec.weights.theta0)), ("weights.theta1", spec.weights.theta1.as_ref())];
    for (field, source) in ends {
        let named: Vec<(String, &String)> = match source {
            Some(WeightSource::Blob(sha256)) => vec![(format!("{field}.blob"), sha256)],
            Some(WeightSource::Soup(soup)) => {
                let checkpoints = soup.checkpoints.iter().enumerate();
                checkpoints.map(|(at, sha256)| (format!("{field}.soup.checkpoints[{at}]"), sha256)).collect()
            }
            _ => Vec::new(),
        };
        for (field, sha256) in named {
            let there = sqlx::query_scalar!(
                r#"select exists (select from blob where sha256 = $1) as "there!""#,
                sha256
            )
            .fetch_one(&mut *conn)
            .await?;
            if !there {
                let rule = "names a blob the server does not have: PUT it to /api/v1/blobs/{sha256} first"
                    .to_owned();
                problems.push(Problem { field, rule });
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::Invalid(problems)) }
}

/// Names what a line of a figure is: everything equal but the seed and the words around it. A run named as weights stands
/// for what it is a seed of.
fn variant(spec: &Spec, needed: &[NeededRun]) -> Result<String> {
    let mut bare = spec.clone();
    for source in [Some(&mut bare.weights.theta0), bare.weights.theta1.as_mut()].into_iter().flatten() {
        if let WeightSource::Run(id) = source
            && let Some(run) = needed.iter().find(|run| run.id == *id)
        {
            *source = WeightSource::Blob(run.variant.clone());
        }
    }
    (bare.project, bare.resources) = (String::new(), Resources::default());
    bare.after.clear();
    (bare.seed, bare.priority, bare.max_attempts) = (0, 0, 0);
    (bare.name, bare.note, bare.experiment) = (String::new(), String::new(), String::new());
    bare.tags.clear();
    bare.evaluation.parts = 1;
    bare.analysis = None;
    let text = serde_json::to_string(&bare).map_err(anyhow::Error::from)?;
    Ok(hex(&Sha256::digest(text)[..8]))
}
