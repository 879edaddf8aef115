//! Which tensors are layers, and in which order an image passes them.

use super::spectrum;
use crate::weights::Tensors;
use crate::weights::interpolate::Line;
use causeway_protocol::{Alpha, Qkv};
use tch::Tensor;

/// Ends the name of the tensor that is query, key and value of a block.
const FUSED: &str = "attn.qkv.weight";
/// The layers of a block in the order in which tokens pass them.
const IN_A_BLOCK: [&str; 7] =
    ["attn.qkv", "attn.q.", "attn.k.", "attn.v.", "attn.proj", "mlp.fc1", "mlp.fc2"];

/// A layer of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layer {
    /// As it is shown: the tensor's name, with q, k or v in the place of qkv where that was split.
    pub name: String,
    /// The tensor that it is, or is a part of.
    pub tensor: String,
    /// Which of three parts.
    pub part: Option<i64>,
    /// Its block, from 0; none before and behind the blocks.
    pub block: Option<u32>,
    /// Whether a method added it.
    pub added: bool,
    /// Whether it differs between the ends.
    pub moved: bool,
    /// Its shape.
    pub shape: Vec<i64>,
}

impl Layer {
    /// Its values among a set of tensors.
    pub fn of(&self, tensors: &Tensors) -> Option<Tensor> {
        let tensor = tensors.get(&self.tensor)?;
        let rows = *self.shape.first()?;
        Some(self.part.map_or_else(|| tensor.shallow_clone(), |part| tensor.narrow(0, part * rows, rows)))
    }

    /// Rows, columns, and for a convolution the number of its slices.
    pub fn sides(&self) -> Vec<u32> {
        let sides = match self.shape[..] {
            [outer, inner, height, width] => vec![outer, inner, height * width],
            _ => self.shape.clone(),
        };
        sides.into_iter().map(|side| side as u32).collect()
    }

    fn place(&self) -> (u32, bool, usize, String) {
        // Before the blocks, the blocks, and behind them; in each what is added comes last.
        let block =
            self.block.map_or(if self.name.starts_with("patch_embed") { 0 } else { u32::MAX }, |b| b + 1);
        let within =
            IN_A_BLOCK.iter().position(|layer| self.name.contains(layer)).unwrap_or(IN_A_BLOCK.len());
        (block, self.added, within, self.name.clone())
    }
}

/// The layers of a line: every matrix and convolution `….weight` of the backbone, and every matrix that the method adds.
/// Those with fewer than eight eigenvalues are left out, as weightwatcher leaves them out.
pub fn layers(line: &Line, qkv: Qkv) -> Vec<Layer> {
    let bare = line.encoder(Alpha::ZERO).tensors;
    let ends = line.at(Alpha::ONE);
    let mut layers: Vec<Layer> = Vec::new();
    for (name, tensor) in ends.iter() {
        let added = bare.get(name).is_none();
        let shape = tensor.size();
        let is_layer = if added { shape.len() == 2 } else { name.ends_with(".weight") };
        if !is_layer || spectrum::count(&shape).is_none_or(|count| count < spectrum::MIN_EVALS) {
            continue;
        }
        let moved = line.moved().binary_search_by(|moved| moved.as_str().cmp(name)).is_ok();
        let whole = Layer {
            name: name.to_owned(),
            tensor: name.to_owned(),
            part: None,
            block: block(name),
            added,
            moved,
            shape,
        };
        match name.strip_suffix(FUSED) {
            Some(before) if qkv == Qkv::Split && whole.shape[0] % 3 == 0 => {
                let third = vec![whole.shape[0] / 3, whole.shape[1]];
                layers.extend(["q", "k", "v"].iter().enumerate().map(|(part, letter)| Layer {
                    name: format!("{before}attn.{letter}.weight"),
                    part: Some(part as i64),
                    shape: third.clone(),
                    ..whole.clone()
                }));
            }
            _ => layers.push(whole),
        }
    }
    layers.sort_by_cached_key(Layer::place);
    layers
}

/// The block in a name such as `blocks.3.mlp.fc1.weight`.
fn block(name: &str) -> Option<u32> {
    name.strip_prefix("blocks.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::testing::{adapter_line, full_line};

    fn names(layers: &[Layer]) -> Vec<&str> {
        layers.iter().map(|layer| layer.name.as_str()).collect()
    }

    #[test]
    fn layers_come_in_the_order_in_which_an_image_passes_them() {
        let (_, line) = full_line(&["blocks.1.mlp.fc2.weight", "norm.weight"]);
        let fused = layers(&line, Qkv::Fused);
        let expected: Vec<String> = std::iter::once("patch_embed.proj.weight".to_owned())
            .chain((0..2).flat_map(|block| {
                ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
                    .map(|layer| format!("blocks.{block}.{layer}.weight"))
            }))
            .collect();
        assert_eq!(names(&fused), expected, "LayerNorms are no layers");
        let moved: Vec<&Layer> = fused.iter().filter(|layer| layer.moved).collect();
        assert_eq!(moved.len(), 1);
        assert_eq!((moved[0].name.as_str(), moved[0].block), ("blocks.1.mlp.fc2.weight", Some(1)));
        assert_eq!(fused[0].sides(), [64, 3, 196]);

        let split = layers(&line, Qkv::Split);
        assert_eq!(split.len(), fused.len() + 2 * 2);
        assert_eq!(names(&split)[1..4], ["q", "k", "v"].map(|part| format!("blocks.0.attn.{part}.weight")));
        let whole = &line.at(Alpha::ONE)["blocks.0.attn.qkv.weight"];
        let parts: Vec<Tensor> =
            split[1..4].iter().map(|layer| layer.of(&line.at(Alpha::ONE)).unwrap()).collect();
        assert_eq!(Tensor::cat(&parts, 0), *whole);
    }

    #[test]
    fn what_a_method_adds_stands_behind_its_block_and_thin_matrices_are_left_out() {
        let (_, line) = adapter_line(8);
        let all = layers(&line, Qkv::Fused);
        let added: Vec<&str> =
            all.iter().filter(|layer| layer.added).map(|layer| layer.name.as_str()).collect();
        let expected = ["blocks.0.adapter.down.weight", "blocks.0.adapter.up.weight"];
        assert_eq!(added[..2], expected);
        assert_eq!(names(&all)[5..7], expected, "behind the four layers of block 0");
        assert!(
            all.iter().filter(|layer| layer.added).all(|layer| layer.moved || layer.name.contains("down"))
        );
        let (_, line) = adapter_line(4);
        assert!(!layers(&line, Qkv::Fused).iter().any(|layer| layer.added), "rank 4: four eigenvalues");
    }
}
