//! A power law fitted to the largest eigenvalues of a layer, as weightwatcher 0.7.7 fits it: p(x) ∝ x^−α for x ≥ xmin,
//! α by maximum likelihood for every eigenvalue as xmin, and of those the one whose fitted distribution is nearest to the
//! data (Clauset, Shalizi and Newman 2009, arXiv 0706.1062, §3). The exponent is always called `ww_alpha` outside this
//! file: α is the coefficient of the line.
//!
//! With n = N − i eigenvalues x_i ≤ … ≤ x_N−1 in the tail:
//!
//! ```text
//! α_i = 1 + n / Σ_j≥i ln(x_j / x_i)                          N ≥ 20
//! α_i = 1 + (n − 1) / Σ_j≥i ln(x_j / x_i),   n ≥ 8           N < 20: unbiased for few
//! D_i = max_j≥i |1 − (x_j / x_i)^(1 − α_i) − (j − i) / n|    Kolmogorov and Smirnov's distance
//! σ_i = (α_i − 1) / √n
//! ```
//!
//! The step of the data's distribution is taken at its lower end, so D leaves out the last 1/n; ties go to the smaller
//! xmin. Both are weightwatcher's.

/// Fewer eigenvalues than these go the way of small samples.
const SMALL: usize = 20;
/// Shortest tail of a small sample.
const SMALL_TAIL: usize = 8;
/// Sums of logarithms below this are a tail without any spread, in a small sample.
const NO_SPREAD: f64 = 1e-12;

/// A fitted tail.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PowerLaw {
    /// The exponent.
    pub alpha: f64,
    /// Where the tail begins.
    pub xmin: f64,
    /// Distance between the tail and the fit, 0 to 1.
    pub d: f64,
    /// Standard error of the exponent.
    pub sigma: f64,
    /// Place of xmin among the values.
    pub first: usize,
    /// Whether there were so few values that the other estimate was taken.
    pub few: bool,
}

/// Fits a power law to positive values in ascending order. None for fewer than two values, or for a tail of equal ones,
/// which has no exponent.
pub fn fit(ascending: &[f64]) -> Option<PowerLaw> {
    let count = ascending.len();
    if count < 2 {
        return None;
    }
    let few = count < SMALL;
    let logs: Vec<f64> = ascending.iter().map(|value| value.ln()).collect();
    let sums = sums_above(&logs);
    let longest_first = 0..count - 1;
    // A small sample shorter than the shortest tail is one tail.
    let starts = longest_first.filter(|start| !few || count - start >= SMALL_TAIL || *start == 0);
    let mut best: Option<(f64, usize, f64)> = None;
    for start in starts {
        let n = (count - start) as f64;
        let exponent = match few {
            true if sums[start] <= NO_SPREAD => continue,
            true => 1.0 + (n - 1.0) / sums[start],
            false => 1.0 + n / sums[start],
        };
        let bound = best.map_or(f64::INFINITY, |(distance, ..)| distance);
        if let Some(distance) = distance_below(&logs[start..], exponent, bound) {
            best = Some((distance, start, exponent));
        }
    }
    let (d, first, alpha) = best.filter(|(.., alpha)| alpha.is_finite())?;
    let sigma = (alpha - 1.0) / ((count - first) as f64).sqrt();
    Some(PowerLaw { alpha, xmin: ascending[first], d, sigma, first, few })
}

/// For each start Σ_j≥start (l_j − l_start), from the end: S_i = S_i+1 + (N − i − 1)(l_i+1 − l_i), in which nothing
/// cancels.
fn sums_above(logs: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0; logs.len()];
    for start in (0..logs.len().saturating_sub(1)).rev() {
        let above = (logs.len() - start - 1) as f64;
        sums[start] = sums[start + 1] + above * (logs[start + 1] - logs[start]);
    }
    sums
}

/// D of a tail; none as soon as it is known not to be below `bound`, which spares most of the N²/2 powers.
fn distance_below(logs: &[f64], exponent: f64, bound: f64) -> Option<f64> {
    let (n, lowest) = (logs.len() as f64, logs[0]);
    let mut distance = 0.0_f64;
    for (at, log) in logs.iter().enumerate() {
        let above = log - lowest;
        // Equal values have an infinite exponent, and 1 to any power is 1.
        let fitted = if above == 0.0 { 0.0 } else { 1.0 - ((1.0 - exponent) * above).exp() };
        distance = distance.max((fitted - at as f64 / n).abs());
        if distance >= bound {
            return None;
        }
    }
    Some(distance)
}

#[cfg(test)]
mod tests;
