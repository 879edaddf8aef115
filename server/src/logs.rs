//! Reading what runs have printed.

use crate::{App, Result, metrics::require_run, page};
use axum::{
    Json,
    extract::{Path, Query, State},
};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// Most log lines in one answer.
const LOG_LINES_MAX: i64 = 1000;

/// A printed line.
#[derive(Debug, Serialize, ToSchema)]
pub struct StoredLogLine {
    /// The attempt that printed it.
    pub attempt: i32,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Byte offset in that file.
    pub position: i64,
    /// The line.
    pub text: String,
}

/// Which lines to read.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct LogsQuery {
    /// Only this attempt's; the newest by default.
    pub attempt: Option<i32>,
    /// `stdout` or `stderr`; both by default.
    pub stream: Option<String>,
    /// Only lines that contain this text, whatever the case.
    pub contains: Option<String>,
    /// Only lines beyond this offset.
    pub after: Option<i64>,
    /// Read from the end instead: the last lines.
    pub tail: Option<bool>,
    /// At most so many lines, 1 to 500; 100 by default.
    pub limit: Option<i64>,
}

/// The printed lines of an attempt.
#[utoipa::path(get, path = "/api/v1/runs/{id}/logs", operation_id = "get_logs", tag = "runs",
    params(("id" = Uuid, Path), LogsQuery), responses((status = 200, body = Vec<StoredLogLine>), (status = 404)))]
pub async fn get_logs(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Query(query): Query<LogsQuery>,
) -> Result<Json<Vec<StoredLogLine>>> {
    logs(&app.pool, id, &query).await.map(Json)
}

/// Reads printed lines in the order of their attempt, offset and stream.
///
/// # Errors
/// 404 for an unknown run.
pub async fn logs(pool: &PgPool, run: Uuid, query: &LogsQuery) -> Result<Vec<StoredLogLine>> {
    require_run(pool, run).await?;
    let limit = page::limit(query.limit)?.min(LOG_LINES_MAX);
    let tail = query.tail.unwrap_or(false);
    let mut rows = sqlx::query_as!(
        StoredLogLine,
        "select attempt, stream, position, text from log_line
         where run_id = $1
           and attempt = coalesce($2, (select max(attempt) from log_line where run_id = $1))
           and ($3::text is null or stream = $3) and ($4::text is null or position(lower($4) in lower(text)) > 0)
           and position > $5
         order by case when $6 then -position else position end, stream limit $7",
        run,
        query.attempt,
        query.stream,
        query.contains,
        query.after.unwrap_or(-1),
        tail,
        limit
    )
    .fetch_all(pool)
    .await?;
    if tail {
        rows.reverse();
    }
    Ok(rows)
}
