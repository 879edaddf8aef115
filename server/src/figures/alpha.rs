//! Accuracy against α: what was measured, and the figure computed from it. One panel per dataset, one line per
//! variant (everything equal but the seed), the backbone as the point all lines leave from.

use super::best::{Best, BestRule, best_alpha};
use super::identity::{DASHES, Identity, identity};
use super::input::{FigureInput, Queries, Score, SeedCurve, Variant};
use super::panel::WIDE;
use super::scale::{common_span, difference_scale, spread, ticks};
use super::stats::{SEEDS_FOR_INTERVAL, area, band, mean, percent, wilson};
use super::words::{describe_panel, end_label};
use causeway_protocol::Alpha;
use serde::Serialize;
use std::collections::BTreeSet;

/// What the reader asked for.
#[derive(Clone, Copy, Debug)]
pub struct FigureOptions {
    /// What the vertical axis shows.
    pub view: View,
    /// Points of guarded accuracy that the best α may cost.
    pub keep: f64,
}

/// What the vertical axis shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// Top-1 accuracy, percent.
    #[default]
    Accuracy,
    /// Difference from the backbone, points.
    Delta,
}

/// The figure: everything but pixels.
#[derive(Clone, Debug, Serialize)]
pub struct AlphaFigure {
    /// What the vertical axis shows.
    pub view: View,
    /// Points that each panel spans.
    pub span: f64,
    /// Every α that any line has been measured at, 0 included.
    pub alphas: Vec<f64>,
    /// The lines.
    pub lines: Vec<LineKey>,
    /// One per dataset.
    pub panels: Vec<Panel>,
    /// How the best α was chosen.
    pub rule: BestRule,
    /// Opacity of bands: less where many lie over one another.
    pub band_opacity: f64,
}

/// A line as the key shows it.
#[derive(Clone, Debug, Serialize)]
pub struct LineKey {
    /// Label.
    pub label: String,
    /// Label at the line's end.
    pub short: String,
    /// The method's word.
    pub method: String,
    /// Hue, marker, hollow.
    #[serde(flatten)]
    pub look: Identity,
    /// SVG dash array; empty for solid.
    pub dash: &'static str,
    /// Number of seeds with points.
    pub n: usize,
    /// "1 seed", "2 seeds", …; and how many are still to come.
    pub seeds: String,
    /// "6 of 11 α" while the sweep is not over.
    pub progress: Option<String>,
    /// The best α, if the rule can be applied yet.
    pub best: Option<Best>,
    /// Drawn thin and grey until it is picked out: more lines than colours can carry.
    pub muted: bool,
}

impl LineKey {
    /// The dash as an SVG attribute; nothing for a solid line.
    pub fn dash_attribute(&self) -> String {
        if self.dash.is_empty() { String::new() } else { format!(r#" stroke-dasharray="{}""#, self.dash) }
    }
}

/// One dataset's panel.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Panel {
    /// Title of the dataset.
    pub title: String,
    /// Its role, the word.
    pub role: &'static str,
    /// Images scored.
    pub queries: u32,
    /// What the picture says, for those who do not see it.
    pub description: String,
    /// Lower and upper end of the vertical axis, in what the axis shows.
    pub domain: (f64, f64),
    /// Ticks of the vertical axis.
    pub ticks: Vec<f64>,
    /// The backbone's accuracy, percent.
    pub backbone: Option<f64>,
    /// Its 95 % interval over queries (Wilson).
    pub backbone_band: Option<(f64, f64)>,
    /// What is subtracted from an accuracy to give a height on the axis.
    pub offset: f64,
    /// Accuracy of guessing, if it lies in the panel; on the axis.
    pub chance: Option<f64>,
    /// One for each of the figure's lines.
    pub lines: Vec<PanelLine>,
    /// Labels at the right edge, in units of the wide layout.
    pub labels: Vec<EndLabel>,
}

/// One line in one panel.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PanelLine {
    /// The line through the seeds' means, from the backbone to the last α that every seed has.
    pub points: Vec<Place>,
    /// One thin line per seed, where there are two.
    pub seeds: Vec<SeedLine>,
    /// Area between the line and the backbone, points·α; none until α = 1 is measured.
    pub area: Option<f64>,
}

/// One measured place of a line.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Place {
    /// α.
    pub alpha: f64,
    /// Mean accuracy of the seeds, percent.
    pub mean: f64,
    /// Mean minus the backbone's, points.
    pub delta: Option<f64>,
    /// Seeds in the mean; 0 for the backbone's place, which belongs to no run.
    pub n: usize,
    /// Range of two seeds or t interval of three and more, percent.
    pub band: Option<(f64, f64)>,
    /// Wilson's interval over queries where there is one seed, percent.
    pub wilson: Option<(f64, f64)>,
    /// Mean minus the backbone's on the half of the queries that α is chosen on, and on the other half, points.
    #[serde(skip)]
    pub halves: Option<(f64, f64)>,
    /// Mean over classes of the accuracy inside a class, and over seeds, percent.
    #[serde(skip)]
    pub by_class: Option<f64>,
    /// What computed it: indices of the figure's stamps, ascending.
    #[serde(skip)]
    pub stamps: Vec<usize>,
}

/// The thin line of one seed.
#[derive(Clone, Debug, Serialize)]
pub struct SeedLine {
    /// The seed.
    pub seed: i64,
    /// (α, accuracy in percent), the backbone first.
    pub points: Vec<(f64, f64)>,
}

/// A label at a line's end.
#[derive(Clone, Debug, Serialize)]
pub struct EndLabel {
    /// Which line; none for the backbone.
    pub line: Option<usize>,
    /// What it says.
    pub text: String,
    /// Where the line ends: α and height on the axis.
    pub end: (f64, f64),
    /// Centre of the label, units of the wide layout from the top.
    pub y: f64,
}

/// More lines than this are not told apart by colour: the rest are drawn thin and grey.
const COLOURED_LINES: usize = 6;
/// Least distance of label centres, units of the wide layout.
const LABEL_GAP: f64 = 14.0;

/// Computes the figure.
pub fn alpha_figure(input: &FigureInput, options: FigureOptions) -> AlphaFigure {
    let mut panels: Vec<Panel> = (0..input.datasets.len()).map(|at| panel(input, at)).collect();
    let lines = line_keys(input, &panels, options.keep);
    let span = set_scales(&mut panels, options.view);
    for panel in &mut panels {
        panel.labels = end_labels(panel, &lines);
        panel.description = describe_panel(panel, &lines);
    }
    let measured = panels.iter().flat_map(|panel| &panel.lines).flat_map(|line| {
        line.points
            .iter()
            .map(|p| p.alpha)
            .chain(line.seeds.iter().flat_map(|seed| seed.points.iter().map(|p| p.0)))
    });
    let alphas: BTreeSet<Alpha> = measured.filter_map(Alpha::from_f64).chain([Alpha::ZERO]).collect();
    AlphaFigure {
        view: options.view,
        span,
        alphas: alphas.into_iter().map(Alpha::as_f64).collect(),
        band_opacity: match lines.iter().filter(|line| !line.muted && line.n >= SEEDS_FOR_INTERVAL).count() {
            0..=2 => 0.16,
            3 | 4 => 0.1,
            _ => 0.06,
        },
        lines,
        rule: BestRule::for_roles(input.datasets.iter().map(|dataset| dataset.role), options.keep),
        panels,
    }
}

fn panel(input: &FigureInput, at: usize) -> Panel {
    let dataset = &input.datasets[at];
    let backbone = input.backbone.get(at).copied().flatten();
    let chance = if dataset.classes > 0 { Some(100.0 / dataset.classes as f64) } else { None };
    Panel {
        title: dataset.short.clone(),
        role: dataset.role.as_str(),
        queries: dataset.queries,
        description: String::new(),
        domain: (0.0, 100.0),
        ticks: Vec::new(),
        backbone: backbone.map(|score| percent(score.correct, score.n)),
        backbone_band: backbone.and_then(|s| wilson(s.correct, s.n)).map(|i| (i.lo, i.hi)),
        offset: 0.0,
        chance,
        lines: input.variants.iter().map(|variant| panel_line(variant, at, backbone)).collect(),
        labels: Vec::new(),
    }
}

fn panel_line(variant: &Variant, at: usize, backbone: Option<Score>) -> PanelLine {
    let started: Vec<&SeedCurve> = variant
        .seeds
        .iter()
        .filter(|seed| seed.scores.get(at).is_some_and(|scores| !scores.is_empty()))
        .collect();
    let base = backbone.map(|score| percent(score.correct, score.n));
    let start = backbone.map(|score| Place {
        n: 0,
        band: None,
        halves: score.halves.map(|_| (0.0, 0.0)),
        ..place(Alpha::ZERO, &[score], backbone)
    });
    let alphas: BTreeSet<Alpha> = started.iter().flat_map(|seed| seed.scores[at].keys().copied()).collect();
    // A mean over fewer seeds than the place before it would draw a step that no run has.
    let means = alphas.iter().filter_map(|alpha| {
        let scores: Option<Vec<Score>> =
            started.iter().map(|seed| seed.scores[at].get(alpha).copied()).collect();
        scores.filter(|scores| !scores.is_empty()).map(|scores| place(*alpha, &scores, backbone))
    });
    let points: Vec<Place> =
        if started.is_empty() { Vec::new() } else { start.into_iter().chain(means).collect() };
    let thin = if (2..SEEDS_FOR_INTERVAL).contains(&started.len()) { started } else { Vec::new() };
    let seeds = thin.into_iter().map(|seed| SeedLine {
        seed: seed.seed,
        points: base
            .map(|base| (0.0, base))
            .into_iter()
            .chain(seed.scores[at].iter().map(|(alpha, s)| (alpha.as_f64(), percent(s.correct, s.n))))
            .collect(),
    });
    let deltas: Option<Vec<(f64, f64)>> =
        points.iter().map(|place| Some((place.alpha, place.delta?))).collect();
    PanelLine { seeds: seeds.collect(), area: deltas.and_then(|deltas| area(&deltas)), points }
}

/// The mean of the seeds' scores at one α.
fn place(alpha: Alpha, scores: &[Score], backbone: Option<Score>) -> Place {
    let values = |on: Queries| scores.iter().map(|score| score.percent(on)).collect::<Option<Vec<f64>>>();
    let against = |on: Queries| Some(mean(&values(on)?)? - backbone?.percent(on)?);
    let all = values(Queries::All).unwrap_or_default();
    let single = if let [one] = scores { wilson(one.correct, one.n) } else { None };
    let by_class: Option<Vec<f64>> = scores.iter().map(|score| score.by_class).collect();
    let stamps: BTreeSet<usize> = scores.iter().map(|score| score.stamp).collect();
    Place {
        alpha: alpha.as_f64(),
        mean: mean(&all).unwrap_or(0.0),
        delta: against(Queries::All),
        n: scores.len(),
        band: band(&all).map(|i| (i.lo, i.hi)),
        wilson: single.map(|i| (i.lo, i.hi)),
        halves: against(Queries::ChosenOn).zip(against(Queries::ReportedOn)),
        by_class: by_class.and_then(|values| mean(&values)),
        stamps: stamps.into_iter().collect(),
    }
}

fn line_keys(input: &FigureInput, panels: &[Panel], keep: f64) -> Vec<LineKey> {
    let rule = BestRule::for_roles(input.datasets.iter().map(|dataset| dataset.role), keep);
    let keys = input.variants.iter().enumerate().map(|(at, variant)| {
        let has_points = |seed: &&SeedCurve| seed.scores.iter().any(|scores| !scores.is_empty());
        let n = variant.seeds.iter().filter(has_points).count();
        let missing = variant.seeds.len() - n;
        let seeds = match (n, missing) {
            (1, 0) => "1 seed".to_owned(),
            (n, 0) => format!("{n} seeds"),
            (n, missing) => format!("{n} of {} seeds", n + missing),
        };
        // α that every dataset has from every seed, counting the backbone's.
        let wanted = variant.seeds.iter().map(|seed| seed.wanted).max().unwrap_or(0);
        let done = variant
            .seeds
            .iter()
            .filter(has_points)
            .flat_map(|seed| seed.scores.iter().map(|scores| scores.len() + 1))
            .min()
            .unwrap_or(0);
        LineKey {
            label: variant.label.clone(),
            short: variant.short.clone(),
            method: variant.method.clone(),
            look: identity(&variant.method),
            dash: DASHES[variant.ordinal % DASHES.len()],
            n,
            seeds,
            progress: (done < wanted).then(|| format!("{done} of {wanted} α")),
            best: best_alpha(&rule, panels, at),
            muted: at >= COLOURED_LINES,
        }
    });
    keys.collect()
}

/// Gives every panel its axis and returns the common span.
fn set_scales(panels: &mut [Panel], view: View) -> f64 {
    if view == View::Delta {
        for panel in panels.iter_mut() {
            panel.offset = panel.backbone.unwrap_or(0.0);
        }
    }
    let extents: Vec<(f64, f64)> = panels.iter().map(extent).collect();
    let (span, scales): (f64, Vec<(f64, f64, f64)>) = match view {
        View::Accuracy => {
            let common = common_span(&extents);
            (common.span, common.from.iter().map(|from| (*from, from + common.span, common.step)).collect())
        }
        View::Delta => {
            let lowest = extents.iter().map(|e| e.0).fold(0.0, f64::min);
            let highest = extents.iter().map(|e| e.1).fold(0.0, f64::max);
            let scale = difference_scale(lowest, highest);
            (scale.1 - scale.0, vec![scale; panels.len()])
        }
    };
    for (panel, (from, to, step)) in panels.iter_mut().zip(scales) {
        panel.domain = (from, to);
        panel.ticks = ticks(from, to, step);
        panel.chance = panel.chance.map(|chance| chance - panel.offset).filter(|c| *c > from && *c < to);
    }
    span
}

/// Lowest and highest height on the axis.
fn extent(panel: &Panel) -> (f64, f64) {
    let places = panel.lines.iter().flat_map(|line| {
        let bands = line.points.iter().flat_map(|p| p.band).flat_map(|(lo, hi)| [lo, hi]);
        line.points
            .iter()
            .map(|p| p.mean)
            .chain(bands)
            .chain(line.seeds.iter().flat_map(|s| s.points.iter().map(|p| p.1)))
    });
    let all: Vec<f64> = places.chain(panel.backbone).map(|accuracy| accuracy - panel.offset).collect();
    if all.is_empty() {
        return (0.0, 0.0);
    }
    (all.iter().copied().fold(f64::INFINITY, f64::min), all.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}

fn end_labels(panel: &Panel, lines: &[LineKey]) -> Vec<EndLabel> {
    let ends = panel.lines.iter().enumerate().filter(|(at, _)| !lines[*at].muted).filter_map(|(at, line)| {
        let last = line.points.last()?;
        let text = end_label(&lines[at], last);
        Some((Some(at), text, (last.alpha, last.mean - panel.offset)))
    });
    let backbone =
        panel.backbone.map(|base| (None, format!("backbone {base:.1}"), (1.0, base - panel.offset)));
    let all: Vec<_> = ends.chain(backbone).collect();
    let wanted: Vec<f64> = all.iter().map(|(_, _, end)| WIDE.y(panel.domain, end.1)).collect();
    let placed = spread(&wanted, LABEL_GAP, WIDE.top, WIDE.height - WIDE.bottom);
    all.into_iter().zip(placed).map(|((line, text, end), y)| EndLabel { line, text, end, y }).collect()
}

#[cfg(test)]
#[path = "alpha_tests.rs"]
mod tests;
