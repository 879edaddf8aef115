//! `/searches`: all searches, newest first; and those of an experiment, for its page.

use super::{Asked, Shell, format, page};
use crate::{
    App, Result,
    search::{self, SearchFilter, SearchSummary},
};
use askama::Template;
use axum::{extract::State, response::Response};
use uuid::Uuid;

/// Most searches on the page.
const SEARCHES: i64 = 200;

#[derive(Template)]
#[template(path = "searches.html")]
struct SearchesPage {
    shell: Shell,
    searches: Vec<Row>,
}

/// A search in a list.
pub struct Row {
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Id of its experiment.
    pub experiment_id: String,
    /// Its experiment.
    pub experiment: String,
    /// `grid`, `random` or `asha`.
    pub strategy: String,
    /// State as shape and word.
    pub state: String,
    /// "12 of 20 trials".
    pub done: String,
    /// When it was submitted.
    pub created: String,
}

impl Row {
    fn new(search: SearchSummary) -> Row {
        Row {
            id: search.id.to_string(),
            experiment_id: search.experiment_id.to_string(),
            state: format::state(&search.state),
            done: done(&search),
            created: format::ago(search.created_at),
            name: search.name,
            experiment: search.experiment,
            strategy: search.strategy,
        }
    }
}

/// "12 of 20 trials": those of which nothing more is to come.
pub fn done(search: &SearchSummary) -> String {
    format!(
        "{} of {}",
        search.trials - search.waiting - search.running,
        format::plural(search.trials, "trial")
    )
}

/// The searches of an experiment, newest first.
///
/// # Errors
/// If the database does not answer.
pub async fn of_experiment(app: &App, experiment: Uuid) -> Result<Vec<Row>> {
    let filter = SearchFilter { experiment: Some(experiment), ..SearchFilter::default() };
    let rows = search::searches(&app.pool, None, &filter, SEARCHES).await?;
    Ok(rows.into_iter().map(Row::new).collect())
}

/// `GET /searches`.
pub async fn list(State(app): State<App>, asked: Asked) -> Result<Response> {
    let rows = search::searches(&app.pool, None, &SearchFilter::default(), SEARCHES).await?;
    let live = rows.iter().any(|search| search.finished_at.is_none());
    let view = SearchesPage {
        shell: Shell::load(&app, &asked, live).await?,
        searches: rows.into_iter().map(Row::new).collect(),
    };
    page(&view, &asked)
}
