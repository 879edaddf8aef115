//! `/experiments/{id}`: the answer, the figure it comes from, and the runs behind it.

use super::{
    Asked, Shell,
    answer::{Answer, answer},
    figure::FigureView,
    format, numbers, page,
    protocols::{self, Switch},
    run_list::{self, FIGURE_RUNS, RunRow, StoredRun, run_row},
    spec_view,
};
use crate::{
    App, Error, Result,
    curves::{CurveFilter, curves},
    experiments::{Experiment, get_experiment},
    figures::{self, FigureOptions, PaperCaption, View, paper_svg},
    lines::KEEP,
    measured::{Measured, Source},
};
use askama::Template;
use axum::{
    extract::{Path, Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use causeway_protocol::{Protocol, Spec};
use serde::Deserialize;
use sqlx::PgPool;
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
    /// The last run of the page of runs before this one.
    after: Option<Uuid>,
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
    /// Where there are more runs than a figure takes: so many are in it.
    drawn: Option<i64>,
    runs: Vec<RunRow>,
    /// Address of the first page of runs, on a later one.
    newest: Option<String>,
    /// Address of the next page of runs.
    older: Option<String>,
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

/// Everything the page, the paper figure and the CSV have in common.
struct Loaded {
    experiment: Experiment,
    /// Those that the figure is drawn from.
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
    let live = loaded.experiment.queued + loaded.experiment.running + loaded.experiment.paused > 0;
    let measured =
        Measured::gather(&app.pool, std::mem::take(&mut loaded.curves), &sources(&loaded.runs)).await?;
    let protocol = loaded.protocol.as_ref();
    let figure = protocol.and_then(|shown| FigureView::new(&measured, figure_options(&options), shown));
    let (listed, older) = run_list::listed(&app.pool, id, options.after).await?;
    let rows = Rows::of(&app.pool, &loaded.runs, &listed, protocol, &options).await?;
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
    let (shown, y) = (options.protocol.as_deref(), options.y.as_deref());
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
        drawn: (loaded.runs.len() as i64 >= FIGURE_RUNS).then_some(FIGURE_RUNS),
        runs: {
            let (measured, view) = match &rows {
                Some(rows) => (&rows.measured, rows.figure.as_ref()),
                None => (&measured, figure.as_ref()),
            };
            listed.iter().map(|run| run_row(run, measured, &roles, view.map(|view| &view.figure))).collect()
        },
        newest: options.after.map(|_| format!("{path}{}#runs-head", here(shown, y))),
        older: older.map(|last| {
            let query = here(shown, y);
            let joint = if query.is_empty() { '?' } else { '&' };
            format!("{path}{query}{joint}after={last}#runs-head")
        }),
        goal: figure.as_ref().and_then(|view| {
            let known = view.figure.lines.iter().any(|line| line.best.is_some());
            known.then(|| figures::role_word(view.figure.rule.goal))
        }),
        robustness: run_list::robustness(&measured),
        roles: roles.into_iter().map(figures::role_word).collect(),
        figure,
        experiment,
    };
    page(&page_view, &asked)
}

/// What the rows of a page of runs show, where the figure is drawn from other runs.
struct Rows {
    measured: Measured,
    figure: Option<FigureView>,
}

impl Rows {
    /// None where every checkpoint of the page is in the figure.
    async fn of(
        pool: &PgPool,
        drawn: &[StoredRun],
        listed: &[StoredRun],
        protocol: Option<&Protocol>,
        options: &Options,
    ) -> Result<Option<Rows>> {
        let Some(protocol) = protocol else { return Ok(None) };
        let beyond = |run: &StoredRun| run.checkpoint.is_some() && !drawn.iter().any(|one| one.id == run.id);
        if !listed.iter().any(beyond) {
            return Ok(None);
        }
        let filter = CurveFilter {
            runs: Some(listed.iter().map(|run| run.id).collect()),
            protocol: Some(protocol.id.clone()),
            ..CurveFilter::default()
        };
        let measured = Measured::gather(pool, curves(pool, &filter).await?, &sources(listed)).await?;
        let figure = FigureView::new(&measured, figure_options(options), protocol);
        Ok(Some(Rows { measured, figure }))
    }
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

/// `GET /experiments/{id}/curves.csv`: every point of every run, full precision.
pub async fn csv(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Query(options): Query<Options>,
) -> Result<Response> {
    let loaded = load(&app.pool, id, &options).await?;
    let filter = CurveFilter {
        experiment: Some(id),
        protocol: loaded.protocol.map(|protocol| protocol.id),
        ..CurveFilter::default()
    };
    let all = if filter.protocol.is_some() { curves(&app.pool, &filter).await? } else { Vec::new() };
    let name = "attachment; filename=\"causeway-curves.csv\"";
    let headers = [(header::CONTENT_TYPE, "text/csv; charset=utf-8"), (header::CONTENT_DISPOSITION, name)];
    Ok((headers, numbers::csv(&all)).into_response())
}

fn figure_options(options: &Options) -> FigureOptions {
    let view = if options.y.as_deref() == Some("delta") { View::Delta } else { View::Accuracy };
    let keep = options.keep.filter(|keep| keep.is_finite() && (0.0..=100.0).contains(keep)).unwrap_or(KEEP);
    FigureOptions { view, keep }
}

async fn load(pool: &PgPool, id: Uuid, options: &Options) -> Result<Loaded> {
    let experiment = get_experiment(pool, id).await?;
    let runs = run_list::in_figure(pool, id).await?;
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
        runs: Some(runs.iter().map(|run| run.id).collect()),
        protocol: protocol.as_ref().map(|protocol| protocol.id.clone()),
        ..CurveFilter::default()
    };
    let curves = if protocol.is_some() { curves(pool, &filter).await? } else { Vec::new() };
    Ok(Loaded { experiment, runs, protocols, protocol, curves })
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
