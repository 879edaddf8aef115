//! Elastic weight consolidation (arXiv 1612.00796): ½ Σ Fᵢ (θᵢ − θ0ᵢ)². F is the diagonal of the Fisher information at θ0,
//! the mean over images of the squared gradient of log p(prototype | image), where the prototype is the one that θ0
//! takes for the most likely. It is computed before training in f32, one backward pass an image, because the square of
//! a batch's gradient is not the sum of its images' squares.

use super::prototypes::log_probabilities;
use crate::models::vit::Vit;
use crate::weights::Tensors;
use anyhow::Result;
use tch::{Kind, Tensor};

/// F of each tensor in `origin`; 0 for one that the feature does not rest on at θ0.
///
/// # Shapes
/// `images` u8 [images, 3, side, side], `prototypes` [prototypes, feature_dim] → each as its tensor
///
/// # Errors
/// A failure inside libtorch.
pub fn fisher(
    vit: &Vit,
    theta0: &Tensors,
    origin: &Tensors,
    images: &Tensor,
    prototypes: &Tensor,
) -> Result<Tensors> {
    let mut tensors: Tensors =
        theta0.iter().map(|(name, tensor)| (name.to_owned(), tensor.detach())).collect();
    let leaves: Vec<Tensor> =
        origin.iter().map(|(_, tensor)| tensor.detach().copy().set_requires_grad(true)).collect();
    tensors.extend(origin.names().map(str::to_owned).zip(leaves.iter().map(Tensor::shallow_clone)));
    let sums: Vec<Tensor> = leaves.iter().map(|leaf| leaf.detach().zeros_like()).collect();
    let count = images.size()[0];
    for image in images.split(1, 0) {
        let features = vit.features(&tensors, &vit.config.normalise(&image)); // [1, feature_dim]
        let log = log_probabilities(&features, prototypes, 1.0); // [1, prototypes]
        let likeliest = log.argmax(-1, true);
        let asked = log.gather(-1, &likeliest, false).sum(Kind::Float);
        let gradients = Tensor::f_run_backward(&[asked], &leaves, false, false)?;
        for (sum, gradient) in sums.iter().zip(gradients).filter(|(_, gradient)| gradient.defined()) {
            let _ = sum.shallow_clone().addcmul_(&gradient, &gradient);
        }
    }
    let means = sums.into_iter().map(|sum| sum / count as f64);
    Ok(origin.names().map(str::to_owned).zip(means).collect())
}

/// ½ Σ F (θ − θ0)².
///
/// # Shapes
/// → scalar
pub fn distance(tensors: &Tensors, origin: &Tensors, fisher: &Tensors) -> Tensor {
    let weighed = origin
        .iter()
        .map(|(name, theta0)| ((&tensors[name] - theta0).square() * &fisher[name]).sum(Kind::Float));
    Tensor::stack(&weighed.collect::<Vec<_>>(), 0).sum(Kind::Float) * 0.5
}
