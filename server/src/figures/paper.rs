//! The figure as a file for a paper: light literals, text as text, one caption that says what a reader must know.

use super::alpha::AlphaFigure;
use super::identity::{Marker, short};
use super::panel::{Layout, Palette, draw_panel, escape, key_mark, mark};
use super::words::role_word;
use std::fmt::Write;

/// What stands under a saved figure.
#[derive(Clone, Debug)]
pub struct PaperCaption {
    /// Experiment, protocol, number of seeds, date, address: sentences in order.
    pub sentences: Vec<String>,
}

/// Points per millimetre.
const POINT: f64 = 72.0 / 25.4;
/// Space between panels, points.
const GAP: f64 = 10.0;
/// Text height, points.
const FONT: f64 = 8.0;

/// The figure, `millimetres` wide: one panel a row in a column of text, three across a page.
pub fn paper_svg(figure: &AlphaFigure, caption: &PaperCaption, millimetres: f64) -> String {
    let width = millimetres * POINT;
    let columns = if millimetres < 120.0 { 1 } else { figure.panels.len().clamp(1, 3) };
    let cell = (width - GAP * (columns as f64 - 1.0)) / columns as f64;
    let layout = Layout {
        width: cell,
        height: (cell * 0.72).clamp(110.0, 170.0),
        left: 26.0,
        right: 16.0,
        top: 8.0,
        bottom: 20.0,
        font: FONT,
        stroke: 1.2,
        marker: 2.2,
        labels: false,
    };
    let head = FONT * 1.6;
    let mut body = String::with_capacity(32_768);
    let mut y = draw_key(&mut body, figure, width);
    for (row, panels) in figure.panels.chunks(columns).enumerate() {
        for (column, panel) in panels.iter().enumerate() {
            let x = column as f64 * (cell + GAP);
            let _ = write!(
                body,
                r##"<text x="{}" y="{}" font-weight="600" fill="#171a20">{} · {}</text><g transform="translate({},{})">"##,
                short(x),
                short(y + FONT),
                escape(&panel.title),
                role_word(panel.role),
                short(x),
                short(y + head)
            );
            draw_panel(&mut body, figure, panel, &layout, Palette::Paper);
            body.push_str("</g>");
        }
        y += head + layout.height + if row + 1 < figure.panels.len().div_ceil(columns) { GAP } else { 4.0 };
    }
    for line in wrapped(&caption.sentences.join(" "), (width / (FONT * 0.56)) as usize) {
        y += FONT * 1.35;
        let _ = write!(body, r##"<text x="0" y="{}" fill="#4b5362">{}</text>"##, short(y), escape(&line));
    }
    let height = y + 4.0;
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="{w}pt" height="{h}pt" viewBox="0 0 {w} {h}" font-family="Helvetica, Arial, sans-serif" font-size="{FONT}">{body}</svg>
"#,
        w = short(width),
        h = short(height),
    )
}

/// The key above the panels; returns where it ends.
fn draw_key(out: &mut String, figure: &AlphaFigure, width: f64) -> f64 {
    let (mut x, mut y) = (0.0, FONT);
    let names = std::iter::once((None, "backbone".to_owned()))
        .chain(figure.lines.iter().map(|key| (Some(key), format!("{} ({})", key.label, key.seeds))));
    for (key, name) in names {
        let needs = 24.0 + name.chars().count() as f64 * FONT * 0.52;
        if x > 0.0 && x + needs > width {
            (x, y) = (0.0, y + FONT * 1.6);
        }
        let middle = (x + 8.0, y - FONT * 0.33);
        match key {
            Some(key) => {
                let colour = Palette::Paper.colour(&format!("s{}", key.look.slot));
                let dash = key.dash_attribute();
                let _ = write!(
                    out,
                    r#"<path d="M{},{}h16" stroke="{colour}" stroke-width="1.2"{dash}/>"#,
                    short(x),
                    short(middle.1)
                );
                key_mark(out, key, middle, Palette::Paper);
            }
            None => mark(out, Marker::Diamond, 3.5, middle, "#171a20", "#ffffff", 1.2),
        }
        let _ = write!(
            out,
            r##"<text x="{}" y="{}" fill="#171a20">{}</text>"##,
            short(x + 20.0),
            short(y),
            escape(&name)
        );
        x += needs + 10.0;
    }
    y + FONT
}

/// Lines of at most `width` characters, broken at spaces.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
