//! The numbers of a figure as tables, which are always in the page, and as CSV.

use super::figure::{Cell, cell};
use crate::{
    curves::Curve,
    figures::{AlphaFigure, key_svg, role_word, stats::wilson},
};
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
    pub cells: Vec<Option<Cell>>,
}

/// One table per panel.
pub fn tables(figure: &AlphaFigure) -> Vec<Numbers> {
    let tables = figure.panels.iter().map(|panel| Numbers {
        title: panel.title.clone(),
        role: role_word(panel.role),
        alphas: figure.alphas.iter().map(ToString::to_string).collect(),
        rows: figure
            .lines
            .iter()
            .zip(&panel.lines)
            .map(|(key, line)| NumberRow {
                sample: key_svg(Some(key)),
                name: key.label.clone(),
                seeds: key.seeds.clone(),
                cells: figure
                    .alphas
                    .iter()
                    .map(|alpha| line.points.iter().find(|place| place.alpha == *alpha).map(cell))
                    .collect(),
            })
            .collect(),
    });
    tables.collect()
}

/// Every point of the curves with full precision and digests. α = 0 belongs to no run, so its row is repeated for
/// each curve that begins there.
pub fn csv(curves: &[Curve]) -> String {
    let mut text = String::from(
        "dataset,dataset_digest,role,method,variant,seed,run,run_id,backbone,checkpoint,protocol,alpha,n,correct,\
         top1,wilson_low,wilson_high\n",
    );
    for curve in curves {
        for point in &curve.points {
            let interval = wilson(point.correct.unsigned_abs(), point.n.unsigned_abs());
            let ends =
                interval.map(|i| format!("{},{}", i.lo / 100.0, i.hi / 100.0)).unwrap_or(",".to_owned());
            let _ = writeln!(
                text,
                "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{ends}",
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
                point.alpha,
                point.n,
                point.correct,
                point.top1,
            );
        }
    }
    text
}

/// A CSV field. One that a spreadsheet would run as a formula gets an apostrophe.
fn quoted(field: &str) -> String {
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
