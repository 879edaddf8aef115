//! `/compare?checkpoints=a,b,…`: what differs first, with intervals; then the curves, the accuracies, and the specs.

use super::{
    Asked, Shell,
    accuracies::{Accuracies, accuracies},
    experiment::{Choice, DataSource, data_sources},
    figure::FigureView,
    format,
    numbers::{interval_text, mark},
    page,
    protocols::{self, Switch},
    similarity::NeighboursView,
    spec_view,
    spectrum::{Compared, SpectrumView},
};
use crate::{
    App, Error, Result,
    checkpoints::{Comparison, compare},
    figures::{
        Best, Chosen, Difference, Differences, FigureOptions, Queries, View, difference_axis_svg,
        difference_svg, method_svg, paired, role_word, shared_axis, signed, tone,
    },
    lines::KEEP,
    measured::{Measured, Source},
};
use askama::Template;
use axum::{
    extract::{Query, State},
    response::{IntoResponse, Redirect, Response},
};
use causeway_protocol::{Alpha, Protocol, SimilarityReport, Spec, SpectrumReport};
use serde_json::Value;
use sqlx::PgPool;
use std::collections::BTreeMap;
use uuid::Uuid;

#[derive(Template)]
#[template(path = "compare.html")]
struct Compare {
    shell: Shell,
    columns: Vec<Column>,
    /// What the differences are taken from: "A" or "the backbone".
    baseline: String,
    places: Vec<Choice>,
    protocols: Vec<Switch>,
    /// At which α the differences are.
    at: String,
    /// What a best α was chosen on, where one is shown.
    chosen: &'static str,
    differences: Vec<DifferenceRow>,
    /// The ticks under the differences.
    axis: String,
    accuracies: Vec<Accuracies>,
    figure: Option<FigureView>,
    sources: Vec<DataSource>,
    spectrum: Option<SpectrumView>,
    neighbours: Option<NeighboursView>,
    differing: Vec<SpecRow>,
    equal: Vec<(String, String)>,
}

/// A checkpoint.
struct Column {
    letter: char,
    digest: String,
    name: String,
    run_id: String,
    sample: String,
    best: String,
    /// Alpha of the differences.
    alpha: Option<Alpha>,
    /// Address with this checkpoint as the baseline.
    first: String,
    /// Address without it.
    without: String,
}

/// One dataset, or the mean of a role, for every checkpoint but the baseline.
struct DifferenceRow {
    name: String,
    role: &'static str,
    mean: bool,
    cells: Vec<DifferenceCell>,
}

struct DifferenceCell {
    picture: String,
    delta: String,
    interval: String,
    /// Mark of an interval that is not the bootstrap's.
    mark: &'static str,
    tone: &'static str,
}

struct SpecRow {
    path: String,
    values: Vec<String>,
}

/// `GET /compare`.
pub async fn show(
    State(app): State<App>,
    asked: Asked,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<Response> {
    let of =
        |name: &str| pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect();
    let given: Vec<&str> = of("checkpoints");
    let digests: Vec<&str> = given
        .iter()
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .collect();
    if digests.is_empty() {
        return Err(Error::BadRequest(
            "tick checkpoints in an experiment's table of runs, or name them: /compare?checkpoints=a,b"
                .into(),
        ));
    }
    // The form of the runs table sends one pair each; the address to keep is the short one.
    if given.len() > 1 || digests.iter().any(|digest| digest.len() > 12) {
        let short: Vec<&str> = digests.iter().map(|digest| format::short_digest(digest)).collect();
        return Ok(Redirect::to(&format!("/compare?checkpoints={}", short.join(","))).into_response());
    }
    let (at, protocol): (Vec<&str>, Vec<&str>) = (of("at"), of("protocol"));
    let comparison = compare(&app.pool, &digests, None).await?;
    let view = view(&app, &asked, comparison, at.first().copied(), protocol.first().copied()).await?;
    page(&view, &asked)
}

async fn view(
    app: &App,
    asked: &Asked,
    comparison: Comparison,
    at: Option<&str>,
    protocol: Option<&str>,
) -> Result<Compare> {
    let pool = &app.pool;
    let runs = runs(pool, &comparison).await?;
    let short: Vec<&str> = comparison.checkpoints.iter().map(|c| format::short_digest(&c.digest)).collect();
    let common = common_protocols(&comparison, &runs);
    if common.is_empty() && !comparison.curves.is_empty() {
        return Err(Error::Conflict(
            "these checkpoints were not evaluated under any common protocol, so their curves cannot be compared"
                .into(),
        ));
    }
    let chosen = protocols::chosen(&common, protocol);
    if let (Some(id), None, false) = (protocol, chosen, common.is_empty()) {
        return Err(Error::NotFound(format!("these checkpoints have no curves under the protocol {id}")));
    }
    let curves = comparison.curves.into_iter().filter(|curve| {
        chosen.is_some_and(|chosen| curve.protocol == chosen.id)
            && runs.iter().any(|run| run.as_ref().is_some_and(|run| run.id == curve.run_id))
    });
    let sources: Vec<Source> =
        runs.iter().enumerate().filter_map(|(at, run)| source(at, run.as_ref()?)).collect();
    let measured = Measured::gather(pool, curves.collect(), &sources).await?;
    let options = FigureOptions { view: View::Accuracy, keep: KEEP };
    let figure = chosen.and_then(|chosen| FigureView::new(&measured, options, chosen));
    let link = |digests: &[&str], at: Option<&str>, protocol: Option<&str>| {
        let mut link = format!("/compare?checkpoints={}", digests.join(","));
        at.into_iter().for_each(|at| link.push_str(&format!("&at={at}")));
        protocol.into_iter().for_each(|id| link.push_str(&format!("&protocol={id}")));
        link
    };
    let place = at.unwrap_or("1");
    let columns: Vec<Column> = runs
        .iter()
        .enumerate()
        .map(|(index, run)| {
            let best = best_of(&measured, figure.as_ref(), index);
            let alpha = match place {
                "best" => best.and_then(|best| Alpha::from_f64(best.alpha)),
                text => text.parse().ok().and_then(Alpha::from_f64),
            };
            let mut first = short.clone();
            first[..=index].rotate_right(1);
            let mut without = short.clone();
            without.remove(index);
            Column {
                letter: letter(index),
                digest: short[index].to_owned(),
                name: run.as_ref().map_or("no run".to_owned(), |run| run.name.clone()),
                run_id: run.as_ref().map_or(String::new(), |run| run.id.to_string()),
                sample: run.as_ref().map_or(String::new(), |run| method_svg(&run.method)),
                best: best.map_or(String::new(), |best| match best.chosen {
                    Chosen::Half => format!("best α {}", best.alpha),
                    Chosen::Test => format!("best on test α {}", best.alpha),
                }),
                alpha,
                first: link(&first, at, protocol),
                without: link(&without, at, protocol),
            }
        })
        .collect();
    let specs: Vec<Value> =
        runs.iter().map(|run| run.as_ref().map_or(Value::Null, |r| r.spec.clone())).collect();
    let (differing, equal) = spec_rows(&specs);
    let digests: Vec<&str> = comparison.checkpoints.iter().map(|c| c.digest.as_str()).collect();
    // Where every best α was chosen on one half, all that is said of it is said of the other.
    let halved = (0..columns.len())
        .filter_map(|index| best_of(&measured, figure.as_ref(), index))
        .all(|best| best.chosen == Chosen::Half);
    let on = if place == "best" && halved { Queries::ReportedOn } else { Queries::All };
    let (differences, axis) = differences(&measured, &columns, &digests, on);
    let spectrum = spectrum(&comparison.spectra, &columns, &runs);
    let neighbours = neighbours(&comparison.similarities, &columns);
    let places = [("1", "α 1"), ("best", "own best α"), ("0.5", "α 0.5")];
    Ok(Compare {
        shell: Shell::load(app, asked, false).await?,
        baseline: if columns.len() == 1 { "the backbone".to_owned() } else { "A".to_owned() },
        places: places
            .iter()
            .map(|(at, label)| {
                Choice::new(*label, link(&short, (*at != "1").then_some(*at), protocol), *at == place)
            })
            .collect(),
        protocols: chosen.map_or(Vec::new(), |chosen| {
            protocols::switches(&common, chosen, |id| link(&short, at, Some(id)))
        }),
        at: if place == "best" { "each at its own best α".to_owned() } else { format!("at α {place}") },
        chosen: match (place, halved) {
            ("best", true) => {
                "Each best α was chosen on a fixed half of each dataset's images; these are differences on the other half."
            }
            ("best", false) => {
                "Best on test: a best α was chosen on the images that it is shown for, which flatters it."
            }
            _ => "",
        },
        differences,
        axis,
        accuracies: figure.as_ref().map_or(Vec::new(), |view| accuracies(&view.figure, &measured)),
        sources: data_sources(&measured),
        spectrum,
        neighbours,
        figure,
        columns,
        differing,
        equal,
    })
}

/// The spectra of those checkpoints that have any.
fn spectrum(
    reports: &[Option<SpectrumReport>],
    columns: &[Column],
    runs: &[Option<ComparedRun>],
) -> Option<SpectrumView> {
    let compared = reports.iter().zip(columns).zip(runs).filter_map(|((report, column), run)| {
        Some(Compared {
            short: column.letter.to_string(),
            label: format!("{} · {}", column.letter, column.name),
            method: run.as_ref()?.method.clone(),
            report: report.as_ref()?,
        })
    });
    SpectrumView::of(&compared.collect::<Vec<_>>())
}

/// What is nearest to the same queries under those checkpoints that were asked.
fn neighbours(reports: &[Option<SimilarityReport>], columns: &[Column]) -> Option<NeighboursView> {
    let compared = reports.iter().zip(columns).filter_map(|(report, column)| {
        Some((format!("{} · {}", column.letter, column.name), report.as_ref()?))
    });
    NeighboursView::of(&compared.collect::<Vec<_>>())
}

/// The run that made a checkpoint, or the first that evaluated it.
struct ComparedRun {
    id: Uuid,
    name: String,
    method: String,
    seed: i64,
    spec: Value,
}

async fn runs(pool: &PgPool, comparison: &Comparison) -> Result<Vec<Option<ComparedRun>>> {
    let ids: Vec<Uuid> = comparison.checkpoints.iter().filter_map(|checkpoint| checkpoint.run_id).collect();
    let rows =
        sqlx::query_as!(ComparedRun, "select id, name, method, seed, spec from run where id = any($1)", &ids)
            .fetch_all(pool)
            .await?;
    let mut by_id: BTreeMap<Uuid, ComparedRun> = rows.into_iter().map(|run| (run.id, run)).collect();
    let runs = comparison.checkpoints.iter().map(|checkpoint| by_id.remove(&checkpoint.run_id?));
    Ok(runs.collect())
}

/// Protocols under which every checkpoint has a curve.
fn common_protocols(comparison: &Comparison, runs: &[Option<ComparedRun>]) -> Vec<Protocol> {
    let mut common: Option<Vec<Protocol>> = None;
    for run in runs.iter().flatten() {
        let Ok(spec) = serde_json::from_value::<Spec>(run.spec.clone()) else { continue };
        let measured = |id: &str| comparison.curves.iter().any(|c| c.run_id == run.id && c.protocol == id);
        let own: Vec<Protocol> =
            spec.evaluation.protocols().into_iter().filter(|protocol| measured(&protocol.id)).collect();
        common = Some(match common {
            Some(before) => before.into_iter().filter(|protocol| own.contains(protocol)).collect(),
            None => own,
        });
    }
    let mut common = common.unwrap_or_default();
    protocols::sort(&mut common);
    common
}

/// The best α of a column's line.
fn best_of<'a>(measured: &Measured, figure: Option<&'a FigureView>, index: usize) -> Option<&'a Best> {
    let name = letter(index).to_string();
    let line = measured.input.variants.iter().position(|variant| variant.short == name)?;
    figure?.figure.lines.get(line)?.best.as_ref()
}

/// The letter of a column.
pub fn letter(index: usize) -> char {
    char::from(b'A' + u8::try_from(index).unwrap_or(25))
}

fn source(index: usize, run: &ComparedRun) -> Option<Source> {
    let letter = letter(index).to_string();
    Some(Source {
        run: run.id,
        line: letter.clone(),
        label: format!("{letter} · {}", run.name),
        short: letter,
        wanted: run.spec.pointer("/evaluation/alphas")?.as_array()?.len(),
        open: false,
        method: run.method.clone(),
        seed: run.seed,
        name: run.name.clone(),
    })
}

fn differences(
    measured: &Measured,
    columns: &[Column],
    digests: &[&str],
    on: Queries,
) -> (Vec<DifferenceRow>, String) {
    let one = |column: usize, dataset: usize| -> Option<Differences> {
        let place = |column: usize| Some((digests[column], columns[column].alpha?));
        // With a single checkpoint the backbone is the baseline.
        let (before, after) = match columns.len() {
            1 => (("", Alpha::ZERO), place(0)?),
            _ => (place(0)?, place(column)?),
        };
        measured.differences(&[(before, after)], dataset, on)
    };
    let compared: Vec<usize> = if columns.len() == 1 { vec![0] } else { (1..columns.len()).collect() };
    let datasets = &measured.input.datasets;
    let mut rows: Vec<(String, &'static str, bool, Vec<Difference>)> = Vec::new();
    for (at, dataset) in datasets.iter().enumerate() {
        let cells = compared.iter().map(|column| Difference {
            name: dataset.short.clone(),
            paired: one(*column, at).and_then(|part| paired(&[part])),
        });
        rows.push((dataset.short.clone(), dataset.role.as_str(), false, cells.collect()));
        let of_role: Vec<usize> =
            (0..datasets.len()).filter(|other| datasets[*other].role == dataset.role).collect();
        if of_role.len() > 1 && of_role.last() == Some(&at) {
            let cells = compared.iter().map(|column| {
                let parts: Option<Vec<Differences>> =
                    of_role.iter().map(|dataset| one(*column, *dataset)).collect();
                Difference { name: String::new(), paired: parts.and_then(|parts| paired(&parts)) }
            });
            rows.push(("mean".to_owned(), dataset.role.as_str(), true, cells.collect()));
        }
    }
    let axis = shared_axis(rows.iter().flat_map(|row| &row.3));
    let rows = rows.into_iter().map(|(name, role, mean, cells)| DifferenceRow {
        name,
        role: role_word(role),
        mean,
        cells: cells
            .iter()
            .map(|difference| DifferenceCell {
                picture: difference_svg(difference, axis),
                delta: difference.paired.map_or("not measured".to_owned(), |paired| signed(paired.delta)),
                interval: difference.paired.as_ref().map_or(String::new(), interval_text),
                mark: difference.paired.as_ref().map_or("", mark),
                tone: difference.paired.filter(|p| !p.interval.holds_zero()).map_or("", |p| tone(p.delta)),
            })
            .collect(),
    });
    (rows.collect(), difference_axis_svg(axis))
}

fn spec_rows(specs: &[Value]) -> (Vec<SpecRow>, Vec<(String, String)>) {
    let differing = crate::checkpoints::differing(specs);
    let mut equal = Vec::new();
    if let Some(first) = specs.first() {
        crate::checkpoints::flatten(first, String::new(), &mut |path, value| {
            if !differing.contains_key(&path) && !spec_view::is_around(&path) {
                equal.push((path, spec_view::words(value)));
            }
        });
    }
    let rows = differing.into_iter().filter(|(path, _)| path == "seed" || !spec_view::is_around(path));
    let rows = rows.map(|(path, values)| SpecRow {
        path,
        values: values
            .iter()
            .map(|value| value.as_ref().map_or("absent".to_owned(), spec_view::words))
            .collect(),
    });
    (rows.collect(), equal)
}
