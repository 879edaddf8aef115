//! Prototypes stand in for the classifier that a pretrained encoder does not have: θ0's features of some training
//! images, of unit length. An image is likely to be of a prototype's kind as their similarity says,
//! log p(j | x) = log softmaxⱼ(cos(f(x), Bⱼ) / τ), with the τ of DINO's k-NN, which the evaluation asks the same
//! features with.

use super::Bare;
use tch::{Device, Kind, Tensor};

/// τ.
pub const TAU: f64 = 0.07;

/// θ0's features of images, of unit length.
///
/// # Shapes
/// `images` u8 [prototypes, 3, side, side] → [prototypes, feature_dim]
pub fn prototypes(bare: &Bare, images: &Tensor, batch: i64, device: Device) -> Tensor {
    let features = images.split(batch.max(1), 0).into_iter().map(|some| {
        let pixels = bare.config().normalise(&some.to_device(device));
        unit(&bare.features(&pixels, false))
    });
    Tensor::cat(&features.collect::<Vec<_>>(), 0)
}

/// log p of each prototype, at `temperature` times τ.
///
/// # Shapes
/// `features` [batch, feature_dim], `prototypes` [prototypes, feature_dim] → [batch, prototypes]
pub fn log_probabilities(features: &Tensor, prototypes: &Tensor, temperature: f64) -> Tensor {
    let similarities = unit(&features.to_kind(Kind::Float)).matmul(&prototypes.transpose(0, 1));
    (similarities / (temperature * TAU)).log_softmax(-1, Kind::Float)
}

/// Rows scaled to length 1; a row of zeros stays.
fn unit(x: &Tensor) -> Tensor {
    x / x.norm_scalaropt_dim(2.0, [-1], true).clamp_min(1e-12)
}
