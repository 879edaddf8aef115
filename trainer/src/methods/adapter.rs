//! Adapter+ (arXiv 2406.06820): after every block, x + s ⊙ Up(GELU(Down x)), with a learned scale s for each channel
//! and no LayerNorm inside. The backbone stays frozen, its LayerNorms too.

use super::Added;
use crate::models::vit::VitConfig;
use crate::weights::{Tensors, initial};
use causeway_protocol::AdapterInit;
use tch::{Device, Kind, Tensor};

/// Standard deviation of the matrices at the start, before values beyond 2σ are drawn again (Houlsby, arXiv
/// 1902.00751, as Adapter+ uses it).
const SIGMA: f64 = 0.01;

/// The adapters' tensors. θ0 has Up = 0 whatever the start, and Down as at the start: were Down 0 as well, the
/// adapter's output would vanish with α² instead of α.
pub fn added(config: &VitConfig, rank: i64, init: AdapterInit, learned_scale: bool, seed: u64) -> Added {
    let float = (Kind::Float, Device::Cpu);
    let dim = config.dim;
    let mut added = Added::default();
    for block in 0..config.depth {
        let mut add = |leaf: &str, start: Tensor, theta0: Tensor| {
            added.start.insert(name(block, leaf), start);
            added.theta0.insert(name(block, leaf), theta0);
        };
        let mut add_same = |leaf: &str, value: Tensor| {
            let again = value.shallow_clone();
            add(leaf, value, again);
        };
        let draw =
            |leaf: &str, shape: &[i64]| initial::truncated_normal(seed, &name(block, leaf), shape, SIGMA);
        add_same("down.weight", draw("down.weight", &[rank, dim]));
        add_same("down.bias", Tensor::zeros([rank], float));
        add_same("up.bias", Tensor::zeros([dim], float));
        if learned_scale {
            add_same("scale", Tensor::ones([dim], float));
        }
        let zero = Tensor::zeros([dim, rank], float);
        let up = match init {
            AdapterInit::Zero => zero.shallow_clone(),
            AdapterInit::Houlsby => draw("up.weight", &[dim, rank]),
        };
        add("up.weight", up, zero);
    }
    added
}

/// Whether training may change the tensor of that name: the adapters only.
pub fn trains(name: &str) -> bool {
    name.contains(".adapter.")
}

/// x + s ⊙ Up(GELU(Down x)).
///
/// # Shapes
/// [batch, tokens, dim] → the same
pub fn forward(tensors: &Tensors, block: i64, learned_scale: bool, x: Tensor) -> Tensor {
    let at = |leaf: &str| &tensors[&name(block, leaf)];
    let hidden = x.linear(at("down.weight"), Some(at("down.bias"))).gelu("none"); // [batch, tokens, rank]
    let y = hidden.linear(at("up.weight"), Some(at("up.bias")));
    match learned_scale {
        true => x + y * at("scale"),
        false => x + y,
    }
}

fn name(block: i64, leaf: &str) -> String {
    format!("blocks.{block}.adapter.{leaf}")
}
