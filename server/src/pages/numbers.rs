//! The numbers of a figure as tables, which are always in the page, and as CSV.

use super::{
    answer::robustness_text,
    figure::{Cell, cell},
};
use crate::{
    curves::Curve,
    figures::{
        AlphaFigure, Chosen, Paired, PairedInterval, Queries, key_svg, role_word, signed, stats::wilson,
        tone, value,
    },
    measured::Measured,
};
use causeway_protocol::Alpha;
use std::fmt::Write;

/// The numbers of one panel.
#[derive(Debug)]
pub struct Numbers {
    /// Title of the dataset.
    pub title: String,
    /// Its role.
    pub role: &'static str,
    /// The measured α, as column heads.
    pub alphas: Vec<String>,
    /// One row per line.
    pub rows: Vec<NumberRow>,
}

/// One line of a table of numbers.
#[derive(Debug)]
pub struct NumberRow {
    /// Sample of the line.
    pub sample: String,
    /// Name.
    pub name: String,
    /// "2 seeds".
    pub seeds: String,
    /// One per α; none where the line has no value.
    pub cells: Vec<Option<NumberCell>>,
    /// Area between the line and the backbone, points·α.
    pub area: String,
}

/// A measured place, with its difference from the backbone.
#[derive(Debug)]
pub struct NumberCell {
    /// Accuracy and what is around it.
    pub accuracy: Cell,
    /// Interval of the difference, over images: "+0.4 to +5.8".
    pub interval: String,
    /// Mark of an interval that is not the bootstrap's.
    pub mark: &'static str,
    /// "by class 71.2", where it is known.
    pub by_class: String,
    /// Letters of what computed it, where the figure has several.
    pub stamps: String,
}

/// One table per panel.
pub fn tables(figure: &AlphaFigure, measured: &Measured) -> Vec<Numbers> {
    let several = measured.input.stamps.len() > 1;
    let tables = figure.panels.iter().enumerate().map(|(dataset, panel)| {
        let rows = figure.lines.iter().zip(&panel.lines).enumerate().map(|(at, (key, line))| {
            let cells = figure.alphas.iter().map(|alpha| {
                let place = line.points.iter().find(|place| place.alpha == *alpha)?;
                let paired = Alpha::from_f64(place.alpha)
                    .filter(|alpha| *alpha > Alpha::ZERO)
                    .and_then(|alpha| measured.against_backbone(at, dataset, alpha, Queries::All));
                Some(NumberCell {
                    accuracy: cell(place),
                    interval: paired.as_ref().map_or(String::new(), interval_text),
                    mark: paired.map_or("", |paired| mark(&paired)),
                    by_class: place
                        .by_class
                        .map_or(String::new(), |mean| format!("by class {}", value(mean))),
                    stamps: place
                        .stamps
                        .iter()
                        .filter(|_| several)
                        .map(|stamp| stamp_letter(*stamp))
                        .collect(),
                })
            });
            NumberRow {
                sample: key_svg(Some(key)),
                name: key.label.clone(),
                seeds: key.seeds.clone(),
                cells: cells.collect(),
                area: line.area.map_or("\u{2013}".to_owned(), signed),
            }
        });
        Numbers {
            title: panel.title.clone(),
            role: role_word(panel.role),
            alphas: figure.alphas.iter().map(ToString::to_string).collect(),
            rows: rows.collect(),
        }
    });
    tables.collect()
}

/// What a line says over all datasets.
#[derive(Debug)]
pub struct LineNumbers {
    /// Sample of the line.
    pub sample: String,
    /// Name.
    pub name: String,
    /// "2 seeds".
    pub seeds: String,
    /// "0.4", and "on test" where it was chosen on what is shown.
    pub best: String,
    /// The goal's and the guarded mean's change at the best α, at 0.5 and at 1: difference, interval, tone.
    pub cells: Vec<Option<(String, String, &'static str)>>,
    /// Robustness at α = 1.
    pub robustness: String,
}

/// One row per line that has a best α, and the heads of its columns: the roles of the rule, at each of three α.
pub fn lines(figure: &AlphaFigure, measured: &Measured) -> (Vec<String>, Vec<LineNumbers>) {
    let roles: Vec<&'static str> = std::iter::once(figure.rule.goal).chain(figure.rule.guard).collect();
    let heads = ["best α", "α 0.5", "α 1"]
        .into_iter()
        .flat_map(|place| roles.iter().map(move |role| format!("{} at {place}", role_word(role))));
    let rows = figure.lines.iter().enumerate().filter_map(|(at, key)| {
        let best = key.best.as_ref()?;
        let cells = [best.alpha, 0.5, 1.0].into_iter().flat_map(|alpha| {
            roles.iter().map(move |role| {
                let alpha = Alpha::from_f64(alpha).filter(|alpha| *alpha > Alpha::ZERO)?;
                let paired = measured.role_against_backbone(at, role, alpha, best.chosen.reports())?;
                let interval = format!("{}{}", interval_text(&paired), mark(&paired));
                Some((signed(paired.delta), interval, tone(paired.delta)))
            })
        });
        Some(LineNumbers {
            sample: key_svg(Some(key)),
            name: key.label.clone(),
            seeds: key.seeds.clone(),
            best: match best.chosen {
                Chosen::Half => best.alpha.to_string(),
                Chosen::Test => format!("{} on test", best.alpha),
            },
            cells: cells.collect(),
            robustness: measured.robustness(at).and_then(|found| robustness_text(&found)).unwrap_or_default(),
        })
    });
    (heads.collect(), rows.collect())
}

/// "+0.4 to +5.8".
pub fn interval_text(paired: &Paired) -> String {
    format!("{} to {}", signed(paired.interval.lo), signed(paired.interval.hi))
}

/// A dagger on what is not the paired bootstrap's.
pub fn mark(paired: &Paired) -> &'static str {
    match paired.kind {
        PairedInterval::PairedBootstrap => "",
        PairedInterval::AgrestiMin => "†",
    }
}

/// The letter of a stamp in a figure: a, b, … .
pub fn stamp_letter(stamp: usize) -> char {
    u8::try_from(stamp).ok().filter(|at| *at < 26).map_or('…', |at| char::from(b'a' + at))
}

/// Every point of the curves with full precision and digests. α = 0 belongs to no run, so its row is repeated for
/// each curve that begins there.
pub fn csv(curves: &[Curve]) -> String {
    let mut text = String::from(
        "dataset,dataset_digest,role,method,variant,seed,run,run_id,backbone,checkpoint,protocol,readout,dtype,alpha,n,\
         correct,top1,wilson_low,wilson_high,top5,mean_per_class,correct_per_class,queries_per_class,area,stamp\n",
    );
    for curve in curves {
        for point in &curve.points {
            let interval = wilson(point.correct.unsigned_abs(), point.n.unsigned_abs());
            let ends =
                interval.map(|i| format!("{},{}", i.lo / 100.0, i.hi / 100.0)).unwrap_or(",".to_owned());
            let _ = writeln!(
                text,
                "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{ends},{},{},{},{},{},{}",
                quoted(&curve.dataset.title),
                curve.dataset.digest,
                curve.dataset.role,
                curve.method,
                curve.variant,
                curve.seed,
                quoted(&curve.run),
                curve.run_id,
                curve.backbone,
                curve.checkpoint.as_deref().unwrap_or(""),
                curve.protocol,
                curve.readout,
                super::protocols::dtype_word(curve.dtype),
                point.alpha,
                point.n,
                point.correct,
                point.top1,
                point.top5,
                point.mean_per_class.map_or(String::new(), |mean| mean.to_string()),
                counts(point.correct_per_class.as_deref()),
                counts(curve.dataset.queries_per_class.as_deref()),
                curve.area.map_or(String::new(), |area| area.to_string()),
                quoted(&crate::measured::stamp_words(&point.stamp)),
            );
        }
    }
    text
}

/// Counts of classes in label order, as one field.
fn counts(counts: Option<&[i32]>) -> String {
    counts.unwrap_or_default().iter().map(i32::to_string).collect::<Vec<_>>().join(" ")
}

/// A CSV field. One that a spreadsheet would run as a formula gets an apostrophe.
pub fn quoted(field: &str) -> String {
    let guard = if field.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    format!("\"{guard}{}\"", field.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_one_field_and_no_formula() {
        assert_eq!(quoted("a \"b\", c"), "\"a \"\"b\"\", c\"");
        assert_eq!(quoted("=1+1"), "\"'=1+1\"");
    }
}
