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
        true => x.addcmul(&y, at("scale")),
        false => x + y,
    }
}

fn name(block: i64, leaf: &str) -> String {
    format!("blocks.{block}.adapter.{leaf}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::vit::{Vit, tiny};
    use causeway_protocol::Method;

    fn method(init: AdapterInit) -> Method {
        Method::Adapter { rank: 8, init, learned_scale: true }
    }

    #[test]
    fn a_vit_b_16_gets_165_984_values() {
        let config = VitConfig::default();
        let without_scale = added(&config, 8, AdapterInit::Zero, false, 0).start;
        assert_eq!(without_scale.values(), 12 * (2 * 768 * 8 + 8 + 768));
        let with_scale = added(&config, 8, AdapterInit::Zero, true, 0).start;
        assert_eq!(with_scale.values(), 165_984);
    }

    #[test]
    fn at_the_start_up_has_a_gradient_and_down_and_scale_have_none() {
        let backbone = tiny(true);
        let vit = Vit::new(&backbone.config, &method(AdapterInit::Zero));
        let mut tensors = backbone.tensors.share();
        let mut trained = Vec::new();
        for (name, start) in added(&backbone.config, 8, AdapterInit::Zero, true, 3).start.iter() {
            let leaf = start.copy().set_requires_grad(true);
            tensors.insert(name, leaf.shallow_clone());
            trained.push((name.to_owned(), leaf));
        }
        let pixels = initial::normal(1, "pixels", &[2, 3, 28, 28], 1.0);
        let loss = vit.features(&tensors, &pixels).square().sum(Kind::Float);
        let leaves: Vec<&Tensor> = trained.iter().map(|(_, leaf)| leaf).collect();
        let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
        for ((name, _), gradient) in trained.iter().zip(gradients) {
            let largest = gradient.abs().max().double_value(&[]);
            assert_eq!(largest > 0.0, name.contains(".up."), "{name}: {largest}");
        }
    }

    #[test]
    fn houlsby_starts_near_the_identity_but_its_theta0_is_the_identity() {
        let backbone = tiny(true);
        let method = method(AdapterInit::Houlsby);
        let vit = Vit::new(&backbone.config, &method);
        let added = added(&backbone.config, 8, AdapterInit::Houlsby, true, 3);
        let pixels = initial::normal(1, "pixels", &[2, 3, 28, 28], 1.0);
        let features = |added: &Tensors| {
            let mut tensors = backbone.tensors.share();
            tensors
                .extend(added.share().iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())));
            vit.features(&tensors, &pixels)
        };
        let bare = Vit::bare(&backbone.config).features(&backbone.tensors, &pixels);
        assert!(crate::weights::bitwise_equal(&features(&added.theta0), &bare));
        let change =
            (features(&added.start) - &bare).norm().double_value(&[]) / bare.norm().double_value(&[]);
        // Two blocks of O(√r · σ² · √dim) each, after the growth that a tiny random network gives.
        assert!(change > 0.0 && change < 1e-2, "{change}");
        assert!(crate::weights::bitwise_equal(
            &added.start["blocks.0.adapter.down.weight"],
            &added.theta0["blocks.0.adapter.down.weight"]
        ));
    }

    #[test]
    fn a_scale_is_the_rows_of_up_multiplied() {
        let config = tiny(false).config;
        let mut tensors = added(&config, 8, AdapterInit::Houlsby, true, 3).start;
        tensors.insert("blocks.0.adapter.scale", initial::normal(1, "s", &[64], 1.0));
        let x = initial::normal(1, "x", &[2, 5, 64], 1.0);
        let scaled = forward(&tensors, 0, true, x.shallow_clone());
        let up = &tensors["blocks.0.adapter.up.weight"] * tensors["blocks.0.adapter.scale"].unsqueeze(1);
        tensors.insert("blocks.0.adapter.up.weight", up);
        assert!(forward(&tensors, 0, false, x).allclose(&scaled, 1e-5, 1e-6, false));
    }
}
