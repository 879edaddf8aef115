//! FiLM (arXiv 1709.07871) without a condition: after both LayerNorms of every block, (1 + Δγ) ⊙ LN(x) + β. Nothing
//! else is trained.

use super::{Added, Norm};
use crate::models::vit::VitConfig;
use crate::weights::Tensors;
use tch::{Device, Kind, Tensor};

/// Δγ and β of every site, all 0: the exact identity.
pub fn added(config: &VitConfig) -> Added {
    let mut added = Added::default();
    for block in 0..config.depth {
        for norm in [Norm::First, Norm::Second] {
            for leaf in ["delta_gamma", "beta"] {
                let zero = Tensor::zeros([config.dim], (Kind::Float, Device::Cpu));
                added.start.insert(name(block, norm, leaf), zero.shallow_clone());
                added.theta0.insert(name(block, norm, leaf), zero);
            }
        }
    }
    added
}

/// Whether training may change the tensor of that name: Δγ and β only.
pub fn trains(name: &str) -> bool {
    name.contains(".film1.") || name.contains(".film2.")
}

/// The LayerNorm's weight and bias with the modulation folded in: (1 + Δγ) ⊙ (w ⊙ x̂ + b) + β is
/// ((1 + Δγ) ⊙ w) ⊙ x̂ + ((1 + Δγ) ⊙ b + β). The same function, the same gradients, and no pass over the tokens.
///
/// # Shapes
/// `weight` and `bias` [dim] → [dim], [dim]
pub fn fold(tensors: &Tensors, block: i64, norm: Norm, weight: &Tensor, bias: &Tensor) -> (Tensor, Tensor) {
    let gamma = &tensors[&name(block, norm, "delta_gamma")] + 1.0;
    let beta = &tensors[&name(block, norm, "beta")];
    (&gamma * weight, &gamma * bias + beta)
}

fn name(block: i64, norm: Norm, leaf: &str) -> String {
    let site = match norm {
        Norm::First => "film1",
        Norm::Second => "film2",
    };
    format!("blocks.{block}.{site}.{leaf}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::vit::tiny;
    use crate::weights::initial;

    #[test]
    fn a_vit_s_has_24_sites_and_18_432_values() {
        let config = VitConfig { dim: 384, layer_scale: true, ..VitConfig::default() };
        let added = added(&config).start;
        assert_eq!(added.names().filter(|name| name.ends_with("beta")).count(), 24);
        assert_eq!(added.values(), 18_432);
    }

    #[test]
    fn folding_into_the_norm_is_the_same_as_modulating_its_output() {
        let backbone = tiny(false);
        let norm = |leaf: &str| &backbone.tensors[&format!("blocks.1.norm2.{leaf}")];
        let mut tensors = Tensors::new();
        for leaf in ["delta_gamma", "beta"] {
            tensors.insert(name(1, Norm::Second, leaf), initial::normal(4, leaf, &[64], 0.5));
        }
        let x = initial::normal(4, "x", &[2, 5, 64], 1.0);
        let layer_norm =
            |weight: &Tensor, bias: &Tensor| x.layer_norm([64], Some(weight), Some(bias), 1e-6, false);
        let (weight, bias) = fold(&tensors, 1, Norm::Second, norm("weight"), norm("bias"));
        let modulated = (&tensors["blocks.1.film2.delta_gamma"] + 1.0)
            * layer_norm(norm("weight"), norm("bias"))
            + &tensors["blocks.1.film2.beta"];
        assert!(layer_norm(&weight, &bias).allclose(&modulated, 1e-5, 1e-5, false));
        assert!(!modulated.allclose(&layer_norm(norm("weight"), norm("bias")), 1e-2, 1e-2, false));
    }
}
