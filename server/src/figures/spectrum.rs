//! ww_alpha of each layer in the order in which an image passes them, and along the line. weightwatcher's good range is a
//! band; θ0 is the hollow diamond of every figure, each θ1 its method's marker.

use super::identity::{Identity, Marker, short};
use super::panel::escape;
use causeway_protocol::TailStatus;
use std::fmt::Write;

/// Exponents above this are drawn at the upper edge, with an arrow: what far off they are says nothing more.
pub const TOP: f64 = 12.0;
/// The least exponent that a maximum-likelihood fit can give.
const BOTTOM: f64 = 1.0;

/// A layer's place on the axis.
#[derive(Clone, Debug)]
pub struct SpectrumLayer {
    /// The tensor.
    pub name: String,
    /// Its block; none before and behind the blocks.
    pub block: Option<u32>,
}

/// The exponents of one set of weights.
#[derive(Clone, Debug)]
pub struct SpectrumSeries {
    /// What it is: "backbone", "A · lora-s1".
    pub label: String,
    /// How its marks look; none is the backbone.
    pub identity: Option<Identity>,
    /// One for each layer; none where nothing was fitted, or where it is the backbone's.
    pub values: Vec<Option<f64>>,
}

/// Everything the figure shows.
#[derive(Clone, Debug)]
pub struct SpectrumFigure {
    /// The layers in depth order.
    pub layers: Vec<SpectrumLayer>,
    /// The backbone first.
    pub series: Vec<SpectrumSeries>,
}

/// Sizes, in the figure's own units.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    width: f64,
    height: f64,
    marker: f64,
}

/// For the main column.
pub const SPECTRUM_WIDE: Size = Size { width: 760.0, height: 274.0, marker: 4.0 };
/// For narrow places.
pub const SPECTRUM_NARROW: Size = Size { width: 340.0, height: 234.0, marker: 2.6 };

const LEFT: f64 = 30.0;
const RIGHT: f64 = 10.0;
/// Room for the axis' name, and under it for arrows.
const UPPER: f64 = 34.0;
const LOWER: f64 = 34.0;

/// Where things are.
struct Plane {
    size: Size,
    top: f64,
}

impl Plane {
    fn new(size: Size, values: impl Iterator<Item = f64>) -> Plane {
        // The whole range is always in sight.
        let highest = values.fold(TailStatus::HIGH + 1.0, f64::max);
        Plane { size, top: highest.ceil().min(TOP) }
    }

    fn y(&self, value: f64) -> f64 {
        let height = self.size.height - UPPER - LOWER;
        UPPER + (self.top - value.clamp(BOTTOM, self.top)) / (self.top - BOTTOM) * height
    }

    /// `share` of the way from left to right.
    fn x(&self, share: f64) -> f64 {
        LEFT + share * (self.size.width - LEFT - RIGHT)
    }

    fn open(&self, id: &str, title: &str, description: &str) -> String {
        let Size { width, height, .. } = self.size;
        format!(
            r#"<svg class="drawn" viewBox="0 0 {} {}" font-size="12" role="img" aria-labelledby="{id}t {id}d"><title id="{id}t">{}</title><desc id="{id}d">{}</desc>"#,
            short(width),
            short(height),
            escape(title),
            escape(description)
        )
    }

    /// The good range as a band, the ticks, and what the axis is.
    fn axis(&self, out: &mut String) {
        let (left, right) = (short(self.x(0.0)), short(self.x(1.0)));
        let (high, low) = (self.y(TailStatus::HIGH), self.y(TailStatus::LOW));
        let _ = write!(
            out,
            r#"<rect x="{left}" y="{}" width="{}" height="{}" fill="var(--sunken)"/>"#,
            short(high),
            short(self.x(1.0) - self.x(0.0)),
            short(low - high)
        );
        let step = if self.top > 8.0 { 2 } else { 1 };
        for tick in (1..=self.top as i32).filter(|tick| tick % step == 0 || *tick == 1) {
            let y = self.y(f64::from(tick));
            let edge = [TailStatus::LOW, TailStatus::HIGH].contains(&f64::from(tick));
            let colour = if edge { "edge" } else { "line" };
            let _ = write!(
                out,
                r#"<path d="M{left},{y}H{right}" stroke="var(--{colour})"{dash}/><text x="{}" y="{}" text-anchor="end" fill="var(--ink-2)">{tick}</text>"#,
                short(LEFT - 8.0),
                short(y + 4.0),
                y = short(y),
                dash = if edge { r#" stroke-dasharray="3 3""# } else { "" }
            );
        }
        let _ = write!(out, r#"<text x="{left}" y="12" fill="var(--ink-2)">ww_alpha</text>"#);
    }
}

/// The figure by depth; `id` must be unique in the page.
pub fn spectrum_svg(figure: &SpectrumFigure, size: Size, id: &str) -> String {
    let all = figure.series.iter().flat_map(|series| series.values.iter().flatten().copied());
    let plane = Plane::new(size, all);
    let mut out = plane.open(id, "ww_alpha of each layer in depth order", &describe(figure));
    plane.axis(&mut out);
    let count = figure.layers.len().max(1) as f64;
    let x = |at: usize| plane.x((at as f64 + 0.5) / count);
    draw_blocks(&mut out, &figure.layers, &plane);
    for at in 0..figure.layers.len() {
        let values: Vec<f64> = figure.series.iter().filter_map(|series| series.values[at]).collect();
        let (lo, hi) =
            values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
        if values.len() > 1 {
            let (x, lo, hi) = (short(x(at)), short(plane.y(lo)), short(plane.y(hi)));
            let _ = write!(out, r#"<path d="M{x},{lo}V{hi}" stroke="var(--ink-2)"/>"#);
        }
    }
    for series in &figure.series {
        for (at, value) in series.values.iter().enumerate() {
            let Some(value) = value else { continue };
            draw_mark(&mut out, series.identity, (x(at), plane.y(*value)), size.marker);
            if *value > plane.top {
                let _ = write!(
                    out,
                    r#"<text x="{}" y="{}" text-anchor="middle" fill="var(--ink-2)">↑</text>"#,
                    short(x(at)),
                    short(UPPER - 6.0)
                );
            }
        }
    }
    out.push_str("</svg>");
    out
}

/// Block numbers under their layers, and a line between blocks.
fn draw_blocks(out: &mut String, layers: &[SpectrumLayer], plane: &Plane) {
    let count = layers.len().max(1) as f64;
    let bottom = plane.size.height - LOWER;
    let blocks: std::collections::BTreeSet<u32> = layers.iter().filter_map(|layer| layer.block).collect();
    let every = blocks.len().div_ceil(if plane.size.width > 500.0 { 24 } else { 12 }).max(1) as u32;
    for block in blocks {
        let inside: Vec<usize> = (0..layers.len()).filter(|at| layers[*at].block == Some(block)).collect();
        let (Some(first), Some(last)) = (inside.first(), inside.last()) else { continue };
        let edge = short(plane.x(*first as f64 / count));
        let _ = write!(out, r#"<path d="M{edge},{}V{}" stroke="var(--line)"/>"#, short(UPPER), short(bottom));
        if block % every == 0 {
            let middle = plane.x((*first + *last + 1) as f64 / 2.0 / count);
            let _ = write!(
                out,
                r#"<text x="{}" y="{}" text-anchor="middle" fill="var(--ink-2)">{block}</text>"#,
                short(middle),
                short(bottom + 15.0)
            );
        }
    }
    let _ = write!(
        out,
        r#"<text x="{}" y="{}" fill="var(--ink-2)">block, from first to last</text>"#,
        short(plane.x(0.0)),
        short(bottom + 30.0)
    );
}

/// A mark of a series: the hollow diamond for the backbone, else the method's.
pub fn draw_mark(out: &mut String, identity: Option<Identity>, (x, y): (f64, f64), radius: f64) {
    let (marker, stroke, fill) = match identity {
        None => (Marker::Diamond, "var(--ink)".to_owned(), "var(--surface)".to_owned()),
        Some(Identity { slot, marker, hollow }) => {
            let colour = format!("var(--s{slot})");
            let fill = match (marker.is_stroked(), hollow) {
                (true, _) => "none".to_owned(),
                (false, true) => "var(--surface)".to_owned(),
                (false, false) => colour.clone(),
            };
            (marker, colour, fill)
        }
    };
    let width = if marker.is_stroked() { 2.0 } else { 1.2 };
    let _ = write!(
        out,
        r#"<path transform="translate({},{})" d="{}" fill="{fill}" stroke="{stroke}" stroke-width="{width}"/>"#,
        short(x),
        short(y),
        marker.path(radius)
    );
}

fn describe(figure: &SpectrumFigure) -> String {
    let sentences = figure.series.iter().map(|series| {
        let values: Vec<f64> = series.values.iter().flatten().copied().collect();
        if values.is_empty() {
            return format!("{}: as the backbone.", series.label);
        }
        let within = values.iter().filter(|value| TailStatus::of(**value) == TailStatus::Within).count();
        let (lo, hi) = values.iter().fold((f64::INFINITY, 0.0_f64), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
        format!(
            "{}: {within} of {} layers from 2 to 6, the least {lo:.2}, the greatest {hi:.2}.",
            series.label,
            values.len()
        )
    });
    sentences.collect::<Vec<_>>().join(" ")
}

/// A sample of a series' mark, for the key.
pub fn spectrum_key_svg(identity: Option<Identity>) -> String {
    let mut out =
        r#"<svg class="sample" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">"#.to_owned();
    draw_mark(&mut out, identity, (8.0, 8.0), 4.5);
    out.push_str("</svg>");
    out
}

/// ww_alpha along the line: one thin line for each layer that moved, and the mean of all layers.
#[derive(Clone, Debug)]
pub struct AlongFigure {
    /// The α, ascending.
    pub alphas: Vec<f64>,
    /// Name and values of each layer that moved.
    pub layers: Vec<(String, Vec<Option<f64>>)>,
    /// Mean over all layers.
    pub mean: Vec<Option<f64>>,
    /// The run's method.
    pub identity: Identity,
}

/// The figure along the line; `id` must be unique in the page.
pub fn along_svg(figure: &AlongFigure, size: Size, id: &str) -> String {
    let all = figure.layers.iter().flat_map(|layer| layer.1.iter().flatten().copied());
    let plane = Plane::new(size, all.chain(figure.mean.iter().flatten().copied()));
    let ends = figure.mean.first().copied().flatten().zip(figure.mean.last().copied().flatten());
    let description = ends.map_or(String::new(), |(first, last)| {
        format!("The mean over all layers goes from {first:.2} to {last:.2}.")
    });
    let mut out = plane.open(id, "ww_alpha along the line from θ0 to θ1", &description);
    plane.axis(&mut out);
    for (tick, anchor) in [(0.0, "start"), (0.5, "middle"), (1.0, "end")] {
        let _ = write!(
            out,
            r#"<text x="{}" y="{}" text-anchor="{anchor}" fill="var(--ink-2)">{}{}</text>"#,
            short(plane.x(tick)),
            short(size.height - LOWER + 16.0),
            if tick == 0.0 { "α " } else { "" },
            short(tick)
        );
    }
    let path = |values: &[Option<f64>]| {
        let places = figure.alphas.iter().zip(values).filter_map(|(alpha, value)| {
            Some(format!("{},{}", short(plane.x(*alpha)), short(plane.y((*value)?))))
        });
        places.collect::<Vec<_>>()
    };
    for (name, values) in &figure.layers {
        let places = path(values);
        if places.len() > 1 {
            let _ = write!(
                out,
                r#"<path d="M{}" fill="none" stroke="var(--ink-2)" stroke-opacity=".4"><title>{}</title></path>"#,
                places.join("L"),
                escape(name)
            );
        }
    }
    let places = path(&figure.mean);
    if places.len() > 1 {
        let _ = write!(
            out,
            r#"<path d="M{}" fill="none" stroke="var(--s{})" stroke-width="2"/>"#,
            places.join("L"),
            figure.identity.slot
        );
    }
    for (at, (alpha, value)) in figure.alphas.iter().zip(&figure.mean).enumerate() {
        let identity = (at > 0 || *alpha > 0.0).then_some(figure.identity);
        value.iter().for_each(|value| draw_mark(&mut out, identity, (plane.x(*alpha), plane.y(*value)), 4.0));
    }
    out.push_str("</svg>");
    out
}

#[cfg(test)]
mod tests {
    use super::super::identity::identity;
    use super::*;

    fn figure() -> SpectrumFigure {
        let layer = |name: &str, block| SpectrumLayer { name: name.into(), block };
        SpectrumFigure {
            layers: vec![layer("patch", None), layer("qkv", Some(0)), layer("fc1", Some(0))],
            series: vec![
                SpectrumSeries {
                    label: "backbone".into(),
                    identity: None,
                    values: vec![Some(1.5), Some(3.0), Some(40.0)],
                },
                SpectrumSeries {
                    label: "lora".into(),
                    identity: Some(identity("lora")),
                    values: vec![None, Some(3.5), None],
                },
            ],
        }
    }

    #[test]
    fn each_layer_has_its_mark_and_what_is_far_off_an_arrow() {
        let svg = spectrum_svg(&figure(), SPECTRUM_WIDE, "s");
        let diamond = Marker::Diamond.path(4.0);
        assert_eq!(svg.matches(&diamond).count(), 3);
        assert_eq!(svg.matches("var(--s2)").count(), 2, "fill and edge of one square");
        assert_eq!(svg.matches('↑').count(), 1);
        assert!(
            svg.contains("backbone: 1 of 3 layers from 2 to 6, the least 1.50, the greatest 40.00."),
            "{svg}"
        );
    }

    #[test]
    fn the_good_range_is_always_in_sight() {
        let plane = Plane::new(SPECTRUM_WIDE, [2.5, 3.0].into_iter());
        assert_eq!(plane.top, 7.0);
        assert!(plane.y(6.0) > UPPER && plane.y(2.0) < SPECTRUM_WIDE.height - LOWER);
        assert_eq!(Plane::new(SPECTRUM_WIDE, [99.0].into_iter()).top, TOP);
    }

    #[test]
    fn the_line_begins_at_the_backbone() {
        let along = AlongFigure {
            alphas: vec![0.0, 0.5, 1.0],
            layers: vec![("fc1".into(), vec![Some(3.0), Some(3.2), None])],
            mean: vec![Some(3.0), Some(3.1), Some(3.3)],
            identity: identity("full"),
        };
        let svg = along_svg(&along, SPECTRUM_NARROW, "a");
        assert_eq!(svg.matches(&Marker::Diamond.path(4.0)).count(), 1);
        assert_eq!(svg.matches(&Marker::Circle.path(4.0)).count(), 2);
        assert!(svg.contains("from 3.00 to 3.30"), "{svg}");
    }
}
