//! The difference panel of a comparison: one row per dataset, zero in the middle, each difference with its paired
//! interval, its sign and its number.

use super::identity::short;
use super::paired::Paired;
use super::scale::{difference_scale, ticks};
use super::words::signed;
use std::fmt::Write;

/// One row: what is compared and by how much it differs; none where one side is not measured.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Dataset, or "mean ood".
    pub name: String,
    /// Right minus left.
    pub paired: Option<Paired>,
}

/// Width of a row.
const WIDTH: f64 = 240.0;
/// Height of a row.
const ROW: f64 = 32.0;

/// The axis shared by all rows: (from, to, step), symmetric about 0.
pub fn shared_axis<'a>(rows: impl Iterator<Item = &'a Difference>) -> (f64, f64, f64) {
    let reach = rows
        .filter_map(|row| row.paired)
        .flat_map(|paired| [paired.delta, paired.interval.lo, paired.interval.hi])
        .fold(1.0_f64, |reach, end| reach.max(end.abs()));
    difference_scale(-reach, reach)
}

/// The numbers under the rows; at most five, always with 0.
pub fn difference_axis_svg(axis: (f64, f64, f64)) -> String {
    let mut out =
        format!(r#"<svg class="difference" viewBox="0 0 {WIDTH} {ROW}" font-size="12" aria-hidden="true">"#);
    let all = ticks(axis.0, axis.1, axis.2);
    let every = if all.len() > 5 { 2 } else { 1 };
    let zero = all.iter().position(|tick| *tick == 0.0).unwrap_or(0);
    for (at, tick) in all.iter().enumerate().filter(|(at, _)| at.abs_diff(zero).is_multiple_of(every)) {
        let anchor = match at {
            0 => "start",
            at if at + 1 == all.len() => "end",
            _ => "middle",
        };
        let x = if anchor == "middle" {
            place(*tick, axis)
        } else if at == 0 {
            0.0
        } else {
            WIDTH
        };
        let text = signed(*tick).replace(".0", "");
        let _ = write!(
            out,
            r#"<text x="{}" y="14" text-anchor="{anchor}" fill="var(--ink-2)">{text}</text>"#,
            short(x)
        );
    }
    out.push_str("</svg>");
    out
}

fn place(points: f64, axis: (f64, f64, f64)) -> f64 {
    8.0 + (points - axis.0) / (axis.1 - axis.0) * (WIDTH - 16.0)
}

/// One row's picture. A difference whose interval holds 0 is grey; the others point up or down and take the colour
/// of gain or loss, so that shape, sign and hue agree.
pub fn difference_svg(row: &Difference, axis: (f64, f64, f64)) -> String {
    let x = |points: f64| place(points, axis);
    let mut out = format!(r#"<svg class="difference" viewBox="0 0 {WIDTH} {ROW}" role="img" aria-label=""#);
    match &row.paired {
        Some(paired) => {
            let (lo, hi) = (signed(paired.interval.lo), signed(paired.interval.hi));
            let _ = write!(
                out,
                r#"{} points, {} 95 % interval {lo} to {hi}">"#,
                signed(paired.delta),
                paired.kind.name()
            );
        }
        None => out.push_str(r#"not measured">"#),
    }
    for tick in ticks(axis.0, axis.1, axis.2) {
        let colour = if tick == 0.0 { "edge" } else { "line" };
        let _ = write!(out, r#"<path d="M{},0V{ROW}" stroke="var(--{colour})"/>"#, short(x(tick)));
    }
    if let Some(paired) = &row.paired {
        let tone = match (paired.interval.holds_zero(), paired.delta < 0.0) {
            (true, _) => "ink-2",
            (false, false) => "gain",
            (false, true) => "loss",
        };
        let (lo, hi) = (short(x(paired.interval.lo)), short(x(paired.interval.hi)));
        let middle = ROW / 2.0;
        let _ = write!(out, r#"<path d="M{lo},{middle}H{hi}" stroke="var(--ink-2)" stroke-width="2"/>"#);
        let shape = match (paired.interval.holds_zero(), paired.delta < 0.0) {
            (true, _) => "M-4,0a4,4 0 1 0 8,0a4,4 0 1 0 -8,0Z",
            (false, false) => "M0,-6L6,5L-6,5Z",
            (false, true) => "M0,6L6,-5L-6,-5Z",
        };
        let at = short(x(paired.delta));
        let _ =
            write!(out, r#"<path transform="translate({at},{middle})" d="{shape}" fill="var(--{tone})"/>"#);
    }
    out.push_str("</svg>");
    out
}
