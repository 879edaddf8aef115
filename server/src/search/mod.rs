//! Searches: sets of runs over hyper-parameters. A document comes in through `submit`; `step` takes the next step of every
//! open search, by the rules in `asha` and from what `observe` finds, and writes down what it decided (`history`);
//! `control` pauses, resumes, extends and cancels. Here they are read.

pub mod asha;
mod control;
mod history;
mod observe;
mod step;
mod submit;

pub use control::{
    __path_cancel_search, __path_extend_search, __path_pause_search, __path_resume_search, Change, Extension,
    cancel_search, change, extend_search, pause_search, resume_search,
};
pub use history::{__path_list_search_decisions, Decision, list_search_decisions, newest, recorded};
pub use observe::{Seen, Worth, observe};
pub use step::{pass, run, step};
pub use submit::{__path_create_search, create_search, insert_search};

use crate::{App, Error, Result, error::found, page, page::Page};
use axum::{
    Json,
    extract::{Path, Query, State},
};
use causeway_protocol::Search;
use serde::{Deserialize, Serialize};
use sqlx::{PgPool, types::Json as SqlJson};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// A search in a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SearchSummary {
    /// Id.
    pub id: Uuid,
    /// Name.
    pub name: String,
    /// The experiment of its runs.
    pub experiment_id: Uuid,
    /// That experiment's name.
    pub experiment: String,
    /// `grid`, `random` or `asha`.
    pub strategy: String,
    /// `running`, `paused`, `succeeded`, `failed` or `cancelled`.
    pub state: String,
    /// Why it ended, if not well.
    pub reason: String,
    /// Trials in all.
    pub trials: i64,
    /// Trials that have not been submitted yet.
    pub waiting: i64,
    /// Trials whose runs wait or run.
    pub running: i64,
    /// Trials that did not go on from a rung.
    pub stopped: i64,
    /// Trials that went all the way.
    pub finished: i64,
    /// Trials that failed.
    pub failed: i64,
    /// Trials that were cancelled with the search.
    pub cancelled: i64,
    /// Runs it has made.
    pub runs: i64,
    /// When it was submitted.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
}

/// A search with all its trials.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SearchDetail {
    /// What lists show.
    #[serde(flatten)]
    pub summary: SearchSummary,
    /// The document with every default filled in.
    pub document: Search,
    /// What trials are judged by, in words.
    pub objective: String,
    /// The best trial so far: of those that went furthest the one with the best value.
    pub best: Option<i32>,
    /// The trials, from the best to the worst; those without a value follow in order.
    pub trial_list: Vec<Trial>,
}

/// A trial: a point of the space, run with every seed.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Trial {
    /// Number, from 1.
    pub trial: i32,
    /// `waiting`, `running`, `stopped`, `finished`, `failed` or `cancelled`.
    pub state: String,
    /// A value for every path.
    #[schema(value_type = Object)]
    pub point: serde_json::Value,
    /// The objective at the last rung that it reached, mean over its seeds; null before, and for NaN.
    pub value: Option<f64>,
    /// How many rungs it has reached.
    pub reached: usize,
    /// What was last decided of it, in a sentence.
    pub reason: String,
    /// The rungs it reached, in order.
    pub rungs: Vec<TrialRung>,
    /// Its runs: by rung, then by seed.
    pub runs: Vec<TrialRun>,
}

/// A trial at a rung.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TrialRung {
    /// The rung, from 0.
    pub rung: i32,
    /// Training steps there; null without rungs.
    pub steps: Option<u64>,
    /// The objective, mean over the seeds; null for NaN.
    pub value: Option<f64>,
    /// `reach`, `go_on`, `stop` or `finish`.
    pub action: String,
    /// Place among what had reached the rung then.
    pub place: Option<i32>,
    /// How many had.
    pub among: Option<i32>,
}

/// A run of a trial.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TrialRun {
    /// The run.
    pub run_id: Uuid,
    /// Its seed.
    pub seed: i64,
    /// The first rung it can reach.
    pub rung: i32,
    /// Its state.
    pub state: String,
}

/// Which searches to list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct SearchFilter {
    /// Only this experiment's.
    pub experiment: Option<Uuid>,
    /// Only searches in this state.
    pub state: Option<String>,
    /// At most so many, 1 to 500; 100 by default.
    pub limit: Option<i64>,
    /// The `next` of the page before.
    pub cursor: Option<Uuid>,
}

/// The states of a search.
const STATES: [&str; 5] = ["running", "paused", "succeeded", "failed", "cancelled"];

/// List searches, newest first.
#[utoipa::path(get, path = "/api/v1/searches", operation_id = "list_searches", tag = "searches", params(SearchFilter),
    responses((status = 200, body = Page<SearchSummary>)))]
pub async fn list_searches(
    State(app): State<App>,
    Query(filter): Query<SearchFilter>,
) -> Result<Json<Page<SearchSummary>>> {
    if let Some(state) = filter.state.as_deref().filter(|state| !STATES.contains(state)) {
        return Err(Error::BadRequest(format!("state: `{state}` is none of {}", STATES.join(", "))));
    }
    let limit = page::limit(filter.limit)?;
    let rows = searches(&app.pool, None, &filter, limit + 1).await?;
    Ok(Json(Page::new(rows, limit, |search| search.id.to_string())))
}

/// One search with its trials.
#[utoipa::path(get, path = "/api/v1/searches/{id}", operation_id = "get_search", tag = "searches",
    params(("id" = Uuid, Path)),
    responses((status = 200, body = SearchDetail), (status = 404, body = crate::error::ProblemDetails)))]
pub async fn get_search_handler(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<SearchDetail>> {
    get_search(&app.pool, id).await.map(Json)
}

/// Reads searches, newest first.
///
/// # Errors
/// If the database does not answer.
pub async fn searches(
    pool: &PgPool,
    id: Option<Uuid>,
    filter: &SearchFilter,
    limit: i64,
) -> Result<Vec<SearchSummary>> {
    let rows = sqlx::query_as!(
        SearchSummary,
        r#"select s.id, s.name, s.experiment_id, e.name as experiment, s.state, s.reason, s.created_at, s.finished_at,
                  coalesce(s.document -> 'strategy' ->> 'kind', '') as "strategy!",
                  count(*) as "trials!",
                  count(*) filter (where t.state = 'waiting') as "waiting!",
                  count(*) filter (where t.state = 'running') as "running!",
                  count(*) filter (where t.state = 'stopped') as "stopped!",
                  count(*) filter (where t.state = 'finished') as "finished!",
                  count(*) filter (where t.state = 'failed') as "failed!",
                  count(*) filter (where t.state = 'cancelled') as "cancelled!",
                  (select count(*) from search_run o where o.search_id = s.id) as "runs!"
           from (select * from search
                 where ($1::uuid is null or id = $1) and ($2::uuid is null or experiment_id = $2)
                   and ($3::text is null or state = $3) and ($4::uuid is null or id < $4)
                 order by id desc limit $5) s
           join experiment e on e.id = s.experiment_id join search_trial t on t.search_id = s.id
           group by s.id, s.name, s.experiment_id, e.name, s.state, s.reason, s.created_at, s.finished_at, s.document
           order by s.id desc"#,
        id,
        filter.experiment,
        filter.state,
        filter.cursor,
        limit
    )
    .fetch_all(pool)
    .await?;
    Ok(rows)
}

async fn exists(pool: &PgPool, id: Uuid) -> Result<()> {
    let row = sqlx::query_scalar!("select name from search where id = $1", id).fetch_optional(pool).await?;
    found(row, || format!("no search {id}")).map(|_| ())
}

/// Reads one search with its trials.
///
/// # Errors
/// 404 if there is none.
pub async fn get_search(pool: &PgPool, id: Uuid) -> Result<SearchDetail> {
    let rows = searches(pool, Some(id), &SearchFilter::default(), 1).await?;
    let summary = found(rows.into_iter().next(), || format!("no search {id}"))?;
    let document = sqlx::query_scalar!(
        r#"select document as "document: SqlJson<Search>" from search where id = $1"#,
        id
    )
    .fetch_one(pool)
    .await?
    .0;
    let mut trial_list = trials(pool, id, &document).await?;
    let direction = document.objective.direction();
    let nan = f64::NAN;
    trial_list.sort_by(|a, b| {
        let values = asha::compare(a.value.unwrap_or(nan), b.value.unwrap_or(nan), direction);
        b.reached.cmp(&a.reached).then(values).then(a.trial.cmp(&b.trial))
    });
    let best = trial_list.first().filter(|trial| trial.value.is_some()).map(|trial| trial.trial);
    Ok(SearchDetail { summary, objective: document.objective.words(), document, best, trial_list })
}

async fn trials(pool: &PgPool, id: Uuid, search: &Search) -> Result<Vec<Trial>> {
    let rows = sqlx::query!(
        "select trial, state, point, value, reason from search_trial where search_id = $1 order by trial",
        id
    )
    .fetch_all(pool)
    .await?;
    let mut rungs: BTreeMap<i32, Vec<TrialRung>> = BTreeMap::new();
    let reached = sqlx::query!(
        r#"select trial as "trial!", rung as "rung!", value, action, place, among from search_decision
           where search_id = $1 and action in ('reach', 'go_on', 'stop', 'finish') order by n"#,
        id
    )
    .fetch_all(pool)
    .await?;
    for row in reached {
        let at = usize::try_from(row.rung).unwrap_or(0);
        rungs.entry(row.trial).or_default().push(TrialRung {
            rung: row.rung,
            steps: search.strategy.rungs().get(at).copied(),
            value: row.value.filter(|value| !value.is_nan()),
            action: row.action,
            place: row.place,
            among: row.among,
        });
    }
    let mut runs: BTreeMap<i32, Vec<TrialRun>> = BTreeMap::new();
    let own = sqlx::query!(
        "select o.trial, o.run_id, o.seed, o.rung, r.state from search_run o join run r on r.id = o.run_id
         where o.search_id = $1 order by o.trial, o.rung, o.seed",
        id
    )
    .fetch_all(pool)
    .await?;
    for row in own {
        let run = TrialRun { run_id: row.run_id, seed: row.seed, rung: row.rung, state: row.state };
        runs.entry(row.trial).or_default().push(run);
    }
    let trials = rows.into_iter().map(|row| {
        let rungs = rungs.remove(&row.trial).unwrap_or_default();
        Trial {
            trial: row.trial,
            state: row.state,
            point: row.point,
            value: row.value.filter(|value| !value.is_nan()),
            reached: rungs.len(),
            reason: row.reason,
            rungs,
            runs: runs.remove(&row.trial).unwrap_or_default(),
        }
    });
    Ok(trials.collect())
}

/// The trial that a run belongs to: its search, that one's name, and the trial's number.
///
/// # Errors
/// If the database does not answer.
pub async fn trial_of(pool: &PgPool, run: Uuid) -> Result<Option<(Uuid, String, i32)>> {
    let row = sqlx::query!(
        "select s.id, s.name, o.trial from search_run o join search s on s.id = o.search_id where o.run_id = $1",
        run
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| (row.id, row.name, row.trial)))
}

/// A value of the objective, four digits.
pub fn shown(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    if value != 0.0 && (value.abs() < 1e-3 || value.abs() >= 1e6) {
        return format!("{value:.3e}").replace('-', "\u{2212}");
    }
    let whole = value.abs().max(1.0).log10().floor() as usize + 1;
    format!("{value:.*}", 4_usize.saturating_sub(whole)).replace('-', "\u{2212}")
}
