//! The statistics behind the figures. Two kinds of doubt are kept apart: which images happened to be in the test
//! set (Wilson's interval here, paired intervals in `paired.rs`) and which seed happened to be drawn (ranges, and t
//! intervals from three seeds up). All results are in percent or percentage points. `docs/statistics.md` has each
//! with its limits.

use serde::Serialize;

/// 97.5 % point of the normal distribution.
pub const Z: f64 = 1.959_963_984_540_054;

/// Fewest seeds for which an interval over seeds is shown; below, their range is.
pub const SEEDS_FOR_INTERVAL: usize = 3;

/// A closed interval.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Interval {
    /// Lower end.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
}

impl Interval {
    /// Whether 0 lies inside: the difference could be none.
    pub fn holds_zero(&self) -> bool {
        self.lo <= 0.0 && self.hi >= 0.0
    }
}

/// Percent right.
pub fn percent(correct: u32, n: u32) -> f64 {
    if n == 0 { 0.0 } else { 100.0 * f64::from(correct) / f64::from(n) }
}

/// Wilson's 95 % interval of one accuracy, percent (Wilson 1927). None without queries.
pub fn wilson(correct: u32, n: u32) -> Option<Interval> {
    if n == 0 {
        return None;
    }
    let (p, n) = (f64::from(correct) / f64::from(n), f64::from(n));
    let scale = 1.0 / (1.0 + Z * Z / n);
    let centre = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    Some(Interval { lo: 100.0 * scale * (centre - half), hi: 100.0 * scale * (centre + half) })
}

/// Arithmetic mean; none of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() { None } else { Some(values.iter().sum::<f64>() / values.len() as f64) }
}

/// Area between a curve and the backbone's level over α in [0, 1], points·α, by the trapezoid rule through the measured
/// (α, difference): the mean gain of an α drawn blindly. None unless both ends are measured.
pub fn area(curve: &[(f64, f64)]) -> Option<f64> {
    let (first, last) = (curve.first()?, curve.last()?);
    let whole = first.0 == 0.0 && last.0 == 1.0;
    let strips = curve.windows(2).map(|pair| (pair[1].0 - pair[0].0) * (pair[0].1 + pair[1].1) / 2.0);
    whole.then(|| strips.sum())
}

/// What `band` gives for so many seeds.
pub fn band_name(seeds: usize) -> &'static str {
    match seeds {
        0 | 1 => "",
        few if few < SEEDS_FOR_INTERVAL => "range",
        _ => "95 % t",
    }
}

/// What is shown around the mean of seeds: nothing for one, the range for two, the 95 % t interval above.
pub fn band(values: &[f64]) -> Option<Interval> {
    match values.len() {
        0 | 1 => None,
        count if count < SEEDS_FOR_INTERVAL => Some(Interval {
            lo: values.iter().copied().fold(f64::INFINITY, f64::min),
            hi: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }),
        count => {
            let centre = mean(values)?;
            let squares = values.iter().map(|value| (value - centre).powi(2)).sum::<f64>();
            let error = (squares / (count as f64 - 1.0) / count as f64).sqrt();
            let half = t_975(count - 1) * error;
            Some(Interval { lo: centre - half, hi: centre + half })
        }
    }
}

/// 97.5 % point of Student's t. Beyond the table, Cornish and Fisher's expansion, right to 0.001 from 10 degrees.
fn t_975(degrees: usize) -> f64 {
    const TABLE: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    if let Some(value) = degrees.checked_sub(1).and_then(|at| TABLE.get(at)) {
        return *value;
    }
    let d = degrees.max(1) as f64;
    Z + (Z.powi(3) + Z) / (4.0 * d) + (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / (96.0 * d * d)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(left: f64, right: f64, tolerance: f64) {
        assert!((left - right).abs() <= tolerance, "{left} is not {right}");
    }

    #[test]
    fn wilson_agrees_with_newcombe_1998() {
        // Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611.
        let interval = wilson(81, 263).unwrap();
        near(interval.lo, 25.53, 0.005);
        near(interval.hi, 36.62, 0.005);
        let none = wilson(0, 20).unwrap();
        near(none.lo, 0.0, 1e-9);
        near(none.hi, 16.11, 0.005);
        assert!(wilson(0, 0).is_none());
    }

    #[test]
    fn two_seeds_have_a_range_and_three_an_interval() {
        assert_eq!(band(&[70.0]), None);
        assert_eq!(band(&[70.0, 72.0]), Some(Interval { lo: 70.0, hi: 72.0 }));
        assert_eq!((band_name(1), band_name(2), band_name(3)), ("", "range", "95 % t"));
        // Mean 2, variance 1, error 1/√3; t with 2 degrees is 4.303.
        let three = band(&[1.0, 2.0, 3.0]).unwrap();
        near(three.hi - 2.0, 4.303 / 3.0_f64.sqrt(), 1e-9);
        // Mean 3, variance 2.5, error √0.5; t with 4 degrees is 2.776.
        let five = band(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        near(five.hi - 3.0, 2.776 * 0.5_f64.sqrt(), 1e-9);
        near(t_975(30), 2.042, 1e-3);
    }

    #[test]
    fn the_area_is_that_of_the_polygon_over_the_whole_line() {
        // A triangle of height 4 over a base of 1, and its sharper half.
        near(area(&[(0.0, 0.0), (0.5, 4.0), (1.0, 0.0)]).unwrap(), 2.0, 1e-12);
        near(area(&[(0.0, 0.0), (0.1, 2.0), (1.0, -2.0)]).unwrap(), 0.1, 1e-12);
        assert_eq!(area(&[(0.0, 0.0), (0.5, 4.0)]), None);
        assert_eq!(area(&[]), None);
    }
}
