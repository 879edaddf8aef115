//! The frontier: for each line, the change of the guarded mean against the change of the goal's mean as α goes from
//! the backbone to the checkpoint. One point is equally long on both axes, so that a slope is a price. The steps are
//! the Pareto front of all measured points, means over seeds, with the backbone among them: nothing that was measured
//! is better in one mean and not worse in the other. What it dominates is drawn paler.

use super::alpha::{AlphaFigure, LineKey};
use super::best::mean_delta;
use super::identity::{Marker, short};
use super::input::Queries;
use super::panel::{Palette, escape, mark};
use super::scale::{spread, ticks};
use super::words::{role_word, signed};
use std::fmt::Write;

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 68.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 44.0;
/// A corner narrower or lower than this has no room for its words.
const WORDS: (f64, f64) = (150.0, 30.0);
/// Longest name at a line's end, characters.
const NAME_MAX: usize = 14;
/// About the width of a letter.
const LETTER: f64 = 7.5;

/// A line's way through the plane.
struct Path<'a> {
    at: usize,
    key: &'a LineKey,
    /// (α, change of the guarded mean, change of the goal's mean), the backbone first.
    places: Vec<(f64, f64, f64)>,
}

/// Where points fall, in the drawing's units.
struct Scale {
    unit: f64,
    x0: f64,
    y0: f64,
}

impl Scale {
    fn x(&self, points: f64) -> f64 {
        self.x0 + points * self.unit
    }

    fn y(&self, points: f64) -> f64 {
        self.y0 - points * self.unit
    }
}

/// The picture, or none where the experiment has one role only or nothing is measured on both.
pub fn frontier_svg(figure: &AlphaFigure) -> Option<String> {
    let (goal, guard) = (figure.rule.goal, figure.rule.guard?);
    let paths: Vec<Path<'_>> = figure
        .lines
        .iter()
        .enumerate()
        .map(|(at, key)| {
            let places = figure.alphas.iter().filter_map(|alpha| {
                let mean = |role| mean_delta(&figure.panels, role, at, *alpha, Queries::All);
                Some((*alpha, mean(guard)?, mean(goal)?))
            });
            Path { at, key, places: places.collect() }
        })
        .filter(|path| path.places.len() > 1)
        .collect();
    if paths.is_empty() {
        return None;
    }
    let scale = scale(&paths);
    let measured = paths.iter().flat_map(|path| &path.places).map(|(_, x, y)| (*x, *y));
    let front = pareto(measured.chain([(0.0, 0.0)]));
    let (guard, goal) = (role_word(guard), role_word(goal));
    let mut out = format!(
        r#"<svg class="drawn" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="13" role="img" aria-labelledby="frontier-t frontier-d"><title id="frontier-t">Mean {goal} against mean {guard}</title><desc id="frontier-d">{}</desc>"#,
        escape(&describe(&paths, guard, goal))
    );
    draw_axes(&mut out, &scale, guard, goal);
    draw_front(&mut out, &front, &scale);
    let names = names(&paths, &scale);
    draw_corners(&mut out, &scale, guard, goal, &names);
    for path in &paths {
        draw_path(&mut out, path, &front, &scale, guard, goal);
    }
    draw_names(&mut out, &names);
    mark(&mut out, Marker::Diamond, 5.5, (scale.x0, scale.y0), "var(--ink)", "var(--surface)", 1.5);
    out.push_str("</svg>");
    Some(out)
}

/// The points that no other beats in one coordinate without losing in the other, by ascending x.
fn pareto(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut all: Vec<(f64, f64)> = points.collect();
    // From the right: what comes later is worse in x, so it must be better in y.
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
    let mut front: Vec<(f64, f64)> = Vec::new();
    for point in all {
        if front.last().is_none_or(|last| point.1 > last.1) {
            front.push(point);
        }
    }
    front.reverse();
    front
}

/// Whether some measured point is at least as good in both and better in one.
fn is_dominated((x, y): (f64, f64), front: &[(f64, f64)]) -> bool {
    front.iter().any(|better| better.0 >= x && better.1 >= y && (better.0 > x || better.1 > y))
}

/// Steps from the left edge to the floor: below and left of them is what some measured point has or betters.
fn draw_front(out: &mut String, front: &[(f64, f64)], scale: &Scale) {
    let Some(first) = front.first() else { return };
    let _ = write!(
        out,
        r#"<path class="pareto" d="M{LEFT},{}H{}"#,
        short(scale.y(first.1)),
        short(scale.x(first.0))
    );
    for (x, y) in front.iter().skip(1) {
        let _ = write!(out, "V{}H{}", short(scale.y(*y)), short(scale.x(*x)));
    }
    let _ =
        write!(out, r#"V{}" fill="none" stroke="var(--edge)" stroke-width="1.5"/>"#, short(HEIGHT - BOTTOM));
}

fn scale(paths: &[Path<'_>]) -> Scale {
    let extent = |of: fn(&(f64, f64, f64)) -> f64| {
        let all = paths.iter().flat_map(|path| &path.places).map(of);
        let (lo, hi) = all.fold((0.0_f64, 0.0_f64), |(lo, hi), v| (lo.min(v), hi.max(v)));
        // Some of every direction is always in view: "lost nothing" is an answer, too.
        (lo.min(-1.0) * 1.08, hi.max(1.0) * 1.08)
    };
    let (x, y) = (extent(|place| place.1), extent(|place| place.2));
    let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let unit = (width / (x.1 - x.0)).min(height / (y.1 - y.0));
    Scale {
        unit,
        x0: LEFT + (width - (x.1 - x.0) * unit) / 2.0 - x.0 * unit,
        y0: TOP + (height - (y.1 - y.0) * unit) / 2.0 + y.1 * unit,
    }
}

fn draw_axes(out: &mut String, scale: &Scale, guard: &str, goal: &str) {
    let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let step = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0].into_iter().find(|s| s * scale.unit >= 40.0).unwrap_or(50.0);
    let within = |from: f64, to: f64| ticks((from / step).ceil() * step, (to / step).floor() * step, step);
    let (x_from, x_to) = ((LEFT - scale.x0) / scale.unit, (right - scale.x0) / scale.unit);
    let (y_from, y_to) = ((scale.y0 - floor) / scale.unit, (scale.y0 - TOP) / scale.unit);
    let text = |tick: f64| if step < 1.0 { signed(tick) } else { signed(tick).replace(".0", "") };
    for tick in within(x_from, x_to) {
        let x = short(scale.x(tick));
        let _ = write!(
            out,
            r#"<path d="M{x},{TOP}V{floor}" stroke="var(--line)"/><text x="{x}" y="{}" text-anchor="middle" fill="var(--ink-2)">{}</text>"#,
            floor + 18.0,
            text(tick)
        );
    }
    for tick in within(y_from, y_to) {
        let y = scale.y(tick);
        let _ = write!(
            out,
            r#"<path d="M{LEFT},{y}H{right}" stroke="var(--line)"/><text x="{}" y="{}" text-anchor="end" fill="var(--ink-2)">{}</text>"#,
            LEFT - 8.0,
            short(y + 4.0),
            text(tick),
            y = short(y)
        );
    }
    let _ = write!(
        out,
        r#"<g stroke="var(--ink-2)" stroke-dasharray="3 3"><path d="M{x},{TOP}V{floor}"/><path d="M{LEFT},{y}H{right}"/></g><text x="{right}" y="{}" text-anchor="end" fill="var(--ink-2)">mean {guard} →</text><text x="{LEFT}" y="14" fill="var(--ink-2)">↑ mean {goal}</text>"#,
        floor + 36.0,
        x = short(scale.x0),
        y = short(scale.y0)
    );
}

/// What each corner means, in words, where there is room beside the names.
fn draw_corners(out: &mut String, scale: &Scale, guard: &str, goal: &str, names: &[Name]) {
    let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let both = |verb: &str| format!("{verb} both");
    let split = |gains: &str, loses: &str| format!("gains {gains}, loses {loses}");
    let corners = [
        (right - 6.0, TOP + 16.0, "end", both("gains"), right - scale.x0, scale.y0 - TOP),
        (LEFT + 6.0, TOP + 16.0, "start", split(goal, guard), scale.x0 - LEFT, scale.y0 - TOP),
        (right - 6.0, floor - 8.0, "end", split(guard, goal), right - scale.x0, floor - scale.y0),
        (LEFT + 6.0, floor - 8.0, "start", both("loses"), scale.x0 - LEFT, floor - scale.y0),
    ];
    for (x, y, anchor, words, width, height) in corners {
        let from = if anchor == "end" { x - WORDS.0 } else { x };
        let covers = |name: &Name| {
            let reach = name.x + LETTER * name.text.chars().count() as f64;
            (name.y - y).abs() < 16.0 && name.x < from + WORDS.0 && from < reach
        };
        if width >= WORDS.0 && height >= WORDS.1 && !names.iter().any(covers) {
            let _ = write!(
                out,
                r#"<text x="{x}" y="{y}" text-anchor="{anchor}" fill="var(--ink-2)" font-style="italic">{words}</text>"#
            );
        }
    }
}

fn draw_path(
    out: &mut String,
    path: &Path<'_>,
    front: &[(f64, f64)],
    scale: &Scale,
    guard: &str,
    goal: &str,
) {
    let key = path.key;
    let colour = if key.muted { "var(--ink-2)".to_owned() } else { format!("var(--s{})", key.look.slot) };
    let fill = if key.look.hollow { "var(--surface)" } else { &colour };
    let stroke = if key.look.hollow || key.look.marker.is_stroked() { 1.5 } else { 0.0 };
    let dash = key.dash_attribute();
    let corners: Vec<String> = path
        .places
        .iter()
        .map(|(_, x, y)| format!("{},{}", short(scale.x(*x)), short(scale.y(*y))))
        .collect();
    let _ = write!(
        out,
        r#"<g data-line="{}"{}><path d="M{}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"{dash}/>"#,
        path.at,
        if key.muted { r#" opacity="0.4""# } else { "" },
        corners.join("L")
    );
    for (alpha, x, y) in path.places.iter().filter(|(alpha, ..)| *alpha > 0.0) {
        let _ = write!(
            out,
            "<g{}><title>{}, α {alpha}: {guard} {}, {goal} {}</title>",
            if is_dominated((*x, *y), front) { r#" opacity="0.45""# } else { "" },
            escape(&key.label),
            signed(*x),
            signed(*y)
        );
        let xy = (scale.x(*x), scale.y(*y));
        mark(out, key.look.marker, if *alpha == 1.0 { 5.0 } else { 3.5 }, xy, &colour, fill, stroke);
        if key.best.as_ref().is_some_and(|best| best.alpha == *alpha) {
            let (x, y) = (short(xy.0), short(xy.1));
            let _ = write!(
                out,
                r#"<circle cx="{x}" cy="{y}" r="7" fill="none" stroke="{colour}" stroke-width="1.5"/>"#
            );
        }
        out.push_str("</g>");
    }
    out.push_str("</g>");
}

/// A line's name at its far end.
struct Name {
    text: String,
    x: f64,
    y: f64,
}

/// Names at the far ends, kept apart; long ones are cut, and the key has them whole.
fn names(paths: &[Path<'_>], scale: &Scale) -> Vec<Name> {
    let named = paths.iter().filter(|path| !path.key.muted);
    let ended: Vec<(&Path<'_>, f64, f64)> = named
        .filter_map(|path| path.places.last().map(|(_, x, y)| (path, scale.x(*x), scale.y(*y))))
        .collect();
    let wanted: Vec<f64> = ended.iter().map(|end| end.2).collect();
    let placed = spread(&wanted, 15.0, TOP + 16.0, HEIGHT - BOTTOM - 4.0);
    let name = |((path, x, _), y): (&(&Path<'_>, f64, f64), f64)| {
        let name = if path.key.short.is_empty() { &path.key.label } else { &path.key.short };
        let text = match name.chars().count() {
            ..=NAME_MAX => name.clone(),
            _ => name.chars().take(NAME_MAX - 1).chain(['…']).collect(),
        };
        Name { text, x: x + 10.0, y: y + 4.0 }
    };
    ended.iter().zip(placed).map(name).collect()
}

fn draw_names(out: &mut String, names: &[Name]) {
    for Name { text, x, y } in names {
        let _ = write!(
            out,
            r#"<text x="{}" y="{}" fill="{}" stroke="var(--surface)" stroke-width="4" stroke-linejoin="round" paint-order="stroke">{}</text>"#,
            short(*x),
            short(*y),
            Palette::Tokens.colour("ink"),
            escape(text)
        );
    }
}

fn describe(paths: &[Path<'_>], guard: &str, goal: &str) -> String {
    let ends = paths.iter().filter_map(|path| {
        let (alpha, x, y) = path.places.last()?;
        Some(format!(
            "{} ends at α {alpha} with {guard} {} and {goal} {}",
            path.key.label,
            signed(*x),
            signed(*y)
        ))
    });
    format!("Changes against the backbone, points. {}.", ends.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_what_nothing_measured_betters() {
        let points = [(0.0, 0.0), (-1.0, 3.0), (1.0, 1.0), (-2.0, 3.0), (0.5, 0.5), (1.0, 0.2)];
        let front = pareto(points.into_iter());
        assert_eq!(front, [(-1.0, 3.0), (1.0, 1.0)]);
        assert!(is_dominated((0.0, 0.0), &front) && is_dominated((-2.0, 3.0), &front));
        assert!(!is_dominated((1.0, 1.0), &front));
    }
}
