//! The vision transformer (arXiv 2010.11929) as DINO, DINOv2, MAE and CLIP train it: pre-LN blocks, fused query, key and
//! value with bias, optional LayerScale. The feature is the class token after the final LayerNorm, projected for CLIP.
//! It computes in the dtype of its weights and pixels.

pub mod config;
mod states;

pub use config::{Activation, Known, PixelStatistics, VitConfig};
pub use states::States;

use super::affine;
use crate::methods::{self, Norm, Pass, Start, Text};
use crate::weights::Tensors;
use causeway_protocol::{Method, Positions};
use std::collections::VecDeque;
use std::ops::Range;
use tch::{Kind, Tensor};

/// What DINO adds to the grid's sides before dividing by the table's, against rounding down to one row less.
const DINO_OFFSET: f64 = 0.1;

/// An encoder: an architecture and the method whose modules sit in it. The weights come with each call.
#[derive(Clone, PartialEq, Debug)]
pub struct Vit {
    /// The architecture.
    pub config: VitConfig,
    /// What has been added. [`Method::Full`] adds nothing: the bare backbone.
    pub method: Method,
    /// How the position table is resized.
    pub positions: Positions,
}

/// What encoders of one line have in common of a batch.
#[derive(Debug)]
pub struct Stem {
    /// The tokens that enter the first block. [batch, tokens, dim]
    embedded: Tensor,
    /// Of the first blocks the state between attention and MLP, and the state after it: of all, where the method looks
    /// at them, else of the last.
    states: VecDeque<(Tensor, Tensor)>,
    /// How many blocks these are.
    blocks: i64,
}

impl Stem {
    fn state(&self, block: i64) -> Option<&(Tensor, Tensor)> {
        self.states.get(usize::try_from(self.blocks - 1 - block).ok()?)
    }
}

/// Keeps the states of blocks, so many at most.
struct Kept {
    states: VecDeque<(Tensor, Tensor)>,
    most: usize,
}

impl Pass for Kept {
    fn after_block(&mut self, _block: i64, middle: &Tensor, x: Tensor) -> Tensor {
        self.states.truncate(self.most - 1);
        self.states.push_front((middle.shallow_clone(), x.shallow_clone()));
        x
    }
}

impl Vit {
    /// An encoder with a method's modules in it, its position table resized as is usual here.
    pub fn new(config: &VitConfig, method: &Method) -> Vit {
        Vit { config: config.clone(), method: method.clone(), positions: Positions::default() }
    }

    /// The bare backbone.
    pub fn bare(config: &VitConfig) -> Vit {
        Vit::new(config, &Method::Full {})
    }

    /// The same encoder under another rule for the position table.
    pub fn with_positions(self, positions: Positions) -> Vit {
        Vit { positions, ..self }
    }

    /// The class token after the final LayerNorm, and after CLIP's projection where there is one.
    ///
    /// # Shapes
    /// `pixels` [batch, 3, height, width], normalised, both sides multiples of the patch → [batch, feature_dim].
    pub fn features(&self, tensors: &Tensors, pixels: &Tensor) -> Tensor {
        // The feature is the class token, so the last block computes that one alone, if it may.
        let class = self.forward(tensors, pixels, None, None, !self.needs_all_tokens());
        self.feature_of(tensors, &class)
    }

    /// Whether the method keeps the last block from computing the class token alone.
    pub fn needs_all_tokens(&self) -> bool {
        methods::tuner(&self.method).needs_all_tokens()
    }

    /// The feature among what [`Vit::tokens`] gives.
    ///
    /// # Shapes
    /// [batch, tokens, dim] → [batch, feature_dim]
    pub fn feature_of(&self, tensors: &Tensors, tokens: &Tensor) -> Tensor {
        let class = tokens.select(1, 0); // [batch, dim]
        match self.config.projection {
            Some(_) => affine(&class, &tensors["proj.weight"], None),
            None => class,
        }
    }

    /// All tokens after all blocks and the final LayerNorm, the class token first. With `visible`, the patches that are
    /// not in it are dropped before the blocks, each of the others with the position it had: MAE's encoder. `text` is
    /// for methods that read captions.
    ///
    /// # Shapes
    /// `pixels` as for [`Vit::features`], `visible` i64 [batch, kept], places of patches, row by row
    /// → [batch, 1 + kept, dim], or [batch, 1 + patches, dim] without `visible`
    pub fn tokens(
        &self,
        tensors: &Tensors,
        pixels: &Tensor,
        visible: Option<&Tensor>,
        text: Option<&Text>,
    ) -> Tensor {
        self.forward(tensors, pixels, visible, text, false)
    }

    fn forward(
        &self,
        tensors: &Tensors,
        pixels: &Tensor,
        visible: Option<&Tensor>,
        text: Option<&Text>,
        class_only: bool,
    ) -> Tensor {
        let tuner = methods::tuner(&self.method);
        let mut pass = tuner.begin(Start { config: &self.config, tensors, text });
        let pixels = pass.pixels(pixels.shallow_clone());
        let embedded = self.embed(tensors, &pixels, visible); // [batch, tokens, dim]
        self.run(tensors, &mut *pass, (embedded, None), class_only)
    }

    /// The tokens after the final LayerNorm, or the class token alone. What a stem has of the first blocks is taken from
    /// there, where all their tokens are asked for.
    fn run(
        &self,
        tensors: &Tensors,
        pass: &mut dyn Pass,
        (embedded, stem): (Tensor, Option<&Stem>),
        class_only: bool,
    ) -> Tensor {
        let depth = self.config.depth;
        let mut x = pass.embedded(embedded);
        for block in 0..depth {
            let alone = class_only && block + 1 == depth;
            if stem.is_some_and(|stem| block < stem.blocks) && !alone {
                // Blocks whose states are not kept are not looked at.
                if let Some((middle, after)) = stem.and_then(|stem| stem.state(block)) {
                    x = pass.after_block(block, middle, after.shallow_clone());
                }
                continue;
            }
            let asking = if alone { 1 } else { x.size()[1] };
            x = self.config.block(tensors, &format!("blocks.{block}"), (block, &mut *pass), &x, asking);
        }
        pass.finish(self.norm(tensors, &x, "norm"))
    }

    /// The first blocks of a batch, for all encoders that have them in common: the backbone's, which the method does not
    /// touch.
    ///
    /// # Shapes
    /// `pixels` as for [`Vit::features`]
    pub fn stem(&self, tensors: &Tensors, pixels: &Tensor, blocks: i64) -> Stem {
        let tuner = methods::tuner(&self.method);
        // A feature of the class token alone takes the last block by itself.
        let looks = tuner.looks_at_states();
        let blocks = if looks { blocks } else { blocks.min(self.config.depth - 1) };
        let most = if looks { usize::MAX } else { 1 };
        let mut kept = Kept { states: VecDeque::new(), most };
        let embedded = self.embed(tensors, pixels, None);
        let mut x = embedded.shallow_clone();
        for block in 0..blocks {
            let tokens = x.size()[1];
            x = self.config.block(tensors, &format!("blocks.{block}"), (block, &mut kept), &x, tokens);
        }
        Stem { embedded, states: kept.states, blocks }
    }

    /// [`Vit::features`] of a batch whose first blocks were computed already: the same bits.
    ///
    /// # Shapes
    /// → [batch, feature_dim]
    pub fn features_from(&self, tensors: &Tensors, stem: &Stem) -> Tensor {
        let tuner = methods::tuner(&self.method);
        let mut pass = tuner.begin(Start { config: &self.config, tensors, text: None });
        let begin = (stem.embedded.shallow_clone(), Some(stem));
        let class = self.run(tensors, &mut *pass, begin, !tuner.needs_all_tokens());
        self.feature_of(tensors, &class)
    }

    /// What the method tells of a batch, as metrics.
    ///
    /// # Shapes
    /// `pixels` as for [`Vit::features`]
    pub fn tells(&self, tensors: &Tensors, pixels: &Tensor) -> Vec<(&'static str, f64)> {
        let embedded = self.embed(tensors, pixels, None);
        methods::tuner(&self.method).tells(Start { config: &self.config, tensors, text: None }, &embedded)
    }

    /// Patches and class token, each with its position; CLIP's first LayerNorm.
    ///
    /// # Shapes
    /// [batch, 3, height, width] → [batch, 1 + height / patch · width / patch, dim], or 1 + kept tokens
    fn embed(&self, tensors: &Tensors, pixels: &Tensor, visible: Option<&Tensor>) -> Tensor {
        let (batch, patch) = (pixels.size()[0], self.config.patch);
        let weight = &tensors["patch_embed.proj.weight"];
        let bias = self.config.patch_bias.then(|| &tensors["patch_embed.proj.bias"]);
        let maps = pixels.conv2d(weight, bias, [patch, patch], [0, 0], [1, 1], 1); // [batch, dim, rows, columns]
        let (rows, columns) = (maps.size()[2], maps.size()[3]);
        let patches = maps.flatten(2, 3).transpose(1, 2); // [batch, rows · columns, dim]
        let class = tensors["cls_token"].expand([batch, -1, -1], false);
        let mut x = Tensor::cat(&[class, patches], 1) + self.positions(&tensors["pos_embed"], rows, columns);
        if let Some(visible) = visible {
            let places = (visible + 1).unsqueeze(-1).expand([-1, -1, self.config.dim], false);
            x = Tensor::cat(&[x.narrow(1, 0, 1), x.gather(1, &places, false)], 1); // [batch, 1 + kept, dim]
        }
        match self.config.pre_norm {
            true => self.norm(tensors, &x, "norm_pre"),
            false => x,
        }
    }

    /// The position table for another grid, by one of the three rules in use. At the native grid it is the table.
    /// Resized in f32, as all three do, whatever the weights' dtype.
    ///
    /// # Shapes
    /// [1, 1 + grid², dim] → [1, 1 + rows · columns, dim]
    fn positions(&self, table: &Tensor, rows: i64, columns: i64) -> Tensor {
        let (grid, dim) = (self.config.grid, self.config.dim);
        if (rows, columns) == (grid, grid) {
            return table.shallow_clone();
        }
        let class = table.narrow(1, 0, 1);
        let square = table.narrow(1, 1, grid * grid).reshape([1, grid, grid, dim]).permute([0, 3, 1, 2]);
        let square = square.to_kind(Kind::Float); // [1, dim, grid, grid]
        let size = [rows, columns];
        let resized = match self.positions {
            Positions::HfSize => square.upsample_bicubic2d(size, false, None, None),
            Positions::DinoScaleOffset => {
                let factor = |side: i64| Some((side as f64 + DINO_OFFSET) / grid as f64);
                square.upsample_bicubic2d(size, false, factor(rows), factor(columns))
            }
            Positions::TimmAntialias => square.internal_upsample_bicubic2d_aa(size, false, None, None),
        }; // [1, dim, rows, columns]
        let patches = resized.permute([0, 2, 3, 1]).reshape([1, rows * columns, dim]);
        Tensor::cat(&[class, patches.to_kind(table.kind())], 1)
    }

    fn norm(&self, tensors: &Tensors, x: &Tensor, name: &str) -> Tensor {
        let at = |leaf: &str| &tensors[&format!("{name}.{leaf}")];
        layer_norm(x, at("weight"), at("bias"), self.config.eps)
    }
}

impl VitConfig {
    /// x + attn(LN1 x), then x + mlp(LN2 x), then what the method adds after the block, for the first `asking` tokens:
    /// keys and values of all tokens, the rest of those. The block's tensors are called `name`.…; `acting` is the number
    /// under which the method acts, and its pass.
    ///
    /// # Shapes
    /// [batch, tokens, dim] → [batch, asking, dim]
    pub fn block(
        &self,
        tensors: &Tensors,
        name: &str,
        (block, pass): (i64, &mut dyn Pass),
        x: &Tensor,
        asking: i64,
    ) -> Tensor {
        let at = |leaf: &str| &tensors[&format!("{name}.{leaf}")];
        let branch = |x: &Tensor, y: Tensor, scale: &str| match self.layer_scale {
            true => x.addcmul(&y, at(scale)),
            false => x + y,
        };
        let normed = |pass: &mut dyn Pass, x: &Tensor, norm: Norm, leaf: &str| {
            let (weight, bias) = (at(&format!("{leaf}.weight")), at(&format!("{leaf}.bias")));
            let (weight, bias) = pass.norm(block, norm, weight, bias);
            pass.normed(block, norm, layer_norm(x, &weight, &bias, self.eps))
        };
        let linear = |pass: &mut dyn Pass, x: &Tensor, layer: &str| {
            let y = linear(x, &at, layer);
            let rows = 0..*y.size().last().unwrap_or(&0);
            pass.linear(block, layer, rows, x, y)
        };
        let before = normed(pass, x, Norm::First, "norm1");
        let mixed = attention(&before, self.heads, asking, &mut |x, rows| {
            pass.linear(block, "attn.qkv", rows.clone(), x, some_rows(x, &at, "attn.qkv", rows))
        });
        let projected = linear(pass, &mixed, "attn.proj");
        let attended = pass.attended(block, projected);
        let middle = branch(&x.narrow(1, 0, asking), attended, "ls1.gamma");
        let middle = pass.between(block, middle);
        let before = normed(pass, &middle, Norm::Second, "norm2");
        let hidden = self.activation.apply(&linear(pass, &before, "mlp.fc1"));
        let projected = linear(pass, &hidden, "mlp.fc2");
        let y = pass.mlp(block, projected);
        let x = branch(&middle, y, "ls2.gamma");
        pass.after_block(block, &middle, x)
    }
}

/// Multi-head self-attention of the first `asking` tokens over all, without its output layer. `project` gives some
/// rows of query, key and value, which stand in this order, [batch, tokens, dim] → [batch, tokens, rows].
///
/// # Shapes
/// [batch, tokens, dim] → [batch, asking, dim]
pub(super) fn attention(
    x: &Tensor,
    heads: i64,
    asking: i64,
    project: &mut dyn FnMut(&Tensor, Range<i64>) -> Tensor,
) -> Tensor {
    let (batch, tokens, dim) = (x.size()[0], x.size()[1], x.size()[2]);
    let split = |y: Tensor, parts: i64| {
        let count = y.size()[1];
        y.reshape([batch, count, parts, heads, dim / heads]).permute([2, 0, 3, 1, 4]) // [parts, batch, heads, count, head]
    };
    let (query, key, value) = if asking == tokens {
        let qkv = split(project(x, 0..3 * dim), 3);
        (qkv.select(0, 0), qkv.select(0, 1), qkv.select(0, 2))
    } else {
        let query = split(project(&x.narrow(1, 0, asking), 0..dim), 1);
        let keys = split(project(x, dim..3 * dim), 2);
        (query.select(0, 0), keys.select(0, 0), keys.select(0, 1))
    };
    let mixed =
        Tensor::scaled_dot_product_attention(&query, &key, &value, None::<&Tensor>, 0.0, false, None, false);
    mixed.transpose(1, 2).reshape([batch, asking, dim])
}

/// Some rows of x·Wᵀ + b.
///
/// # Shapes
/// [batch, tokens, in] → [batch, tokens, rows]
pub(super) fn some_rows<'a>(
    x: &Tensor,
    at: &impl Fn(&str) -> &'a Tensor,
    name: &str,
    rows: Range<i64>,
) -> Tensor {
    let part = |leaf: &str| at(&format!("{name}.{leaf}")).narrow(0, rows.start, rows.end - rows.start);
    affine(x, &part("weight"), Some(&part("bias")))
}

/// x·Wᵀ + b with the weight and bias of that name.
pub(super) fn linear<'a>(x: &Tensor, at: &impl Fn(&str) -> &'a Tensor, name: &str) -> Tensor {
    affine(x, at(&format!("{name}.weight")), Some(at(&format!("{name}.bias"))))
}

/// LayerNorm over the last dimension.
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Tensor {
    x.layer_norm(weight.size(), Some(weight), Some(bias), eps, false)
}

/// A small backbone of random values: two blocks of one head, 14 px patches, a table of 4 × 4.
#[cfg(test)]
pub fn tiny(layer_scale: bool) -> crate::weights::Backbone {
    let config = VitConfig {
        dim: 64,
        depth: 2,
        heads: 1,
        mlp_dim: 128,
        patch: 14,
        grid: 4,
        layer_scale,
        ..VitConfig::default()
    };
    crate::weights::Backbone::new(random(&config)).expect("a sound backbone")
}

/// A small CLIP of random values: two blocks of two heads, projected to 32.
#[cfg(test)]
pub fn tiny_clip(activation: Activation) -> crate::weights::Backbone {
    let config = VitConfig {
        dim: 128,
        depth: 2,
        heads: 2,
        mlp_dim: 256,
        patch: 14,
        grid: 4,
        pre_norm: true,
        patch_bias: false,
        projection: Some(32),
        ..VitConfig::default()
    };
    let known = Known { activation: Some(activation), ..Known::default() };
    crate::weights::Backbone::with(random(&config), known).expect("a sound backbone")
}

/// Random values for an architecture.
#[cfg(test)]
pub fn random(config: &VitConfig) -> Tensors {
    let tensors = config.shapes().into_iter().map(|(name, shape)| {
        let noise = crate::weights::initial::normal(0, &name, &shape, 0.1);
        let is_gain = name.contains("norm") && name.ends_with("weight") || name.ends_with("gamma");
        let value = if is_gain { noise + 1.0 } else { noise };
        (name, value)
    });
    tensors.collect()
}

#[cfg(test)]
mod tests;
