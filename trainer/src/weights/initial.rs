//! Initial values of what training adds. Each tensor draws from a stream of its own, named by seed and name, so that
//! adding a module changes no other module's start.

use crate::random::SplitMix64;
use sha2::{Digest, Sha256};
use tch::Tensor;

/// The generator that belongs to `label` under `seed`.
pub fn stream(seed: u64, label: &str) -> SplitMix64 {
    let hash = Sha256::digest(format!("{seed}/{label}"));
    SplitMix64::new(hash[..8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte)))
}

/// Normal values with standard deviation `sigma`.
pub fn normal(seed: u64, name: &str, shape: &[i64], sigma: f64) -> Tensor {
    fill(shape, &mut stream(seed, name), |generator| sigma * standard_normal(generator))
}

/// Normal values with standard deviation `sigma` before those beyond 2σ are drawn again.
pub fn truncated_normal(seed: u64, name: &str, shape: &[i64], sigma: f64) -> Tensor {
    fill(shape, &mut stream(seed, name), |generator| {
        loop {
            let value = standard_normal(generator);
            if value.abs() <= 2.0 {
                return sigma * value;
            }
        }
    })
}

/// Values spread evenly between −`bound` and `bound`.
pub fn uniform(seed: u64, name: &str, shape: &[i64], bound: f64) -> Tensor {
    fill(shape, &mut stream(seed, name), |generator| (2.0 * generator.uniform() - 1.0) * bound)
}

fn fill(shape: &[i64], generator: &mut SplitMix64, mut draw: impl FnMut(&mut SplitMix64) -> f64) -> Tensor {
    let count = shape.iter().product::<i64>();
    let values: Vec<f32> = (0..count).map(|_| draw(generator) as f32).collect();
    Tensor::from_slice(&values).reshape(shape)
}

/// Box and Muller (1958), first of the pair.
fn standard_normal(generator: &mut SplitMix64) -> f64 {
    let radius = (-2.0 * (1.0 - generator.uniform()).ln()).sqrt();
    radius * (std::f64::consts::TAU * generator.uniform()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn values_depend_on_seed_and_name_alone() {
        let draw = |seed, name| normal(seed, name, &[64], 1.0);
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
    }

    #[test]
    fn truncated_values_stay_within_two_sigma_and_spread_as_they_should() {
        let values = truncated_normal(3, "w", &[20_000], 0.01);
        assert!(values.abs().max().double_value(&[]) <= 0.02);
        // A normal cut at 2σ has standard deviation 0.8796σ; 20,000 draws give it to about half a percent.
        let deviation = values.std(true).double_value(&[]);
        assert!((deviation / 0.008796 - 1.0).abs() < 0.02, "{deviation}");
        let mean = values.mean(Kind::Double).double_value(&[]);
        assert!(mean.abs() < 4.0 * 0.0088 / 20_000f64.sqrt(), "{mean}");
    }
}
