//! The vision transformer (arXiv 2010.11929) as DINO and DINOv2 train it: pre-LN blocks, exact GELU, fused query, key
//! and value with bias, optional LayerScale. The feature is the class token after the final LayerNorm.

use crate::methods::{self, Norm};
use crate::weights::Tensors;
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::Method;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Width of an attention head; all of DINO's and DINOv2's encoders have it.
const HEAD_DIM: i64 = 64;
/// LayerNorm's ε as in training. Hugging Face's ViT files say 1e-12; the features differ by about 1e-6.
const EPS: f64 = 1e-6;
/// Mean of ImageNet's red, green and blue, as all of these encoders were trained with.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Standard deviation likewise.
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// The architecture, read off the shapes of the weights.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VitConfig {
    /// Width of a token.
    pub dim: i64,
    /// Number of blocks.
    pub depth: i64,
    /// Width of the MLP's hidden layer.
    pub mlp_dim: i64,
    /// Side of a patch, pixels.
    pub patch: i64,
    /// Side of the position table, patches.
    pub grid: i64,
    /// Whether each residual branch is scaled by a learned vector.
    pub layer_scale: bool,
}

impl VitConfig {
    /// The architecture of a set of canonical tensors.
    ///
    /// # Errors
    /// Tensors that are unknown, missing or misshapen; all are listed.
    pub fn infer(tensors: &Tensors) -> Result<VitConfig> {
        let shape = |name: &str, rank: usize| -> Result<Vec<i64>> {
            let size = tensors.get(name).with_context(|| format!("{name} is missing"))?.size();
            ensure!(size.len() == rank, "{name} is {size:?}, must have {rank} dimensions");
            Ok(size)
        };
        let patch = shape("patch_embed.proj.weight", 4)?;
        let positions = shape("pos_embed", 3)?[1];
        let grid = ((positions - 1).max(0) as f64).sqrt().round() as i64;
        ensure!(
            grid > 0 && grid * grid + 1 == positions,
            "pos_embed holds {positions} positions, not 1 + a square"
        );
        let blocks =
            tensors.names().filter_map(|name| name.strip_prefix("blocks.")?.split('.').next()?.parse().ok());
        let config = VitConfig {
            dim: patch[0],
            depth: blocks.max().map_or(0, |last: i64| last + 1),
            mlp_dim: shape("blocks.0.mlp.fc1.weight", 2)?[0],
            patch: patch[2],
            grid,
            layer_scale: tensors.names().any(|name| name.ends_with(".ls1.gamma")),
        };
        ensure!(
            config.dim % HEAD_DIM == 0,
            "a width of {} is no multiple of {HEAD_DIM}, the width of a head",
            config.dim
        );
        config.check(tensors)?;
        Ok(config)
    }

    /// Name and shape of every tensor of the encoder.
    pub fn shapes(&self) -> BTreeMap<String, Vec<i64>> {
        let (dim, mlp, patch) = (self.dim, self.mlp_dim, self.patch);
        let mut shapes = BTreeMap::from([
            ("cls_token".to_owned(), vec![1, 1, dim]),
            ("pos_embed".to_owned(), vec![1, self.grid * self.grid + 1, dim]),
            ("patch_embed.proj.weight".to_owned(), vec![dim, 3, patch, patch]),
            ("patch_embed.proj.bias".to_owned(), vec![dim]),
            ("norm.weight".to_owned(), vec![dim]),
            ("norm.bias".to_owned(), vec![dim]),
        ]);
        for block in 0..self.depth {
            let mut add =
                |name: &str, shape: &[i64]| shapes.insert(format!("blocks.{block}.{name}"), shape.to_vec());
            for (linear, rows, columns) in [
                ("attn.qkv", 3 * dim, dim),
                ("attn.proj", dim, dim),
                ("mlp.fc1", mlp, dim),
                ("mlp.fc2", dim, mlp),
            ] {
                add(&format!("{linear}.weight"), &[rows, columns]);
                add(&format!("{linear}.bias"), &[rows]);
            }
            for norm in ["norm1", "norm2"] {
                add(&format!("{norm}.weight"), &[dim]);
                add(&format!("{norm}.bias"), &[dim]);
            }
            if self.layer_scale {
                add("ls1.gamma", &[dim]);
                add("ls2.gamma", &[dim]);
            }
        }
        shapes
    }

    fn check(&self, tensors: &Tensors) -> Result<()> {
        let shapes = self.shapes();
        let mut problems: Vec<String> = shapes
            .iter()
            .filter_map(|(name, shape)| match tensors.get(name) {
                None => Some(format!("{name} is missing")),
                Some(tensor) if tensor.size() != *shape => {
                    Some(format!("{name} is {:?}, must be {shape:?}", tensor.size()))
                }
                Some(tensor) if tensor.kind() != Kind::Float => {
                    Some(format!("{name} is {:?}", tensor.kind()))
                }
                Some(_) => None,
            })
            .collect();
        let unknown = tensors.names().filter(|name| !shapes.contains_key(*name));
        problems.extend(unknown.map(|name| format!("{name} is unknown")));
        if !problems.is_empty() {
            bail!("{}", problems.join("; "));
        }
        Ok(())
    }

    /// Whether images of this side can be cut into patches.
    ///
    /// # Errors
    /// A side that is no multiple of the patch.
    pub fn check_image_size(&self, image_size: u32) -> Result<()> {
        let patch = self.patch;
        ensure!(
            image_size > 0 && i64::from(image_size) % patch == 0,
            "images of {image_size} px cannot be cut into patches of {patch} px; take a multiple of {patch}"
        );
        Ok(())
    }
}

/// An encoder: an architecture and the method whose modules sit in it. The weights come with each call.
#[derive(Clone, PartialEq, Debug)]
pub struct Vit {
    /// The architecture.
    pub config: VitConfig,
    /// What has been added. [`Method::Full`] adds nothing: the bare backbone.
    pub method: Method,
}

impl Vit {
    /// The bare backbone.
    pub fn bare(config: &VitConfig) -> Vit {
        Vit { config: config.clone(), method: Method::Full {} }
    }

    /// The class token after the final LayerNorm.
    ///
    /// # Shapes
    /// `pixels` [batch, 3, height, width], normalised, both sides multiples of the patch → [batch, dim].
    pub fn features(&self, tensors: &Tensors, pixels: &Tensor) -> Tensor {
        let mut x = self.embed(tensors, pixels); // [batch, tokens, dim]
        for block in 0..self.config.depth {
            x = self.block(tensors, block, x);
        }
        let class = x.select(1, 0); // [batch, dim]
        layer_norm(&class, &tensors["norm.weight"], &tensors["norm.bias"])
    }

    /// Patches and class token, each with its position.
    ///
    /// # Shapes
    /// [batch, 3, height, width] → [batch, 1 + height / patch · width / patch, dim]
    fn embed(&self, tensors: &Tensors, pixels: &Tensor) -> Tensor {
        let (batch, patch) = (pixels.size()[0], self.config.patch);
        let weight = &tensors["patch_embed.proj.weight"];
        let bias = &tensors["patch_embed.proj.bias"];
        let maps = pixels.conv2d(weight, Some(bias), [patch, patch], [0, 0], [1, 1], 1); // [batch, dim, rows, columns]
        let (rows, columns) = (maps.size()[2], maps.size()[3]);
        let patches = maps.flatten(2, 3).transpose(1, 2); // [batch, rows · columns, dim]
        let class = tensors["cls_token"].expand([batch, -1, -1], false);
        Tensor::cat(&[class, patches], 1) + self.positions(&tensors["pos_embed"], rows, columns)
    }

    /// The position table for another grid, as Hugging Face's Dinov2 resizes it: bicubic, to the size itself rather
    /// than by a factor, corners not aligned. At the native grid it is the table.
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
        let resized = square.upsample_bicubic2d([rows, columns], false, None, None); // [1, dim, rows, columns]
        let patches = resized.permute([0, 2, 3, 1]).reshape([1, rows * columns, dim]);
        Tensor::cat(&[class, patches], 1)
    }

    /// x + attn(LN1 x), then x + mlp(LN2 x), then what the method adds after the block. The feature is the class token,
    /// so the last block computes that one alone: keys and values of all tokens, the rest of one.
    ///
    /// # Shapes
    /// [batch, tokens, dim] → the same; [batch, 1, dim] for the last block
    fn block(&self, tensors: &Tensors, block: i64, x: Tensor) -> Tensor {
        let at = |name: &str| &tensors[&format!("blocks.{block}.{name}")];
        let branch = |x: &Tensor, y: Tensor, scale: &str| match self.config.layer_scale {
            true => x.addcmul(&y, at(scale)),
            false => x + y,
        };
        let (weight, bias) = methods::norm_affine(&self.method, tensors, block, Norm::First);
        let last = block + 1 == self.config.depth;
        let asking = if last { 1 } else { x.size()[1] };
        let attended = attention(&layer_norm(&x, &weight, &bias), asking, &at);
        let x = x.narrow(1, 0, asking);
        let x = branch(&x, attended, "ls1.gamma");
        let (weight, bias) = methods::norm_affine(&self.method, tensors, block, Norm::Second);
        let hidden = linear(&layer_norm(&x, &weight, &bias), &at, "mlp.fc1").gelu("none");
        let x = branch(&x, linear(&hidden, &at, "mlp.fc2"), "ls2.gamma");
        methods::after_block(&self.method, tensors, block, x)
    }
}

/// Multi-head self-attention of the first `asking` tokens over all.
///
/// # Shapes
/// [batch, tokens, dim] → [batch, asking, dim]
fn attention<'a>(x: &Tensor, asking: i64, at: &impl Fn(&str) -> &'a Tensor) -> Tensor {
    let (batch, tokens, dim) = (x.size()[0], x.size()[1], x.size()[2]);
    let heads = |y: Tensor, parts: i64| {
        let count = y.size()[1];
        y.reshape([batch, count, parts, dim / HEAD_DIM, HEAD_DIM]).permute([2, 0, 3, 1, 4]) // [parts, batch, heads, count, head]
    };
    let (query, key, value) = if asking == tokens {
        let qkv = heads(linear(x, at, "attn.qkv"), 3);
        (qkv.select(0, 0), qkv.select(0, 1), qkv.select(0, 2))
    } else {
        let (weight, bias) = (at("attn.qkv.weight"), at("attn.qkv.bias")); // rows q, k, v
        let part = |y: &Tensor, first: i64, parts: i64| {
            let rows = |tensor: &Tensor| tensor.narrow(0, first * dim, parts * dim);
            heads(y.linear(&rows(weight), Some(&rows(bias))), parts)
        };
        let (query, keys) = (part(&x.narrow(1, 0, asking), 0, 1), part(x, 1, 2));
        (query.select(0, 0), keys.select(0, 0), keys.select(0, 1))
    };
    let mixed =
        Tensor::scaled_dot_product_attention(&query, &key, &value, None::<&Tensor>, 0.0, false, None, false);
    linear(&mixed.transpose(1, 2).reshape([batch, asking, dim]), at, "attn.proj")
}

fn linear<'a>(x: &Tensor, at: &impl Fn(&str) -> &'a Tensor, name: &str) -> Tensor {
    x.linear(at(&format!("{name}.weight")), Some(at(&format!("{name}.bias"))))
}

fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    x.layer_norm(weight.size(), Some(weight), Some(bias), EPS, false)
}

/// Bytes to what the encoders were trained on: to [0, 1], then ImageNet's mean and deviation off.
///
/// # Shapes
/// u8 [batch, 3, height, width] → f32, the same
pub fn normalise(pixels: &Tensor) -> Tensor {
    let channel =
        |values: &[f32]| Tensor::from_slice(values).reshape([1, 3, 1, 1]).to_device(pixels.device());
    (pixels.to_kind(Kind::Float) / 255.0 - channel(&MEAN)) / channel(&DEVIATION)
}

/// A small backbone of random values: two blocks of one head, 14 px patches, a table of 4 × 4.
#[cfg(test)]
pub fn tiny(layer_scale: bool) -> crate::weights::Backbone {
    use crate::weights::{Backbone, initial};
    let config = VitConfig { dim: 64, depth: 2, mlp_dim: 128, patch: 14, grid: 4, layer_scale };
    let tensors = config.shapes().into_iter().map(|(name, shape)| {
        let noise = initial::normal(0, &name, &shape, 0.1);
        let is_gain = name.contains("norm") && name.ends_with("weight") || name.ends_with("gamma");
        let value = if is_gain { noise + 1.0 } else { noise };
        (name, value)
    });
    Backbone::new(tensors.collect()).expect("a sound backbone")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{assert_near, image, model, numbers};
    use crate::weights::{Backbone, bitwise_equal, initial};

    #[test]
    fn features_are_those_of_hugging_face() {
        let backbone = Backbone::read(&model("vit-s14-imgfocus").join("model.safetensors")).unwrap();
        assert_eq!(backbone.tensors.values(), 22_056_192, "DINOv2-S without the mask token");
        let vit = Vit::bare(&backbone.config);
        for (seed, height, width) in [(41, 98, 98), (42, 70, 126)] {
            let pixels = normalise(&image(seed, height, width));
            let feature = tch::no_grad(|| vit.features(&backbone.tensors, &pixels));
            // Of length 50; other kernels and another order of sums differ by about 1e-5.
            let of = |what: &str| numbers(&format!("features.{height}x{width}.{what}"));
            assert_near(&feature.narrow(1, 0, 8), &of("first"), 1e-4);
            assert_near(&feature.norm(), &of("norm"), 1e-4);
        }
    }

    #[test]
    fn a_vit_b_16_has_its_published_number_of_values() {
        let config =
            VitConfig { dim: 768, depth: 12, mlp_dim: 3072, patch: 16, grid: 14, layer_scale: false };
        let values: i64 = config.shapes().values().map(|shape| shape.iter().product::<i64>()).sum();
        assert_eq!(values, 85_798_656);
    }

    #[test]
    fn the_position_table_is_untouched_at_its_own_grid_and_trainable_at_others() {
        let backbone = tiny(true);
        let vit = Vit::bare(&backbone.config);
        let table = backbone.tensors["pos_embed"].copy().set_requires_grad(true);
        assert!(bitwise_equal(&vit.positions(&table, 4, 4), &table));
        let resized = vit.positions(&table, 2, 3);
        assert_eq!(resized.size(), [1, 7, 64]);
        let gradients = Tensor::run_backward(&[resized.sum(Kind::Float)], &[&table], false, false);
        // Bicubic weights sum to 1 for each of the seven positions and 64 channels.
        assert_near(&gradients[0].sum(Kind::Float), &[7.0 * 64.0], 1e-3);
    }

    #[test]
    fn an_image_has_its_feature_wherever_it_is_in_the_batch() {
        let backbone = tiny(true);
        let vit = Vit::bare(&backbone.config);
        let pixels = initial::normal(1, "pixels", &[4, 3, 28, 28], 1.0);
        let order = Tensor::from_slice(&[2i64, 0, 3, 1]);
        let permuted = vit.features(&backbone.tensors, &pixels.index_select(0, &order));
        let features = vit.features(&backbone.tensors, &pixels).index_select(0, &order);
        assert!(permuted.allclose(&features, 1e-5, 1e-5, false));
    }

    #[test]
    fn an_image_that_cannot_be_cut_into_patches_is_refused() {
        let config = tiny(false).config;
        assert!(config.check_image_size(98).is_ok());
        let error = config.check_image_size(100).unwrap_err().to_string();
        assert!(error.contains("take a multiple of 14"), "{error}");
    }

    #[test]
    fn bytes_become_what_torchvision_makes_of_them() {
        let pixels = Tensor::from_slice(&[0u8, 128, 255]).reshape([1, 3, 1, 1]);
        // (v / 255 − mean) / deviation by hand.
        assert_near(&normalise(&pixels), &[-2.117_904, 0.205_182, 2.640_000], 1e-5);
    }
}
