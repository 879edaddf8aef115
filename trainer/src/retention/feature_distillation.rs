//! Feature distillation: the features of the batch's images are to stay what θ0 makes of them,
//! ‖f_θ(x) − f_θ0(x)‖², a mean over images; of all tokens, a mean over these too.

use tch::{Kind, Tensor};

/// The squared distance of vectors, a mean over all of them.
///
/// # Shapes
/// `now` and `before` [.., dim], of any one shape → scalar
pub fn loss(now: &Tensor, before: &Tensor) -> Tensor {
    let squares = (now.to_kind(Kind::Float) - before).square();
    squares.sum_dim_intlist(-1, false, Kind::Float).mean(Kind::Float)
}
