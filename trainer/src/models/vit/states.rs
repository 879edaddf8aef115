//! What an encoder makes of images after each of its blocks: the same forward pass as for features, looked at on the way.

use super::Vit;
use crate::methods::{self, Start};
use crate::weights::Tensors;
use tch::{Kind, Tensor};

/// Of a batch, what is left after each block.
#[derive(Debug)]
pub struct States {
    /// The class token after each block. [batch, dim] each, f32
    pub class: Vec<Tensor>,
    /// The mean over the patches' tokens after each block. [batch, dim] each, f32
    pub patches: Vec<Tensor>,
    /// The feature. [batch, feature_dim], f32
    pub feature: Tensor,
}

impl Vit {
    /// The states of a batch. What a method does behind a block is in that block's state.
    ///
    /// # Shapes
    /// `pixels` as for [`Vit::features`]
    pub fn states(&self, tensors: &Tensors, pixels: &Tensor) -> States {
        let tuner = methods::tuner(&self.method);
        let mut pass = tuner.begin(Start { config: &self.config, tensors, text: None });
        let pixels = pass.pixels(pixels.shallow_clone());
        let mut x = pass.embedded(self.embed(tensors, &pixels, None)); // [batch, tokens, dim]
        let (mut class, mut patches) = (Vec::new(), Vec::new());
        for block in 0..self.config.depth {
            let tokens = x.size()[1];
            x = self.config.block(tensors, &format!("blocks.{block}"), (block, &mut *pass), &x, tokens);
            let all = x.to_kind(Kind::Float);
            class.push(all.select(1, 0));
            patches.push(all.narrow(1, 1, tokens - 1).mean_dim([1].as_slice(), false, Kind::Float));
        }
        let tokens = pass.finish(self.norm(tensors, &x, "norm"));
        let feature = self.feature_of(tensors, &tokens).to_kind(Kind::Float);
        States { class, patches, feature }
    }
}

#[cfg(test)]
mod tests {
    use crate::analysis::testing::{adapter_line, full_line};
    use crate::weights::initial;
    use causeway_protocol::Alpha;

    #[test]
    fn the_states_end_in_the_feature_and_begin_to_differ_where_weights_do() {
        let pixels = initial::normal(1, "pixels", &[3, 3, 56, 56], 1.0);
        let (_, moved) = full_line(&["blocks.1.mlp.fc2.weight"]);
        let (_, adapter) = adapter_line(8);
        for (line, first) in [(moved, 1), (adapter, 0)] {
            let at = |alpha| {
                let encoder = line.encoder(alpha);
                (tch::no_grad(|| encoder.vit.states(&encoder.tensors, &pixels)), encoder.features(&pixels))
            };
            let ((before, _), (after, feature)) = (at(Alpha::ZERO), at(Alpha::ONE));
            assert_eq!((after.class.len(), after.patches.len()), (2, 2));
            // The feature's own pass computes the last block for one token alone.
            assert!(after.feature.allclose(&feature, 1e-5, 1e-5, false));
            let differs = |block: usize| before.patches[block] != after.patches[block];
            assert_eq!((0..2).position(differs), Some(first));
            assert_eq!(after.patches[1].size(), [3, 64]);
        }
    }
}
