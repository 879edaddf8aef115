//! One panel of the α figure as SVG, in the page's tokens or in a paper's literal colours. The browser draws the
//! same model with the same layout numbers, so both have their marks in the same places.

use super::alpha::{AlphaFigure, EndLabel, LineKey, Panel, PanelLine, Place};
use super::identity::{Marker, identity, short};
use super::stats::SEEDS_FOR_INTERVAL;
use super::words::role_word;
use serde::Serialize;
use std::fmt::Write;

/// Sizes of a panel, in its own units; one unit is one CSS pixel at nominal width.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Layout {
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
    /// Left margin.
    pub left: f64,
    /// Right margin.
    pub right: f64,
    /// Top margin.
    pub top: f64,
    /// Bottom margin.
    pub bottom: f64,
    /// Text height.
    pub font: f64,
    /// Width of a mean's line.
    pub stroke: f64,
    /// Radius of a measured place.
    pub marker: f64,
    /// Whether lines carry labels at their ends.
    pub labels: bool,
}

/// With labels at the lines' ends.
pub const WIDE: Layout = Layout {
    width: 420.0,
    height: 236.0,
    left: 34.0,
    right: 142.0,
    top: 12.0,
    bottom: 26.0,
    font: 12.0,
    stroke: 2.0,
    marker: 3.5,
    labels: true,
};

/// Without, for narrow places; the key above the panels names the lines.
pub const NARROW: Layout = Layout { width: 330.0, height: 216.0, right: 22.0, labels: false, ..WIDE };

/// Where colours come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Palette {
    /// The page's tokens, which follow the theme.
    Tokens,
    /// Light literals: a saved file has no tokens.
    Paper,
}

impl Layout {
    /// Horizontal place of an α.
    pub fn x(&self, alpha: f64) -> f64 {
        self.left + alpha * (self.width - self.left - self.right)
    }

    /// Vertical place of a height on an axis.
    pub fn y(&self, (from, to): (f64, f64), height: f64) -> f64 {
        self.top + (to - height) / (to - from) * (self.height - self.top - self.bottom)
    }
}

impl Palette {
    /// The colour of a token such as `ink-2` or `s3`.
    pub fn colour(self, token: &str) -> String {
        if self == Palette::Tokens {
            return format!("var(--{token})");
        }
        let hex = match token {
            "ink" => "#171a20",
            "ink-2" => "#4b5362",
            "line" => "#d5dae1",
            "edge" => "#767f8d",
            "s1" => "#2b56e3",
            "s2" => "#d07618",
            "s3" => "#29896e",
            "s4" => "#81346c",
            "s5" => "#c53a49",
            "s6" => "#1996d8",
            "s7" => "#565406",
            "s8" => "#272e35",
            _ => "#ffffff",
        };
        hex.to_owned()
    }
}

/// The panel as an element for the page; `id` must be unique in it.
pub fn panel_svg(figure: &AlphaFigure, panel: &Panel, layout: &Layout, id: &str) -> String {
    let mut out = String::with_capacity(8192);
    let (width, height) = (short(layout.width), short(layout.height));
    let _ = write!(
        out,
        r#"<svg class="drawn" viewBox="0 0 {width} {height}" font-size="{}" role="img" aria-labelledby="{id}t {id}d"><title id="{id}t">{} · {}</title><desc id="{id}d">{}</desc>"#,
        short(layout.font),
        escape(&panel.title),
        role_word(panel.role),
        escape(&panel.description),
    );
    draw_panel(&mut out, figure, panel, layout, Palette::Tokens);
    out.push_str("</svg>");
    out
}

/// The panel's marks, without an element around them.
pub fn draw_panel(out: &mut String, figure: &AlphaFigure, panel: &Panel, layout: &Layout, palette: Palette) {
    draw_axes(out, panel, layout, palette);
    // Grey lines below coloured ones.
    for muted in [true, false] {
        for (at, (key, line)) in figure.lines.iter().zip(&panel.lines).enumerate() {
            if key.muted == muted {
                draw_line(out, (at, key, line), figure.band_opacity, panel, layout, palette);
            }
        }
    }
    if layout.labels {
        for label in &panel.labels {
            draw_label(out, figure, label, panel, layout, palette);
        }
    }
    if let Some(backbone) = panel.backbone {
        let y = layout.y(panel.domain, backbone - panel.offset);
        let r = layout.marker * 1.5;
        mark(
            out,
            Marker::Diamond,
            r,
            (layout.x(0.0), y),
            &palette.colour("ink"),
            &palette.colour("surface"),
            1.5,
        );
    }
}

fn draw_axes(out: &mut String, panel: &Panel, layout: &Layout, palette: Palette) {
    let (x0, x1) = (layout.x(0.0), layout.x(1.0));
    let floor = layout.height - layout.bottom;
    let third = layout.font * 0.33;
    let (ink, line, edge) = (palette.colour("ink-2"), palette.colour("line"), palette.colour("edge"));
    let _ = write!(out, r#"<g stroke="{line}" stroke-width="1">"#);
    for tick in &panel.ticks {
        let y = short(layout.y(panel.domain, *tick));
        let _ = write!(out, r#"<path d="M{},{y}H{}"/>"#, short(x0), short(x1));
    }
    let _ = write!(out, r#"</g><g fill="{ink}" text-anchor="end">"#);
    for tick in &panel.ticks {
        let y = layout.y(panel.domain, *tick) + third;
        let text = tick_text(*tick, panel.offset != 0.0);
        let _ = write!(out, r#"<text x="{}" y="{}">{text}</text>"#, short(x0 - 8.0), short(y));
    }
    let _ = write!(
        out,
        r#"</g><g stroke="{edge}" stroke-width="1"><path d="M{},{}H{}"/>"#,
        short(x0),
        short(floor),
        short(x1)
    );
    for (tick, length) in [(0.0, 4.0), (0.25, 4.0), (0.5, 7.0), (0.75, 4.0), (1.0, 4.0)] {
        let _ = write!(out, r#"<path d="M{},{}v{length}"/>"#, short(layout.x(tick)), short(floor));
    }
    let _ = write!(out, r#"</g><g fill="{ink}" text-anchor="middle">"#);
    let below = floor + layout.font + 6.0;
    for (tick, text) in [(0.0, "0"), (0.25, ".25"), (0.5, ".5"), (0.75, ".75"), (1.0, "1")] {
        let _ = write!(out, r#"<text x="{}" y="{}">{text}</text>"#, short(layout.x(tick)), short(below));
    }
    let _ = write!(
        out,
        r#"<text x="{}" y="{}" text-anchor="start" font-style="italic">α</text></g>"#,
        short(x1 + layout.font * 0.8),
        short(below)
    );
    if let Some(chance) = panel.chance {
        let y = short(layout.y(panel.domain, chance));
        let _ = write!(
            out,
            r#"<path d="M{},{y}H{}" stroke="{edge}" stroke-dasharray="1 3"/><text x="{}" y="{y}" dy="-3" fill="{ink}">chance</text>"#,
            short(x0),
            short(x1),
            short(x0 + 6.0)
        );
    }
    if let Some(backbone) = panel.backbone {
        let y = short(layout.y(panel.domain, backbone - panel.offset));
        let _ = write!(
            out,
            r#"<path class="rule" d="M{},{y}H{}" stroke="{ink}" stroke-dasharray="3 3"/>"#,
            short(x0),
            short(x1)
        );
    }
}

fn draw_line(
    out: &mut String,
    (at, key, line): (usize, &LineKey, &PanelLine),
    band_opacity: f64,
    panel: &Panel,
    layout: &Layout,
    palette: Palette,
) {
    let colour =
        if key.muted { palette.colour("ink-2") } else { palette.colour(&format!("s{}", key.look.slot)) };
    let at_place = |alpha: f64, accuracy: f64| {
        format!("{},{}", short(layout.x(alpha)), short(layout.y(panel.domain, accuracy - panel.offset)))
    };
    let _ = write!(out, r#"<g data-line="{at}"{}>"#, if key.muted { r#" opacity="0.4""# } else { "" });
    let banded: Vec<(&Place, (f64, f64))> = line
        .points
        .iter()
        .filter(|p| p.n == 0 || p.n >= SEEDS_FOR_INTERVAL)
        .map(|p| (p, p.band.unwrap_or((p.mean, p.mean))))
        .collect();
    if banded.len() > 1 && !key.muted {
        let upper = banded.iter().map(|(p, band)| at_place(p.alpha, band.1));
        let lower = banded.iter().rev().map(|(p, band)| at_place(p.alpha, band.0));
        let outline: Vec<String> = upper.chain(lower).collect();
        let _ = write!(
            out,
            r#"<path d="M{}Z" fill="{colour}" fill-opacity="{band_opacity}"/>"#,
            outline.join("L")
        );
    }
    for seed in &line.seeds {
        let places: Vec<String> =
            seed.points.iter().map(|(alpha, accuracy)| at_place(*alpha, *accuracy)).collect();
        let _ = write!(
            out,
            r#"<path d="M{}" fill="none" stroke="{colour}" stroke-width="1" stroke-opacity="0.45"/>"#,
            places.join("L")
        );
    }
    if !line.points.is_empty() {
        let places: Vec<String> = line.points.iter().map(|p| at_place(p.alpha, p.mean)).collect();
        let dash = key.dash_attribute();
        let width = if key.muted { 1.0 } else { layout.stroke };
        let _ = write!(
            out,
            r#"<path class="mean" d="M{}" fill="none" stroke="{colour}" stroke-width="{}" stroke-linejoin="round"{dash}/>"#,
            places.join("L"),
            short(width)
        );
    }
    let fill = if key.look.hollow { palette.colour("surface") } else { colour.clone() };
    for place in line.points.iter().filter(|p| p.n > 0) {
        // The far end is the checkpoint itself: larger, as the backbone's diamond is at the near one.
        let r = if place.alpha == 1.0 { layout.marker * 1.4 } else { layout.marker };
        let xy = (layout.x(place.alpha), layout.y(panel.domain, place.mean - panel.offset));
        mark(
            out,
            key.look.marker,
            r,
            xy,
            &colour,
            &fill,
            if key.look.hollow || key.look.marker.is_stroked() { 1.5 } else { 0.0 },
        );
        if key.best.as_ref().is_some_and(|best| best.alpha == place.alpha && best.alpha > 0.0) {
            let _ = write!(
                out,
                r#"<circle class="best" cx="{}" cy="{}" r="{}" fill="none" stroke="{colour}" stroke-width="1.5"/>"#,
                short(xy.0),
                short(xy.1),
                short(layout.marker * 2.0)
            );
        }
    }
    out.push_str("</g>");
}

fn draw_label(
    out: &mut String,
    figure: &AlphaFigure,
    label: &EndLabel,
    panel: &Panel,
    layout: &Layout,
    palette: Palette,
) {
    let end = (layout.x(label.end.0), layout.y(panel.domain, label.end.1));
    let x = layout.x(1.0) + 24.0;
    let data = label.line.map(|line| format!(r#" data-line="{line}""#)).unwrap_or_default();
    let _ = write!(out, "<g{data}>");
    if (label.y - end.1).abs() > 6.0 || label.end.0 < 1.0 {
        let _ = write!(
            out,
            r#"<path d="M{},{}L{},{}" stroke="{}" stroke-width="0.75" fill="none"/>"#,
            short(end.0 + 6.0),
            short(end.1),
            short(x - 13.0),
            short(label.y),
            palette.colour("edge")
        );
    }
    let glyph = (x - 7.0, label.y);
    match label.line.and_then(|line| figure.lines.get(line)) {
        Some(key) => key_mark(out, key, glyph, palette),
        None => {
            mark(out, Marker::Diamond, 4.0, glyph, &palette.colour("ink"), &palette.colour("surface"), 1.25)
        }
    }
    let _ = write!(
        out,
        r#"<text x="{}" y="{}" fill="{}">{}</text></g>"#,
        short(x),
        short(label.y + layout.font * 0.35),
        palette.colour("ink"),
        escape(&label.text)
    );
}

/// The mark of a line beside its name.
pub fn key_mark(out: &mut String, key: &LineKey, xy: (f64, f64), palette: Palette) {
    let colour = palette.colour(&format!("s{}", key.look.slot));
    let fill = if key.look.hollow { palette.colour("surface") } else { colour.clone() };
    let stroke = if key.look.hollow || key.look.marker.is_stroked() { 1.5 } else { 0.0 };
    mark(out, key.look.marker, 3.5, xy, &colour, &fill, stroke);
}

/// A line's sample for the key: dash and marker; none for the backbone.
pub fn key_svg(key: Option<&LineKey>) -> String {
    let mut out =
        String::from(r#"<svg class="sample" viewBox="0 0 28 14" width="28" height="14" aria-hidden="true">"#);
    match key {
        Some(key) => {
            let dash = key.dash_attribute();
            let _ = write!(
                out,
                r#"<path d="M1,7H27" stroke="var(--s{})" stroke-width="2"{dash}/>"#,
                key.look.slot
            );
            key_mark(&mut out, key, (14.0, 7.0), Palette::Tokens);
        }
        None => {
            out.push_str(r#"<path d="M1,7H27" stroke="var(--ink-2)" stroke-dasharray="3 3"/>"#);
            mark(&mut out, Marker::Diamond, 4.5, (14.0, 7.0), "var(--ink)", "var(--surface)", 1.5);
        }
    }
    out.push_str("</svg>");
    out
}

/// A method's mark, for tables.
pub fn method_svg(method: &str) -> String {
    let look = identity(method);
    let mut out =
        String::from(r#"<svg class="sample" viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">"#);
    let colour = format!("var(--s{})", look.slot);
    let stroke = if look.hollow || look.marker.is_stroked() { 1.5 } else { 0.0 };
    let fill = if look.hollow { "var(--surface)" } else { &colour };
    mark(&mut out, look.marker, 4.5, (7.0, 7.0), &colour, fill, stroke);
    out.push_str("</svg>");
    out
}

/// One marker. Shapes made of strokes have no fill, the others no stroke unless they are hollow.
pub fn mark(
    out: &mut String,
    marker: Marker,
    r: f64,
    (x, y): (f64, f64),
    colour: &str,
    fill: &str,
    stroke: f64,
) {
    let fill = if marker.is_stroked() { "none" } else { fill };
    let stroked = if stroke > 0.0 {
        format!(r#" stroke="{colour}" stroke-width="{}""#, short(stroke))
    } else {
        String::new()
    };
    let (x, y) = (short(x), short(y));
    if marker == Marker::Circle {
        let _ = write!(out, r#"<circle cx="{x}" cy="{y}" r="{}" fill="{fill}"{stroked}/>"#, short(r));
    } else {
        let _ = write!(
            out,
            r#"<path transform="translate({x},{y})" d="{}" fill="{fill}"{stroked}/>"#,
            marker.path(r)
        );
    }
}

fn tick_text(tick: f64, difference: bool) -> String {
    let text = short(tick.abs());
    match (difference, tick) {
        (_, t) if t < 0.0 => format!("\u{2212}{text}"),
        (true, t) if t > 0.0 => format!("+{text}"),
        _ => text,
    }
}

/// Text for SVG and HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
