//! Similarity on a run's page and neighbours on that of a comparison: CKA against depth, how far layers moved, and what is
//! nearest to some queries, each with its class in words.

use super::format;
use crate::{
    App, Result, analysis,
    error::found,
    figures::{CkaFigure, SpectrumLayer, cka_svgs, distance_svg, escape, identity, share},
};
use axum::{
    extract::{Path, State},
    http::header,
    response::{IntoResponse, Response},
};
use causeway_protocol::{Alpha, BlockCka, QueryNeighbours, ShownNeighbour, SimilarityReport, Tiles};
use std::fmt::Write;
use uuid::Uuid;

/// Largest side at which a tile is shown, CSS pixels.
const SHOWN: u32 = 56;

/// Similarity as a run's page shows it.
#[derive(Debug)]
pub struct SimilarityView {
    /// Address of the numbers as CSV.
    pub csv: String,
    /// The feature's similarity, in a sentence.
    pub answer: String,
    /// CKA of the class token, and of the patches' mean.
    pub cka: Vec<String>,
    /// How far layers moved; none where no layer of the backbone did.
    pub distance: Option<String>,
    /// Sentences under the figures.
    pub caption: Vec<String>,
    /// The head of the table of CKA: the α.
    pub alphas: Vec<String>,
    /// The numbers: what, then a cell for each α.
    pub rows: Vec<(String, Vec<String>)>,
    /// (tensor, relative distance, distance).
    pub distances: Vec<(String, String, String)>,
    /// The queries with their neighbours.
    pub neighbours: Option<NeighboursView>,
}

/// Queries and what is nearest to them.
#[derive(Debug)]
pub struct NeighboursView {
    /// One for each query.
    pub queries: Vec<QueryView>,
    /// What is shown, and whose images they are.
    pub caption: String,
}

/// A query.
#[derive(Debug)]
pub struct QueryView {
    /// Its image.
    pub tile: String,
    /// Its class.
    pub class: String,
    /// One row of neighbours for each α, or for each checkpoint.
    pub rows: Vec<NeighbourRow>,
}

/// Neighbours under one set of weights.
#[derive(Debug)]
pub struct NeighbourRow {
    /// Which weights.
    pub label: String,
    /// "4 of 5 of its class".
    pub count: String,
    /// The neighbours.
    pub neighbours: Vec<NeighbourView>,
}

/// A neighbour.
#[derive(Debug)]
pub struct NeighbourView {
    /// Its image.
    pub tile: String,
    /// Its class.
    pub class: String,
    /// Whether that is the query's.
    pub right: bool,
}

impl SimilarityView {
    /// A run's.
    pub fn of_run(report: &SimilarityReport, run: Uuid, method: &str) -> SimilarityView {
        let identity = identity(method);
        let rows = || report.cka.iter().filter(|row| row.alpha != Alpha::ZERO);
        let figure = |of: &str, values: &dyn Fn(&BlockCka) -> Vec<Option<f64>>, ends_in_feature| CkaFigure {
            of: of.to_owned(),
            lines: rows().map(|row| (row.alpha.as_f64(), values(row))).collect(),
            ends_in_feature,
            identity,
        };
        let with_feature = |row: &BlockCka| row.class.iter().copied().chain([row.feature]).collect();
        let class = figure("class token", &with_feature, true);
        let patches = figure("mean of the patches", &|row| row.patches.clone(), false);
        let moved: Vec<(SpectrumLayer, f64)> = report
            .distances
            .iter()
            .filter(|layer| !layer.added)
            .filter_map(|l| Some((SpectrumLayer { name: l.name.clone(), block: l.block }, l.relative()?)))
            .collect();
        let any = moved.iter().any(|(_, share)| *share > 0.0);
        SimilarityView {
            csv: format!("/runs/{run}/similarity.csv"),
            answer: answer(report),
            cka: cka_svgs(&[&class, &patches], "ck"),
            distance: any.then(|| distance_svg(&moved, identity, "cd")),
            caption: caption(report),
            alphas: report.alphas.iter().map(|alpha| format!("α {alpha}")).collect(),
            rows: numbers(report),
            distances: report
                .distances
                .iter()
                .map(|layer| {
                    let relative = layer.relative().map_or("θ0 is 0".to_owned(), share);
                    (layer.name.clone(), relative, format!("{:.4}", layer.distance))
                })
                .collect(),
            neighbours: NeighboursView::of_run(report),
        }
    }
}

fn answer(report: &SimilarityReport) -> String {
    let parts = report.cka.iter().filter(|row| row.alpha != Alpha::ZERO).map(|row| {
        let value = row.feature.map_or("none".to_owned(), |value| format!("{value:.3}"));
        format!("{value} at α {}", row.alpha)
    });
    format!("CKA of the feature with θ0's on {}: {}.", report.title, parts.collect::<Vec<_>>().join(", "))
}

fn caption(report: &SimilarityReport) -> Vec<String> {
    vec![
        format!(
            "Linear CKA (Kornblith et al. 2019), without the bias of few images, between θ0 (1, dashed) and θ_α on \
             {}; 1 is the same up to rotation and scale. Left the class token after each block and the feature that \
             k-NN compares, right the mean over the patches; both share one scale.",
            format::plural(i64::from(report.images), "image")
        ),
        "It says how much features changed, not whether for the better.".to_owned(),
        format!("Seed {}, features {}.", report.seed, report.features),
    ]
}

fn numbers(report: &SimilarityReport) -> Vec<(String, Vec<String>)> {
    let cell = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.4}"));
    let depth = report.cka.first().map_or(0, |row| row.class.len());
    let blocks = |kind: &str, of: &dyn Fn(&BlockCka) -> Vec<Option<f64>>| {
        let one = |block: usize| {
            let cells = report.cka.iter().map(|row| cell(of(row).get(block).copied().flatten()));
            (format!("{kind} after block {block}"), cells.collect())
        };
        (0..depth).map(one).collect::<Vec<_>>()
    };
    let mut rows = blocks("class token", &|row| row.class.clone());
    rows.push(("feature".to_owned(), report.cka.iter().map(|row| cell(row.feature)).collect()));
    rows.extend(blocks("patches", &|row| row.patches.clone()));
    rows
}

impl NeighboursView {
    fn of_run(report: &SimilarityReport) -> Option<NeighboursView> {
        let queries = report.queries.iter().map(|query| QueryView {
            tile: tile_svg(report.tiles.as_ref(), query.tile, class(report, query.label)),
            class: class(report, query.label).to_owned(),
            rows: report
                .alphas
                .iter()
                .zip(&query.neighbours)
                .map(|(alpha, list)| neighbour_row(report, query, list, format!("α {alpha}")))
                .collect(),
        });
        let queries: Vec<QueryView> = queries.collect();
        (!queries.is_empty()).then(|| NeighboursView { queries, caption: neighbours_caption(report) })
    }

    /// The same queries under several checkpoints, each at the end of its line; the backbone first. None where no two
    /// reports show the same query.
    pub fn of(compared: &[(String, &SimilarityReport)]) -> Option<NeighboursView> {
        let (_, first) = compared.first()?;
        let same = |other: &SimilarityReport| {
            other.dataset == first.dataset && other.backbone == first.backbone && other.bank == first.bank
        };
        let compared: Vec<&(String, &SimilarityReport)> =
            compared.iter().filter(|(_, report)| same(report)).collect();
        let queries = first.queries.iter().filter_map(|query| {
            let own = |report: &'_ SimilarityReport| {
                report.queries.iter().position(|other| other.place == query.place)
            };
            let mut rows =
                vec![neighbour_row(first, query, query.neighbours.first()?, "backbone, α 0".to_owned())];
            for (label, report) in &compared {
                let query = &report.queries[own(report)?];
                let alpha = report.alphas.last()?;
                rows.push(neighbour_row(
                    report,
                    query,
                    query.neighbours.last()?,
                    format!("{label}, α {alpha}"),
                ));
            }
            Some(QueryView {
                tile: tile_svg(first.tiles.as_ref(), query.tile, class(first, query.label)),
                class: class(first, query.label).to_owned(),
                rows,
            })
        });
        let queries: Vec<QueryView> = queries.collect();
        (!queries.is_empty()).then(|| NeighboursView { queries, caption: neighbours_caption(first) })
    }
}

fn neighbours_caption(report: &SimilarityReport) -> String {
    let (searched, all) = report.bank;
    let bank = if searched == all {
        format::plural(i64::from(all), "image")
    } else {
        format!(
            "{} of {} images, drawn by the seed",
            format::count(searched.into()),
            format::count(all.into())
        )
    };
    format!(
        "Queries drawn by seed {}, one of each class before a second of any; the most similar of the bank ({bank}) by \
         cosine. A few queries illustrate; they measure nothing. Images: {} ({}; {}).",
        report.seed, report.title, report.licence, report.source
    )
}

fn neighbour_row(
    report: &SimilarityReport,
    query: &QueryNeighbours,
    list: &[ShownNeighbour],
    label: String,
) -> NeighbourRow {
    let right = list.iter().filter(|near| near.label == query.label).count();
    NeighbourRow {
        label,
        count: format!("{right} of {} of its class", list.len()),
        neighbours: list
            .iter()
            .map(|near| NeighbourView {
                tile: tile_svg(report.tiles.as_ref(), near.tile, class(report, near.label)),
                class: class(report, near.label).to_owned(),
                right: near.label == query.label,
            })
            .collect(),
    }
}

fn class(report: &SimilarityReport, label: u32) -> &str {
    report.classes.get(label as usize).map_or("unknown", String::as_str)
}

/// A window on the file of small images: no script, no style, one request for all of them.
fn tile_svg(tiles: Option<&Tiles>, tile: u32, name: &str) -> String {
    let Some(tiles) = tiles else { return String::new() };
    let (x, y) = tiles.place(tile);
    let (side, shown) = (tiles.side, SHOWN);
    format!(
        r#"<svg class="tile" viewBox="{x} {y} {side} {side}" width="{shown}" height="{shown}" role="img" aria-label="{}"><image href="/tiles/{}" width="{}" height="{}"/></svg>"#,
        escape(name),
        escape(&tiles.blob.sha256),
        tiles.columns * side,
        tiles.rows * side
    )
}

/// `GET /runs/{id}/similarity.csv`: every number, full precision.
pub async fn csv(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Response> {
    let report = found(analysis::similarity(&app.pool, id).await?, || format!("run {id} has no similarity"))?;
    let name = "attachment; filename=\"causeway-similarity.csv\"";
    let headers = [(header::CONTENT_TYPE, "text/csv; charset=utf-8"), (header::CONTENT_DISPOSITION, name)];
    Ok((headers, table(&report)).into_response())
}

fn table(report: &SimilarityReport) -> String {
    let mut text = "what,place,alpha,value\n".to_owned();
    let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    for row in &report.cka {
        for (kind, values) in [("cka of class token", &row.class), ("cka of patches", &row.patches)] {
            for (block, value) in values.iter().enumerate() {
                let _ = writeln!(text, "{kind},block {block},{},{}", row.alpha, number(*value));
            }
        }
        let _ = writeln!(text, "cka of feature,feature,{},{}", row.alpha, number(row.feature));
    }
    for layer in &report.distances {
        let _ = writeln!(text, "norm of θ0,{},0,{}", layer.name, layer.norm);
        let _ = writeln!(text, "distance from θ0,{},1,{}", layer.name, layer.distance);
    }
    for query in &report.queries {
        for (alpha, list) in report.alphas.iter().zip(&query.neighbours) {
            for (rank, near) in list.iter().enumerate() {
                let place = format!("query {} neighbour {} image {}", query.place, rank + 1, near.place);
                let _ = writeln!(text, "cosine,{place},{alpha},{}", near.similarity);
            }
        }
    }
    text
}
