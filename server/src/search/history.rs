//! What a search has decided, in order: the only memory it has. A decision is a row with the values it was made from, so
//! that the same history always leads to the same next step.

use super::asha::{Recorded, Verdict};
use crate::{App, Result, page, page::Page};
use axum::{
    Json,
    extract::{Path, Query, State},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// A decision of a search.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Decision {
    /// From 1.
    pub n: i32,
    /// `submit`; `reach`, `go_on`, `stop`, `promote`, `finish`, `fail` of a trial; `pause`, `resume`, `extend`, `cancel`,
    /// `end` of the search.
    pub action: String,
    /// The trial.
    pub trial: Option<i32>,
    /// The rung it reached, from 0; for `submit` and `promote` the one it goes to.
    pub rung: Option<i32>,
    /// What the trial was worth there, mean over its seeds; null for NaN.
    pub value: Option<f64>,
    /// Its place among what had reached the rung.
    pub place: Option<i32>,
    /// How many had.
    pub among: Option<i32>,
    /// What it was made from: the seeds' values, how many might go on, whether more could come.
    #[schema(value_type = Object)]
    pub made_from: serde_json::Value,
    /// Why, in a sentence.
    pub reason: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// A decision about to be recorded.
#[derive(Clone, Debug, Default)]
pub(super) struct Made {
    pub action: &'static str,
    pub trial: Option<i32>,
    pub rung: Option<usize>,
    pub value: Option<f64>,
    pub verdict: Option<Verdict>,
    pub closed: bool,
    pub seeds: Vec<(i64, f64)>,
    pub note: String,
    pub reason: String,
}

impl Made {
    /// As the rules will read it.
    pub fn recorded(&self) -> Recorded {
        let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        Recorded {
            action: self.action.to_owned(),
            trial: self.trial,
            rung: self.rung.map(count),
            value: self.value,
            place: self.verdict.map(|verdict| count(verdict.place)),
            among: self.verdict.map(|verdict| count(verdict.among)),
            closed: self.closed,
        }
    }

    fn made_from(&self) -> serde_json::Value {
        let mut from = serde_json::Map::new();
        if !self.seeds.is_empty() {
            let seeds = self.seeds.iter().map(|(seed, value)| json!({"seed": seed, "value": value}));
            from.insert("seeds".into(), seeds.collect());
        }
        if let Some(verdict) = self.verdict {
            from.insert("quota".into(), verdict.quota.into());
        }
        if self.action == "promote" {
            from.insert("closed".into(), self.closed.into());
        }
        if !self.note.is_empty() {
            from.insert("note".into(), self.note.clone().into());
        }
        from.into()
    }
}

/// Appends a decision. The caller holds the search's row.
pub(super) async fn record(conn: &mut PgConnection, search: Uuid, made: &Made) -> Result<()> {
    let recorded = made.recorded();
    sqlx::query!(
        "insert into search_decision (search_id, n, action, trial, rung, value, place, among, made_from, reason)
         values ($1, (select coalesce(max(n), 0) + 1 from search_decision where search_id = $1),
                 $2, $3, $4, $5, $6, $7, $8, $9)",
        search,
        recorded.action,
        recorded.trial,
        recorded.rung,
        recorded.value,
        recorded.place,
        recorded.among,
        made.made_from(),
        made.reason,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The whole history as the rules read it.
///
/// # Errors
/// If the database does not answer.
pub async fn recorded(conn: &mut PgConnection, search: Uuid) -> Result<Vec<Recorded>> {
    let rows = sqlx::query!(
        r#"select action, trial, rung, value, place, among, coalesce((made_from ->> 'closed')::bool, false) as "closed!"
           from search_decision where search_id = $1 order by n"#,
        search
    )
    .fetch_all(conn)
    .await?;
    let history = rows.into_iter().map(|row| Recorded {
        action: row.action,
        trial: row.trial,
        rung: row.rung,
        value: row.value,
        place: row.place,
        among: row.among,
        closed: row.closed,
    });
    Ok(history.collect())
}

/// Which decisions to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct DecisionsQuery {
    /// At most so many, 1 to 500; 100 by default.
    pub limit: Option<i64>,
    /// The `next` of the page before.
    pub cursor: Option<i32>,
}

/// What a search has decided, in order, each with the values it was decided from.
#[utoipa::path(get, path = "/api/v1/searches/{id}/decisions", operation_id = "list_search_decisions", tag = "searches",
    params(("id" = Uuid, Path), DecisionsQuery), responses((status = 200, body = Page<Decision>), (status = 404)))]
pub async fn list_search_decisions(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Query(query): Query<DecisionsQuery>,
) -> Result<Json<Page<Decision>>> {
    super::exists(&app.pool, id).await?;
    let limit = page::limit(query.limit)?;
    let rows = sqlx::query_as!(
        Decision,
        "select n, action, trial, rung, value, place, among, made_from, reason, at from search_decision
         where search_id = $1 and n > $2 order by n limit $3",
        id,
        query.cursor.unwrap_or(0),
        limit + 1
    )
    .fetch_all(&app.pool)
    .await?;
    Ok(Json(Page::new(rows, limit, |decision| decision.n.to_string())))
}

/// The newest decisions, the newest first.
///
/// # Errors
/// If the database does not answer.
pub async fn newest(pool: &PgPool, search: Uuid, limit: i64) -> Result<Vec<Decision>> {
    let rows = sqlx::query_as!(
        Decision,
        "select n, action, trial, rung, value, place, among, made_from, reason, at from search_decision
         where search_id = $1 order by n desc limit $2",
        search,
        limit
    )
    .fetch_all(pool)
    .await?;
    Ok(rows)
}
