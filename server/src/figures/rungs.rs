//! The trials of a search as SVG: what each was worth at each rung that it reached, and where it was stopped. Without
//! rungs, what each was worth, in the order of the trials.

use super::identity::{Marker, short};
use super::scale::{nice_axis, ticks};
use std::fmt::Write;

/// What is drawn.
#[derive(Clone, Debug, Default)]
pub struct RungChart {
    /// Training steps of each rung; empty without rungs.
    pub steps: Vec<u64>,
    /// The trials that have a value.
    pub lines: Vec<RungLine>,
    /// Trials in all.
    pub trials: usize,
    /// What the vertical axis shows.
    pub objective: String,
}

/// A trial.
#[derive(Clone, Debug)]
pub struct RungLine {
    /// Its number, from 1.
    pub trial: i32,
    /// Rung, from 0, and value there.
    pub values: Vec<(usize, f64)>,
    /// What became of it.
    pub end: TrialEnd,
    /// Whether it is the best one.
    pub best: bool,
}

/// What became of a trial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrialEnd {
    /// It is on its way.
    Open,
    /// It did not go on, or failed.
    Stopped,
    /// It went all the way.
    Finished,
}

/// Sizes of the chart in its own units.
struct Frame {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
}

const WIDE: Frame = Frame { width: 860.0, height: 300.0, left: 60.0, right: 84.0 };
const NARROW: Frame = Frame { width: 340.0, height: 260.0, left: 52.0, right: 16.0 };
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;
/// Values further beyond the middle half than so many times its height are drawn at the frame: one diverged trial would
/// press all others into a line.
const FENCE: f64 = 3.0;

/// The chart, wide or for narrow places; `id` must be unique in the page.
pub fn rungs_svg(chart: &RungChart, narrow: bool, id: &str) -> String {
    let frame = if narrow { NARROW } else { WIDE };
    let (width, height) = (short(frame.width), short(frame.height));
    let (lo, hi, step, beyond) = scale(chart);
    let y = |value: f64| TOP + (hi - value.clamp(lo, hi)) / (hi - lo) * (frame.height - TOP - BOTTOM);
    let places = if chart.steps.is_empty() { chart.trials.max(1) } else { chart.steps.len() };
    let inner = frame.width - frame.left - frame.right;
    let x = |at: usize| frame.left + inner * (at as f64 + 0.5) / places as f64;
    let mut out = format!(
        r#"<svg class="drawn" viewBox="0 0 {width} {height}" font-size="12" role="img" aria-labelledby="{id}t {id}d"><title id="{id}t">{}</title><desc id="{id}d">{}</desc>"#,
        super::escape(&format!(
            "{} of each trial{}",
            chart.objective,
            if chart.steps.is_empty() { "" } else { " at each rung" }
        )),
        super::escape(&describe(chart, beyond)),
    );
    for tick in ticks(lo, hi, step) {
        let at = y(tick);
        let _ = write!(
            out,
            r#"<path d="M{},{h}H{}" stroke="var(--line)"/><text x="{}" y="{}" text-anchor="end" fill="var(--ink-2)">{}</text>"#,
            short(frame.left),
            short(frame.width - frame.right),
            short(frame.left - 8.0),
            short(at + 4.0),
            tick_text(tick, step),
            h = short(at)
        );
    }
    draw_places(&mut out, chart, &frame, places, &x);
    // The best one last, so that it lies above the others.
    for best in [false, true] {
        for line in chart.lines.iter().filter(|line| line.best == best) {
            draw_line(&mut out, chart, &frame, line, narrow, &x, &y);
        }
    }
    out.push_str("</svg>");
    out
}

/// What stands below: rungs with their steps, or numbers of trials.
fn draw_places(out: &mut String, chart: &RungChart, frame: &Frame, places: usize, x: &impl Fn(usize) -> f64) {
    let floor = frame.height - BOTTOM;
    // As many names as fit without touching.
    let every = places.div_ceil(if frame.width < 400.0 { 6 } else { 14 }).max(1);
    for at in (0..places).filter(|at| at.is_multiple_of(every)) {
        let text = chart.steps.get(at).map_or((at + 1).to_string(), u64::to_string);
        let place = short(x(at));
        if !chart.steps.is_empty() {
            let _ = write!(out, r#"<path d="M{place},{TOP}V{}" stroke="var(--line)"/>"#, short(floor));
        }
        let _ = write!(
            out,
            r#"<text x="{place}" y="{}" text-anchor="middle" fill="var(--ink-2)">{text}</text>"#,
            short(floor + 17.0)
        );
    }
    let _ = write!(
        out,
        r#"<text x="{}" y="{}" text-anchor="middle" fill="var(--ink-2)">{}</text>"#,
        short(f64::midpoint(frame.left, frame.width - frame.right)),
        short(frame.height - 8.0),
        if chart.steps.is_empty() { "trial" } else { "training steps at the rung" }
    );
}

fn draw_line(
    out: &mut String,
    chart: &RungChart,
    frame: &Frame,
    line: &RungLine,
    narrow: bool,
    x: &impl Fn(usize) -> f64,
    y: &impl Fn(f64) -> f64,
) {
    let place = |(rung, value): &(usize, f64)| {
        let at = if chart.steps.is_empty() { usize::try_from(line.trial - 1).unwrap_or(0) } else { *rung };
        (x(at), y(*value))
    };
    let places: Vec<(f64, f64)> =
        line.values.iter().filter(|(_, value)| value.is_finite()).map(place).collect();
    let Some(last) = places.last() else { return };
    let (colour, opacity) =
        if line.best { ("var(--accent)", "") } else { ("var(--ink-2)", r#" opacity="0.55""#) };
    let _ = write!(out, r#"<g data-trial="{}"{opacity}>"#, line.trial);
    if places.len() > 1 {
        let path: Vec<String> = places.iter().map(|(x, y)| format!("{},{}", short(*x), short(*y))).collect();
        let _ = write!(
            out,
            r#"<path d="M{}" fill="none" stroke="{colour}" stroke-width="{}" stroke-linejoin="round"/>"#,
            path.join("L"),
            if line.best { "2.5" } else { "1.25" }
        );
    }
    for (x, y) in &places[..places.len() - 1] {
        let _ = write!(out, r#"<circle cx="{}" cy="{}" r="2.5" fill="{colour}"/>"#, short(*x), short(*y));
    }
    end_mark(out, line.end, *last, colour);
    out.push_str("</g>");
    if line.best {
        let beside = !narrow && last.0 + 90.0 < frame.width;
        let (dx, dy, anchor) = if beside { (10.0, 4.0, "start") } else { (0.0, -10.0, "middle") };
        let _ = write!(
            out,
            r#"<text x="{}" y="{}" text-anchor="{anchor}" fill="var(--ink)" stroke="var(--surface)" stroke-width="4" paint-order="stroke">trial {}</text>"#,
            short(last.0 + dx),
            short((last.1 + dy).max(12.0)),
            line.trial
        );
    }
}

/// A cross where it was stopped, a disc where it went all the way, a ring while it is on its way.
pub(super) fn end_mark(out: &mut String, end: TrialEnd, (x, y): (f64, f64), colour: &str) {
    let (marker, attributes) = match end {
        TrialEnd::Stopped => (Marker::Times, format!(r#"fill="none" stroke="{colour}" stroke-width="1.75""#)),
        TrialEnd::Finished => (Marker::Circle, format!(r#"fill="{colour}""#)),
        TrialEnd::Open => {
            (Marker::Circle, format!(r#"fill="var(--surface)" stroke="{colour}" stroke-width="1.75""#))
        }
    };
    let _ = write!(
        out,
        r#"<path transform="translate({},{})" d="{}" {attributes}/>"#,
        short(x),
        short(y),
        marker.path(4.0)
    );
}

/// A sample of a mark, for the key below the chart.
pub fn rung_key_svg(end: TrialEnd) -> String {
    let mut out =
        String::from(r#"<svg class="sample" viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">"#);
    end_mark(&mut out, end, (7.0, 7.0), "var(--ink-2)");
    out.push_str("</svg>");
    out
}

/// The vertical scale (from, to, step) and how many trials lie beyond it.
fn scale(chart: &RungChart) -> (f64, f64, f64, usize) {
    let values = chart.lines.iter().flat_map(|line| line.values.iter().map(|(_, value)| *value));
    let (lo, hi, step) = fenced_axis(values);
    let outside = |line: &&RungLine| line.values.iter().any(|(_, value)| *value < lo || *value > hi);
    (lo, hi, step, chart.lines.iter().filter(outside).count())
}

/// An axis (from, to, step) for values of which a few may lie far away.
pub(super) fn fenced_axis(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let (Some(first), Some(last)) = (values.first(), values.last()) else { return (0.0, 1.0, 0.25) };
    let quarter = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    let (low, high) = (quarter(0.25), quarter(0.75));
    let room = FENCE * (high - low);
    let fenced = values.len() >= 4 && room > 0.0;
    let (from, to) = if fenced { (first.max(low - room), last.min(high + room)) } else { (*first, *last) };
    let (lo, hi, step) = nice_axis(from, to);
    if hi > lo { (lo, hi, step) } else { (lo - step, hi + step, step) }
}

/// A tick's number with as many decimals as its step needs.
pub(super) fn tick_text(tick: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{tick:.decimals$}").replace('-', "\u{2212}")
}

fn describe(chart: &RungChart, beyond: usize) -> String {
    let count = |end: TrialEnd| chart.lines.iter().filter(|line| line.end == end).count();
    let mut text = format!(
        "{} of {} trials have a value: {} went all the way, {} were stopped, {} are on their way.",
        chart.lines.len(),
        chart.trials,
        count(TrialEnd::Finished),
        count(TrialEnd::Stopped),
        count(TrialEnd::Open)
    );
    if let Some((line, (_, value))) =
        chart.lines.iter().find(|line| line.best).and_then(|line| Some((line, line.values.last()?)))
    {
        let _ = write!(text, " The best is trial {} with {}.", line.trial, short(*value));
    }
    if beyond > 0 {
        let _ = write!(text, " {beyond} lie beyond the frame and are drawn at its edge.");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(trial: i32, values: &[f64], end: TrialEnd, best: bool) -> RungLine {
        RungLine { trial, values: values.iter().copied().enumerate().collect(), end, best }
    }

    fn chart() -> RungChart {
        RungChart {
            steps: vec![5, 10, 20],
            lines: vec![
                line(1, &[3.0, 2.5, 2.0], TrialEnd::Finished, true),
                line(2, &[4.0], TrialEnd::Stopped, false),
                line(3, &[3.5, 3.0], TrialEnd::Open, false),
            ],
            trials: 4,
            objective: "loss (last value)".to_owned(),
        }
    }

    #[test]
    fn each_trial_is_drawn_up_to_where_it_got_and_marked_by_what_became_of_it() {
        let svg = rungs_svg(&chart(), false, "r");
        // Three rungs share 716 units from 60: their middles are at 179.33, 418 and 656.67. 2 to 4 in steps of 0.5.
        assert!(svg.contains(r#"<g data-trial="1"><path d="M179.33,135L418,195.5L656.67,256""#), "{svg}");
        let stopped = &svg[svg.find(r#"data-trial="2""#).unwrap()..];
        let mark = format!(r#"<path transform="translate(179.33,14)" d="{}""#, Marker::Times.path(4.0));
        assert!(stopped.contains(&mark), "{stopped}");
        assert!(svg.contains(
            "3 of 4 trials have a value: 1 went all the way, 1 were stopped, 1 are on their way. \
             The best is trial 1 with 2."
        ));
        assert!(svg.find(r#"data-trial="3""#) < svg.find(r#"data-trial="1""#), "the best lies above");
    }

    #[test]
    fn one_diverged_trial_does_not_press_the_others_flat() {
        let mut lines: Vec<RungLine> =
            (1..=8).map(|trial| line(trial, &[f64::from(trial)], TrialEnd::Finished, false)).collect();
        lines.push(line(9, &[1e9], TrialEnd::Finished, false));
        lines.push(line(10, &[f64::NAN], TrialEnd::Finished, false));
        let chart = RungChart { steps: Vec::new(), lines, trials: 10, objective: "loss".to_owned() };
        let (lo, hi, _, beyond) = scale(&chart);
        assert!(lo >= 0.0 && hi <= 30.0, "{lo} to {hi}");
        assert_eq!(beyond, 1);
        let svg = rungs_svg(&chart, true, "r");
        assert!(svg.contains("1 lie beyond the frame"));
        assert!(!svg.contains(r#"data-trial="10""#), "NaN has no place");
    }

    #[test]
    fn nothing_and_equal_values_have_a_frame() {
        assert_eq!(scale(&RungChart::default()).0, 0.0);
        let lines = vec![line(1, &[0.0], TrialEnd::Open, true)];
        let same = RungChart { lines, trials: 1, ..RungChart::default() };
        assert!(scale(&same).1 > scale(&same).0);
        assert!(rungs_svg(&same, false, "r").contains("trial 1"));
    }
}
