//! The values that runs log. They come in by the batch and are kept by the chunk (`store`), each chunk with what its
//! values come to; charts read that (`chart`), exports read everything (`export`). docs/metrics.md has the whole.

pub mod batch;
mod chart;
pub mod chunk;
mod export;
pub mod hide;
mod read;
mod rows;
pub mod store;

pub use export::{__path_export_metrics, export_metrics};
pub use read::{Span, chart, complete, require_run, series_of};

use crate::{App, Error, Result, page, page::Page};
use axum::{
    Json,
    extract::{Path, Query, State},
};
use causeway_protocol::Number;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// Most columns of a chart.
pub const RESOLUTION_MAX: usize = 4096;

/// A series: the visible values of one metric of one run.
#[derive(Debug, Serialize, ToSchema)]
pub struct Series {
    /// Name of the metric.
    pub name: String,
    /// Steps, ascending.
    pub steps: Vec<i64>,
    /// The values, one a step.
    pub values: Vec<Number>,
    /// What the points stand for, where a `resolution` was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shown: Option<Shown>,
}

/// What the points of a chart stand for.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Shown {
    /// Whether the points are all the values.
    pub exact: bool,
    /// Values in the steps asked for.
    pub count: i64,
    /// How many of them are NaN or infinite. They count, but are neither least nor greatest.
    pub non_finite: i64,
}

/// Which values to read.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct MetricsQuery {
    /// Comma-separated names; all by default.
    pub names: Option<String>,
    /// Only values beyond this step: what is new since the last look.
    pub after_step: Option<i64>,
    /// Only values from this step on.
    pub from_step: Option<i64>,
    /// Only values up to this step.
    pub to_step: Option<i64>,
    /// Columns of a chart, 1 to 4,096: instead of all values, of each column the first, the least, the greatest and
    /// the last. Without it the answer is complete.
    pub resolution: Option<usize>,
}

impl MetricsQuery {
    fn span(&self) -> Result<Span> {
        let after = self.after_step.map_or(i64::MIN, |after| after.saturating_add(1));
        let span = Span {
            from: self.from_step.unwrap_or(i64::MIN).max(after),
            to: self.to_step.unwrap_or(i64::MAX),
        };
        if let (Some(from), Some(to)) = (self.from_step, self.to_step)
            && from > to
        {
            return Err(Error::BadRequest(format!("from_step {from} is beyond to_step {to}")));
        }
        Ok(span)
    }
}

/// The values of a run by series: complete, or as a chart of a given resolution needs them. Values that a resumed
/// attempt did again are not shown twice.
#[utoipa::path(get, path = "/api/v1/runs/{id}/metrics", operation_id = "get_metrics", tag = "runs",
    params(("id" = Uuid, Path), MetricsQuery),
    responses((status = 200, body = Vec<Series>), (status = 404), (status = 413, body = crate::error::ProblemDetails)))]
pub async fn get_metrics(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Query(query): Query<MetricsQuery>,
) -> Result<Json<Vec<Series>>> {
    let span = query.span()?;
    let names: Option<Vec<String>> = query.names.map(|names| names.split(',').map(str::to_owned).collect());
    let names = names.as_deref();
    let series = match query.resolution {
        None => complete(&app.pool, id, names, span).await?,
        Some(columns) if (1..=RESOLUTION_MAX).contains(&columns) => {
            chart(&app.pool, id, names, span, columns).await?
        }
        Some(columns) => {
            let rule = format!("resolution must be 1 to {RESOLUTION_MAX} columns, is {columns}");
            return Err(Error::BadRequest(rule));
        }
    };
    Ok(Json(series))
}

/// What the visible values of a series come to.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Summary {
    /// Name of the metric.
    pub name: String,
    /// Number of values.
    pub count: i64,
    /// How many of them are NaN or infinite.
    pub non_finite: i64,
    /// The last value.
    pub last: Number,
    /// Its step.
    pub last_step: i64,
    /// The least finite value.
    pub min: Option<f64>,
    /// The first step that has it: the best one, where less is better.
    pub min_step: Option<i64>,
    /// The greatest finite value.
    pub max: Option<f64>,
    /// The first step that has it: the best one, where more is better.
    pub max_step: Option<i64>,
}

/// What the values of a run come to, by series. Kept as they arrive, so this reads no values.
#[utoipa::path(get, path = "/api/v1/runs/{id}/summary", operation_id = "get_summary", tag = "runs",
    params(("id" = Uuid, Path)), responses((status = 200, body = Vec<Summary>), (status = 404)))]
pub async fn get_summary(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<Vec<Summary>>> {
    require_run(&app.pool, id).await?;
    summary(&app.pool, id).await.map(Json)
}

/// Reads what the values of a run come to.
///
/// # Errors
/// If the database does not answer.
pub async fn summary(pool: &PgPool, run: Uuid) -> Result<Vec<Summary>> {
    let rows = sqlx::query!(
        r#"select s.name, sum(m.count)::bigint as "count!", sum(m.non_finite)::bigint as "non_finite!",
                  (array_agg(m.last order by m.attempt desc))[1] as "last!",
                  (array_agg(m.last_step order by m.attempt desc))[1] as "last_step!",
                  min(m.min), (array_agg(m.min_step order by m.min, m.min_step))[1] as min_step,
                  max(m.max), (array_agg(m.max_step order by m.max desc nulls last, m.max_step))[1] as max_step
           from series s join summary m on m.series_id = s.id where s.run_id = $1 group by s.id, s.name order by s.name"#,
        run
    )
    .fetch_all(pool)
    .await?;
    let list = rows.into_iter().map(|row| Summary {
        name: row.name,
        count: row.count,
        non_finite: row.non_finite,
        last: Number(row.last),
        last_step: row.last_step,
        min: row.min,
        min_step: row.min_step,
        max: row.max,
        max_step: row.max_step,
    });
    Ok(list.collect())
}

/// A value that arrived twice with another number. The first one stays.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ValueConflict {
    /// Its place in the list.
    pub id: String,
    /// Name of the metric.
    pub name: String,
    /// The attempt that sent both.
    pub attempt: i32,
    /// The step of both.
    pub step: i64,
    /// Which of the values at that step.
    pub n: i32,
    /// The number that was there first, and stays.
    pub kept: Number,
    /// The number that came last.
    pub refused: Number,
    /// How often another number came.
    pub times: i64,
    /// When it came last.
    #[serde(with = "time::serde::rfc3339")]
    pub noted_at: OffsetDateTime,
}

/// Which conflicts to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ConflictFilter {
    /// At most so many, 1 to 500; 100 by default.
    pub limit: Option<i64>,
    /// The `next` of the page before.
    pub cursor: Option<String>,
}

/// The values of a run that arrived twice with another number, by series, attempt and step.
#[utoipa::path(get, path = "/api/v1/runs/{id}/conflicts", operation_id = "list_conflicts", tag = "runs",
    params(("id" = Uuid, Path), ConflictFilter),
    responses((status = 200, body = Page<ValueConflict>), (status = 404)))]
pub async fn list_conflicts(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Query(filter): Query<ConflictFilter>,
) -> Result<Json<Page<ValueConflict>>> {
    let limit = page::limit(filter.limit)?;
    let after = match filter.cursor.as_deref() {
        None => (i64::MIN, 0, 0, 0),
        Some(text) => cursor(text)
            .ok_or_else(|| Error::BadRequest(format!("cursor: `{text}` is no `next` of this list")))?,
    };
    require_run(&app.pool, id).await?;
    let rows = conflicts(&app.pool, id, after, limit + 1).await?;
    Ok(Json(Page::new(rows, limit, |row| row.id.clone())))
}

/// Series, attempt, step and n of a conflict, as a cursor spells them.
type ConflictKey = (i64, i32, i64, i32);

fn cursor(text: &str) -> Option<ConflictKey> {
    let mut parts = text.split('.');
    let key = (
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
    );
    parts.next().is_none().then_some(key)
}

/// Reads conflicts beyond a place of the list.
///
/// # Errors
/// If the database does not answer.
pub async fn conflicts(
    pool: &PgPool,
    run: Uuid,
    after: ConflictKey,
    limit: i64,
) -> Result<Vec<ValueConflict>> {
    let rows = sqlx::query!(
        "select c.series_id, s.name, c.attempt, c.step, c.n, c.kept, c.refused, c.times, c.noted_at
         from series s join conflict c on c.series_id = s.id
         where s.run_id = $1 and (c.series_id, c.attempt, c.step, c.n) > ($2, $3, $4, $5)
         order by c.series_id, c.attempt, c.step, c.n limit $6",
        run,
        after.0,
        after.1,
        after.2,
        after.3,
        limit
    )
    .fetch_all(pool)
    .await?;
    let list = rows.into_iter().map(|row| ValueConflict {
        id: format!("{}.{}.{}.{}", row.series_id, row.attempt, row.step, row.n),
        name: row.name,
        attempt: row.attempt,
        step: row.step,
        n: row.n,
        kept: Number(row.kept),
        refused: Number(row.refused),
        times: row.times,
        noted_at: row.noted_at,
    });
    Ok(list.collect())
}
