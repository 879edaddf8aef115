//! A metric of a run as SVG: what the page shows without JavaScript, and until the live chart has drawn itself.

use super::{escape, identity::short, scale::nice_axis};
use std::fmt::Write;

/// A series of one metric.
#[derive(Clone, Debug, Default)]
pub struct SeriesChart {
    /// The metric, as a person reads it.
    pub title: String,
    /// (step, value), ascending.
    pub values: Vec<(i64, f64)>,
    /// Steps at which an attempt took over from an earlier one.
    pub resumed: Vec<i64>,
    /// Steps that the spec asks for; 0 if it does not say.
    pub total: i64,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 26.0;
/// Most columns drawn; more values than that are shown by the extremes of each column, never by a sample.
const COLUMNS: usize = 600;

/// The chart; `id` must be unique in the page.
pub fn series_svg(chart: &SeriesChart, id: &str) -> String {
    let (lo, hi, step) = axis(chart);
    let last_step = chart.values.last().map_or(1, |(step, _)| *step).max(chart.total).max(1) as f64;
    let x = |step: f64| LEFT + step / last_step * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| TOP + (hi - value) / (hi - lo) * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        r#"<svg class="drawn" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12" role="img" aria-labelledby="{id}t {id}d"><title id="{id}t">{} against step</title><desc id="{id}d">{}</desc>"#,
        escape(&chart.title),
        describe(chart)
    );
    let count = ((hi - lo) / step).round() as usize;
    for at in 0..=count {
        let tick = lo + at as f64 * step;
        let height = y(tick);
        let _ = write!(
            out,
            r#"<path d="M{LEFT},{h}H{}" stroke="var(--line)"/><text x="{}" y="{}" text-anchor="end" fill="var(--ink-2)">{}</text>"#,
            short(WIDTH - RIGHT),
            short(LEFT - 8.0),
            short(height + 4.0),
            short(tick),
            h = short(height)
        );
    }
    for (tick, anchor) in [(0.0, "start"), (last_step / 2.0, "middle"), (last_step, "end")] {
        let _ = write!(
            out,
            r#"<text x="{}" y="{}" text-anchor="{anchor}" fill="var(--ink-2)">{}{}</text>"#,
            short(x(tick)),
            HEIGHT - 8.0,
            tick.round(),
            if tick == 0.0 { " steps" } else { "" }
        );
    }
    for resumed in &chart.resumed {
        let at = short(x(*resumed as f64));
        let _ = write!(
            out,
            r#"<path d="M{at},{TOP}V{}" stroke="var(--ink-2)" stroke-dasharray="3 3"/><text x="{at}" y="{TOP}" dx="4" dy="10" fill="var(--ink-2)">resumed at {resumed}</text>"#,
            HEIGHT - BOTTOM
        );
    }
    // A value that is not finite is a gap.
    let (mut path, mut pen) = (String::new(), 'M');
    for (step, value) in thinned(&chart.values) {
        if value.is_finite() {
            let _ = write!(path, "{pen}{},{}", short(x(step as f64)), short(y(value)));
        }
        pen = if value.is_finite() { 'L' } else { 'M' };
    }
    if !path.is_empty() {
        let _ = write!(
            out,
            r#"<path d="{path}" fill="none" stroke="var(--accent)" stroke-width="1.5" stroke-linejoin="round"/>"#
        );
    }
    out.push_str("</svg>");
    out
}

fn describe(chart: &SeriesChart) -> String {
    match (chart.values.first(), chart.values.last()) {
        (Some((from, first)), Some((to, last))) => {
            let of = if chart.total > 0 { format!(" of {}", chart.total) } else { String::new() };
            format!("From {first:.3} at step {from} to {last:.3} at step {to}{of}.")
        }
        _ => "No values yet.".to_owned(),
    }
}

fn axis(chart: &SeriesChart) -> (f64, f64, f64) {
    let finite = chart.values.iter().map(|(_, value)| *value).filter(|value| value.is_finite());
    let (lo, hi) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
    if lo > hi {
        return (0.0, 1.0, 0.25);
    }
    nice_axis(lo, hi)
}

/// At most two values per column: its lowest and its highest, in order.
fn thinned(values: &[(i64, f64)]) -> Vec<(i64, f64)> {
    if values.len() <= COLUMNS {
        return values.to_vec();
    }
    let columns = values.chunks(values.len().div_ceil(COLUMNS / 2));
    let extremes = columns.flat_map(|column| {
        let lowest = column.iter().enumerate().min_by(|a, b| a.1.1.total_cmp(&b.1.1));
        let highest = column.iter().enumerate().max_by(|a, b| a.1.1.total_cmp(&b.1.1));
        let mut both: Vec<(usize, &(i64, f64))> = lowest.into_iter().chain(highest).collect();
        both.sort_by_key(|(at, _)| *at);
        both.dedup_by_key(|(at, _)| *at);
        both.into_iter().map(|(_, value)| *value).collect::<Vec<_>>()
    });
    extremes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(values: Vec<(i64, f64)>, resumed: Vec<i64>, total: i64) -> SeriesChart {
        SeriesChart { title: "A < b".to_owned(), values, resumed, total }
    }

    #[test]
    fn a_long_series_keeps_its_spikes() {
        let mut values: Vec<(i64, f64)> = (0..10_000).map(|step| (step, 1.0)).collect();
        values[5_001].1 = 9.0;
        let thin = thinned(&values);
        assert!(thin.len() <= COLUMNS);
        assert!(thin.contains(&(5_001, 9.0)));
        let svg = series_svg(&chart(values, vec![500], 10_000), "l");
        assert!(svg.contains("resumed at 500") && svg.contains(">A &lt; b against step</title>"), "{svg}");
    }

    #[test]
    fn a_value_that_is_not_finite_is_a_gap() {
        let values = vec![(0, 1.0), (1, f64::NAN), (2, f64::INFINITY), (3, 2.0), (4, 1.0)];
        let svg = series_svg(&chart(values, Vec::new(), 4), "l");
        let path = svg.split(r#"<path d="M"#).last().unwrap().split('"').next().unwrap();
        assert_eq!((path.matches('M').count(), path.matches('L').count()), (1, 1), "{path}");
        assert!(!svg.contains("NaN,") && !svg.contains("inf"), "{svg}");
    }
}
