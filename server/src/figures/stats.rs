//! The statistics behind the figures. Two kinds of doubt are kept apart: which images happened to be in the test
//! set (Wilson's interval, paired intervals over queries) and which seed happened to be drawn (ranges, and t
//! intervals from five seeds up). All results are in percent or percentage points.

use causeway_protocol::Hits;
use serde::Serialize;

/// 97.5 % point of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Fewest seeds for which an interval over seeds is shown; below, their range is.
pub const SEEDS_FOR_INTERVAL: usize = 5;

/// A closed interval.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Interval {
    /// Lower end.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
}

/// Accuracy after minus accuracy before on the same queries.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Paired {
    /// The difference, points.
    pub delta: f64,
    /// 95 % interval over queries.
    pub interval: Interval,
    /// Squared standard error; what averages over datasets need.
    #[serde(skip)]
    pub variance: f64,
    /// Queries.
    pub n: usize,
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

/// Difference of two accuracies over the same `n` queries, averaged over the given pairs (one per seed), with the
/// 95 % interval of Agresti and Min (2005): Wald's for matched pairs after adding half a query to each of the four
/// cells, which keeps it honest when few queries change. None without queries or pairs.
pub fn paired(before_after: &[(&Hits, &Hits)], n: usize) -> Option<Paired> {
    if n == 0 || before_after.is_empty() {
        return None;
    }
    let seeds = before_after.len() as f64;
    let (mut sum, mut squares) = (0.0, 0.0);
    for query in 0..n {
        let moved: i32 = before_after
            .iter()
            .map(|(before, after)| i32::from(after.get(query)) - i32::from(before.get(query)))
            .sum();
        let d = f64::from(moved) / seeds;
        sum += d;
        squares += d * d;
    }
    // The half queries: one more pair that agrees, half a gain, half a loss.
    let padded = n as f64 + 2.0;
    let centre = sum / padded;
    let variance = ((squares + 1.0) / padded - centre * centre) / padded * 1e4;
    Some(Paired { delta: 100.0 * sum / n as f64, interval: around(100.0 * centre, variance), variance, n })
}

/// The mean of differences on several datasets, each counting the same; their queries are independent.
pub fn mean_paired(parts: &[Paired]) -> Option<Paired> {
    if parts.is_empty() {
        return None;
    }
    let count = parts.len() as f64;
    let delta = parts.iter().map(|part| part.delta).sum::<f64>() / count;
    let centre = parts.iter().map(|part| (part.interval.lo + part.interval.hi) / 2.0).sum::<f64>() / count;
    let variance = parts.iter().map(|part| part.variance).sum::<f64>() / (count * count);
    let n = parts.iter().map(|part| part.n).sum();
    Some(Paired { delta, interval: around(centre, variance), variance, n })
}

fn around(centre: f64, variance: f64) -> Interval {
    let half = Z * variance.max(0.0).sqrt();
    Interval { lo: centre - half, hi: centre + half }
}

/// Arithmetic mean; none of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() { None } else { Some(values.iter().sum::<f64>() / values.len() as f64) }
}

/// What is shown around the mean of seeds: nothing for one, the range for two to four, the 95 % t interval above.
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
    fn a_paired_interval_can_be_checked_by_hand() {
        // 10 queries: 3 become right, 1 becomes wrong. Padded: (3.5 − 1.5)/12 = 1/6; the squares are 5/12.
        let before = Hits::from_flags(&[true, true, true, false, false, false, false, true, true, true]);
        let after = Hits::from_flags(&[true, true, true, true, true, true, false, false, true, true]);
        let found = paired(&[(&before, &after)], 10).unwrap();
        near(found.delta, 20.0, 1e-9);
        let half = 1.959_964 * ((5.0 / 12.0 - 1.0 / 36.0) / 12.0_f64).sqrt() * 100.0;
        near(found.interval.lo, 100.0 / 6.0 - half, 1e-3);
        near(found.interval.hi, 100.0 / 6.0 + half, 1e-3);
        assert!(found.interval.holds_zero());
    }

    #[test]
    fn seeds_are_averaged_inside_a_query() {
        let before = Hits::from_flags(&[false; 8]);
        let up = Hits::from_flags(&[true, true, true, true, false, false, false, false]);
        let one = paired(&[(&before, &up)], 8).unwrap();
        let two = paired(&[(&before, &up), (&before, &before)], 8).unwrap();
        near(one.delta, 50.0, 1e-9);
        near(two.delta, 25.0, 1e-9);
        assert!(two.variance < one.variance);
        let mean = mean_paired(&[one, two]).unwrap();
        near(mean.delta, 37.5, 1e-9);
        near(mean.variance, (one.variance + two.variance) / 4.0, 1e-12);
    }

    #[test]
    fn two_seeds_have_a_range_and_five_an_interval() {
        assert_eq!(band(&[70.0]), None);
        assert_eq!(band(&[70.0, 72.0]), Some(Interval { lo: 70.0, hi: 72.0 }));
        // Mean 3, variance 2.5, error √0.5; t with 4 degrees is 2.776.
        let five = band(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        near(five.hi - 3.0, 2.776 * 0.5_f64.sqrt(), 1e-9);
        near(t_975(30), 2.042, 1e-3);
    }
}
