//! Methods: what is made trainable. A method adds tensors to a backbone and acts at two kinds of place in a block; it
//! never forks the model. Whatever it adds starts as the exact identity, or has the exact identity as its θ0.

pub mod adapter;
pub mod film;
pub mod full;

use crate::models::vit::VitConfig;
use crate::weights::checkpoint::Recipe;
use crate::weights::{Backbone, Tensors};
use causeway_protocol::Method;
use tch::Tensor;

/// One of the two LayerNorms of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Norm {
    /// Before the attention.
    First,
    /// Before the MLP.
    Second,
}

/// The tensors a method adds.
#[derive(Debug, Default)]
pub struct Added {
    /// What training starts from.
    pub start: Tensors,
    /// Where the line begins, α = 0: the exact identity. Equal to `start` unless that is only near the identity.
    pub theta0: Tensors,
}

/// The tensors that `method` adds to a backbone, with their values under `seed`.
pub fn added(method: &Method, config: &VitConfig, seed: u64) -> Added {
    match method {
        Method::Full {} => Added::default(),
        Method::Adapter { rank, init, learned_scale } => {
            adapter::added(config, i64::from(*rank), *init, *learned_scale, seed)
        }
        Method::Film {} => film::added(config),
    }
}

/// Whether training may change the tensor of that name.
pub fn trains(method: &Method, name: &str) -> bool {
    match method {
        Method::Full {} => full::trains(name),
        Method::Adapter { .. } => adapter::trains(name),
        Method::Film {} => film::trains(name),
    }
}

/// Number of values that training may change, added ones included.
pub fn trainable_values(recipe: &Recipe, backbone: &Backbone) -> u64 {
    let method = &recipe.method;
    // The number does not depend on the seed.
    let added = added(method, &backbone.config, 0).start;
    let all = backbone.tensors.iter().chain(added.iter());
    let trained = all.filter(|(name, _)| trains(method, name) && !recipe.fixes(name));
    trained.map(|(_, tensor)| tensor.numel() as u64).sum()
}

/// Weight and bias of a block's LayerNorm under the method.
///
/// # Shapes
/// [dim], [dim]
pub fn norm_affine(method: &Method, tensors: &Tensors, block: i64, norm: Norm) -> (Tensor, Tensor) {
    let place = match norm {
        Norm::First => "norm1",
        Norm::Second => "norm2",
    };
    let weight = &tensors[&format!("blocks.{block}.{place}.weight")];
    let bias = &tensors[&format!("blocks.{block}.{place}.bias")];
    match method {
        Method::Film {} => film::fold(tensors, block, norm, weight, bias),
        Method::Full {} | Method::Adapter { .. } => (weight.shallow_clone(), bias.shallow_clone()),
    }
}

/// What leaves a block under the method.
///
/// # Shapes
/// [batch, tokens, dim] → the same
pub fn after_block(method: &Method, tensors: &Tensors, block: i64, x: Tensor) -> Tensor {
    match method {
        Method::Adapter { learned_scale, .. } => adapter::forward(tensors, block, *learned_scale, x),
        Method::Full {} | Method::Film {} => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::vit::{Vit, tiny};
    use crate::weights::{bitwise_equal, initial};
    use causeway_protocol::AdapterInit;

    #[test]
    fn every_method_starts_as_the_backbone_bit_for_bit() {
        let methods = [
            Method::Full {},
            Method::Adapter { rank: 8, init: AdapterInit::Zero, learned_scale: true },
            Method::Adapter { rank: 3, init: AdapterInit::Zero, learned_scale: false },
            Method::Film {},
        ];
        let pixels = initial::normal(1, "pixels", &[3, 3, 42, 42], 1.0);
        for layer_scale in [false, true] {
            let backbone = tiny(layer_scale);
            let bare = Vit::bare(&backbone.config).features(&backbone.tensors, &pixels);
            for method in &methods {
                let mut tensors = backbone.tensors.share();
                let start = added(method, &backbone.config, 7).start;
                tensors.extend(start.iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())));
                let vit = Vit::new(&backbone.config, method);
                assert!(bitwise_equal(&vit.features(&tensors, &pixels), &bare), "{method:?}");
            }
        }
    }

    #[test]
    fn only_full_trains_the_backbone() {
        let backbone = tiny(true);
        let recipe: Recipe = serde_json::from_value(serde_json::json!({
            "seed": 0, "method": {"kind": "full"}, "captions": {"asset": "a"}, "objective": {},
            "training": {"steps": 1, "learning_rate": 1.0}
        }))
        .unwrap();
        let trained = |method: &Method| {
            trainable_values(&Recipe { method: method.clone(), ..recipe.clone() }, &backbone)
        };
        assert_eq!(trained(&Method::Full {}), backbone.tensors.values());
        assert_eq!(trained(&Method::Film {}), 2 * 2 * 2 * 64);
        let adapter = Method::Adapter { rank: 4, init: AdapterInit::Zero, learned_scale: true };
        assert_eq!(trained(&adapter), 2 * (2 * 64 * 4 + 4 + 64 + 64));
    }
}
