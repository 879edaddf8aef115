//! `/experiments/{id}`: the answer, the figure it comes from, and the runs behind it.

use super::{
    Asked, Shell,
    answer::{Answer, answer},
    figure::FigureView,
    format,
    home::percent,
    numbers, page,
    protocols::{self, Switch},
    spec_view,
};
use crate::{
    App, Error, Result,
    curves::{CurveFilter, curves},
    experiments::{Experiment, get_experiment},
    figures::{
        self, AlphaFigure, Chosen, FigureOptions, PaperCaption, Queries, RobustnessKind, View, paper_svg,
        signed,
    },
    lines::KEEP,
    measured::{Measured, Source},
};
use askama::Template;
use axum::{
    extract::{Path, Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use causeway_protocol::{Alpha, Protocol, RunProgress, Spec};
use serde::Deserialize;
use sqlx::{PgPool, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

/// Longest label that fits beside the end of a line, characters.
const SHORT: usize = 7;

/// What the address of the page says.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Options {
    protocol: Option<String>,
    y: Option<String>,
    keep: Option<f64>,
    width: Option<String>,
}

/// A link of a switch.
pub struct Choice {
    /// What it says.
    pub label: String,
    /// Where it goes.
    pub href: String,
    /// Whether it is what is shown.
    pub on: bool,
}

impl Choice {
    /// A link of a switch.
    pub fn new(label: impl Into<String>, href: String, on: bool) -> Choice {
        Choice { label: label.into(), href, on }
    }
}

#[derive(Template)]
#[template(path = "experiment.html")]
struct ExperimentPage {
    shell: Shell,
    experiment: Experiment,
    states: Vec<String>,
    answer: Option<Answer>,
    figure: Option<FigureView>,
    frontier: Option<String>,
    protocols: Vec<Switch>,
    views: Vec<Choice>,
    /// What the downloads must repeat of the address.
    query: String,
    sources: Vec<DataSource>,
    runs: Vec<RunRow>,
    /// Its searches, newest first.
    searches: Vec<super::searches::Row>,
    /// Column heads of the runs' differences.
    roles: Vec<&'static str>,
    /// The role that the best α gains in, where any line has one.
    goal: Option<&'static str>,
    /// What the column of robustness shows: its head and a sentence; none where no run has any.
    robustness: Option<(&'static str, String)>,
}

/// A dataset as the licence note says it.
pub struct DataSource {
    /// Title.
    pub title: String,
    /// How many images, and how they are used.
    pub size: String,
    /// Licence of the images.
    pub licence: String,
    /// Where they come from.
    pub source: String,
}

struct RunRow {
    id: String,
    name: String,
    sample: String,
    method: String,
    seed: i64,
    state: String,
    note: String,
    checkpoint: Option<String>,
    /// Change at α = 1 for each role.
    deltas: Vec<(String, &'static str)>,
    /// What its line's best α brings this run, and which α that is.
    best: (String, &'static str, String),
    /// Robustness at α = 1.
    robust: (String, &'static str),
    updated: String,
}

struct StoredRun {
    id: Uuid,
    name: String,
    method: String,
    seed: i64,
    variant: String,
    state: String,
    phase: String,
    reason: String,
    checkpoint: Option<String>,
    progress: Option<RunProgress>,
    document: serde_json::Value,
    updated: OffsetDateTime,
}

/// Everything the page, the paper figure and the CSV have in common.
struct Loaded {
    experiment: Experiment,
    runs: Vec<StoredRun>,
    protocols: Vec<Protocol>,
    protocol: Option<Protocol>,
    curves: Vec<crate::curves::Curve>,
}

/// `GET /experiments/{id}`.
pub async fn show(
    State(app): State<App>,
    asked: Asked,
    Path(id): Path<Uuid>,
    Query(options): Query<Options>,
) -> Result<Response> {
    let mut loaded = load(&app.pool, id, &options).await?;
    let live = loaded.runs.iter().any(|run| ["queued", "running", "paused"].contains(&run.state.as_str()));
    let measured =
        Measured::gather(&app.pool, std::mem::take(&mut loaded.curves), &sources(&loaded.runs)).await?;
    let protocol = loaded.protocol.as_ref();
    let figure = protocol.and_then(|shown| FigureView::new(&measured, figure_options(&options), shown));
    let mut roles: Vec<&'static str> = measured.input.datasets.iter().map(|d| d.role.as_str()).collect();
    roles.dedup();
    let experiment = loaded.experiment;
    let states = super::home::state_counts(&[
        ("succeeded", experiment.succeeded),
        ("running", experiment.running),
        ("queued", experiment.queued),
        ("paused", experiment.paused),
        ("failed", experiment.failed),
        ("cancelled", experiment.cancelled),
    ]);
    let here = |protocol: Option<&str>, y: Option<&str>| {
        let mut query = Vec::new();
        query.extend(protocol.map(|id| format!("protocol={id}")));
        query.extend(y.map(|y| format!("y={y}")));
        query.extend(options.keep.map(|keep| format!("keep={keep}")));
        if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) }
    };
    let path = format!("/experiments/{id}");
    let page_view = ExperimentPage {
        shell: Shell::load(&app, &asked, live).await?,
        states,
        frontier: figure.as_ref().and_then(|view| figures::frontier_svg(&view.figure)),
        answer: figure.as_ref().and_then(|view| answer(&view.figure, &measured)),
        protocols: protocol.map_or(Vec::new(), |shown| {
            protocols::switches(&loaded.protocols, shown, |id| {
                format!("{path}{}", here(Some(id), options.y.as_deref()))
            })
        }),
        views: [("Accuracy", None), ("Difference", Some("delta"))]
            .into_iter()
            .map(|(label, y)| {
                let href = format!("{path}{}", here(options.protocol.as_deref(), y));
                Choice::new(label, href, (options.y.as_deref() == Some("delta")) == y.is_some())
            })
            .collect(),
        query: here(options.protocol.as_deref(), options.y.as_deref()),
        sources: data_sources(&measured),
        searches: super::searches::of_experiment(&app, id).await?,
        runs: loaded
            .runs
            .iter()
            .map(|run| run_row(run, &measured, &roles, figure.as_ref().map(|view| &view.figure)))
            .collect(),
        goal: figure.as_ref().and_then(|view| {
            let known = view.figure.lines.iter().any(|line| line.best.is_some());
            known.then(|| figures::role_word(view.figure.rule.goal))
        }),
        robustness: robustness(&measured),
        roles: roles.into_iter().map(figures::role_word).collect(),
        figure,
        experiment,
    };
    page(&page_view, &asked)
}

/// `GET /experiments/{id}/alpha.svg?width=84mm|174mm`: the figure for a paper.
pub async fn paper(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Query(options): Query<Options>,
) -> Result<Response> {
    let loaded = load(&app.pool, id, &options).await?;
    let width = match options.width.as_deref() {
        None | Some("174mm") => 174.0,
        Some("84mm") => 84.0,
        Some(other) => return Err(Error::BadRequest(format!("width: `{other}` is neither 84mm nor 174mm"))),
    };
    let measured = Measured::gather(&app.pool, loaded.curves, &sources(&loaded.runs)).await?;
    let view = loaded
        .protocol
        .as_ref()
        .and_then(|protocol| FigureView::new(&measured, figure_options(&options), protocol))
        .ok_or_else(|| Error::NotFound("nothing is measured yet, so there is no figure".into()))?;
    let name = &loaded.experiment.name;
    let stop = if name.ends_with(['.', '?', '!']) { "" } else { "." };
    let mut sentences = vec![format!("{name}{stop}")];
    sentences.extend(view.caption);
    sentences.push(format!("{}, /experiments/{id}.", format::day(OffsetDateTime::now_utc())));
    let svg = paper_svg(&view.figure, &PaperCaption { sentences }, width);
    let name = "attachment; filename=\"causeway-alpha.svg\"";
    Ok(([(header::CONTENT_TYPE, "image/svg+xml"), (header::CONTENT_DISPOSITION, name)], svg).into_response())
}

/// `GET /experiments/{id}/curves.csv`: every point, full precision.
pub async fn csv(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Query(options): Query<Options>,
) -> Result<Response> {
    let loaded = load(&app.pool, id, &options).await?;
    let name = "attachment; filename=\"causeway-curves.csv\"";
    let headers = [(header::CONTENT_TYPE, "text/csv; charset=utf-8"), (header::CONTENT_DISPOSITION, name)];
    Ok((headers, numbers::csv(&loaded.curves)).into_response())
}

fn figure_options(options: &Options) -> FigureOptions {
    let view = if options.y.as_deref() == Some("delta") { View::Delta } else { View::Accuracy };
    let keep = options.keep.filter(|keep| keep.is_finite() && (0.0..=100.0).contains(keep)).unwrap_or(KEEP);
    FigureOptions { view, keep }
}

async fn load(pool: &PgPool, id: Uuid, options: &Options) -> Result<Loaded> {
    let experiment = get_experiment(pool, id).await?;
    let runs = runs(pool, id).await?;
    let mut protocols: Vec<Protocol> = Vec::new();
    for run in &runs {
        let Ok(spec) = serde_json::from_value::<Spec>(run.document.clone()) else { continue };
        for protocol in spec.evaluation.protocols() {
            if !protocols.iter().any(|other| other.id == protocol.id) {
                protocols.push(protocol);
            }
        }
    }
    protocols::sort(&mut protocols);
    let asked = options.protocol.as_deref();
    let chosen = protocols::chosen(&protocols, asked);
    if let (Some(id), None) = (asked, chosen) {
        return Err(Error::NotFound(format!("no run of this experiment uses the protocol {id}")));
    }
    let protocol = chosen.cloned();
    let filter = CurveFilter {
        experiment: Some(id),
        protocol: protocol.as_ref().map(|protocol| protocol.id.clone()),
        ..CurveFilter::default()
    };
    let curves = if protocol.is_some() { curves(pool, &filter).await? } else { Vec::new() };
    Ok(Loaded { experiment, runs, protocols, protocol, curves })
}

async fn runs(pool: &PgPool, experiment: Uuid) -> Result<Vec<StoredRun>> {
    let rows = sqlx::query!(
        r#"select r.id, r.name, r.method, r.seed, r.variant, r.state, r.phase, r.reason, r.checkpoint, r.spec,
                  p.progress as "progress?: Json<RunProgress>",
                  greatest(r.created_at, r.started_at, r.finished_at) as "updated!"
           from run r left join run_progress p on p.run_id = r.id where r.experiment_id = $1 and r.part_of is null order by r.id"#,
        experiment
    )
    .fetch_all(pool)
    .await?;
    let runs = rows.into_iter().map(|row| StoredRun {
        id: row.id,
        name: row.name,
        method: row.method,
        seed: row.seed,
        variant: row.variant,
        state: row.state,
        phase: row.phase,
        reason: row.reason,
        checkpoint: row.checkpoint,
        progress: row.progress.map(|json| json.0),
        document: row.spec,
        updated: row.updated,
    });
    Ok(runs.collect())
}

/// The runs as parts of lines: everything equal but the seed is one line.
fn sources(runs: &[StoredRun]) -> Vec<Source> {
    let mut variants: Vec<&StoredRun> = Vec::new();
    for run in runs {
        if !variants.iter().any(|other| other.variant == run.variant) {
            variants.push(run);
        }
    }
    let specs: Vec<(&str, &serde_json::Value)> =
        variants.iter().map(|run| (run.method.as_str(), &run.document)).collect();
    let labels = spec_view::labels(&specs);
    let sources = runs.iter().filter_map(|run| {
        let at = variants.iter().position(|other| other.variant == run.variant)?;
        let wanted = run.document.pointer("/evaluation/alphas").and_then(|list| list.as_array());
        Some(Source {
            run: run.id,
            line: run.variant.clone(),
            short: if labels[at].chars().count() <= SHORT { labels[at].clone() } else { String::new() },
            label: labels[at].clone(),
            wanted: wanted.map_or(0, Vec::len),
            open: ["queued", "running", "paused"].contains(&run.state.as_str()),
            method: run.method.clone(),
            seed: run.seed,
            name: run.name.clone(),
        })
    });
    sources.collect()
}

/// What the column of robustness is, by what there is to show.
fn robustness(measured: &Measured) -> Option<(&'static str, String)> {
    let found = (0..measured.input.variants.len()).find_map(|line| measured.robustness(line))?;
    Some(match found.kind {
        RobustnessKind::Effective => (
            "effective robustness",
            format!(
                "Effective robustness: OOD accuracy at α 1 above what the line through {} backbones (logit axes) expects \
                 of its ID accuracy, points.",
                found.backbones
            ),
        ),
        RobustnessKind::RelativeToBackbone => (
            "ΔOOD − ΔID",
            "ΔOOD − ΔID is relative to the backbone, at α 1, points; effective robustness needs three backbones \
             measured under this protocol."
                .to_owned(),
        ),
    })
}

fn run_row(
    run: &StoredRun,
    measured: &Measured,
    roles: &[&'static str],
    figure: Option<&AlphaFigure>,
) -> RunRow {
    let deltas = roles.iter().map(|role| {
        let digest = run.checkpoint.as_deref();
        shown(digest.and_then(|digest| measured.checkpoint_delta(digest, role, Alpha::ONE, Queries::All)))
    });
    let curve =
        run.checkpoint.as_deref().and_then(|digest| Some((digest, measured.of_checkpoint(digest)?.0)));
    let best = curve.zip(figure).and_then(|((digest, line), figure)| {
        let best = figure.lines.get(line)?.best.as_ref()?;
        let alpha = Alpha::from_f64(best.alpha)?;
        let delta = measured.checkpoint_delta(digest, figure.rule.goal, alpha, best.chosen.reports());
        let test = if best.chosen == Chosen::Test { "on test " } else { "" };
        let (text, tone) = shown(delta);
        Some((text, tone, format!("{test}α {alpha}")))
    });
    let robust = curve.and_then(|(_, line)| {
        let found = measured.robustness(line)?;
        found.seeds.iter().find(|(other, _)| *other == run.id).map(|(_, value)| *value)
    });
    let progress = run.progress.as_ref().filter(|progress| progress.phase.as_str() == run.phase);
    let note = match (run.state.as_str(), progress) {
        ("running", Some(progress)) => format!("{} {} %", run.phase, percent(progress)),
        ("running", None) => format!("{} starts", run.phase),
        _ => run.reason.clone(),
    };
    RunRow {
        id: run.id.to_string(),
        name: run.name.clone(),
        sample: figures::method_svg(&run.method),
        method: run.method.clone(),
        seed: run.seed,
        state: format::state(&run.state),
        note,
        checkpoint: run.checkpoint.clone(),
        deltas: deltas.collect(),
        best: best.unwrap_or(("\u{2013}".to_owned(), "", String::new())),
        robust: shown(robust),
        updated: format::ago(run.updated),
    }
}

/// A difference and its tone; a dash where there is none.
fn shown(delta: Option<f64>) -> (String, &'static str) {
    delta.map_or(("\u{2013}".to_owned(), ""), |delta| (signed(delta), figures::tone(delta)))
}

/// Where the images come from and under which licence.
pub fn data_sources(measured: &Measured) -> Vec<DataSource> {
    let sources = measured.input.datasets.iter().map(|dataset| DataSource {
        title: dataset.title.clone(),
        size: if dataset.leave_one_out {
            format!("{}, leave-one-out", format::plural(i64::from(dataset.queries), "image"))
        } else {
            format!("{} queries, {} neighbours", dataset.queries, dataset.bank)
        },
        licence: dataset.licence.clone(),
        source: dataset.source.clone(),
    });
    sources.collect()
}
