//! A search comes in: checked whole, its trials made, and stored once, however often it is sent. Nothing is put into the
//! queue here: the first step does that, as it does every later one.

use super::{SearchDetail, get_search};
use crate::{ApiJson, App, Error, Result, auth::Identity, experiments, projects, runs};
use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
};
use causeway_protocol::{DEFAULT_PROJECT, Search, parse_search};
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use uuid::Uuid;

/// Submit a search. It is answered with every default filled in and all its trials. With an `Idempotency-Key`, sending it
/// again answers the first search instead of making another.
#[utoipa::path(post, path = "/api/v1/searches", operation_id = "create_search", tag = "searches", request_body = Search,
    params(("Idempotency-Key" = Option<String>, Header, description = "Any text that names this submission")),
    responses((status = 201, body = SearchDetail), (status = 200, body = SearchDetail, description = "Made earlier under this key"),
        (status = 422, body = crate::error::ProblemDetails)))]
pub async fn create_search(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    headers: HeaderMap,
    ApiJson(document): ApiJson<serde_json::Value>,
) -> Result<impl IntoResponse> {
    // Making every spec of a large search takes a second or so of a processor: not where requests are answered.
    let parsed = tokio::task::spawn_blocking(move || parse_search(document)).await;
    let search = parsed.map_err(anyhow::Error::from)?.map_err(Error::Invalid)?;
    let key = runs::idempotency_key(&headers)?;
    let (id, made) = insert_search(&app.pool, &search, identity.token_id, key).await?;
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(get_search(&app.pool, id).await?)))
}

/// Stores a search with its trials; the second value is false if the key named one already.
///
/// # Errors
/// A key used for another search, or a blob that is not there.
pub async fn insert_search(
    pool: &PgPool,
    search: &Search,
    token_id: Uuid,
    key: Option<&str>,
) -> Result<(Uuid, bool)> {
    let document = serde_json::to_value(search).map_err(anyhow::Error::from)?;
    let body_sha256 = Sha256::digest(document.to_string());
    let points = search.points();
    let mut tx = pool.begin().await?;
    refuse_missing_blobs(&mut tx, search).await?;
    let project = search.spec["project"].as_str().unwrap_or(DEFAULT_PROJECT);
    let project = projects::find_project(&mut tx, project).await?;
    let experiment_id = experiments::ensure_experiment(&mut tx, project, &search.experiment).await?;
    let id = Uuid::now_v7();
    // Of two submissions under one key, the second waits here for the first and then finds it.
    let made = sqlx::query!(
        "insert into search (id, experiment_id, name, document, state, token_id, key, body_sha256)
         values ($1, $2, $3, $4, 'running', $5, $6, $7) on conflict on constraint search_key_unique do nothing",
        id,
        experiment_id,
        search.name,
        document,
        token_id,
        key,
        body_sha256.as_slice()
    )
    .execute(&mut *tx)
    .await?;
    if made.rows_affected() == 0 {
        let earlier = sqlx::query!(
            "select id, body_sha256 from search where token_id = $1 and key = $2",
            token_id,
            key
        )
        .fetch_one(&mut *tx)
        .await?;
        if earlier.body_sha256 != body_sha256.as_slice() {
            let key = key.unwrap_or_default();
            return Err(Error::Conflict(format!("the Idempotency-Key `{key}` was used for another search")));
        }
        return Ok((earlier.id, false));
    }
    add_trials(&mut tx, id, &points, 0).await?;
    tx.commit().await?;
    Ok((id, true))
}

/// Stores the points beyond the first `from`.
pub(super) async fn add_trials(
    conn: &mut sqlx::PgConnection,
    search: Uuid,
    points: &[causeway_protocol::SearchPoint],
    from: usize,
) -> Result<()> {
    let (mut numbers, mut documents) = (Vec::new(), Vec::new());
    for (at, point) in points.iter().enumerate().skip(from) {
        numbers.push(i32::try_from(at + 1).map_err(anyhow::Error::from)?);
        documents.push(serde_json::to_value(point).map_err(anyhow::Error::from)?);
    }
    sqlx::query!(
        "insert into search_trial (search_id, trial, point) select $1, t, p from unnest($2::int4[], $3::jsonb[]) n(t, p)",
        search,
        &numbers,
        &documents
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Looks for the blobs of every trial that names others than the one before.
async fn refuse_missing_blobs(conn: &mut sqlx::PgConnection, search: &Search) -> Result<()> {
    let mut before: Vec<String> = Vec::new();
    for (trial, point) in (1..).zip(search.points()) {
        let spec = search.run_spec(trial, &point, 0, search.seeds[0]).map_err(Error::Invalid)?;
        let blobs: Vec<String> = spec.blobs().into_iter().map(str::to_owned).collect();
        if !blobs.is_empty() && blobs != before {
            runs::refuse_missing_blobs(conn, &spec).await?;
        }
        before = blobs;
    }
    Ok(())
}
