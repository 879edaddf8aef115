use super::*;

fn of(gained: u32, lost: u32, n: u32) -> Differences {
    Differences { seeds: 1, counts: vec![lost, n - gained - lost, gained] }
}

/// SplitMix64, one uniform number after another.
struct Uniform(u64);

impl Uniform {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Gains and losses among `n` queries that each gain or lose with these probabilities.
    fn draw(&mut self, n: u32, gain: f64, lose: f64) -> (u32, u32) {
        (0..n).fold((0, 0), |(gained, lost), _| match self.next() {
            u if u < gain => (gained + 1, lost),
            u if u < gain + lose => (gained, lost + 1),
            _ => (gained, lost),
        })
    }
}

#[test]
fn differences_are_counted_per_query_over_seeds_and_among_those_asked_for() {
    // Query 0 gains for both seeds, 1 for one, 2 gains and loses, 3 loses for one, 69 loses for both.
    let flags =
        |right: &[usize]| Hits::from_flags(&(0..70).map(|query| right.contains(&query)).collect::<Vec<_>>());
    let before = flags(&[3, 69]);
    let (one, two) = (flags(&[0, 1, 3, 2]), flags(&[0]));
    let other = flags(&[2, 3, 69]);
    let found = Differences::count(&[(&before, &one), (&other, &two)], 70, None).unwrap();
    // −2: 69. −1: 3. 0: 2 and the 65 others. +1: 1. +2: 0.
    assert_eq!(found.counts, [1, 1, 66, 1, 1]);
    assert_eq!((found.n(), found.changed(), found.mean()), (70, 4, 0.0));
    let few = Differences::count(&[(&before, &one)], 70, Some(&flags(&[0, 3, 69]))).unwrap();
    assert_eq!(few.counts, [1, 1, 1]);
    assert_eq!(Differences::count(&[(&before, &one)], 0, None), None);
    assert_eq!(Differences::count(&[], 70, None), None);
}

#[test]
fn an_even_split_has_the_normal_interval() {
    // 50 gain and 50 lose of 1,000: the mean is 0 and its standard error √(0.1/1000) = 1 point. Skewness and bias are 0,
    // so the ends are ±1.96 up to the fourth cumulant, which is below 1e-3 here.
    let found = bca_95(&[of(50, 50, 1000)]).unwrap();
    assert!((found.hi - 1.96).abs() < 0.01 && (found.lo + found.hi).abs() < 1e-9, "{found:?}");
    assert_eq!(bca_95(&[of(0, 0, 1000)]), None);
}

#[test]
fn the_series_is_the_distribution_that_resampling_approaches() {
    // 30 gain, 12 lose of 264. 20,000 resamples: a share of about one half is uncertain by 0.0035.
    let drawn = of(30, 12, 264);
    let error = (drawn.moment(2) / 264.0).sqrt();
    let series = Series::new(|t| characteristic(std::slice::from_ref(&drawn), t / error));
    let mut uniform = Uniform(7);
    let sums: Vec<i64> = (0..20_000)
        .map(|_| {
            let (gained, lost) = uniform.draw(264, 30.0 / 264.0, 12.0 / 264.0);
            i64::from(gained) - i64::from(lost)
        })
        .collect();
    for step in [4, 10, 17, 25, 32] {
        let below = sums.iter().filter(|sum| **sum <= step).count() as f64 / 20_000.0;
        let u = ((step as f64 + 0.5) / 264.0 - drawn.mean()) / error;
        assert!((series.below(u) - below).abs() < 0.011, "{step}: {} is not {below}", series.below(u));
    }
    // 264 draws with one chance in 1: the sum is 18 on average, which is where half of it lies.
    assert!((series.quantile(series.below(0.7)) - 0.7).abs() < 1e-8);
}

#[test]
fn the_normal_distribution_comes_out_of_its_own_series() {
    let normal = &*NORMAL;
    assert!((normal.below(Z) - 0.975).abs() < 1e-10 && (normal.quantile(0.025) + Z).abs() < 1e-8);
}

#[test]
fn the_interval_leans_to_the_side_of_the_rare_event() {
    // Only gains: the sum is binomial, skewed to the right, and so is the interval.
    let found = bca_95(&[of(20, 0, 1000)]).unwrap();
    assert!(found.lo > 0.0 && found.hi - 2.0 > 2.0 - found.lo, "{found:?}");
    // Clopper and Pearson's exact interval for 20 of 1,000 is 1.23 to 3.07; bootstrap and exact differ by a step of 0.1.
    assert!((found.lo - 1.23).abs() < 0.1 && (found.hi - 3.07).abs() < 0.1, "{found:?}");
}

#[test]
fn it_covers_the_truth_nineteen_times_in_twenty() {
    // 264 queries of which 8 % gain and 5 % lose; 2,000 repetitions are uncertain by 0.5 points, three times that.
    let mut uniform = Uniform(11);
    let covered = (0..2_000)
        .filter(|_| {
            let (gained, lost) = uniform.draw(264, 0.08, 0.05);
            bca_95(&[of(gained, lost, 264)]).is_some_and(|found| found.lo <= 3.0 && found.hi >= 3.0)
        })
        .count();
    assert!((1_870..=1_930).contains(&covered), "{covered} of 2,000");
}

#[test]
fn a_mean_over_datasets_is_as_certain_as_its_parts_together() {
    // Two datasets alike: the mean of two has 1/√2 of the error; a large one beside them leaves the small one's error.
    let one = bca_95(&[of(50, 50, 1000)]).unwrap();
    let two = bca_95(&[of(50, 50, 1000), of(50, 50, 1000)]).unwrap();
    assert!((one.hi / two.hi - 2.0_f64.sqrt()).abs() < 0.01, "{one:?} {two:?}");
    let beside = bca_95(&[of(50, 50, 1000), of(50_000, 50_000, 1_000_000)]).unwrap();
    assert!((one.hi / beside.hi - 2.0).abs() < 0.02, "{one:?} {beside:?}");
}
