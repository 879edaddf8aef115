//! `/`: what needs you, what runs, and the experiments.

use super::{Asked, Shell, format, page};
use crate::{App, Error, Result};
use askama::Template;
use axum::{
    extract::{Query, State},
    response::Response,
};
use causeway_protocol::RunProgress;
use serde::Deserialize;
use sqlx::{PgPool, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

/// Days for which a failed run asks for attention.
const ATTENTION_DAYS: i32 = 7;
/// Most runs in each of the two short lists.
const SHORT_LIST: i64 = 8;
/// Experiments on a page.
const EXPERIMENTS: i64 = 100;

#[derive(Template)]
#[template(path = "home.html")]
struct Home {
    shell: Shell,
    failed: Vec<Failed>,
    running: Vec<Running>,
    experiments: Vec<Row>,
    /// Address of the next page of experiments.
    older: Option<String>,
    /// Whether this is a later page.
    later: bool,
}

/// What the address of the page says.
#[derive(Debug, Default, Deserialize)]
pub struct Options {
    /// The last experiment of the page before: microseconds of its update, and its id.
    after: Option<String>,
}

impl Options {
    fn place(&self) -> Result<Option<(OffsetDateTime, Uuid)>> {
        let Some(text) = &self.after else { return Ok(None) };
        let place = text.split_once('.').and_then(|(micros, id)| {
            let nanos = micros.parse::<i128>().ok()?.checked_mul(1000)?;
            Some((OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?, id.parse().ok()?))
        });
        place.map(Some).ok_or_else(|| Error::BadRequest(format!("after: `{text}` is no place in this list")))
    }
}

/// A run that ended badly.
struct Failed {
    id: String,
    name: String,
    experiment: String,
    state: String,
    reason: String,
    when: String,
}

/// A run at work.
struct Running {
    id: String,
    name: String,
    experiment: String,
    phase: String,
    progress: Option<RunProgress>,
}

/// An experiment.
struct Row {
    id: String,
    name: String,
    description: String,
    runs: i64,
    states: Vec<String>,
    updated: String,
}

impl Running {
    /// Percent of the phase.
    fn percent(&self) -> u64 {
        self.progress.as_ref().map_or(0, percent)
    }
}

/// Percent of the phase, rounded down.
pub fn percent(progress: &RunProgress) -> u64 {
    (100 * progress.done.min(progress.total)).checked_div(progress.total).unwrap_or(0)
}

/// `GET /`.
pub async fn show(State(app): State<App>, asked: Asked, Query(options): Query<Options>) -> Result<Response> {
    let (experiments, older) = experiments(&app.pool, options.place()?).await?;
    let home = Home {
        shell: Shell::load(&app, &asked, true).await?,
        failed: failed(&app.pool).await?,
        running: running(&app.pool).await?,
        experiments,
        older,
        later: options.after.is_some(),
    };
    page(&home, &asked)
}

async fn failed(pool: &PgPool) -> Result<Vec<Failed>> {
    let rows = sqlx::query!(
        r#"select r.id, r.name, e.name as experiment, r.state, r.reason, r.finished_at as "finished_at!"
           from run r join experiment e on e.id = r.experiment_id
           where r.state in ('failed', 'lost') and r.part_of is null and r.finished_at > now() - make_interval(days => $1)
           order by r.finished_at desc limit $2"#,
        ATTENTION_DAYS,
        SHORT_LIST
    )
    .fetch_all(pool)
    .await?;
    let failed = rows.into_iter().map(|row| Failed {
        id: row.id.to_string(),
        name: row.name,
        experiment: row.experiment,
        state: format::state(&row.state),
        reason: row.reason,
        when: format::ago(row.finished_at),
    });
    Ok(failed.collect())
}

async fn running(pool: &PgPool) -> Result<Vec<Running>> {
    let rows = sqlx::query!(
        r#"select r.id, r.name, e.name as experiment, r.phase, p.progress as "progress?: Json<RunProgress>"
           from run r join experiment e on e.id = r.experiment_id left join run_progress p on p.run_id = r.id
           where r.state = 'running' order by r.started_at, r.id limit $1"#,
        SHORT_LIST
    )
    .fetch_all(pool)
    .await?;
    let running = rows.into_iter().map(|row| Running {
        id: row.id.to_string(),
        name: row.name,
        experiment: row.experiment,
        // A new attempt has no progress of its own before its first report.
        progress: row.progress.map(|json| json.0).filter(|progress| progress.phase.as_str() == row.phase),
        phase: row.phase,
    });
    Ok(running.collect())
}

/// A page of experiments, the last one at work first, and the address of the next.
async fn experiments(
    pool: &PgPool,
    after: Option<(OffsetDateTime, Uuid)>,
) -> Result<(Vec<Row>, Option<String>)> {
    let (at, id) = after.unzip();
    let mut rows = sqlx::query!(
        r#"select * from
             (select e.id, e.name, e.description, count(r.experiment_id) as "runs!",
                     count(*) filter (where r.state = 'queued') as "queued!",
                     count(*) filter (where r.state = 'running') as "running!",
                     count(*) filter (where r.state = 'succeeded') as "succeeded!",
                     count(*) filter (where r.state in ('failed', 'lost')) as "failed!",
                     count(*) filter (where r.state = 'cancelled') as "cancelled!",
                     count(*) filter (where r.state = 'paused') as "paused!",
                     coalesce(max(greatest(r.created_at, r.started_at, r.finished_at)), e.created_at) as "updated!"
              from experiment e left join run r on r.experiment_id = e.id and r.part_of is null
              group by e.id) e
           where $2::timestamptz is null or ("updated!", e.id) < ($2, $3::uuid)
           order by "updated!" desc, e.id desc limit $1"#,
        EXPERIMENTS + 1,
        at,
        id
    )
    .fetch_all(pool)
    .await?;
    let page = usize::try_from(EXPERIMENTS).unwrap_or(usize::MAX);
    let more = rows.len() > page;
    rows.truncate(page);
    let older = rows
        .last()
        .filter(|_| more)
        .map(|row| format!("/?after={}.{}#experiments", row.updated.unix_timestamp_nanos() / 1000, row.id));
    let experiments = rows.into_iter().map(|row| Row {
        states: state_counts(&[
            ("succeeded", row.succeeded),
            ("running", row.running),
            ("queued", row.queued),
            ("paused", row.paused),
            ("failed", row.failed),
            ("cancelled", row.cancelled),
        ]),
        id: row.id.to_string(),
        name: row.name,
        description: row.description,
        runs: row.runs,
        updated: format::ago(row.updated),
    });
    Ok((experiments.collect(), older))
}

/// The states there are, each with its number.
pub fn state_counts(counts: &[(&str, i64)]) -> Vec<String> {
    let there = counts.iter().filter(|(_, count)| *count > 0);
    there
        .map(|(state, count)| format!("<span class=\"tally\">{count} {}</span>", format::state(state)))
        .collect()
}
