//! L²-SP (arXiv 1802.01483): Σ (θ − θ0)² over all values that the encoder trains. A sum and no mean, as in the original
//! and in LP-FT's comparison (arXiv 2202.10054), whose weights of 0.01 and 0.1 are thus weights here too. What a method
//! adds is drawn to its identity.

use crate::weights::Tensors;
use tch::{Kind, Tensor};

/// The squared distance of the tensors that `origin` names to where they began.
///
/// # Shapes
/// → scalar
pub fn distance(tensors: &Tensors, origin: &Tensors) -> Tensor {
    let squares = origin.iter().map(|(name, theta0)| (&tensors[name] - theta0).square().sum(Kind::Float));
    Tensor::stack(&squares.collect::<Vec<_>>(), 0).sum(Kind::Float)
}
