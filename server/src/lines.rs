//! What the curves of a line say together, for programs: the best α and what it brings on queries that it was not
//! chosen on, and the robustness of its checkpoints. A line is the runs that differ in nothing but the seed, under one
//! protocol, from one backbone. The same functions write the pages.

use crate::{
    Result,
    curves::Curve,
    figures::{
        AlphaFigure, Best, Chosen, FigureOptions, Paired, PairedInterval, Queries, RobustnessKind, View,
        alpha_figure,
        stats::{band, band_name, mean},
    },
    measured::{LineRobustness, Measured, Source},
};
use causeway_protocol::Alpha;
use serde::Serialize;
use sqlx::PgPool;
use std::collections::BTreeMap;
use utoipa::ToSchema;
use uuid::Uuid;

/// Points of guarded accuracy that the best α may cost, unless a page's address says otherwise.
pub const KEEP: f64 = 1.0;

/// The curves of runs that differ in nothing but the seed, under one protocol.
#[derive(Debug, Serialize, ToSchema)]
pub struct Line {
    /// Id of the protocol.
    pub protocol: String,
    /// Digest of θ0.
    pub backbone: String,
    /// The method's word.
    pub method: String,
    /// Equal for runs that differ in nothing but the seed.
    pub variant: String,
    /// The seeds, in the order in which their runs came.
    pub seeds: Vec<i64>,
    /// Their runs.
    pub runs: Vec<Uuid>,
    /// Their checkpoints.
    pub checkpoints: Vec<String>,
    /// The best α; null until some α above 0 is measured wherever the rule looks.
    pub best: Option<BestAlpha>,
    /// Robustness at α = 1; null with datasets of one role only.
    pub robustness: Option<Robustness>,
}

/// The best α of a line.
#[derive(Debug, Serialize, ToSchema)]
pub struct BestAlpha {
    /// α; 0 if none above it gains.
    pub alpha: f64,
    /// `half`: chosen on a seeded half of each dataset's queries, all numbers here are of the other half. `test`: best
    /// on test, chosen on the queries that it is reported on.
    pub chosen: Chosen,
    /// The role whose mean accuracy was maximised.
    pub goal: String,
    /// The role whose mean might fall by `keep` points at most.
    pub guard: Option<String>,
    /// Points.
    pub keep: f64,
    /// What this α brings, and beside it α = 0.5 and α = 1 on the same queries.
    pub reported: Vec<Reported>,
}

/// A line at one α against the backbone, seeds averaged.
#[derive(Debug, Serialize, ToSchema)]
pub struct Reported {
    /// α.
    pub alpha: f64,
    /// Mean over the datasets of each role.
    pub roles: Vec<RoleDifference>,
    /// Each dataset.
    pub datasets: Vec<DatasetDifference>,
}

/// The change of a role's mean accuracy.
#[derive(Debug, Serialize, ToSchema)]
pub struct RoleDifference {
    /// `id`, `target` or `ood`.
    pub role: String,
    /// Against the backbone.
    #[serde(flatten)]
    pub difference: DifferenceInterval,
}

/// The change of the accuracy on one dataset.
#[derive(Debug, Serialize, ToSchema)]
pub struct DatasetDifference {
    /// Digest of the dataset.
    pub dataset: String,
    /// Accuracy, mean of the seeds, a share.
    pub top1: f64,
    /// The backbone's on the same queries.
    pub backbone: f64,
    /// Against the backbone.
    #[serde(flatten)]
    pub difference: DifferenceInterval,
}

/// A difference on the same queries with its 95 % interval.
#[derive(Debug, Serialize, ToSchema)]
pub struct DifferenceInterval {
    /// Points.
    pub delta: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Which interval.
    pub interval: PairedInterval,
    /// Queries.
    pub n: u32,
}

/// How robust checkpoints are.
#[derive(Debug, Serialize, ToSchema)]
pub struct Robustness {
    /// `effective`: OOD accuracy above the line through the backbones' (ID, OOD) points on logit axes.
    /// `relative_to_backbone`: ΔOOD − ΔID; too few backbones are measured for a line.
    pub kind: RobustnessKind,
    /// Backbones behind the line; 0 where there is none.
    pub backbones: usize,
    /// Points, one for each of `runs`; null where α = 1 is not measured.
    pub values: Vec<Option<f64>>,
    /// Mean over the seeds.
    pub mean: f64,
    /// Lower end of what is around it.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// `95 % t` from three seeds, `range` for two, empty for one.
    pub interval: &'static str,
}

/// The lines of some curves: by protocol, backbone, then as their first curves come.
///
/// # Errors
/// If the database does not answer.
pub async fn lines(pool: &PgPool, curves: &[Curve]) -> Result<Vec<Line>> {
    let mut groups: BTreeMap<(&str, &str), Vec<Curve>> = BTreeMap::new();
    for curve in curves {
        groups.entry((&curve.protocol, &curve.backbone)).or_default().push(curve.clone());
    }
    let mut lines = Vec::new();
    for ((protocol, backbone), curves) in groups {
        let sources = sources(&curves);
        let measured = Measured::gather(pool, curves, &sources).await?;
        let figure = alpha_figure(&measured.input, FigureOptions { view: View::Accuracy, keep: KEEP });
        for (at, variant) in measured.input.variants.iter().enumerate() {
            let runs: Vec<Uuid> = variant.seeds.iter().map(|seed| seed.run).collect();
            lines.push(Line {
                protocol: protocol.to_owned(),
                backbone: backbone.to_owned(),
                method: variant.method.clone(),
                variant: variant.label.clone(),
                seeds: variant.seeds.iter().map(|seed| seed.seed).collect(),
                checkpoints: variant.seeds.iter().map(|seed| seed.checkpoint.clone()).collect(),
                best: figure.lines[at].best.as_ref().map(|best| best_alpha(&figure, &measured, at, best)),
                robustness: measured.robustness(at).and_then(|found| robustness(&found, &runs)),
                runs,
            });
        }
    }
    Ok(lines)
}

/// One source per run, in the order of its first curve.
fn sources(curves: &[Curve]) -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    for curve in curves {
        if sources.iter().any(|source| source.run == curve.run_id) {
            continue;
        }
        sources.push(Source {
            run: curve.run_id,
            line: curve.variant.clone(),
            label: curve.variant.clone(),
            short: String::new(),
            wanted: 0,
            open: false,
            method: curve.method.clone(),
            seed: curve.seed,
            name: curve.run.clone(),
        });
    }
    sources
}

fn best_alpha(figure: &AlphaFigure, measured: &Measured, line: usize, best: &Best) -> BestAlpha {
    let mut alphas = vec![best.alpha];
    alphas.extend(best.beside.iter().map(|change| change.alpha).filter(|alpha| *alpha != best.alpha));
    let on = best.chosen.reports();
    let alphas = alphas.into_iter().filter_map(Alpha::from_f64);
    BestAlpha {
        alpha: best.alpha,
        chosen: best.chosen,
        goal: figure.rule.goal.to_owned(),
        guard: figure.rule.guard.map(str::to_owned),
        keep: figure.rule.keep,
        reported: alphas.map(|alpha| reported(measured, line, alpha, on)).collect(),
    }
}

fn reported(measured: &Measured, line: usize, alpha: Alpha, on: Queries) -> Reported {
    let roles = ["id", "target", "ood"].into_iter().filter_map(|role| {
        let difference = measured.role_against_backbone(line, role, alpha, on)?.into();
        Some(RoleDifference { role: role.to_owned(), difference })
    });
    let datasets = measured.input.datasets.iter().enumerate().filter_map(|(at, dataset)| {
        let difference = measured.against_backbone(line, at, alpha, on)?;
        let backbone = measured.input.backbone[at].as_ref()?.percent(on)? / 100.0;
        Some(DatasetDifference {
            dataset: dataset.digest.clone(),
            top1: backbone + difference.delta / 100.0,
            backbone,
            difference: difference.into(),
        })
    });
    Reported { alpha: alpha.as_f64(), roles: roles.collect(), datasets: datasets.collect() }
}

fn robustness(found: &LineRobustness, runs: &[Uuid]) -> Option<Robustness> {
    let values: Vec<f64> = found.seeds.iter().map(|(_, value)| *value).collect();
    let around = band(&values);
    let of = |run: &Uuid| found.seeds.iter().find(|(other, _)| other == run).map(|(_, value)| *value);
    Some(Robustness {
        kind: found.kind,
        backbones: found.backbones,
        values: runs.iter().map(of).collect(),
        mean: mean(&values)?,
        low: around.map(|interval| interval.lo),
        high: around.map(|interval| interval.hi),
        interval: band_name(values.len()),
    })
}

impl From<Paired> for DifferenceInterval {
    fn from(paired: Paired) -> DifferenceInterval {
        DifferenceInterval {
            delta: paired.delta,
            low: paired.interval.lo,
            high: paired.interval.hi,
            interval: paired.kind,
            n: paired.n,
        }
    }
}
