//! Reading what runs have logged: series of values, and printed lines.

use crate::{App, Error, Result, page};
use axum::{
    Json,
    extract::{Path, Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::fmt::Write;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// Most values in one answer.
const VALUES_MAX: i64 = 100_000;
/// Most log lines in one answer.
const LOG_LINES_MAX: i64 = 1000;

/// A series: the visible values of one metric of one run.
#[derive(Debug, Serialize, ToSchema)]
pub struct Series {
    /// Name of the metric.
    pub name: String,
    /// Steps, ascending.
    pub steps: Vec<i64>,
    /// The values, one a step.
    pub values: Vec<f64>,
}

/// Which values to read.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct MetricsQuery {
    /// Comma-separated names; all by default.
    pub names: Option<String>,
    /// Only values beyond this step: what is new since the last look.
    pub after_step: Option<i64>,
}

/// The values of a run, complete, by series. Values that a resumed attempt did again are not shown twice.
#[utoipa::path(get, path = "/api/v1/runs/{id}/metrics", operation_id = "get_metrics", tag = "runs",
    params(("id" = Uuid, Path), MetricsQuery), responses((status = 200, body = Vec<Series>), (status = 404)))]
pub async fn get_metrics(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Query(query): Query<MetricsQuery>,
) -> Result<Json<Vec<Series>>> {
    let names: Option<Vec<String>> = query.names.map(|names| names.split(',').map(str::to_owned).collect());
    series(&app.pool, id, names.as_deref(), query.after_step.unwrap_or(-1)).await.map(Json)
}

/// Reads the visible values of a run beyond a step.
///
/// # Errors
/// 404 for an unknown run, 413 for more values than one answer holds.
pub async fn series(pool: &PgPool, run: Uuid, names: Option<&[String]>, after: i64) -> Result<Vec<Series>> {
    exists(pool, run).await?;
    let rows = sqlx::query!(
        "select s.name, v.step, v.value
         from series s join value v on v.series_id = s.id
         join attempt a on a.run_id = s.run_id and a.number = v.attempt
         where s.run_id = $1 and ($2::text[] is null or s.name = any($2)) and v.step > $3
           and v.step <= coalesce(a.visible_through, v.step) and v.n >= 0
         order by s.name, v.step, v.attempt, v.n limit $4",
        run,
        names,
        after,
        VALUES_MAX + 1
    )
    .fetch_all(pool)
    .await?;
    if rows.len() > usize::try_from(VALUES_MAX).unwrap_or(usize::MAX) {
        return Err(Error::TooLarge(format!(
            "more than {VALUES_MAX} values: ask for fewer names, or page with after_step"
        )));
    }
    let mut list: Vec<Series> = Vec::new();
    for row in rows {
        if list.last().is_none_or(|series| series.name != row.name) {
            list.push(Series { name: row.name.clone(), steps: Vec::new(), values: Vec::new() });
        }
        if let Some(series) = list.last_mut() {
            series.steps.push(row.step);
            series.values.push(row.value);
        }
    }
    Ok(list)
}

async fn exists(pool: &PgPool, run: Uuid) -> Result<()> {
    let there = sqlx::query_scalar!(r#"select exists (select from run where id = $1) as "there!""#, run)
        .fetch_one(pool)
        .await?;
    if there { Ok(()) } else { Err(Error::NotFound(format!("no run {run}"))) }
}

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
    exists(pool, run).await?;
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

/// The values of a run as CSV, complete: `name,step,value`.
#[utoipa::path(get, path = "/api/v1/runs/{id}/metrics.csv", operation_id = "export_metrics", tag = "runs",
    params(("id" = Uuid, Path)), responses((status = 200, body = String, content_type = "text/csv"), (status = 404)))]
pub async fn export_metrics(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Response> {
    let list = series(&app.pool, id, None, -1).await?;
    let mut text = String::from("name,step,value\n");
    for series in list {
        for (step, value) in series.steps.iter().zip(&series.values) {
            let _ = writeln!(text, "{},{step},{value}", series.name);
        }
    }
    Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], text).into_response())
}
