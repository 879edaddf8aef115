use super::*;
use crate::random::SplitMix64;
use crate::reference::numbers_in;

const GOLDEN: &str = include_str!("../../../goldens/spectrum.json");

/// Draws of SplitMix64, [rows, columns], f64.
fn uniform(seed: u64, rows: i64, columns: i64) -> Tensor {
    let mut draws = SplitMix64::new(seed);
    let values: Vec<f64> = (0..rows * columns).map(|_| draws.uniform()).collect();
    Tensor::from_slice(&values).reshape([rows, columns])
}

/// The matrices of `goldens/spectrum.py`.
fn matrix(seed: u64, rows: i64, columns: i64, spikes: i64) -> Tensor {
    let noise = (uniform(seed, rows, columns) - 0.5) * 0.2;
    let (left, right) = (uniform(seed + 100, rows, spikes) - 0.5, uniform(seed + 200, columns, spikes) - 0.5);
    let strength: Vec<f64> = (0..spikes).map(|k| (k as f64 + 1.0).powf(-0.7)).collect();
    (noise + (left * Tensor::from_slice(&strength)).matmul(&right.tr())).to_kind(Kind::Float)
}

fn golden_layers() -> Vec<(&'static str, Tensor)> {
    let low_rank = uniform(16, 60, 10).matmul(&uniform(17, 10, 40)).to_kind(Kind::Float);
    vec![
        ("a_tall", matrix(11, 96, 64, 12)),
        ("b_wide", matrix(12, 48, 80, 12)),
        ("c_patches", matrix(13, 64, 48, 6).reshape([64, 3, 4, 4])),
        ("d_few", matrix(14, 40, 12, 4)),
        ("f_low_rank", low_rank),
    ]
}

#[test]
fn layers_have_weightwatchers_numbers() {
    for (name, weight) in golden_layers() {
        for route in [Route::Gram, Route::Svd] {
            let found = values(&eigenvalues(&weight, route).unwrap(), Alpha::ONE);
            let tail = found.tail.unwrap();
            for (field, value) in [
                ("alpha", tail.ww_alpha),
                ("D", tail.d),
                ("sigma", tail.sigma),
                ("xmin", tail.xmin),
                ("num_pl_spikes", f64::from(tail.num_pl_spikes)),
                ("num_evals", f64::from(found.num_evals)),
                ("norm", found.norm),
                ("log_norm", found.log_norm.unwrap()),
                ("spectral_norm", found.spectral_norm),
                ("stable_rank", found.stable_rank.unwrap()),
                ("alpha_weighted", tail.alpha_weighted),
                ("log_alpha_norm", tail.log_alpha_norm),
            ] {
                let expected = numbers_in(GOLDEN, &format!("layers.{name}.{field}"))[0];
                // The matrices are made by two libraries and rounded to f32.
                let near = (value - expected).abs() <= 1e-6 * expected.abs();
                assert!(near, "{name} {field}, {route:?}: {value}, weightwatcher {expected}");
            }
            let few = ["d_few", "f_low_rank"].contains(&name);
            assert_eq!((tail.status, tail.few), (TailStatus::OverTrained, few));
        }
    }
}

#[test]
fn the_gram_matrix_gives_the_squares_of_the_singular_values() {
    let several_blocks = matrix(6, 300, 270, 5);
    let patches = matrix(5, 24, 48, 5).reshape([24, 3, 4, 4]);
    for weight in [matrix(3, 70, 30, 5), matrix(4, 30, 70, 5), several_blocks, patches] {
        let [gram, svd] = [Route::Gram, Route::Svd].map(|route| eigenvalues(&weight, route).unwrap());
        assert_eq!(gram.len() as i64, count(&weight.size()).unwrap());
        let largest = svd.last().unwrap();
        for (one, other) in gram.iter().zip(&svd) {
            assert!((one - other).abs() < 1e-13 * largest, "{one} {other}");
        }
    }
    // diag(3, 2): 9 and 4.
    let diagonal = eigenvalues(&Tensor::from_slice(&[3f32, 2.0]).diag(0), Route::Gram).unwrap();
    assert!((diagonal[0] - 4.0).abs() < 1e-14 && (diagonal[1] - 9.0).abs() < 1e-14, "{diagonal:?}");
}

#[test]
fn the_weights_of_a_line_in_another_arithmetic_are_widened() {
    for kind in [Kind::BFloat16, Kind::Half] {
        let weight = matrix(7, 40, 24, 5).to_kind(kind);
        let widened = weight.to_kind(Kind::Float);
        for route in [Route::Gram, Route::Svd] {
            assert_eq!(eigenvalues(&weight, route).unwrap(), eigenvalues(&widened, route).unwrap());
        }
    }
}

#[test]
fn where_rounding_could_reach_the_fit_singular_values_are_taken() {
    // A direction of length 1e6 beside one of 1e-2: λ = 1e12 and 1e-4, and ε·1e12 = 2e-4.
    let turned = Tensor::from_slice(&[0.6f64, 0.8, -0.8, 0.6]).reshape([2, 2]);
    let weight = (&turned * Tensor::from_slice(&[1e6f64, 1e-2])).matmul(&turned.tr());
    let weight = weight.to_kind(Kind::Float);
    let found = eigenvalues(&weight, Route::Gram).unwrap();
    assert_eq!(found, eigenvalues(&weight, Route::Svd).unwrap());
}

#[test]
fn a_matrix_of_zeros_has_no_tail_and_one_that_is_not_finite_is_refused() {
    let zeros = Tensor::zeros([16, 12], (Kind::Float, tch::Device::Cpu));
    let found = values(&eigenvalues(&zeros, Route::Gram).unwrap(), Alpha::ZERO);
    assert_eq!((found.norm, found.tail, found.stable_rank, found.log_norm), (0.0, None, None, None));
    let jobs =
        vec![Job { name: "blocks.3.mlp.fc1.weight".into(), weight: zeros + f64::NAN, alpha: Alpha::ONE }];
    let error = format!("{:#}", all(jobs, 2, &mut |_| Ok(())).unwrap_err());
    assert!(error.contains("blocks.3.mlp.fc1.weight") && error.contains("not finite"), "{error}");
    assert_eq!((count(&[5]), count(&[16, 3, 2, 2])), (None, Some(12)));
}

#[test]
fn threads_change_nothing() {
    let jobs = || {
        let layers = golden_layers().into_iter();
        layers.map(|(name, weight)| Job { name: name.into(), weight, alpha: Alpha::ONE }).collect::<Vec<_>>()
    };
    let mut told = Vec::new();
    let one = all(jobs(), 1, &mut |done| {
        told.push(done);
        Ok(())
    });
    let one = one.unwrap();
    assert_eq!(told, [1, 2, 3, 4, 5]);
    assert_eq!(one, all(jobs(), 3, &mut |_| Ok(())).unwrap());
}
