//! Colour and marker of a method: the same on every page, for ever, and never colour alone. Hue and marker name
//! the method, the dash a variant inside it; the hollow diamond is the backbone and nothing else.

use serde::Serialize;

/// How a method looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Identity {
    /// Number of the colour token, 1 to 8.
    pub slot: u8,
    /// The shape of its points.
    pub marker: Marker,
    /// Drawn as an outline: the second four methods share hues with the first four.
    pub hollow: bool,
}

/// Shapes of points, by Observable Plot's names so that the browser draws the same ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Marker {
    /// A disc.
    Circle,
    /// A square.
    Square,
    /// A triangle, point up.
    Triangle,
    /// A five-pointed star.
    Star,
    /// A diagonal cross.
    Times,
    /// A hexagon.
    Hexagon,
    /// An upright cross.
    Plus,
    /// A letter Y.
    Wye,
    /// The backbone.
    Diamond,
}

/// Dashes of the variants inside one method, in order; then again from the first.
pub const DASHES: [&str; 4] = ["", "6 3", "2 3", "8 3 2 3"];

/// The identity of a method, by its word. Weights that came from outside have their own.
pub fn identity(method: &str) -> Identity {
    let (slot, marker, hollow) = match method {
        "full" => (1, Marker::Circle, false),
        "lora" => (2, Marker::Square, false),
        "film" => (3, Marker::Triangle, false),
        "token_replay" => (4, Marker::Star, false),
        "adapter" => (5, Marker::Times, false),
        "selective" => (6, Marker::Hexagon, false),
        "block_expansion" => (7, Marker::Plus, false),
        "ladder" => (8, Marker::Wye, false),
        "fusion" => (1, Marker::Circle, true),
        "reprogram" => (2, Marker::Square, true),
        "cross_modal" => (3, Marker::Triangle, true),
        "moe" => (4, Marker::Star, true),
        _ => (8, Marker::Hexagon, true),
    };
    Identity { slot, marker, hollow }
}

impl Marker {
    /// Whether the shape is made of strokes and has no inside.
    pub fn is_stroked(self) -> bool {
        matches!(self, Marker::Times | Marker::Plus)
    }

    /// The outline around (0, 0) with the area of a circle of radius `r`: d3-shape's formulas, so that the shapes
    /// are Plot's.
    pub fn path(self, r: f64) -> String {
        let size = std::f64::consts::PI * r * r;
        match self {
            Marker::Circle => {
                let (r, d) = (short(r), short(2.0 * r));
                format!("M-{r},0a{r},{r} 0 1 0 {d},0a{r},{r} 0 1 0 -{d},0Z")
            }
            Marker::Square => {
                let h = size.sqrt() / 2.0;
                polygon(&[(-h, -h), (h, -h), (h, h), (-h, h)])
            }
            Marker::Triangle => {
                let y = -(size / (3.0 * 3.0_f64.sqrt())).sqrt();
                let x = 3.0_f64.sqrt() * y;
                polygon(&[(0.0, 2.0 * y), (-x, -y), (x, -y)])
            }
            Marker::Diamond => {
                let tan30 = (1.0_f64 / 3.0).sqrt();
                let y = (size / (2.0 * tan30)).sqrt();
                polygon(&[(0.0, -y), (y * tan30, 0.0), (0.0, y), (-y * tan30, 0.0)])
            }
            Marker::Hexagon => {
                let rx = r;
                let ry = rx * 2.0 / 3.0_f64.sqrt();
                let h = ry / 2.0;
                polygon(&[(0.0, ry), (rx, h), (rx, -h), (0.0, -ry), (-rx, -h), (-rx, h)])
            }
            Marker::Star => {
                let pi = std::f64::consts::PI;
                let outer = (size * 0.890_813_091_529_285_2).sqrt();
                let inner = outer * (pi / 10.0).sin() / (7.0 * pi / 10.0).sin();
                let corner = |at: usize| {
                    let angle = pi / 5.0 * at as f64;
                    let radius = if at.is_multiple_of(2) { outer } else { inner };
                    (radius * angle.sin(), -radius * angle.cos())
                };
                polygon(&(0..10).map(corner).collect::<Vec<_>>())
            }
            Marker::Times => {
                let h = short((size - (size / 6.0).min(1.7)).sqrt() * 0.6189);
                format!("M-{h},-{h}L{h},{h}M-{h},{h}L{h},-{h}")
            }
            Marker::Plus => {
                let h = short((size - (size / 7.0).min(2.0)).sqrt() * 0.87559);
                format!("M-{h},0L{h},0M0,{h}L0,-{h}")
            }
            Marker::Wye => {
                let (c, s, k) = (-0.5, 3.0_f64.sqrt() / 2.0, 1.0 / 12.0_f64.sqrt());
                let r = (size / ((k / 2.0 + 1.0) * 3.0)).sqrt();
                let (x0, y0, y1) = (r / 2.0, r * k, r * k + r);
                let arm = [(x0, y0), (x0, y1), (-x0, y1)];
                let turn = |(x, y): (f64, f64), s: f64| (c * x - s * y, s * x + c * y);
                let all: Vec<_> = arm
                    .iter()
                    .copied()
                    .chain(arm.map(|p| turn(p, s)))
                    .chain(arm.map(|p| turn(p, -s)))
                    .collect();
                polygon(&all)
            }
        }
    }
}

fn polygon(points: &[(f64, f64)]) -> String {
    let corners: Vec<String> = points.iter().map(|(x, y)| format!("{},{}", short(*x), short(*y))).collect();
    format!("M{}Z", corners.join("L"))
}

/// A coordinate with at most two decimals.
pub fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twelve_methods_have_twelve_looks() {
        let methods = [
            "full",
            "lora",
            "film",
            "token_replay",
            "adapter",
            "selective",
            "block_expansion",
            "ladder",
            "fusion",
            "reprogram",
            "cross_modal",
            "moe",
        ];
        let looks: std::collections::HashSet<String> =
            methods.iter().map(|method| format!("{:?}", identity(method))).collect();
        assert_eq!(looks.len(), methods.len());
        assert!(!looks.contains(&format!("{:?}", identity("evaluate"))));
    }

    #[test]
    fn shapes_are_short_paths() {
        assert_eq!(Marker::Square.path(2.0), "M-1.77,-1.77L1.77,-1.77L1.77,1.77L-1.77,1.77Z");
        for marker in
            [Marker::Circle, Marker::Star, Marker::Wye, Marker::Hexagon, Marker::Times, Marker::Plus]
        {
            assert!(marker.path(3.5).len() < 180, "{marker:?}");
        }
    }
}
