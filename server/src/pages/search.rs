//! `/searches/{id}`: which trial is best and in what it differs, how far the search is, and where each
//! trial was stopped.

use super::{
    Asked, Shell, format, page,
    search_figures::{chart, slices, told},
    searches::done,
};
use crate::{
    App, Error, Result,
    figures::{TrialEnd, rung_key_svg, rungs_svg},
    search::{self, Change, Decision, Extension, SearchDetail, Trial, shown},
};
use askama::Template;
use axum::{
    Form,
    extract::{Path, State},
    response::{IntoResponse, Redirect, Response},
};
use causeway_protocol::{Axis, Direction, Problem, Search, SearchObjective};
use serde::Deserialize;
use uuid::Uuid;

/// Most trials in the table.
const TRIALS: usize = 200;
/// Most decisions shown.
const DECISIONS: i64 = 50;
/// Most paths with a column of their own.
const COLUMNS: usize = 4;

#[derive(Template)]
#[template(path = "search.html")]
struct SearchPage {
    shell: Shell,
    id: String,
    name: String,
    experiment_id: String,
    experiment: String,
    state: String,
    reason: String,
    running: bool,
    paused: bool,
    /// Trials and steps that an extension must exceed; none where there is nothing to extend.
    extend: Option<(i64, Option<u64>)>,
    states: Vec<String>,
    /// Which trial is best, in a sentence; none before the first value.
    answer: Option<String>,
    percent: i64,
    done: String,
    plan: Vec<String>,
    wide: String,
    narrow: String,
    key: Vec<(String, &'static str)>,
    has_values: bool,
    /// Path and panel of each hyper-parameter.
    slices: Vec<(String, String)>,
    /// Where the panels' values were read.
    slices_at: String,
    objective: String,
    paths: Vec<(String, String)>,
    difference: Vec<Difference>,
    best: Option<i32>,
    rows: Vec<TrialRow>,
    /// Whether trials have reached rungs, so that steps have a column.
    has_steps: bool,
    more_rows: usize,
    decisions: Vec<DecisionRow>,
    toml: String,
}

/// A path of the space: what the best trial has there.
struct Difference {
    path: String,
    best: String,
    base: String,
    range: String,
}

struct TrialRow {
    place: String,
    trial: i32,
    best: bool,
    state: String,
    reason: String,
    value: String,
    steps: String,
    values: Vec<String>,
    runs: Vec<RunLink>,
}

struct RunLink {
    id: String,
    label: String,
    state: String,
}

struct DecisionRow {
    n: i32,
    what: String,
    reason: String,
    seeds: String,
    when: String,
}

/// `GET /searches/{id}`.
pub async fn show(State(app): State<App>, asked: Asked, Path(id): Path<Uuid>) -> Result<Response> {
    let detail = search::get_search(&app.pool, id).await?;
    let decisions = search::newest(&app.pool, id, DECISIONS).await?;
    let shell = Shell::load(&app, &asked, detail.summary.finished_at.is_none()).await?;
    page(&view(shell, &detail, &decisions), &asked)
}

fn view(shell: Shell, detail: &SearchDetail, decisions: &[Decision]) -> SearchPage {
    let (summary, document) = (&detail.summary, &detail.document);
    let chart = chart(detail);
    let ended = summary.trials - summary.waiting - summary.running;
    let rungs = document.strategy.rungs();
    let extendable = summary.state != "cancelled" && summary.strategy != "grid";
    let counts = [
        ("finished", summary.finished),
        ("stopped", summary.stopped),
        ("running", summary.running),
        ("waiting", summary.waiting),
        ("failed", summary.failed),
        ("cancelled", summary.cancelled),
    ];
    SearchPage {
        shell,
        id: summary.id.to_string(),
        name: summary.name.clone(),
        experiment_id: summary.experiment_id.to_string(),
        experiment: summary.experiment.clone(),
        state: format::state(&summary.state),
        reason: summary.reason.clone(),
        running: summary.state == "running",
        paused: summary.state == "paused",
        extend: extendable
            .then(|| (summary.trials, rungs.last().copied().filter(|_| document.is_promoted()))),
        states: super::home::state_counts(&counts),
        answer: answer(detail),
        percent: (100 * ended).checked_div(summary.trials).unwrap_or(0),
        done: done(summary),
        plan: plan(document),
        wide: rungs_svg(&chart, false, "rungs"),
        narrow: rungs_svg(&chart, true, "rungs-narrow"),
        key: [
            (TrialEnd::Finished, "went all the way"),
            (TrialEnd::Stopped, "stopped or failed"),
            (TrialEnd::Open, "on its way"),
        ]
        .map(|(end, word)| (rung_key_svg(end), word))
        .into(),
        has_values: !chart.lines.is_empty(),
        slices: slices(detail),
        slices_at: match rungs.first() {
            Some(steps) => format!("at the first rung ({steps} steps), which most have reached"),
            None => "at the end".to_owned(),
        },
        objective: detail.objective.clone(),
        paths: document.space.keys().take(COLUMNS).map(|path| (path.clone(), last_name(path))).collect(),
        difference: difference(detail),
        best: detail.best,
        rows: rows(detail),
        has_steps: !rungs.is_empty(),
        more_rows: detail.trial_list.len().saturating_sub(TRIALS),
        decisions: decisions.iter().map(decision_row).collect(),
        toml: toml::to_string_pretty(document).unwrap_or_default(),
    }
}

/// "training.learning_rate" as a column's head: "learning rate".
fn last_name(path: &str) -> String {
    path.rsplit('.').next().unwrap_or(path).replace('_', " ")
}

fn valued(objective: &SearchObjective, value: f64) -> String {
    match objective {
        SearchObjective::Metric { .. } => shown(value),
        SearchObjective::Accuracy { .. } => format!("{} %", crate::figures::value(value)),
        SearchObjective::BestAlpha { .. } => crate::figures::signed(value),
        SearchObjective::Area { .. } => {
            if value > 0.0 {
                format!("+{}", shown(value))
            } else {
                shown(value)
            }
        }
    }
}

/// "Trial 7 is best: loss (last value) 1.23 (mean of 2 seeds) with learning rate 0.003, rank 8."
fn answer(detail: &SearchDetail) -> Option<String> {
    let best = detail.trial_list.iter().find(|trial| Some(trial.trial) == detail.best)?;
    let so_far = if detail.summary.finished_at.is_some() { "" } else { " so far" };
    let seeds = match detail.document.seeds.len() {
        1 => String::new(),
        seeds => format!(" (mean of {seeds} seeds)"),
    };
    let at = best
        .rungs
        .last()
        .and_then(|rung| rung.steps)
        .map(|steps| format!(" at {steps} steps"))
        .unwrap_or_default();
    let point = best.point.as_object()?.iter();
    let point: Vec<String> =
        point.map(|(path, value)| format!("{} {}", last_name(path), told(value))).collect();
    Some(format!(
        "Trial {} is best{so_far}: {} {}{seeds}{at}, with {}.",
        best.trial,
        detail.objective,
        valued(&detail.document.objective, best.value?),
        point.join(", ")
    ))
}

/// How the search goes, in sentences.
fn plan(search: &Search) -> Vec<String> {
    let better = match search.objective.direction() {
        Direction::Minimize => "less is better",
        Direction::Maximize => "more is better",
    };
    let mut plan = vec![format!("Judged by {}; {better}.", search.objective.words())];
    let (eta, rungs) = (search.strategy.eta(), search.strategy.rungs());
    plan.push(match (rungs.is_empty(), search.is_promoted()) {
        (true, _) => "Every trial runs to its end.".to_owned(),
        (false, false) => format!(
            "At each rung a trial is stopped unless it is in the best 1/{eta} of what has reached that rung so far."
        ),
        (false, true) => format!(
            "Each rung is a run of its own; the best 1/{eta} of a rung are trained again for the steps of the next."
        ),
    });
    if search.seeds.len() > 1 {
        plan.push(format!(
            "Every trial runs {} seeds and is worth their mean; seeds are not compared with each other.",
            search.seeds.len()
        ));
    }
    if matches!(search.objective, SearchObjective::BestAlpha { .. }) {
        plan.push("The best α is chosen on one half of the images and counted on the other.".to_owned());
    }
    plan.push(
        "The best of many is flattered by being chosen: judge it again with other seeds, or on data that the search \
         did not see."
            .to_owned(),
    );
    plan
}

fn difference(detail: &SearchDetail) -> Vec<Difference> {
    let best = detail.trial_list.iter().find(|trial| Some(trial.trial) == detail.best);
    let rows = detail.document.space.iter().map(|(path, axis)| {
        let base = path.split('.').try_fold(&detail.document.spec, |value, name| value.get(name));
        let found = best.and_then(|trial| trial.point.get(path));
        Difference {
            path: path.clone(),
            best: found.map_or("\u{2013}".to_owned(), told),
            base: base.map_or("not set".to_owned(), told),
            range: range(axis),
        }
    });
    rows.collect()
}

fn range(axis: &Axis) -> String {
    match axis {
        Axis::Choice(values) => values.iter().map(told).collect::<Vec<_>>().join(" · "),
        Axis::Uniform((from, to)) => format!("{from} to {to}"),
        Axis::LogUniform((from, to)) => format!("{from} to {to}, by ratio"),
        Axis::Integer((from, to)) => format!("{from} to {to}, whole"),
    }
}

fn rows(detail: &SearchDetail) -> Vec<TrialRow> {
    let row = |(at, trial): (usize, &Trial)| TrialRow {
        place: if trial.value.is_some() { (at + 1).to_string() } else { String::new() },
        trial: trial.trial,
        best: Some(trial.trial) == detail.best,
        state: format::state(&trial.state),
        reason: trial.reason.clone(),
        value: trial.value.map_or("\u{2013}".to_owned(), |value| valued(&detail.document.objective, value)),
        steps: trial
            .rungs
            .last()
            .and_then(|rung| rung.steps)
            .map(|steps| steps.to_string())
            .unwrap_or_default(),
        values: detail
            .document
            .space
            .keys()
            .take(COLUMNS)
            .map(|path| trial.point.get(path).map_or(String::new(), told))
            .collect(),
        runs: trial
            .runs
            .iter()
            .map(|run| RunLink {
                id: run.run_id.to_string(),
                label: match detail.document.strategy.rungs().get(usize::try_from(run.rung).unwrap_or(0)) {
                    Some(steps) if detail.document.is_promoted() => format!("seed {} · {steps}", run.seed),
                    _ => format!("seed {}", run.seed),
                },
                state: run.state.clone(),
            })
            .collect(),
    };
    detail.trial_list.iter().enumerate().take(TRIALS).map(row).collect()
}

fn decision_row(decision: &Decision) -> DecisionRow {
    let trial = decision.trial.map(|trial| format!(" trial {trial}")).unwrap_or_default();
    let what = match decision.action.as_str() {
        "submit" => format!("submitted{trial}"),
        "reach" => format!("{} reached a rung", trial.trim()),
        "go_on" => format!("{} goes on", trial.trim()),
        "stop" => format!("stopped{trial}"),
        "promote" => format!("promoted{trial}"),
        "finish" => format!("{} went all the way", trial.trim()),
        "fail" => format!("{} failed", trial.trim()),
        "end" => "the search has ended".to_owned(),
        "pause" => "paused".to_owned(),
        "resume" => "resumed".to_owned(),
        "extend" => "extended".to_owned(),
        "cancel" => "cancelled".to_owned(),
        other => other.to_owned(),
    };
    let seeds = decision.made_from["seeds"].as_array().cloned().unwrap_or_default();
    let seeds = seeds.iter().map(|seed| {
        let value = seed["value"].as_f64().map_or("NaN".to_owned(), shown);
        format!("seed {}: {value}", seed["seed"])
    });
    DecisionRow {
        n: decision.n,
        what,
        reason: decision.reason.clone(),
        seeds: seeds.collect::<Vec<_>>().join(", "),
        when: format::ago(decision.at),
    }
}

/// `POST /searches/{id}/pause`: the button.
pub async fn pause(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Response> {
    changed(&app, id, Change::Pause).await
}

/// `POST /searches/{id}/resume`: the button.
pub async fn resume(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Response> {
    changed(&app, id, Change::Resume).await
}

/// `POST /searches/{id}/cancel`: the button.
pub async fn cancel(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Response> {
    changed(&app, id, Change::Cancel).await
}

/// What the form says; a field left empty changes nothing.
#[derive(Debug, Deserialize)]
pub struct ExtendForm {
    #[serde(default)]
    trials: String,
    #[serde(default)]
    max_steps: String,
}

/// `POST /searches/{id}/extend`: the form.
pub async fn extend(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Form(form): Form<ExtendForm>,
) -> Result<Response> {
    let extension = Extension {
        trials: number("trials", &form.trials)?,
        max_steps: number("max_steps", &form.max_steps)?,
    };
    changed(&app, id, Change::Extend(extension)).await
}

fn number<T: std::str::FromStr>(field: &str, text: &str) -> Result<Option<T>> {
    match text.trim() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            Error::Invalid(vec![Problem {
                field: field.to_owned(),
                rule: format!("must be a whole number, is `{text}`"),
            }])
        }),
    }
}

async fn changed(app: &App, id: Uuid, what: Change) -> Result<Response> {
    search::change(&app.pool, id, what).await?;
    app.wake.ring();
    Ok(Redirect::to(&format!("/searches/{id}")).into_response())
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;
