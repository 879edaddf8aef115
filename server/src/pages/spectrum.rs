//! The spectra on a run's page and on that of a comparison: the figure, one sentence, and every number as a table.

use super::format;
use crate::{
    App, Result, analysis,
    error::found,
    figures::{
        AlongFigure, SPECTRUM_NARROW, SPECTRUM_WIDE, SpectrumFigure, SpectrumLayer, SpectrumSeries, TOP,
        along_svg, identity, spectrum_key_svg, spectrum_svg,
    },
};
use axum::{
    extract::{Path, State},
    http::header,
    response::{IntoResponse, Response},
};
use causeway_protocol::{Alpha, LayerSpectrum, Qkv, SpectrumReport, SpectrumValues, TailStatus};
use std::fmt::Write;
use uuid::Uuid;

/// The spectra as a page shows them.
#[derive(Debug)]
pub struct SpectrumView {
    /// Address of the numbers as CSV; empty on a comparison.
    pub csv: String,
    /// What the exponents are, in a sentence.
    pub answer: String,
    /// (mark, label) of each series.
    pub key: Vec<(String, String)>,
    /// By depth.
    pub wide: String,
    /// The same for narrow places.
    pub narrow: String,
    /// Along the line, where more than its ends were decomposed.
    pub along: Option<String>,
    /// Sentences under the figure.
    pub caption: Vec<String>,
    /// A row for each layer.
    pub rows: Vec<SpectrumRow>,
    /// A row for each matrix that methods added.
    pub added: Vec<SpectrumRow>,
}

/// A layer's numbers.
#[derive(Debug)]
pub struct SpectrumRow {
    /// The tensor.
    pub name: String,
    /// Of which weights: "θ0 = θ1", "θ0", "A".
    pub of: String,
    /// ww_alpha, its error, D, xmin, spikes, stable rank, log norm, weighted; a dash where there is none.
    pub cells: Vec<String>,
    /// weightwatcher's word.
    pub status: String,
}

/// One set of weights beside the backbone.
pub struct Compared<'a> {
    /// "θ1", or the letter of a comparison.
    pub short: String,
    /// Label in the key.
    pub label: String,
    /// Its method's word.
    pub method: String,
    /// Its spectra.
    pub report: &'a SpectrumReport,
}

impl SpectrumView {
    /// A run's own.
    pub fn of_run(report: &SpectrumReport, run: Uuid, method: &str) -> SpectrumView {
        let last = report.alphas.last().copied().unwrap_or(Alpha::ONE);
        let label = format!("{} at α {last}", method.replace('_', " "));
        let one = Compared { short: format!("α {last}"), label, method: method.to_owned(), report };
        let mut view = SpectrumView::of(&[one]).unwrap_or_else(SpectrumView::nothing);
        view.csv = format!("/runs/{run}/spectrum.csv");
        view.along =
            (report.alphas.len() > 2).then(|| along_svg(&along(report, method), SPECTRUM_NARROW, "sa"));
        view
    }

    /// Several checkpoints of one backbone; none where there is nothing, or where they are of different layers.
    pub fn of(compared: &[Compared]) -> Option<SpectrumView> {
        let first = compared.first()?.report;
        let same = |other: &SpectrumReport| other.backbone == first.backbone && other.qkv == first.qkv;
        let compared: Vec<&Compared> = compared.iter().filter(|one| same(one.report)).collect();
        let layers: Vec<&LayerSpectrum> = first.layers.iter().filter(|layer| !layer.added).collect();
        let zero: Vec<Option<f64>> = layers.iter().map(|layer| exponent(layer, Alpha::ZERO)).collect();
        let mut series =
            vec![SpectrumSeries { label: "backbone, α 0".to_owned(), identity: None, values: zero }];
        series.extend(compared.iter().map(|one| {
            let last = one.report.alphas.last().copied().unwrap_or(Alpha::ONE);
            let value = |layer: &&LayerSpectrum| {
                let own = one.report.layers.iter().find(|own| own.name == layer.name && own.moved)?;
                exponent(own, last)
            };
            SpectrumSeries {
                label: one.label.clone(),
                identity: Some(identity(&one.method)),
                values: layers.iter().map(value).collect(),
            }
        }));
        let places = layers.iter().map(|l| SpectrumLayer { name: l.name.clone(), block: l.block }).collect();
        let figure = SpectrumFigure { layers: places, series };
        let mut rows = Vec::new();
        for layer in &layers {
            rows.extend(layer_rows(layer, &compared));
        }
        let added = compared.iter().flat_map(|one| {
            let added = one.report.layers.iter().filter(|layer| layer.added);
            added.flat_map(|layer| {
                layer
                    .values
                    .iter()
                    .map(|values| row(layer, format!("{}, α {}", one.short, values.alpha), values))
            })
        });
        Some(SpectrumView {
            csv: String::new(),
            answer: answer(&compared, layers.len()),
            key: figure
                .series
                .iter()
                .map(|one| (spectrum_key_svg(one.identity), one.label.clone()))
                .collect(),
            wide: spectrum_svg(&figure, SPECTRUM_WIDE, "sw"),
            narrow: spectrum_svg(&figure, SPECTRUM_NARROW, "sn"),
            along: None,
            caption: caption(first, &figure),
            rows,
            added: added.collect(),
        })
    }

    fn nothing() -> SpectrumView {
        SpectrumView {
            csv: String::new(),
            answer: String::new(),
            key: Vec::new(),
            wide: String::new(),
            narrow: String::new(),
            along: None,
            caption: Vec::new(),
            rows: Vec::new(),
            added: Vec::new(),
        }
    }
}

fn exponent(layer: &LayerSpectrum, alpha: Alpha) -> Option<f64> {
    // Fine-tuned from another place than 0: what did not move is everywhere the same.
    layer.at(alpha)?.tail.as_ref().map(|tail| tail.ww_alpha)
}

fn along(report: &SpectrumReport, method: &str) -> AlongFigure {
    let moved = report.layers.iter().filter(|layer| layer.moved && !layer.added);
    AlongFigure {
        alphas: report.alphas.iter().map(|alpha| alpha.as_f64()).collect(),
        layers: moved
            .map(|layer| {
                (layer.name.clone(), report.alphas.iter().map(|alpha| exponent(layer, *alpha)).collect())
            })
            .collect(),
        mean: report.alphas.iter().map(|alpha| report.mean_ww_alpha(*alpha)).collect(),
        identity: identity(method),
    }
}

/// The means, and how many layers are where.
fn answer(compared: &[&Compared], layers: usize) -> String {
    let Some(first) = compared.first() else { return String::new() };
    let number = |value: Option<f64>| value.map_or("none".to_owned(), |value| format!("{value:.2}"));
    let start = first.report.alphas.first().copied().unwrap_or(Alpha::ZERO);
    let mut parts = vec![format!("{} at α {start}", number(first.report.mean_ww_alpha(start)))];
    for one in compared {
        let last = one.report.alphas.last().copied().unwrap_or(Alpha::ONE);
        if last != start {
            parts.push(format!("{} for {}", number(one.report.mean_ww_alpha(last)), one.label));
        }
    }
    let moved = compared.iter().map(|one| {
        let moved = one.report.layers.iter().filter(|layer| layer.moved && !layer.added).count();
        format!("{moved} of {layers}")
    });
    format!("Mean ww_alpha {}; {} layers moved.", parts.join(", "), moved.collect::<Vec<_>>().join(" and "))
}

fn caption(report: &SpectrumReport, figure: &SpectrumFigure) -> Vec<String> {
    let mut sentences = vec![
        "ww_alpha is the exponent of a power law fitted to the largest eigenvalues of WᵀW of each layer; no data \
         goes into it. weightwatcher calls 2 to 6 (shaded) good, below 2 over-trained and above 6 under-trained: \
         words for the shape of a spectrum, no measurement of accuracy."
            .to_owned(),
    ];
    let as_backbone = figure.series.iter().skip(1).any(|one| one.values.iter().any(Option::is_none));
    if as_backbone {
        sentences.push("A layer without a mark of its own did not move: it is the backbone's.".to_owned());
    }
    let beyond =
        figure.series.iter().flat_map(|one| one.values.iter().flatten()).filter(|v| **v > TOP).count();
    if beyond > 0 {
        sentences.push(format!("{} above {TOP} drawn at the edge.", format::plural(beyond as i64, "value")));
    }
    sentences.push(match report.qkv {
        Qkv::Fused => "Query, key and value are one matrix.".to_owned(),
        Qkv::Split => "Query, key and value are three matrices.".to_owned(),
    });
    sentences.push(format!("As {}; eigenvalues in f64.", report.follows));
    sentences
}

fn layer_rows(layer: &LayerSpectrum, compared: &[&Compared]) -> Vec<SpectrumRow> {
    let mut rows = Vec::new();
    let moved = |one: &Compared| one.report.layers.iter().any(|own| own.name == layer.name && own.moved);
    if let Some(values) = layer.at(Alpha::ZERO).or(layer.values.first()) {
        let all = !compared.iter().any(|one| moved(one));
        let of = if all { "all α".to_owned() } else { format!("α {}", values.alpha) };
        rows.push(row(layer, of, values));
    }
    for one in compared {
        let own = one.report.layers.iter().find(|own| own.name == layer.name && own.moved);
        for values in own.iter().flat_map(|own| &own.values).filter(|values| values.alpha != Alpha::ZERO) {
            let of = if compared.len() == 1 {
                format!("α {}", values.alpha)
            } else {
                format!("{} α {}", one.short, values.alpha)
            };
            rows.push(row(layer, of, values));
        }
    }
    rows
}

fn row(layer: &LayerSpectrum, of: String, values: &SpectrumValues) -> SpectrumRow {
    let dash = || "–".to_owned();
    let tail = values.tail.as_ref();
    let number =
        |value: Option<f64>, digits: usize| value.map_or_else(dash, |value| format!("{value:.digits$}"));
    let status = tail.map_or("no tail".to_owned(), |tail| {
        let word = match tail.status {
            TailStatus::Within => "",
            other => other.as_str(),
        };
        if tail.few { format!("{word} few eigenvalues").trim().to_owned() } else { word.to_owned() }
    });
    SpectrumRow {
        name: layer.name.clone(),
        of,
        cells: vec![
            number(tail.map(|tail| tail.ww_alpha), 3),
            number(tail.map(|tail| tail.sigma), 3),
            number(tail.map(|tail| tail.d), 4),
            tail.map_or_else(dash, |tail| tail.num_pl_spikes.to_string()),
            values.num_evals.to_string(),
            number(values.stable_rank, 2),
            number(values.log_norm, 3),
            number(tail.map(|tail| tail.alpha_weighted), 3),
        ],
        status,
    }
}

/// `GET /runs/{id}/spectrum.csv`: every number, full precision.
pub async fn csv(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Response> {
    let report = found(analysis::spectrum(&app.pool, id).await?, || format!("run {id} has no spectrum"))?;
    let name = "attachment; filename=\"causeway-spectrum.csv\"";
    let headers = [(header::CONTENT_TYPE, "text/csv; charset=utf-8"), (header::CONTENT_DISPOSITION, name)];
    Ok((headers, table(&report)).into_response())
}

fn table(report: &SpectrumReport) -> String {
    let mut text = "layer,block,added,moved,shape,alpha,num_evals,norm,spectral_norm,stable_rank,log_norm,ww_alpha,D,\
                    sigma,xmin,num_pl_spikes,alpha_weighted,log_alpha_norm,status,few,backbone,checkpoint,follows\n"
        .to_owned();
    let maybe = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    for layer in &report.layers {
        let shape: Vec<String> = layer.shape.iter().map(u32::to_string).collect();
        let block = layer.block.map(|block| block.to_string()).unwrap_or_default();
        for values in &layer.values {
            let _ = write!(
                text,
                "{},{block},{},{},{},{},{},{},{},{},{},",
                layer.name,
                layer.added,
                layer.moved,
                shape.join("x"),
                values.alpha,
                values.num_evals,
                values.norm,
                values.spectral_norm,
                maybe(values.stable_rank),
                maybe(values.log_norm)
            );
            let _ = match &values.tail {
                Some(tail) => write!(
                    text,
                    "{},{},{},{},{},{},{},{},{}",
                    tail.ww_alpha,
                    tail.d,
                    tail.sigma,
                    tail.xmin,
                    tail.num_pl_spikes,
                    tail.alpha_weighted,
                    tail.log_alpha_norm,
                    tail.status.as_str(),
                    tail.few
                ),
                None => write!(text, ",,,,,,,no tail,"),
            };
            let checkpoint = report.checkpoint.as_deref().unwrap_or_default();
            let _ = writeln!(text, ",{},{checkpoint},{}", report.backbone, report.follows);
        }
    }
    text
}
