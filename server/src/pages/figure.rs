//! The figure as a page shows it: panels drawn, key and readout in words, the model for the browser.

use super::{
    format::escape_json,
    numbers::{self, stamp_letter},
    protocols,
};
use crate::{
    figures::{
        self, AlphaFigure, Chosen, FigureOptions, LineKey, NARROW, Place, View, WIDE,
        stats::{SEEDS_FOR_INTERVAL, band_name},
    },
    measured::Measured,
};
use causeway_protocol::Protocol;
use serde::Serialize;

/// The figure as the template shows it.
#[derive(Debug)]
pub struct FigureView {
    /// The computed figure.
    pub figure: AlphaFigure,
    /// Its panels, drawn for wide and for narrow places.
    pub panels: Vec<PanelView>,
    /// The key, which is also the readout: the backbone's row, then one per line.
    pub rows: Vec<KeyRow>,
    /// The model for the browser, safe inside a script element.
    pub model: String,
    /// Sentences under the figure.
    pub caption: Vec<String>,
    /// The same numbers as tables.
    pub tables: Vec<numbers::Numbers>,
    /// What each line says over all datasets: heads of the columns, rows, and what the column of robustness is.
    pub lines: (Vec<String>, Vec<numbers::LineNumbers>, Option<&'static str>),
    /// What the tables' small numbers and marks are.
    pub notes: Vec<String>,
}

/// A panel of the figure.
#[derive(Debug)]
pub struct PanelView {
    /// Title of the dataset.
    pub title: String,
    /// Its role.
    pub role: &'static str,
    /// "264 images".
    pub queries: String,
    /// SVG with labels at the lines' ends.
    pub wide: String,
    /// SVG without.
    pub narrow: String,
}

/// A row of the key.
#[derive(Debug)]
pub struct KeyRow {
    /// Index of the line; none for the backbone.
    pub line: Option<usize>,
    /// Sample of the line.
    pub sample: String,
    /// Name.
    pub name: String,
    /// "2 seeds · best α 0.4".
    pub note: String,
    /// One per dataset: what is at the end of the line.
    pub cells: Vec<Option<Cell>>,
}

/// A value of the readout.
#[derive(Debug)]
pub struct Cell {
    /// Accuracy, percent.
    pub value: String,
    /// Difference from the backbone, points.
    pub delta: String,
    /// `gain`, `loss` or nothing.
    pub tone: &'static str,
    /// Range, interval or nothing, in words.
    pub band: String,
}

impl FigureView {
    /// Draws the figure. None while nothing at all is measured.
    pub fn new(measured: &Measured, options: FigureOptions, protocol: &Protocol) -> Option<FigureView> {
        if measured.input.backbone.iter().all(Option::is_none) {
            return None;
        }
        let figure = figures::alpha_figure(&measured.input, options);
        let panels = figure.panels.iter().enumerate().map(|(at, panel)| PanelView {
            title: panel.title.clone(),
            role: figures::role_word(panel.role),
            queries: super::format::plural(i64::from(panel.queries), "image"),
            wide: figures::panel_svg(&figure, panel, &WIDE, &format!("w{at}")),
            narrow: figures::panel_svg(&figure, panel, &NARROW, &format!("n{at}")),
        });
        #[derive(Serialize)]
        struct Model<'a> {
            #[serde(flatten)]
            figure: &'a AlphaFigure,
            wide: figures::Layout,
            narrow: figures::Layout,
        }
        let model = Model { figure: &figure, wide: WIDE, narrow: NARROW };
        let model = serde_json::to_value(&model).map(round).unwrap_or_default();
        Some(FigureView {
            panels: panels.collect(),
            rows: key_rows(&figure),
            model: escape_json(&model),
            caption: caption(&figure, protocol, measured),
            notes: notes(&figure, measured),
            lines: lines(&figure, measured),
            tables: numbers::tables(&figure, measured),
            figure,
        })
    }
}

fn lines(
    figure: &AlphaFigure,
    measured: &Measured,
) -> (Vec<String>, Vec<numbers::LineNumbers>, Option<&'static str>) {
    let (heads, rows) = numbers::lines(figure, measured);
    let kind =
        (0..figure.lines.len()).find_map(|line| measured.robustness(line)).map(|found| found.kind.name());
    (heads, rows, kind)
}

/// Numbers of the model to a thousandth: the browser draws pixels.
fn round(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Number(number) if number.is_f64() => {
            number.as_f64().map_or(Value::Null, |f| serde_json::json!((f * 1e4).round() / 1e4))
        }
        Value::Array(list) => Value::Array(list.into_iter().map(round).collect()),
        Value::Object(fields) => Value::Object(fields.into_iter().map(|(k, v)| (k, round(v))).collect()),
        other => other,
    }
}

fn key_rows(figure: &AlphaFigure) -> Vec<KeyRow> {
    let backbone = KeyRow {
        line: None,
        sample: figures::key_svg(None),
        name: "backbone".to_owned(),
        note: "α = 0".to_owned(),
        cells: figure
            .panels
            .iter()
            .map(|panel| {
                Some(Cell {
                    value: figures::value(panel.backbone?),
                    delta: String::new(),
                    tone: "",
                    band: band_text(panel.backbone_band, "95 %"),
                })
            })
            .collect(),
    };
    let lines = figure.lines.iter().enumerate().map(|(at, key)| KeyRow {
        line: Some(at),
        sample: figures::key_svg(Some(key)),
        name: key.label.clone(),
        note: note(key),
        cells: figure
            .panels
            .iter()
            .map(|panel| panel.lines[at].points.last().filter(|p| p.alpha == 1.0).map(cell))
            .collect(),
    });
    std::iter::once(backbone).chain(lines).collect()
}

fn note(key: &LineKey) -> String {
    let best = key.best.as_ref().map(|best| match best.chosen {
        Chosen::Half => format!("best α {}", best.alpha),
        Chosen::Test => format!("best on test α {}", best.alpha),
    });
    [Some(key.seeds.clone()), key.progress.clone(), best]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" · ")
}

/// A measured place in words.
pub fn cell(place: &Place) -> Cell {
    let (band, name) = match place.n {
        0 | 1 => (place.wilson, "95 %"),
        n => (place.band, band_name(n)),
    };
    let delta = place.delta.filter(|_| place.n > 0);
    Cell {
        value: figures::value(place.mean),
        delta: delta.map(figures::signed).unwrap_or_default(),
        tone: delta.map_or("", figures::tone),
        band: band_text(band, name),
    }
}

fn band_text(band: Option<(f64, f64)>, name: &str) -> String {
    band.map(|(lo, hi)| format!("{name} {}\u{2013}{}", figures::value(lo), figures::value(hi)))
        .unwrap_or_default()
}

fn caption(figure: &AlphaFigure, protocol: &Protocol, measured: &Measured) -> Vec<String> {
    let mut sentences = vec![match figure.view {
        View::Accuracy => format!(
            "Top-1 accuracy in percent against α: 0 is the backbone (diamond, dashed), 1 the fine-tuned weights. \
             Each panel spans {} points.",
            figure.span
        ),
        View::Delta => {
            "Points of top-1 accuracy against the backbone (0, diamond, dashed) over α; all panels share \
                        one scale."
                .to_owned()
        }
    }];
    sentences.extend(about_seeds(figure));
    sentences.extend(about_best(figure));
    if measured.other_backbones > 0 {
        let runs = super::format::plural(i64::try_from(measured.other_backbones).unwrap_or(i64::MAX), "run");
        sentences.push(format!("{runs} from another backbone not shown."));
    }
    sentences.extend(about_stamps(measured));
    sentences.push(format!("Protocol: {}.", protocols::words(protocol)));
    sentences
}

/// What is drawn around the lines. Lines with different numbers of seeds are each described.
fn about_seeds(figure: &AlphaFigure) -> Vec<String> {
    let some = |wanted: fn(usize) -> bool| figure.lines.iter().any(|line| wanted(line.n));
    let mut sentences = Vec::new();
    if !some(|n| n > 0) {
        sentences.push("Nothing is measured yet but the backbone.".to_owned());
    }
    if some(|n| n == 1) {
        sentences.push("Lines of one seed: intervals are Wilson's 95 % over the images.".to_owned());
    }
    if some(|n| n > 1 && n < SEEDS_FOR_INTERVAL) {
        sentences.push(
            "Thin lines are seeds, the bold line is their mean; ranges are over two seeds, which are too few for an \
             interval."
                .to_owned(),
        );
    }
    if some(|n| n >= SEEDS_FOR_INTERVAL) {
        sentences.push("Bands are 95 % t intervals over three seeds and more.".to_owned());
    }
    sentences
}

/// What the rings mean, and what they were chosen on.
fn about_best(figure: &AlphaFigure) -> Vec<String> {
    let rule = &figure.rule;
    let rings = |chosen: Chosen| {
        figure.lines.iter().filter_map(|line| line.best.as_ref()).any(|b| b.alpha > 0.0 && b.chosen == chosen)
    };
    let (half, test) = (rings(Chosen::Half), rings(Chosen::Test));
    if !half && !test {
        return Vec::new();
    }
    let guard = rule.guard.map_or(String::new(), |guard| {
        format!(" that costs mean {} at most {}", figures::role_word(guard), figures::points(rule.keep))
    });
    let how = match (half, test) {
        (true, false) => {
            "chosen on a fixed half of each dataset's images; what it brings is said of the other half."
        }
        (false, _) => "best on test: chosen on the images that it is shown for, which flatters it.",
        (true, true) => {
            "chosen on a fixed half of each dataset's images, or where that is not possible on the images that it is \
             shown for, which flatters it (best on test)."
        }
    };
    vec![format!(
        "Ring: best α, the measured α with the highest mean {} accuracy{guard}; {how}",
        figures::role_word(rule.goal)
    )]
}

/// Which machines computed the points, where they were not all alike.
fn about_stamps(measured: &Measured) -> Option<String> {
    let stamps = &measured.input.stamps;
    if stamps.len() < 2 {
        return None;
    }
    let told = stamps.iter().enumerate().map(|(at, (words, points))| {
        let points = super::format::plural(i64::try_from(*points).unwrap_or(i64::MAX), "point");
        format!("{} {words} ({points})", stamp_letter(at))
    });
    Some(format!(
        "Points come from {} numerics stamps, so equal weights need not give equal bits: {}.",
        stamps.len(),
        told.collect::<Vec<_>>().join("; ")
    ))
}

/// What the small numbers of the tables are.
fn notes(figure: &AlphaFigure, measured: &Measured) -> Vec<String> {
    let mut notes = vec![
        "First number: top-1, percent, with Wilson's 95 % interval over images (one seed), the range (two seeds) or the \
         95 % t interval over seeds (three and more). Below it: points against the backbone, with the 95 % interval of \
         the paired bootstrap over images (BCa), seeds averaged inside an image; † Agresti–Min's, where fewer than ten \
         images changed. Intervals over images say nothing about other seeds."
            .to_owned(),
        "Over all datasets: means of a role's datasets against the backbone, on the images that the best α was not chosen \
         on (“on test”: on all), with the same intervals; robustness is at α 1 on all images, with the range or the 95 % \
         t interval over seeds."
            .to_owned(),
        "Area: between the line and the backbone over α from 0 to 1, points·α by trapezoids; the mean gain of an α drawn \
         blindly."
            .to_owned(),
    ];
    let by_class = figure.panels.iter().flat_map(|panel| &panel.lines).flat_map(|line| &line.points);
    if by_class.into_iter().any(|place| place.by_class.is_some()) {
        notes.push("By class: the mean over classes of the accuracy inside a class.".to_owned());
    }
    notes.extend(about_stamps(measured));
    notes
}
