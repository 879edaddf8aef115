//! Linear CKA between θ0 and θ_α against depth, a line for each α; and how far each layer's weights moved.

use super::identity::{DASHES, Identity, short};
use super::panel::escape;
use super::scale::{spread, ticks};
use super::spectrum::{SpectrumLayer, draw_mark};
use std::fmt::Write;

const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 36.0;
const RIGHT: f64 = 52.0;
const UPPER: f64 = 14.0;
const LOWER: f64 = 34.0;

/// CKA against depth of one kind of feature.
#[derive(Clone, Debug)]
pub struct CkaFigure {
    /// What is compared: "class token".
    pub of: String,
    /// α and, for each block and at last the feature, the similarity. α = 0 is left out: it is 1.
    pub lines: Vec<(f64, Vec<Option<f64>>)>,
    /// Whether the last value is the feature that k-NN compares.
    pub ends_in_feature: bool,
    /// The run's method.
    pub identity: Identity,
}

/// Lower end and tick distance of an axis that ends at 1.
fn axis(figures: &[&CkaFigure]) -> (f64, f64) {
    let values =
        figures.iter().flat_map(|figure| figure.lines.iter().flat_map(|line| line.1.iter().flatten()));
    let lowest = values.fold(1.0_f64, |lowest, value| lowest.min(*value));
    [(0.995, 0.001), (0.99, 0.002), (0.95, 0.01), (0.9, 0.02), (0.75, 0.05), (0.5, 0.1), (0.0, 0.2)]
        .into_iter()
        .find(|(from, _)| *from <= lowest)
        .unwrap_or((-0.2, 0.2))
}

/// The figures side by side share one scale; `id` must be unique in the page.
pub fn cka_svgs(figures: &[&CkaFigure], id: &str) -> Vec<String> {
    let (from, step) = axis(figures);
    figures.iter().enumerate().map(|(at, figure)| cka_svg(figure, from, step, &format!("{id}{at}"))).collect()
}

fn cka_svg(figure: &CkaFigure, from: f64, step: f64, id: &str) -> String {
    let count = figure.lines.iter().map(|line| line.1.len()).max().unwrap_or(1).max(2);
    let x = |at: usize| LEFT + at as f64 / (count - 1) as f64 * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| UPPER + (1.0 - value.max(from)) / (1.0 - from) * (HEIGHT - UPPER - LOWER);
    let mut out = format!(
        r#"<svg class="drawn" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12" role="img" aria-labelledby="{id}t {id}d"><title id="{id}t">Linear CKA with θ0 against depth, {}</title><desc id="{id}d">{}</desc>"#,
        escape(&figure.of),
        escape(&describe(figure))
    );
    let decimals = if step < 0.01 { 3 } else { usize::from(step < 0.1) + 1 };
    for tick in ticks(from, 1.0, step) {
        // The backbone is 1 everywhere.
        let whole = (tick - 1.0).abs() < 1e-9;
        let _ = write!(
            out,
            r#"<path d="M{LEFT},{y}H{}" stroke="var(--{})"{}/><text x="{}" y="{}" text-anchor="end" fill="var(--ink-2)">{tick:.decimals$}</text>"#,
            short(WIDTH - RIGHT),
            if whole { "ink-2" } else { "line" },
            if whole { r#" stroke-dasharray="3 3""# } else { "" },
            short(LEFT - 6.0),
            short(y(tick) + 4.0),
            y = short(y(tick))
        );
    }
    let blocks = count - usize::from(figure.ends_in_feature);
    let every = blocks.div_ceil(12).max(1);
    for block in (0..blocks).step_by(every) {
        let _ = write!(
            out,
            r#"<text x="{}" y="{}" text-anchor="middle" fill="var(--ink-2)">{block}</text>"#,
            short(x(block)),
            short(HEIGHT - LOWER + 16.0)
        );
    }
    let _ = write!(
        out,
        r#"<text x="{LEFT}" y="{}" fill="var(--ink-2)">after block</text>"#,
        short(HEIGHT - LOWER + 31.0)
    );
    if figure.ends_in_feature {
        let _ = write!(
            out,
            r#"<text x="{}" y="{}" text-anchor="end" fill="var(--ink-2)">feature</text>"#,
            short(WIDTH - RIGHT + 18.0),
            short(HEIGHT - LOWER + 31.0)
        );
    }
    let ends: Vec<f64> =
        figure.lines.iter().map(|line| y(line.1.iter().flatten().last().copied().unwrap_or(1.0))).collect();
    let labels = spread(&ends, 14.0, UPPER, HEIGHT - LOWER);
    for (at, ((alpha, values), label)) in figure.lines.iter().zip(labels).enumerate() {
        let places: Vec<(f64, f64)> =
            values.iter().enumerate().filter_map(|(at, value)| Some((x(at), y((*value)?)))).collect();
        let path: Vec<String> = places.iter().map(|(x, y)| format!("{},{}", short(*x), short(*y))).collect();
        // The whole way is solid, the nearer ones dashed.
        let dash = DASHES[(figure.lines.len() - 1 - at) % DASHES.len()];
        let _ = write!(
            out,
            r#"<path d="M{}" fill="none" stroke="var(--s{})" stroke-width="2" stroke-dasharray="{dash}"/>"#,
            path.join("L"),
            figure.identity.slot
        );
        places.iter().for_each(|place| draw_mark(&mut out, Some(figure.identity), *place, 2.8));
        let _ = write!(
            out,
            r#"<text x="{}" y="{}" fill="var(--ink)">α {}</text>"#,
            short(WIDTH - RIGHT + 8.0),
            short(label + 4.0),
            short(*alpha)
        );
    }
    out.push_str("</svg>");
    out
}

fn describe(figure: &CkaFigure) -> String {
    let lines = figure.lines.iter().filter_map(|(alpha, values)| {
        let lowest = values.iter().flatten().copied().fold(f64::INFINITY, f64::min);
        let last = values.iter().flatten().last()?;
        Some(format!("At α {} it ends at {last:.3}; the least is {lowest:.3}.", short(*alpha)))
    });
    lines.collect::<Vec<_>>().join(" ")
}

/// How far each layer moved, as bars from zero in depth order; `id` must be unique in the page.
pub fn distance_svg(layers: &[(SpectrumLayer, f64)], identity: Identity, id: &str) -> String {
    let highest = layers.iter().fold(0.0_f64, |highest, layer| highest.max(layer.1)).max(1e-12);
    let step = step(highest);
    let top = (highest / step).ceil() * step;
    let count = layers.len().max(1) as f64;
    let x = |share: f64| LEFT + 12.0 + share * (WIDTH - LEFT - 24.0);
    let y = |value: f64| UPPER + (top - value) / top * (HEIGHT - UPPER - LOWER);
    let largest = layers.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    let description = largest.map_or(String::new(), |(layer, share)| {
        format!("{} moved most: {share:.3} of its norm.", layer.name)
    });
    let mut out = format!(
        r#"<svg class="drawn" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12" role="img" aria-labelledby="{id}t {id}d"><title id="{id}t">How far each layer moved, as a share of its norm</title><desc id="{id}d">{}</desc>"#,
        escape(&description)
    );
    for tick in ticks(0.0, top, step) {
        let _ = write!(
            out,
            r#"<path d="M{left},{y}H{}" stroke="var(--line)"/><text x="{}" y="{}" text-anchor="end" fill="var(--ink-2)">{}</text>"#,
            short(x(1.0)),
            short(LEFT + 6.0),
            short(y(tick) + 4.0),
            format_args!("{} %", short(100.0 * tick)),
            left = short(x(0.0)),
            y = short(y(tick))
        );
    }
    let mut last = None;
    for (at, (layer, value)) in layers.iter().enumerate() {
        let (left, right) = (x(at as f64 / count) + 0.5, x((at as f64 + 1.0) / count) - 0.5);
        let _ = write!(
            out,
            r#"<rect x="{}" y="{}" width="{}" height="{}" fill="var(--s{})"><title>{}: {}</title></rect>"#,
            short(left),
            short(y(*value)),
            short((right - left).max(0.5)),
            short(y(0.0) - y(*value)),
            identity.slot,
            escape(&layer.name),
            share(*value)
        );
        let every = 1 + layers.iter().filter_map(|layer| layer.0.block).max().unwrap_or(0) / 12;
        if let Some(block) = layer.block.filter(|block| Some(*block) != last && block % every == 0) {
            let _ = write!(
                out,
                r#"<text x="{}" y="{}" fill="var(--ink-2)">{block}</text>"#,
                short(left),
                short(HEIGHT - LOWER + 16.0)
            );
        }
        last = layer.block;
    }
    let _ = write!(
        out,
        r#"<text x="{}" y="{}" fill="var(--ink-2)">block, from first to last</text></svg>"#,
        short(x(0.0)),
        short(HEIGHT - LOWER + 31.0)
    );
    out
}

fn step(highest: f64) -> f64 {
    let rough = highest / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|step| *step >= rough).unwrap_or(rough)
}

/// A share in percent, with as many digits as it needs.
pub fn share(value: f64) -> String {
    let percent = 100.0 * value;
    match percent {
        0.0 => "0 %".to_owned(),
        p if p < 0.01 => format!("{p:.1e} %"),
        p if p < 1.0 => format!("{p:.2} %"),
        p if p < 10.0 => format!("{p:.1} %"),
        p => format!("{p:.0} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::identity::identity;
    use super::*;

    #[test]
    fn a_line_for_each_alpha_on_one_scale() {
        let figure = |of: &str, low: f64| CkaFigure {
            of: of.into(),
            lines: vec![(0.5, vec![Some(1.0), Some(0.99)]), (1.0, vec![Some(1.0), None, Some(low)])],
            ends_in_feature: true,
            identity: identity("lora"),
        };
        let (one, two) = (figure("class token", 0.93), figure("patches", 0.98));
        let svgs = cka_svgs(&[&one, &two], "c");
        assert!(svgs.iter().all(|svg| svg.contains(">0.90<")), "both begin at 0.9: {}", svgs[1]);
        assert!(svgs[0].contains(">α 0.5<") && svgs[0].contains(">α 1<"));
        assert!(svgs[0].contains("At α 1 it ends at 0.930; the least is 0.930."));
    }

    #[test]
    fn bars_begin_at_zero_and_the_largest_is_named() {
        let layer = |name: &str, share| (SpectrumLayer { name: name.into(), block: Some(0) }, share);
        let svg = distance_svg(&[layer("qkv", 0.011), layer("fc1", 0.038)], identity("full"), "d");
        assert!(svg.contains("fc1 moved most: 0.038 of its norm."), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 2);
        assert_eq!((share(0.0), share(0.011), share(0.25)), ("0 %".into(), "1.1 %".into(), "25 %".into()));
    }
}
