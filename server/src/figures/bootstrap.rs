//! The paired bootstrap, without resampling. Queries are drawn with replacement, each with its difference "right after
//! minus right before" (seeds averaged inside a query), and the mean of the differences is taken again and again. Those
//! differences take few values, so the mean of a resample is a sum of n independent draws from a handful of them, and
//! its characteristic function is known:
//!
//! φ(t) = Π_d (Σ_v p_dv · e^{itv/(D·n_d)})^{n_d}   for the mean over D datasets of n_d queries.
//!
//! Its Fourier series is the bootstrap distribution itself, the ideal one of infinitely many resamples (Efron and
//! Tibshirani 1993, §6.2): no seed, no noise, some microseconds. From it comes the BCa interval (their §14.3), whose
//! two corrections are here exact, too: z0 from the distribution's value at the estimate, the acceleration from its
//! skewness.

use super::stats::{Interval, Z};
use causeway_protocol::Hits;
use std::{f64::consts::PI, sync::LazyLock};

/// Length on which the distribution is periodic, standard errors: what lies beyond ten of them is below 1e-13.
const PERIOD: f64 = 24.0;
/// Where the characteristic function has come down to this, the series ends. With ten changed queries and more it does
/// so before the steps of the counts are resolved, so that the distribution function is smooth and right half-way
/// between two steps.
const DECAYED: f64 = 1e-13;
/// No series is longer.
const TERMS: usize = 256;

/// How many queries of one dataset changed by how much.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Differences {
    /// Seeds averaged inside a query: values are whole numbers of right answers, divided by this.
    seeds: usize,
    /// Number of queries for the values −seeds to +seeds.
    counts: Vec<u32>,
}

impl Differences {
    /// Compares pairs (before, after), one per seed, over the same `n` queries, or over those of them in `among`. None
    /// without queries or pairs.
    pub fn count(pairs: &[(&Hits, &Hits)], n: usize, among: Option<&Hits>) -> Option<Differences> {
        let seeds = pairs.len();
        let mut counts = vec![0u32; 2 * seeds + 1];
        let (mut asked, mut changed) = (0, 0);
        let mut words: Vec<(u64, u64)> = Vec::with_capacity(seeds);
        for at in 0..n.div_ceil(64) {
            let end = n - 64 * at;
            let valid = if end < 64 { (1u64 << end) - 1 } else { u64::MAX };
            let mask = among.map_or(valid, |among| word(among, at) & valid);
            words.clear();
            words.extend(pairs.iter().map(|(before, after)| (word(before, at), word(after, at))));
            let mut rest = words.iter().fold(0, |any, (before, after)| any | (before ^ after)) & mask;
            asked += mask.count_ones();
            changed += rest.count_ones();
            while rest != 0 {
                let bit = rest.trailing_zeros();
                rest &= rest - 1;
                let up = |word: u64| (word >> bit & 1) as usize;
                // Never negative: a query can lose at most `seeds` right answers.
                let value =
                    words.iter().fold(seeds, |value, (before, after)| value + up(*after) - up(*before));
                counts[value] += 1;
            }
        }
        counts[seeds] += asked - changed;
        (asked > 0 && seeds > 0).then_some(Differences { seeds, counts })
    }

    /// Number of queries.
    pub fn n(&self) -> u32 {
        self.counts.iter().sum()
    }

    /// Queries that changed for at least one seed, unless seeds cancel.
    pub fn changed(&self) -> u32 {
        self.n() - self.counts[self.seeds]
    }

    /// (value, share of the queries): values are shares of the seeds, −1 to 1.
    fn shares(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let (n, seeds) = (f64::from(self.n()), self.seeds as f64);
        let there = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        there.map(move |(at, count)| ((at as f64 - seeds) / seeds, f64::from(*count) / n))
    }

    /// The mean difference, a share.
    pub fn mean(&self) -> f64 {
        let right = |at: usize, count: u32| (at as i64 - self.seeds as i64) * i64::from(count);
        let sum: i64 = self.counts.iter().enumerate().map(|(at, count)| right(at, *count)).sum();
        sum as f64 / (f64::from(self.n()) * self.seeds as f64)
    }

    /// Mean of the squared differences.
    pub fn mean_square(&self) -> f64 {
        self.shares().map(|(value, share)| value * value * share).sum()
    }

    /// Mean of (difference − mean)^power.
    fn moment(&self, power: i32) -> f64 {
        let mean = self.mean();
        self.shares().map(|(value, share)| (value - mean).powi(power) * share).sum()
    }
}

/// Sixty-four queries' flags.
fn word(hits: &Hits, at: usize) -> u64 {
    let bytes = hits.0.get(8 * at..).unwrap_or_default();
    match bytes.first_chunk() {
        Some(whole) => u64::from_le_bytes(*whole),
        None => bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}

/// The 95 % BCa interval of the mean over datasets of their mean differences, points. None where nothing varies.
pub fn bca_95(parts: &[Differences]) -> Option<Interval> {
    let count = parts.len() as f64;
    let centre = parts.iter().map(Differences::mean).sum::<f64>() / count;
    let of_sum = |power: i32| -> f64 {
        let scale = |part: &Differences| (count * f64::from(part.n())).powi(power);
        parts.iter().map(|part| f64::from(part.n()) * part.moment(power) / scale(part)).sum()
    };
    let error = of_sum(2).sqrt();
    if error.is_nan() || error <= 0.0 {
        return None;
    }
    let distribution = Series::new(|t| characteristic(parts, t / error));
    let normal = &*NORMAL;
    let bias = normal.quantile(distribution.below(0.0));
    let acceleration = of_sum(3) / error.powi(3) / 6.0;
    let end = |z: f64| {
        let corrected = bias + (bias + z) / (1.0 - acceleration * (bias + z));
        100.0 * (centre + error * distribution.quantile(normal.below(corrected)))
    };
    Some(Interval { lo: end(-Z), hi: end(Z) })
}

/// The normal distribution, from its own characteristic function.
static NORMAL: LazyLock<Series> = LazyLock::new(|| Series::new(|t| ((-t * t / 2.0).exp(), 0.0)));

/// The characteristic function of a resample's deviation from the estimate: (real, imaginary).
fn characteristic(parts: &[Differences], t: f64) -> (f64, f64) {
    let (mut log, mut phase) = (0.0, 0.0);
    for part in parts {
        let n = f64::from(part.n());
        let mean = part.mean();
        let step = t / (parts.len() as f64 * n);
        let (re, im) = part.shares().fold((0.0, 0.0), |(re, im), (value, share)| {
            let (sin, cos) = (step * (value - mean)).sin_cos();
            (re + share * cos, im + share * sin)
        });
        log += n * re.hypot(im).ln();
        phase += n * im.atan2(re);
    }
    let size = log.exp();
    (size * phase.cos(), size * phase.sin())
}

/// A distribution with mean 0 and variance 1 as the Fourier series of its density.
struct Series {
    /// Real and imaginary part of the characteristic function at 2πj/PERIOD, j from 1.
    terms: Vec<(f64, f64)>,
}

impl Series {
    fn new(characteristic: impl Fn(f64) -> (f64, f64)) -> Series {
        let terms = (1..=TERMS).map(|j| characteristic(frequency(j)));
        Series { terms: terms.take_while(|(re, im)| re.hypot(*im) > DECAYED).collect() }
    }

    /// Probability below `u`.
    fn below(&self, u: f64) -> f64 {
        self.at(u).0
    }

    /// Probability below `u`, which is the density's series integrated term by term, and the density itself. Each
    /// term's angle is the first one's, taken once more.
    fn at(&self, u: f64) -> (f64, f64) {
        let (step_sin, step_cos) = (frequency(1) * u).sin_cos();
        let (mut sin, mut cos) = (0.0, 1.0);
        let (mut below, mut density) = (0.5 + u / PERIOD, 1.0 / PERIOD);
        let mut far = 1.0;
        for (at, (re, im)) in self.terms.iter().enumerate() {
            (sin, cos) = (sin * step_cos + cos * step_sin, cos * step_cos - sin * step_sin);
            far = -far;
            below += 2.0 / PERIOD * (re * sin - im * (cos - far)) / frequency(at + 1);
            density += 2.0 / PERIOD * (re * cos + im * sin);
        }
        (below, density)
    }

    /// Where the probability below is `p`: Newton's steps inside a bracket that they cannot leave.
    fn quantile(&self, p: f64) -> f64 {
        let (mut lo, mut hi) = (-PERIOD / 3.0, PERIOD / 3.0);
        let mut u = 0.0;
        for _ in 0..60 {
            let (below, density) = self.at(u);
            let miss = below - p;
            if miss > 0.0 {
                hi = u
            } else {
                lo = u
            }
            let step = u - miss / density;
            let next = if step > lo && step < hi { step } else { (lo + hi) / 2.0 };
            if (next - u).abs() < 1e-9 {
                return next;
            }
            u = next;
        }
        u
    }
}

fn frequency(j: usize) -> f64 {
    2.0 * PI * j as f64 / PERIOD
}

#[cfg(test)]
#[path = "bootstrap_tests.rs"]
mod tests;
