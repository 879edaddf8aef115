//! A vision transformer's architecture: what the shapes of its weights show, and the little that they do not.

mod written;

use crate::models::check_shapes;
use crate::weights::Tensors;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use tch::{Kind, Tensor};
use written::Written;

/// Width of an attention head wherever no other is known; all of DINO's, DINOv2's and most of CLIP's encoders have it.
const HEAD_DIM: i64 = 64;
/// Widths whose published encoders have 16 heads instead: ViT-H (MAE, CLIP), OpenCLIP's g and bigG.
const WIDTHS_OF_16_HEADS: [i64; 3] = [1280, 1408, 1664];
/// LayerNorm's ε as in training. Hugging Face's ViT files say 1e-12; the features differ by about 1e-6.
const EPS: f64 = 1e-6;
/// CLIP's ε, torch's default.
const CLIP_EPS: f64 = 1e-5;

/// The architecture of an encoder.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct VitConfig {
    /// Width of a token.
    pub dim: i64,
    /// Number of blocks.
    pub depth: i64,
    /// Number of attention heads.
    pub heads: i64,
    /// Width of the MLP's hidden layer.
    pub mlp_dim: i64,
    /// Side of a patch, pixels.
    pub patch: i64,
    /// Side of the position table, patches.
    pub grid: i64,
    /// Whether each residual branch is scaled by a learned vector.
    pub layer_scale: bool,
    /// LayerNorm's ε.
    pub eps: f64,
    /// The MLP's activation.
    pub activation: Activation,
    /// Whether tokens pass a LayerNorm before the first block: CLIP.
    pub pre_norm: bool,
    /// Whether the patch projection has a bias; CLIP's has none.
    pub patch_bias: bool,
    /// Width of the feature where the class token is projected last: CLIP.
    pub projection: Option<i64>,
    /// What pixels are normalised with.
    pub pixels: PixelStatistics,
}

/// An MLP's activation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x·Φ(x), exactly.
    #[default]
    Gelu,
    /// x·σ(1.702x): OpenAI's CLIP.
    QuickGelu,
}

/// Mean and standard deviation of the red, green and blue that an encoder was trained on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PixelStatistics {
    /// ImageNet's: DINO, DINOv2, MAE.
    #[default]
    Imagenet,
    /// Those of CLIP's training images.
    Clip,
}

/// What a file says of its encoder that the shapes do not show.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// Number of attention heads.
    pub heads: Option<i64>,
    /// The MLP's activation.
    pub activation: Option<Activation>,
    /// Attention heads of the decoder beside it.
    pub decoder_heads: Option<i64>,
}

impl Default for VitConfig {
    /// DINO's ViT-B/16.
    fn default() -> VitConfig {
        VitConfig {
            dim: 768,
            depth: 12,
            heads: 12,
            mlp_dim: 3072,
            patch: 16,
            grid: 14,
            layer_scale: false,
            eps: EPS,
            activation: Activation::Gelu,
            pre_norm: false,
            patch_bias: true,
            projection: None,
            pixels: PixelStatistics::Imagenet,
        }
    }
}

impl VitConfig {
    /// The architecture of a set of canonical tensors.
    ///
    /// # Errors
    /// Tensors that are unknown, missing or misshapen: all are listed. CLIP's weights without a known activation, which
    /// is GELU in some and QuickGELU in others of the same shapes.
    pub fn infer(tensors: &Tensors, known: Known) -> Result<VitConfig> {
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
        // Only CLIP has the LayerNorm before the blocks; the rest of what is CLIP's goes with it.
        let clip = tensors.get("norm_pre.weight").is_some();
        let dim = patch[0];
        let projection = match tensors.get("proj.weight") {
            Some(_) => Some(shape("proj.weight", 2)?[0]),
            None => None,
        };
        let mut config = VitConfig {
            dim,
            depth: blocks.max().map_or(0, |last: i64| last + 1),
            heads: known.heads.or_else(|| usual_heads(dim)).with_context(|| {
                format!("a width of {dim} is no multiple of {HEAD_DIM}, the width of a head; its number of heads must be known")
            })?,
            mlp_dim: shape("blocks.0.mlp.fc1.weight", 2)?[0],
            patch: patch[2],
            grid,
            layer_scale: tensors.names().any(|name| name.ends_with(".ls1.gamma")),
            eps: if clip { CLIP_EPS } else { EPS },
            activation: known.activation.unwrap_or_default(),
            pre_norm: clip,
            patch_bias: !clip || tensors.get("patch_embed.proj.bias").is_some(),
            projection,
            pixels: if clip { PixelStatistics::Clip } else { PixelStatistics::Imagenet },
        };
        ensure!(
            config.heads > 0 && dim % config.heads == 0,
            "{} heads do not divide a width of {dim}",
            config.heads
        );
        config.check(tensors)?;
        if clip {
            config.activation = known.activation.context(
                "these are CLIP's weights, whose activation is QuickGELU (OpenAI's) or GELU (most others), and the \
                 shapes do not show which; put the model's config.json beside the file, or convert it with \
                 `causeway-trainer convert … --activation quick_gelu` or `gelu`",
            )?;
        }
        Ok(config)
    }

    /// Name and shape of every tensor of the encoder.
    pub fn shapes(&self) -> BTreeMap<String, Vec<i64>> {
        let (dim, mlp, patch) = (self.dim, self.mlp_dim, self.patch);
        let mut shapes = BTreeMap::from([
            ("cls_token".to_owned(), vec![1, 1, dim]),
            ("pos_embed".to_owned(), vec![1, self.grid * self.grid + 1, dim]),
            ("patch_embed.proj.weight".to_owned(), vec![dim, 3, patch, patch]),
            ("norm.weight".to_owned(), vec![dim]),
            ("norm.bias".to_owned(), vec![dim]),
        ]);
        if self.patch_bias {
            shapes.insert("patch_embed.proj.bias".to_owned(), vec![dim]);
        }
        if self.pre_norm {
            shapes.extend(["norm_pre.weight", "norm_pre.bias"].map(|name| (name.to_owned(), vec![dim])));
        }
        if let Some(out) = self.projection {
            shapes.insert("proj.weight".to_owned(), vec![out, dim]);
        }
        for block in 0..self.depth {
            shapes.extend(block_shapes(&format!("blocks.{block}"), dim, mlp));
            if self.layer_scale {
                shapes.extend(["ls1", "ls2"].map(|name| (format!("blocks.{block}.{name}.gamma"), vec![dim])));
            }
        }
        shapes
    }

    fn check(&self, tensors: &Tensors) -> Result<()> {
        check_shapes(tensors, &self.shapes())
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

    /// Width of the feature.
    pub fn feature_dim(&self) -> i64 {
        self.projection.unwrap_or(self.dim)
    }

    /// Bytes to what the encoder was trained on: to [0, 1], then mean off and deviation divided out.
    ///
    /// # Shapes
    /// u8 [batch, 3, height, width] → f32, the same
    pub fn normalise(&self, pixels: &Tensor) -> Tensor {
        let (mean, deviation) = self.pixels.mean_and_deviation();
        let channel =
            |values: [f32; 3]| Tensor::from_slice(&values).reshape([1, 3, 1, 1]).to_device(pixels.device());
        (pixels.to_kind(Kind::Float) / 255.0 - channel(mean)) / channel(deviation)
    }

    /// What decides the function besides weights and their shapes, where it is not what DINO's and most encoders have;
    /// empty for those. Part of a backbone's identity: equal tensors with another activation are another encoder.
    pub fn beyond_shapes(&self) -> String {
        let Written { heads, eps, activation, pixels, .. } = Written::from(self.clone());
        let mut text = String::new();
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                // Writing into text cannot fail.
                let _ = write!(text, "{name}={value};");
            }
        };
        add("heads", heads.map(|heads| heads.to_string()));
        add("eps", eps.map(|eps| format!("{eps:e}")));
        add("activation", activation.map(|activation| activation.as_str().to_owned()));
        add("pixels", pixels.map(|pixels| pixels.as_str().to_owned()));
        text
    }
}

/// The number of heads that encoders of this width have, as far as it is a rule.
fn usual_heads(dim: i64) -> Option<i64> {
    match dim {
        _ if WIDTHS_OF_16_HEADS.contains(&dim) => Some(16),
        _ if dim % HEAD_DIM == 0 => Some(dim / HEAD_DIM),
        _ => None,
    }
}

/// Names and shapes of one pre-LN block.
pub(crate) fn block_shapes(block: &str, dim: i64, mlp: i64) -> Vec<(String, Vec<i64>)> {
    let mut shapes = Vec::new();
    for (linear, rows, columns) in
        [("attn.qkv", 3 * dim, dim), ("attn.proj", dim, dim), ("mlp.fc1", mlp, dim), ("mlp.fc2", dim, mlp)]
    {
        shapes.push((format!("{block}.{linear}.weight"), vec![rows, columns]));
        shapes.push((format!("{block}.{linear}.bias"), vec![rows]));
    }
    for norm in ["norm1", "norm2"] {
        shapes.push((format!("{block}.{norm}.weight"), vec![dim]));
        shapes.push((format!("{block}.{norm}.bias"), vec![dim]));
    }
    shapes
}

impl Activation {
    /// The word in metadata and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Activation::Gelu => "gelu",
            Activation::QuickGelu => "quick_gelu",
        }
    }

    /// The activation of that name, as Hugging Face's config.json and our own files have it.
    ///
    /// # Errors
    /// Another activation.
    pub fn parse(name: &str) -> Result<Activation> {
        match name {
            "gelu" => Ok(Activation::Gelu),
            "quick_gelu" => Ok(Activation::QuickGelu),
            other => bail!("the activation {other:?} is not known; gelu and quick_gelu are"),
        }
    }

    /// f(x).
    pub fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Activation::Gelu => x.gelu("none"),
            Activation::QuickGelu => x * (x * 1.702).sigmoid(),
        }
    }
}

impl PixelStatistics {
    /// The word in metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            PixelStatistics::Imagenet => "imagenet",
            PixelStatistics::Clip => "clip",
        }
    }

    /// Of red, green and blue in [0, 1]. CLIP's are those in OpenAI's `clip.py`.
    pub fn mean_and_deviation(self) -> ([f32; 3], [f32; 3]) {
        match self {
            PixelStatistics::Imagenet => ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            PixelStatistics::Clip => {
                ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1])
            }
        }
    }
}

#[cfg(test)]
mod tests;
