//! What people do to a search: pause, resume, extend, cancel. Each takes the search's row, as a step does, so that a step
//! sees all of it or nothing, and each is a decision in its history.

use super::{
    SearchDetail, get_search,
    history::{Made, record},
    step::cancel_runs,
    submit::add_trials,
};
use crate::{ApiJson, App, Error, Result, error::found};
use axum::{
    Json,
    extract::{Path, State},
};
use causeway_protocol::{Problem, Search, Strategy, parse_search};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, types::Json as SqlJson};
use utoipa::ToSchema;
use uuid::Uuid;

/// What is to be done to a search.
#[derive(Clone, Debug)]
pub enum Change {
    /// Submit nothing new; what runs goes on, and is still stopped at a rung.
    Pause,
    /// Go on.
    Resume,
    /// More trials, or more steps for the best.
    Extend(Extension),
    /// Stop everything.
    Cancel,
}

/// How far a search shall go. Both are totals, so that sending it twice does no more than sending it once.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Extension {
    /// Trials in all, more than now.
    #[serde(default)]
    pub trials: Option<u32>,
    /// Training steps of the last rung, more than now: for a search whose rungs are runs of their own.
    #[serde(default)]
    pub max_steps: Option<u64>,
}

/// Pause a search: nothing new is submitted, what runs goes on.
#[utoipa::path(post, path = "/api/v1/searches/{id}/pause", operation_id = "pause_search", tag = "searches",
    params(("id" = Uuid, Path)),
    responses((status = 200, body = SearchDetail), (status = 409, body = crate::error::ProblemDetails)))]
pub async fn pause_search(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<SearchDetail>> {
    answer(&app, id, Change::Pause).await
}

/// Resume a paused search.
#[utoipa::path(post, path = "/api/v1/searches/{id}/resume", operation_id = "resume_search", tag = "searches",
    params(("id" = Uuid, Path)),
    responses((status = 200, body = SearchDetail), (status = 409, body = crate::error::ProblemDetails)))]
pub async fn resume_search(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<SearchDetail>> {
    answer(&app, id, Change::Resume).await
}

/// Extend a search, also one that has ended: more trials, or more steps.
#[utoipa::path(post, path = "/api/v1/searches/{id}/extend", operation_id = "extend_search", tag = "searches",
    params(("id" = Uuid, Path)), request_body = Extension,
    responses((status = 200, body = SearchDetail), (status = 409, body = crate::error::ProblemDetails),
        (status = 422, body = crate::error::ProblemDetails)))]
pub async fn extend_search(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    ApiJson(extension): ApiJson<Extension>,
) -> Result<Json<SearchDetail>> {
    answer(&app, id, Change::Extend(extension)).await
}

/// Cancel a search with all its runs.
#[utoipa::path(post, path = "/api/v1/searches/{id}/cancel", operation_id = "cancel_search", tag = "searches",
    params(("id" = Uuid, Path)),
    responses((status = 200, body = SearchDetail), (status = 409, body = crate::error::ProblemDetails)))]
pub async fn cancel_search(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<SearchDetail>> {
    answer(&app, id, Change::Cancel).await
}

async fn answer(app: &App, id: Uuid, what: Change) -> Result<Json<SearchDetail>> {
    change(&app.pool, id, what).await?;
    app.wake.ring();
    get_search(&app.pool, id).await.map(Json)
}

/// Changes a search.
///
/// # Errors
/// 404 if there is none, 409 if its state forbids it, 422 for an extension that cannot be.
pub async fn change(pool: &PgPool, id: Uuid, what: Change) -> Result<()> {
    let mut tx = pool.begin().await?;
    let row = sqlx::query!(
        r#"select state, name, document as "document: SqlJson<Search>" from search where id = $1 for update"#,
        id
    )
    .fetch_optional(&mut *tx)
    .await?;
    let row = found(row, || format!("no search {id}"))?;
    let refused = |to: &str| Error::Conflict(format!("a {} search cannot be {to}", row.state));
    match (what, row.state.as_str()) {
        (Change::Pause, "running") => set_state(&mut tx, id, "paused", "pause").await?,
        (Change::Resume, "paused") => set_state(&mut tx, id, "running", "resume").await?,
        (Change::Cancel, "running" | "paused") => {
            let told = format!("the search {} was cancelled", row.name);
            cancel_runs(&mut tx, id, None, &told).await?;
            sqlx::query!(
                "update search_trial set state = 'cancelled', reason = 'cancelled with the search'
                 where search_id = $1 and state in ('waiting', 'running')",
                id
            )
            .execute(&mut *tx)
            .await?;
            set_state(&mut tx, id, "cancelled", "cancel").await?;
        }
        (Change::Extend(extension), state) if state != "cancelled" => {
            extend(&mut tx, id, row.document.0, &extension, state).await?;
        }
        (Change::Pause, _) => return Err(refused("paused")),
        (Change::Resume, _) => return Err(refused("resumed")),
        (Change::Extend(_), _) => return Err(refused("extended")),
        (Change::Cancel, _) => return Err(refused("cancelled")),
    }
    tx.commit().await?;
    Ok(())
}

async fn set_state(conn: &mut PgConnection, id: Uuid, state: &str, action: &'static str) -> Result<()> {
    sqlx::query!(
        "update search set state = $2, reason = '', finished_at = case when $2 = 'cancelled' then now() end where id = $1",
        id,
        state
    )
    .execute(&mut *conn)
    .await?;
    record(conn, id, &Made { action, ..Made::default() }).await
}

async fn extend(
    conn: &mut PgConnection,
    id: Uuid,
    before: Search,
    extension: &Extension,
    state: &str,
) -> Result<()> {
    let after = extended(&before, extension).map_err(Error::Invalid)?;
    let (old, new) = (before.points().len(), after.points());
    add_trials(conn, id, &new, old).await?;
    let more_rungs = after.stages() > before.stages();
    if more_rungs {
        // What was the end is a rung now, from which the best go on.
        sqlx::query!(
            "update search_trial set state = 'stopped' where search_id = $1 and state = 'finished'",
            id
        )
        .execute(&mut *conn)
        .await?;
    }
    // An ended search goes on; a paused one stays paused.
    let state = if state == "paused" { "paused" } else { "running" };
    sqlx::query!(
        "update search set document = $2, state = $3, reason = '', finished_at = null where id = $1",
        id,
        serde_json::to_value(&after).map_err(anyhow::Error::from)?,
        state
    )
    .execute(&mut *conn)
    .await?;
    let mut told = Vec::new();
    if new.len() > old {
        told.push(format!("from {old} to {} trials", new.len()));
    }
    if let (true, Some(steps)) = (more_rungs, after.strategy.rungs().last()) {
        told.push(format!("up to {steps} steps"));
    }
    record(conn, id, &Made { action: "extend", reason: told.join(", "), ..Made::default() }).await
}

/// The longer search. Rungs that are there stay as they are, so that what was decided on them still holds.
fn extended(before: &Search, extension: &Extension) -> Result<Search, Vec<Problem>> {
    let problem = |field: &str, rule: String| Err(vec![Problem { field: field.to_owned(), rule }]);
    let mut after = before.clone();
    let promoted = before.is_promoted();
    match &mut after.strategy {
        Strategy::Grid {} => {
            return problem("strategy", "is a grid, which is whole already: submit another search".into());
        }
        Strategy::Random { trials } => more_trials(trials, extension)?,
        Strategy::Asha { trials, eta, rungs, .. } => {
            more_trials(trials, extension)?;
            if let Some(max) = extension.max_steps {
                let last = rungs.last().copied().unwrap_or(0);
                if !promoted {
                    let why = "cannot grow where a metric is judged on the way: every run was planned for its last step, \
                               its rate's decay too; submit another search";
                    return problem("max_steps", why.into());
                }
                if max <= last {
                    return problem("max_steps", format!("must be more than the {last} there are, is {max}"));
                }
                let mut step = last.saturating_mul(u64::from(*eta));
                while step < max {
                    rungs.push(step);
                    step = step.saturating_mul(u64::from(*eta));
                }
                rungs.push(max);
            }
        }
    }
    if extension.max_steps.is_some() && before.strategy.rungs().is_empty() {
        return problem("max_steps", "has no meaning without rungs; leave it out".into());
    }
    if extension.trials.is_none() && extension.max_steps.is_none() {
        return problem("trials", "give trials, max_steps or both".into());
    }
    // The longer one must hold every rule that the shorter one did.
    parse_search(serde_json::to_value(after).unwrap_or_default())
}

fn more_trials(trials: &mut u32, extension: &Extension) -> Result<(), Vec<Problem>> {
    match extension.trials {
        Some(more) if more <= *trials => Err(vec![Problem {
            field: "trials".to_owned(),
            rule: format!("is the total, and must be more than the {trials} there are; is {more}"),
        }]),
        Some(more) => {
            *trials = more;
            Ok(())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn search(strategy: Value, objective: Value) -> Search {
        let document = json!({
            "name": "n", "experiment": "e", "strategy": strategy, "objective": objective,
            "space": {"training.learning_rate": {"log_uniform": [1e-4, 1e-2]}},
            "spec": {
                "kind": "finetune", "weights": {"theta0": {"asset": "vit"}}, "method": {"kind": "adapter"},
                "captions": {"asset": "pairs", "text_encoder": "minilm"}, "objective": {"contrastive": {}},
                "training": {"steps": 10},
                "evaluation": {"datasets": [{"asset": "d", "role": "ood"}], "alphas": [0, 1], "k": [1]}
            }
        });
        parse_search(document).unwrap()
    }

    fn to(trials: Option<u32>, max_steps: Option<u64>) -> Extension {
        Extension { trials, max_steps }
    }

    #[test]
    fn more_steps_add_rungs_above_those_that_are_there() {
        let asha = json!({"kind": "asha", "trials": 4, "eta": 2, "min_steps": 5, "max_steps": 15});
        let curve = search(asha.clone(), json!({"kind": "area"}));
        assert_eq!(curve.strategy.rungs(), [5, 10, 15]);
        assert_eq!(
            extended(&curve, &to(None, Some(100))).unwrap().strategy.rungs(),
            [5, 10, 15, 30, 60, 100]
        );
        let both = extended(&curve, &to(Some(9), Some(20))).unwrap();
        assert_eq!((both.strategy.rungs(), both.points().len()), ([5, 10, 15, 20].as_slice(), 9));
        assert_eq!(both.points()[..4], curve.points()[..]);
        assert_eq!(extended(&curve, &to(None, Some(15))).unwrap_err()[0].field, "max_steps");
        let metric = search(asha, json!({"kind": "metric", "name": "loss", "direction": "minimize"}));
        assert!(extended(&metric, &to(Some(5), None)).is_ok());
        let refused = extended(&metric, &to(None, Some(30))).unwrap_err();
        assert!(refused[0].rule.contains("planned for its last step"), "{refused:?}");
    }

    #[test]
    fn an_extension_is_a_total_and_must_be_more() {
        let random = search(json!({"kind": "random", "trials": 4}), json!({"kind": "area"}));
        assert_eq!(extended(&random, &to(Some(6), None)).unwrap().points().len(), 6);
        for (extension, field) in
            [(to(Some(4), None), "trials"), (to(None, None), "trials"), (to(None, Some(9)), "max_steps")]
        {
            assert_eq!(extended(&random, &extension).unwrap_err()[0].field, field);
        }
    }
}
