//! Learning without forgetting (arXiv 1606.09282) for an encoder without a classifier: what θ0 takes an image for among
//! prototypes is to stay, T² · KL(p_θ0 ‖ p_θ), p at temperature T·τ. T² keeps the size of the gradient as T grows
//! (arXiv 1503.02531).

use super::prototypes::log_probabilities;
use tch::{Kind, Tensor};

/// The divergence, a mean over images.
///
/// # Shapes
/// `now` and `before` [batch, feature_dim], `prototypes` [prototypes, feature_dim] → scalar
pub fn loss(now: &Tensor, before: &Tensor, prototypes: &Tensor, temperature: f64) -> Tensor {
    let before = log_probabilities(before, prototypes, temperature); // [batch, prototypes]
    let now = log_probabilities(now, prototypes, temperature);
    let divergence = (before.exp() * (before - now)).sum_dim_intlist(-1, false, Kind::Float); // [batch]
    divergence.mean(Kind::Float) * temperature.powi(2)
}
