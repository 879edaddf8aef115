//! Linear centred kernel alignment (Kornblith, Norouzi, Lee and Hinton 2019, arXiv 1905.00414): how alike two sets of
//! features of the same n images are, whatever rotation or scale lies between them. 1 is the same up to those.
//!
//! The paper's estimate, ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), is far above 0 for features that have nothing in common once they have
//! about as many dimensions as there are images: 0.6 for 512 images of 768 values. So each of its three HSICs is the
//! U-statistic of Song et al. 2012 (equation 5), which has no such bias, as Nguyen, Raghu and Kornblith 2021
//! (arXiv 2010.15327, §2) use it. With centred features, s_i = |x_i|² and t_i = |y_i|²:
//!
//! ```text
//! n (n − 3) HSIC(X, Y) = ‖YᵀX‖² − n/(n − 2) Σ s_i t_i + Σ s_i Σ t_i / ((n − 1)(n − 2))
//! CKA = HSIC(X, Y) / √(HSIC(X, X) HSIC(Y, Y))
//! ```
//!
//! It may be a little below 0.

use tch::{Kind, Tensor};

/// Features of some images, ready to be compared.
#[derive(Debug)]
pub struct Centred {
    /// [images, dim], f64, each column's mean 0.
    values: Tensor,
    /// Squared length of each row. [images]
    lengths: Tensor,
    /// HSIC with itself.
    itself: f64,
}

impl Centred {
    /// # Shapes
    /// [images, dim], four images at least
    pub fn new(features: &Tensor) -> Centred {
        let values = features.to_kind(Kind::Double);
        let values = &values - values.mean_dim([0].as_slice(), true, Kind::Double);
        let lengths = values.square().sum_dim_intlist([1].as_slice(), false, Kind::Double);
        let mut centred = Centred { values, lengths, itself: 0.0 };
        centred.itself = hsic(&centred, &centred);
        centred
    }
}

/// Linear CKA without bias. None where the features of all images are the same.
pub fn cka(x: &Centred, y: &Centred) -> Option<f64> {
    let scale = (x.itself * y.itself).sqrt();
    (x.itself > 0.0 && y.itself > 0.0 && scale.is_finite()).then(|| hsic(x, y) / scale)
}

/// n (n − 3) times the U-statistic.
fn hsic(x: &Centred, y: &Centred) -> f64 {
    let n = x.lengths.size()[0] as f64;
    let (dim_x, dim_y) = (x.values.size()[1], y.values.size()[1]);
    // ‖YᵀX‖² = Σ (XXᵀ)(YYᵀ): by way of whichever is smaller.
    let together = if (dim_x.max(dim_y) as f64) <= n {
        y.values.tr().matmul(&x.values).square().sum(Kind::Double)
    } else {
        let gram = |features: &Centred| features.values.matmul(&features.values.tr());
        (gram(x) * gram(y)).sum(Kind::Double)
    };
    let dot = x.lengths.dot(&y.lengths).double_value(&[]);
    let [sum_x, sum_y] = [x, y].map(|one| one.lengths.sum(Kind::Double).double_value(&[]));
    together.double_value(&[]) - n / (n - 2.0) * dot + sum_x * sum_y / ((n - 1.0) * (n - 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;
    use crate::reference::numbers_in;
    use crate::weights::initial;

    const GOLDEN: &str = include_str!("../../goldens/spectrum.json");

    fn uniform(seed: u64, rows: i64, columns: i64) -> Tensor {
        let mut draws = SplitMix64::new(seed);
        let values: Vec<f64> = (0..rows * columns).map(|_| draws.uniform()).collect();
        Tensor::from_slice(&values).reshape([rows, columns])
    }

    fn similarity(x: &Tensor, y: &Tensor) -> f64 {
        cka(&Centred::new(x), &Centred::new(y)).unwrap()
    }

    /// Song et al.'s definition, over Gram matrices whose diagonals are 0.
    fn by_definition(x: &Tensor, y: &Tensor) -> f64 {
        let n = x.size()[0] as f64;
        let gram = |x: &Tensor| {
            let gram = x.matmul(&x.tr());
            &gram - gram.diag(0).diag(0)
        };
        let hsic = |k: &Tensor, l: &Tensor| {
            let all = |m: Tensor| m.sum(Kind::Double).double_value(&[]);
            let trace = all(k * l);
            let product = all(k.matmul(l));
            trace + all(k.shallow_clone()) * all(l.shallow_clone()) / ((n - 1.0) * (n - 2.0))
                - 2.0 / (n - 2.0) * product
        };
        let (k, l) = (gram(x), gram(y));
        hsic(&k, &l) / (hsic(&k, &k) * hsic(&l, &l)).sqrt()
    }

    #[test]
    fn it_is_the_published_estimate_without_bias() {
        let x = uniform(21, 24, 10);
        let y = x.matmul(&(uniform(22, 10, 6) - 0.5)) + uniform(23, 24, 6) * 0.3;
        let z = uniform(24, 24, 10);
        for (name, other) in [("related", &y), ("unrelated", &z)] {
            let golden = numbers_in(GOLDEN, &format!("cka.{name}.debiased"))[0];
            assert!((similarity(&x, other) - golden).abs() < 1e-12, "{name}");
            assert!((by_definition(&x, other) - golden).abs() < 1e-12, "{name}, by definition");
        }
        // More dimensions than images go by way of the Gram matrices.
        let (wide, other) = (uniform(31, 12, 40), uniform(32, 12, 30));
        assert!((similarity(&wide, &other) - by_definition(&wide, &other)).abs() < 1e-11);
    }

    #[test]
    fn rotation_scale_and_shift_do_not_matter() {
        let x = uniform(1, 40, 6);
        let (rotation, _) = Tensor::linalg_qr(&uniform(2, 6, 6), "reduced");
        let turned = x.matmul(&rotation) * 7.0 + 3.0;
        assert!((similarity(&x, &turned) - 1.0).abs() < 1e-12);
        assert!((similarity(&x, &x) - 1.0).abs() < 1e-15);
    }

    #[test]
    fn unrelated_features_of_many_dimensions_are_near_zero() {
        let [x, y] = ["x", "y"].map(|name| initial::normal(3, name, &[100, 200], 1.0));
        // The paper's estimate would be about 200 / (200 + 100).
        assert!(similarity(&x, &y).abs() < 0.03, "{}", similarity(&x, &y));
    }

    #[test]
    fn features_that_do_not_vary_have_no_similarity() {
        let constant = Tensor::ones([10, 4], (Kind::Float, tch::Device::Cpu));
        assert_eq!(cka(&Centred::new(&constant), &Centred::new(&uniform(1, 10, 4))), None);
    }
}
