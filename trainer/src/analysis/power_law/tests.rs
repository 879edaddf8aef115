use super::*;
use crate::random::SplitMix64;
use crate::reference::numbers_in;

/// What weightwatcher 0.7.7 finds, made by `goldens/spectrum.py`.
const GOLDEN: &str = include_str!("../../../goldens/spectrum.json");

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// Draws of a Pareto law with exponent `alpha`: (1 − u)^(−1 / (α − 1)).
fn pareto(draws: &mut SplitMix64, alpha: f64, count: usize) -> Vec<f64> {
    (0..count).map(|_| (1.0 - draws.uniform()).powf(-1.0 / (alpha - 1.0))).collect()
}

fn quantiles(alpha: f64, count: usize) -> Vec<f64> {
    let share = |at: usize| (at as f64 + 0.5) / count as f64;
    (0..count).map(|at| (1.0 - share(at)).powf(-1.0 / (alpha - 1.0))).collect()
}

/// The same place, and the same numbers to what two orders of summing leave.
fn assert_golden(name: &str, values: Vec<f64>) {
    let count = values.len();
    let found = fit(&sorted(values)).unwrap();
    let expected = |field: &str| numbers_in(GOLDEN, &format!("fits.{name}.{field}"))[0];
    assert_eq!(found.first as f64, expected("argmin"), "{name}");
    let all = [(found.alpha, "alpha"), (found.xmin, "xmin"), (found.d, "D"), (found.sigma, "sigma")];
    // Of fewer than eight values weightwatcher takes the error before it has the exponent, and says −1/√n.
    for (value, field) in all.into_iter().filter(|(_, field)| count >= SMALL_TAIL || *field != "sigma") {
        let expected = expected(field);
        assert!((value - expected).abs() <= 1e-10 * expected.abs(), "{name} {field}: {value} {expected}");
    }
}

#[test]
fn fits_are_weightwatchers() {
    assert_golden("quantiles_500", quantiles(3.0, 500));
    assert_golden("quantiles_64", quantiles(2.5, 64));
    assert_golden("pareto_768_seed1", pareto(&mut SplitMix64::new(1), 3.5, 768));
    let mut draws = SplitMix64::new(2);
    let mut bulk: Vec<f64> = (0..500).map(|_| 0.5 * draws.uniform()).collect();
    bulk.extend(pareto(&mut draws, 2.8, 268).iter().map(|value| 0.5 * value));
    assert_golden("bulk_and_pareto_seed2", bulk);
    for count in [7, 8, 16, 19, 20] {
        assert_golden(&format!("few_{count}_seed3"), pareto(&mut SplitMix64::new(3), 3.0, count));
    }
}

#[test]
fn two_values_are_fitted_by_hand() {
    // One tail of two: α = 1 + (2 − 1) / ln(e / 1) = 2; F = 0 and 1 − e^−1 against 0 and 1/2.
    let found = fit(&[1.0, std::f64::consts::E]).unwrap();
    assert!((found.alpha - 2.0).abs() < 1e-15 && found.first == 0 && found.few);
    assert!((found.d - (0.5 - (-1.0_f64).exp())).abs() < 1e-15, "{}", found.d);
    assert!((found.sigma - 0.5_f64.sqrt()).abs() < 1e-15);
}

#[test]
fn nothing_is_fitted_to_what_has_no_tail() {
    assert_eq!(fit(&[]), None);
    assert_eq!(fit(&[1.0]), None);
    assert_eq!(fit(&[3.0; 10]), None, "few and equal");
    assert_eq!(fit(&[3.0; 30]), None, "many and equal");
}

#[test]
fn leaving_a_hopeless_start_early_changes_nothing() {
    let values = sorted(pareto(&mut SplitMix64::new(5), 2.2, 300));
    let logs: Vec<f64> = values.iter().map(|value| value.ln()).collect();
    let sums = sums_above(&logs);
    let whole = (0..values.len() - 1).map(|start| {
        let exponent = 1.0 + (values.len() - start) as f64 / sums[start];
        (distance_below(&logs[start..], exponent, f64::INFINITY).unwrap(), start)
    });
    let (d, first) = whole.fold((f64::INFINITY, 0), |best, one| if one.0 < best.0 { one } else { best });
    let found = fit(&values).unwrap();
    assert_eq!((found.d, found.first), (d, first));
}

#[test]
fn the_exponent_does_not_change_with_the_scale() {
    let values = sorted(pareto(&mut SplitMix64::new(9), 3.0, 400));
    let scaled: Vec<f64> = values.iter().map(|value| 1e3 * value).collect();
    let (one, other) = (fit(&values).unwrap(), fit(&scaled).unwrap());
    assert_eq!(one.first, other.first);
    assert!((one.alpha - other.alpha).abs() < 1e-12 && (one.d - other.d).abs() < 1e-12);
}
