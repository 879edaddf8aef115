//! The difference of two accuracies on the same queries, with an interval that is always named: the paired bootstrap
//! (`bootstrap.rs`), and where so few queries changed that resampling them would pretend to know too much, Agresti and
//! Min's (2005). A bootstrap of nothing but ties has no width at all; their interval, Wald's for matched pairs after
//! half a query more in each of the four cells, still has one.

use super::bootstrap::{Differences, bca_95};
use super::stats::{Interval, Z};
use serde::Serialize;
use utoipa::ToSchema;

/// Fewest changed queries, in each dataset, for a bootstrap.
const CHANGED: u32 = 10;

/// Accuracy after minus accuracy before on the same queries.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Paired {
    /// The difference, points.
    pub delta: f64,
    /// 95 % interval over queries.
    pub interval: Interval,
    /// Which interval.
    pub kind: PairedInterval,
    /// Queries.
    pub n: u32,
}

/// Which interval stands around a difference.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PairedInterval {
    /// BCa of the paired bootstrap over queries.
    PairedBootstrap,
    /// Agresti and Min's for matched pairs: fewer than ten queries of a dataset changed.
    AgrestiMin,
}

impl PairedInterval {
    /// As pages write it.
    pub fn name(self) -> &'static str {
        match self {
            PairedInterval::PairedBootstrap => "paired bootstrap",
            PairedInterval::AgrestiMin => "Agresti\u{2013}Min",
        }
    }
}

/// The difference on one dataset, or its mean over several, each counting the same; their queries are independent.
pub fn paired(parts: &[Differences]) -> Option<Paired> {
    if parts.is_empty() {
        return None;
    }
    let delta = 100.0 * parts.iter().map(Differences::mean).sum::<f64>() / parts.len() as f64;
    let n = parts.iter().map(Differences::n).sum();
    let enough = parts.iter().all(|part| part.changed() >= CHANGED);
    let (interval, kind) = match bca_95(parts).filter(|_| enough) {
        Some(interval) => (interval, PairedInterval::PairedBootstrap),
        None => (agresti_min(parts), PairedInterval::AgrestiMin),
    };
    Some(Paired { delta, interval, kind, n })
}

fn agresti_min(parts: &[Differences]) -> Interval {
    let count = parts.len() as f64;
    let (mut centre, mut variance) = (0.0, 0.0);
    for part in parts {
        let n = f64::from(part.n());
        // The half queries: one more pair that agrees, half a gain, half a loss.
        let (padded, mean) = (n + 2.0, part.mean() * n / (n + 2.0));
        centre += mean / count;
        variance += ((part.mean_square() * n + 1.0) / padded - mean * mean) / padded / (count * count);
    }
    let half = Z * variance.max(0.0).sqrt();
    Interval { lo: 100.0 * (centre - half), hi: 100.0 * (centre + half) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use causeway_protocol::Hits;

    fn near(left: f64, right: f64, tolerance: f64) {
        assert!((left - right).abs() <= tolerance, "{left} is not {right}");
    }

    fn flags(n: usize, right: std::ops::Range<usize>) -> Hits {
        Hits::from_flags(&(0..n).map(|query| right.contains(&query)).collect::<Vec<_>>())
    }

    #[test]
    fn few_changed_queries_have_an_interval_that_can_be_checked_by_hand() {
        // 10 queries: 3 become right, 1 becomes wrong. Padded: (3.5 − 1.5)/12 = 1/6; the squares are 5/12.
        let before = Hits::from_flags(&[true, true, true, false, false, false, false, true, true, true]);
        let after = Hits::from_flags(&[true, true, true, true, true, true, false, false, true, true]);
        let found = paired(&[Differences::count(&[(&before, &after)], 10, None).unwrap()]).unwrap();
        near(found.delta, 20.0, 1e-9);
        assert_eq!(found.kind, PairedInterval::AgrestiMin);
        let half = 1.959_964 * ((5.0 / 12.0 - 1.0 / 36.0) / 12.0_f64).sqrt() * 100.0;
        near(found.interval.lo, 100.0 / 6.0 - half, 1e-3);
        near(found.interval.hi, 100.0 / 6.0 + half, 1e-3);
        assert!(found.interval.holds_zero());
    }

    #[test]
    fn nothing_changed_is_not_certainty() {
        // 100 queries, none changed: √(1/102/102) = 0.98 points, times 1.96.
        let same = flags(100, 0..40);
        let found = paired(&[Differences::count(&[(&same, &same)], 100, None).unwrap()]).unwrap();
        assert_eq!(found.delta, 0.0);
        near(found.interval.hi, 1.9216, 1e-3);
    }

    #[test]
    fn ten_changed_queries_are_bootstrapped_and_a_mean_needs_them_in_each_dataset() {
        let (none, ten, nine) = (flags(100, 0..0), flags(100, 0..10), flags(100, 0..9));
        let of = |after: &Hits| Differences::count(&[(&none, after)], 100, None).unwrap();
        let found = paired(&[of(&ten)]).unwrap();
        assert_eq!((found.kind, found.n), (PairedInterval::PairedBootstrap, 100));
        near(found.delta, 10.0, 1e-9);
        let mean = paired(&[of(&ten), of(&nine)]).unwrap();
        assert_eq!((mean.kind, mean.n), (PairedInterval::AgrestiMin, 200));
        near(mean.delta, 9.5, 1e-9);
        assert_eq!(paired(&[]), None);
    }

    #[test]
    fn seeds_are_averaged_inside_a_query() {
        let (before, up) = (flags(8, 0..0), flags(8, 0..4));
        let of = |pairs: &[(&Hits, &Hits)]| paired(&[Differences::count(pairs, 8, None).unwrap()]).unwrap();
        let (one, two) = (of(&[(&before, &up)]), of(&[(&before, &up), (&before, &before)]));
        near(one.delta, 50.0, 1e-9);
        near(two.delta, 25.0, 1e-9);
        assert!(two.interval.hi - two.interval.lo < one.interval.hi - one.interval.lo);
    }
}
