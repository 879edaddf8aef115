//! `/runs/{id}`: is it alive, is it learning, when does it end; or why it did not.

use super::{
    Asked, Shell,
    classes::{ClassTable, class_tables},
    experiment::{DataSource, data_sources},
    figure::FigureView,
    format,
    home::percent,
    log, page,
    protocols::{self, Switch},
    similarity::SimilarityView,
    spec_view::{self, Leaf},
    spectrum::SpectrumView,
    values::ValuesView,
};
use crate::{
    App, Result, analysis,
    auth::Identity,
    checkpoints::get_checkpoint,
    curves::{CurveFilter, curves},
    figures::{FigureOptions, View},
    lines::KEEP,
    measured::{Measured, Source},
    runs::{self, Attempt, Run, parts::PartSummary},
};
use askama::Template;
use axum::{
    Extension, Form,
    extract::{Path, Query, State},
    response::{IntoResponse, Redirect, Response},
};
use causeway_protocol::{Description, Environment, Retention, RunProgress, Spec};
use serde::Deserialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

/// Log lines shown with a reason for failing.
const EVIDENCE: usize = 12;

/// What the address of the page says.
#[derive(Debug, Default, Deserialize)]
pub struct Options {
    /// Only this protocol.
    pub protocol: Option<String>,
}

#[derive(Template)]
#[template(path = "run.html")]
struct RunPage {
    shell: Shell,
    run: Run,
    id: String,
    experiment_id: String,
    /// The search and the trial that it belongs to.
    trial: Option<(Uuid, String, i32)>,
    state: String,
    /// Before the name in the tab's title: "64 %" or the state.
    tab: String,
    ended: bool,
    intent: &'static str,
    /// Why it waits, as HTML.
    waiting: Option<String>,
    times: Vec<(&'static str, String)>,
    progress: Option<ProgressView>,
    /// Last lines of a run that did not end well.
    evidence: Vec<log::Line>,
    values: ValuesView,
    attempts: Vec<AttemptView>,
    /// What its evaluation is spread over.
    parts: Vec<PartView>,
    facts: Vec<(&'static str, String)>,
    /// The method and what holds it back, in words.
    told: Vec<Description>,
    /// Whether the encoder was shown what its output was compared with.
    leak: bool,
    checkpoint: Option<CheckpointView>,
    figure: Option<FigureView>,
    /// What stands where the figure will be.
    nothing_drawn: &'static str,
    protocols: Vec<Switch>,
    /// Accuracy by class, and where all of it is.
    classes: Vec<ClassTable>,
    classes_csv: String,
    sources: Vec<DataSource>,
    spectrum: Option<SpectrumView>,
    similarity: Option<SimilarityView>,
    set: Vec<Leaf>,
    defaults: Vec<Leaf>,
    toml: String,
    json: String,
    log: log::Lines,
}

struct ProgressView {
    phase: &'static str,
    percent: u64,
    count: String,
    doing: String,
    rate: String,
    left: String,
}

struct CheckpointView {
    digest: String,
    short: String,
    size: String,
    step: String,
}

struct PartView {
    id: String,
    part: i32,
    state: String,
    detail: String,
}

struct AttemptView {
    number: i32,
    state: String,
    /// Worker and devices; of several workers each.
    places: Vec<String>,
    time: String,
    detail: String,
    reason: String,
    environment: Vec<(&'static str, String)>,
}

/// `GET /runs/{id}`.
pub async fn show(
    State(app): State<App>,
    asked: Asked,
    Path(id): Path<Uuid>,
    Query(options): Query<Options>,
) -> Result<Response> {
    let pool = &app.pool;
    let run = runs::get_run(&app, id).await?;
    let spec = serde_json::from_value::<Spec>(run.spec.clone()).ok();
    let ended = run.summary.finished_at.is_some();
    let log = log::tail(pool, id).await?;
    let Drawn { figure, protocols, classes, classes_csv, sources } =
        figure(pool, &run, spec.as_ref(), &options).await?.unwrap_or_default();
    let (spectrum, similarity) = (analysis::spectrum(pool, id).await?, analysis::similarity(pool, id).await?);
    let progress = progress(&run, spec.as_ref());
    let leaves = spec_view::leaves(&run.spec);
    let (set, defaults): (Vec<Leaf>, Vec<Leaf>) = leaves.into_iter().partition(|leaf| leaf.set);
    let badly = ["failed", "lost"].contains(&run.summary.state.as_str());
    let values = ValuesView::load(pool, &run, spec.as_ref()).await?;
    let view = RunPage {
        shell: Shell::load(&app, &asked, !ended).await?,
        id: id.to_string(),
        experiment_id: run.summary.experiment_id.to_string(),
        trial: crate::search::trial_of(pool, id).await?,
        state: format::state(&run.summary.state),
        tab: match &progress {
            Some(progress) => format!("{} %", progress.percent),
            None => run.summary.state.clone(),
        },
        ended,
        intent: intent(&run),
        times: times(&run),
        progress,
        evidence: if badly {
            log.lines[log.lines.len().saturating_sub(EVIDENCE)..].to_vec()
        } else {
            Vec::new()
        },
        nothing_drawn: nothing_drawn(spec.as_ref(), ended, &values),
        values,
        waiting: run.waiting.as_deref().map(format::sentence),
        parts: run.parts.iter().map(part_view).collect(),
        attempts: run.attempt_list.iter().rev().map(attempt_view).collect(),
        facts: facts(&run),
        told: spec.as_ref().map(told).unwrap_or_default(),
        leak: spec.as_ref().and_then(|spec| spec.method.as_ref()?.reads()).is_some_and(|reads| reads.leak),
        checkpoint: checkpoint(pool, &run).await?,
        figure,
        protocols,
        classes,
        classes_csv,
        sources,
        spectrum: spectrum.map(|report| SpectrumView::of_run(&report, id, &run.summary.method)),
        similarity: similarity.map(|report| SimilarityView::of_run(&report, id, &run.summary.method)),
        set,
        defaults,
        toml: spec.as_ref().and_then(|spec| toml::to_string_pretty(spec).ok()).unwrap_or_default(),
        json: serde_json::to_string_pretty(&run.spec).unwrap_or_default(),
        log,
        run,
    };
    page(&view, &asked)
}

/// What a button says.
#[derive(Debug, Deserialize)]
pub struct Act {
    order: Order,
}

/// What can be done to a run.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Cancel,
    Pause,
    Resume,
    Front,
    Again,
}

/// `POST /runs/{id}/do`: the buttons.
pub async fn act(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    Path(id): Path<Uuid>,
    Form(form): Form<Act>,
) -> Result<Response> {
    let action = match form.order {
        Order::Again => None,
        Order::Cancel => Some(runs::Action::Cancel),
        Order::Pause => Some(runs::Action::Pause),
        Order::Resume => Some(runs::Action::Resume),
        Order::Front => Some(runs::Action::Front),
    };
    let shown = match action {
        Some(action) => runs::act(&app, id, action).await.map(|()| id)?,
        None => runs::submit_again(&app, identity.token_id, id, &serde_json::Value::Null).await?,
    };
    Ok(Redirect::to(&format!("/runs/{shown}")).into_response())
}

/// What the run is about to do, beside its state.
fn intent(run: &Run) -> &'static str {
    match (run.summary.cancel_requested, run.yield_for.as_deref()) {
        _ if run.summary.state != "running" => "",
        (true, _) => "stopping",
        (false, Some("pause")) => "saving its state, then paused",
        (false, Some("preempt")) => "saving its state for a run of higher priority",
        (false, Some(_)) => "saving its state, then back to the queue",
        (false, None) => "",
    }
}

/// What the evaluation has to show.
#[derive(Default)]
struct Drawn {
    figure: Option<FigureView>,
    protocols: Vec<Switch>,
    classes: Vec<ClassTable>,
    classes_csv: String,
    sources: Vec<DataSource>,
}

async fn figure(pool: &PgPool, run: &Run, spec: Option<&Spec>, options: &Options) -> Result<Option<Drawn>> {
    let mut protocols = spec.map(|spec| spec.evaluation.protocols()).unwrap_or_default();
    protocols::sort(&mut protocols);
    let asked = options.protocol.as_deref();
    let Some(chosen) = protocols::chosen(&protocols, asked).or(protocols::chosen(&protocols, None)) else {
        return Ok(None);
    };
    let summary = &run.summary;
    let filter = CurveFilter {
        runs: Some(vec![summary.id]),
        protocol: Some(chosen.id.clone()),
        ..CurveFilter::default()
    };
    let source = Source {
        run: summary.id,
        line: String::new(),
        label: summary.method.clone(),
        short: if summary.method.len() <= 7 { summary.method.clone() } else { String::new() },
        wanted: spec.map_or(0, |spec| spec.evaluation.alphas.len()),
        open: summary.finished_at.is_none(),
        method: summary.method.clone(),
        seed: summary.seed,
        name: summary.name.clone(),
    };
    let curves = curves(pool, &filter).await?;
    let measured = Measured::gather(pool, curves.clone(), &[source]).await?;
    // Without a point of its own the run has nothing to show but the backbone.
    let own =
        measured.input.variants.iter().flat_map(|v| &v.seeds).any(|s| s.scores.iter().any(|m| !m.is_empty()));
    if !own {
        return Ok(None);
    }
    let view = FigureView::new(&measured, FigureOptions { view: View::Accuracy, keep: KEEP }, chosen);
    let best = view.as_ref().and_then(|view| view.figure.lines.first()?.best.as_ref());
    let address = |id: &str| format!("/runs/{}?protocol={id}", summary.id);
    Ok(Some(Drawn {
        classes: class_tables(pool, &curves, best).await?,
        classes_csv: format!("/runs/{}/classes.csv?protocol={}", summary.id, chosen.id),
        protocols: protocols::switches(&protocols, chosen, address),
        sources: data_sources(&measured),
        figure: view,
    }))
}

fn part_view(part: &PartSummary) -> PartView {
    let progress = part.progress.clone().and_then(|json| serde_json::from_value::<RunProgress>(json).ok());
    let running = progress.filter(|_| part.state == "running");
    PartView {
        id: part.id.to_string(),
        part: part.part,
        state: format::state(&part.state),
        detail: match running {
            Some(progress) => format!("{} %, {}", percent(&progress), progress.doing),
            None => part.reason.clone(),
        },
    }
}

fn progress(run: &Run, spec: Option<&Spec>) -> Option<ProgressView> {
    if run.summary.state != "running" {
        return None;
    }
    let progress: RunProgress = serde_json::from_value(run.summary.progress.clone()?).ok()?;
    if progress.phase.as_str() != run.summary.phase {
        return None;
    }
    let training = spec.and_then(|spec| spec.training.as_ref());
    let unit = match progress.phase {
        causeway_protocol::Phase::Train => "steps",
        // An analysis of weights looks at no image.
        _ if progress.doing.starts_with("spectra") => "layers",
        _ => "images",
    };
    let left = progress
        .seconds_left(training)
        .map(|left| time::Duration::seconds(left as i64))
        .map(|left| format!("about {} left in this phase", format::span(left)));
    Some(ProgressView {
        phase: progress.phase.as_str(),
        percent: percent(&progress),
        count: format!(
            "{} of {} {unit}",
            format::count(i64::try_from(progress.done).unwrap_or(0)),
            format::count(i64::try_from(progress.total).unwrap_or(0))
        ),
        rate: format!(
            "{:.1} {}/s",
            progress.images_per_second,
            if unit == "layers" { unit } else { "images" }
        ),
        left: left.unwrap_or_default(),
        doing: progress.doing,
    })
}

fn times(run: &Run) -> Vec<(&'static str, String)> {
    let summary = &run.summary;
    let mut times = vec![("submitted", format::at(summary.created_at))];
    times.extend(summary.started_at.map(|moment| ("started", format::at(moment))));
    times.extend(summary.finished_at.map(|moment| ("ended", format::at(moment))));
    if let Some(started) = summary.started_at {
        let end = summary.finished_at.unwrap_or_else(OffsetDateTime::now_utc);
        times.push(("took", format::took(end - started)));
    }
    times
}

fn facts(run: &Run) -> Vec<(&'static str, String)> {
    let summary = &run.summary;
    let mut facts = vec![("method", summary.method.replace('_', " ")), ("seed", summary.seed.to_string())];
    facts.extend(run.trainable.map(|trainable| ("trainable values", format::count(trainable))));
    facts.extend(run.training_images.map(|images| ("training images", format::count(images))));
    facts.extend(run.captions.as_deref().map(|c| ("captions", format::short_digest(c).to_owned())));
    facts.extend(run.backbone.as_deref().map(|b| ("backbone", format::short_digest(b).to_owned())));
    facts.push(("attempts", format!("{} of at most {}", summary.attempts, summary.max_attempts)));
    facts.push(("priority", summary.priority.to_string()));
    if !summary.tags.is_empty() {
        facts.push(("tags", summary.tags.join(", ")));
    }
    facts
}

fn told(spec: &Spec) -> Vec<Description> {
    let method = spec.method.iter().map(causeway_protocol::Method::description);
    method.chain(spec.retention.iter().flat_map(Retention::descriptions)).collect()
}

fn attempt_view(attempt: &Attempt) -> AttemptView {
    let environment: Option<Environment> =
        attempt.environment.clone().and_then(|value| serde_json::from_value(value).ok());
    let environment = environment.map_or(Vec::new(), |e| {
        vec![
            ("trainer", format!("{} ({})", e.version, e.commit)),
            ("libtorch", e.libtorch),
            ("host", e.host),
            ("device", e.device),
            ("processor", e.cpu),
            ("threads", e.threads.to_string()),
        ]
    });
    let begin = attempt.started_at.unwrap_or(attempt.assigned_at);
    let end = attempt.ended_at.unwrap_or_else(OffsetDateTime::now_utc);
    let mut detail = vec![format!("began in {}", attempt.phase)];
    if attempt.resumed_step > 0 {
        detail.push(format!("resumed at step {}", attempt.resumed_step));
    }
    detail.extend(attempt.visible_through.map(|step| format!("values beyond step {step} were done again")));
    detail.extend(
        attempt.cause.as_deref().filter(|cause| *cause != "bug").map(|_| "spends no attempt".to_owned()),
    );
    detail.extend(attempt.exit_code.map(|code| format!("exit code {code}")));
    detail.extend(attempt.signal.map(|signal| format!("ended by signal {}", signal_name(signal))));
    AttemptView {
        number: attempt.number,
        state: format::state(&attempt.state),
        places: places(attempt),
        time: format!("{}, {}", format::at(begin), format::took(end - begin)),
        detail: detail.join(" · "),
        reason: attempt.reason.clone(),
        environment,
    }
}

fn places(attempt: &Attempt) -> Vec<String> {
    if attempt.members.is_empty() {
        return vec![format!("{} · {}", attempt.worker, attempt.device)];
    }
    let members = attempt.members.iter().enumerate();
    members
        .map(|(rank, member)| format!("rank {rank}: {} · {}", member.name, member.devices.join(", ")))
        .collect()
}

/// What stands where the figure will be.
fn nothing_drawn(spec: Option<&Spec>, ended: bool, values: &ValuesView) -> &'static str {
    match spec {
        _ if ended => "",
        Some(spec) if !spec.evaluation.datasets.is_empty() => {
            "No points yet. The sweep over α starts after training."
        }
        _ if values.latest.is_empty() => "No values yet. What it reports is drawn here.",
        _ => "",
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        2 => "SIGINT",
        6 => "SIGABRT",
        7 => "SIGBUS",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        _ => "",
    };
    if name.is_empty() { signal.to_string() } else { format!("{signal} ({name})") }
}

async fn checkpoint(pool: &PgPool, run: &Run) -> Result<Option<CheckpointView>> {
    let Some(digest) = &run.summary.checkpoint else { return Ok(None) };
    let stored = get_checkpoint(pool, digest).await?;
    Ok(Some(CheckpointView {
        digest: digest.clone(),
        short: format::short_digest(digest).to_owned(),
        size: stored.bytes.map_or("not held by the server".to_owned(), format::bytes),
        step: run
            .checkpoint_step
            .map_or(String::new(), |step| format!("after {} steps", format::count(step))),
    }))
}
