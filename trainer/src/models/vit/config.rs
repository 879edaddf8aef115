//! A vision transformer's architecture: what the shapes of its weights show, and the little that they do not.

use crate::weights::Tensors;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use tch::{Kind, Tensor};

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
        let problems = misfits(tensors, &self.shapes());
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

/// What is wrong with tensors that should have these names and shapes, in f32.
pub(crate) fn misfits(tensors: &Tensors, shapes: &BTreeMap<String, Vec<i64>>) -> Vec<String> {
    let mut problems: Vec<String> = shapes
        .iter()
        .filter_map(|(name, shape)| match tensors.get(name) {
            None => Some(format!("{name} is missing")),
            Some(tensor) if tensor.size() != *shape => {
                Some(format!("{name} is {:?}, must be {shape:?}", tensor.size()))
            }
            Some(tensor) if tensor.kind() != Kind::Float => Some(format!("{name} is {:?}", tensor.kind())),
            Some(_) => None,
        })
        .collect();
    let unknown = tensors.names().filter(|name| !shapes.contains_key(*name));
    problems.extend(unknown.map(|name| format!("{name} is unknown")));
    problems
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

/// A configuration as checkpoints' metadata hold it: what is usual is left out, so that equal training made equal bytes
/// before there was anything unusual, and still does.
#[derive(Serialize, Deserialize)]
struct Written {
    dim: i64,
    depth: i64,
    mlp_dim: i64,
    patch: i64,
    grid: i64,
    layer_scale: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    heads: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eps: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    activation: Option<Activation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pre_norm: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    patch_bias: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    projection: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pixels: Option<PixelStatistics>,
}

impl From<VitConfig> for Written {
    fn from(config: VitConfig) -> Written {
        let usual = VitConfig::default();
        let VitConfig { dim, depth, mlp_dim, patch, grid, layer_scale, projection, .. } = config;
        Written {
            dim,
            depth,
            mlp_dim,
            patch,
            grid,
            layer_scale,
            heads: (usual_heads(dim) != Some(config.heads)).then_some(config.heads),
            eps: (config.eps != usual.eps).then_some(config.eps),
            activation: (config.activation != usual.activation).then_some(config.activation),
            pre_norm: config.pre_norm.then_some(true),
            patch_bias: (!config.patch_bias).then_some(false),
            projection,
            pixels: (config.pixels != usual.pixels).then_some(config.pixels),
        }
    }
}

impl TryFrom<Written> for VitConfig {
    type Error = String;

    fn try_from(written: Written) -> Result<VitConfig, String> {
        let usual = VitConfig::default();
        let Written { dim, depth, mlp_dim, patch, grid, layer_scale, projection, .. } = written;
        let heads = written.heads.or_else(|| usual_heads(dim));
        Ok(VitConfig {
            dim,
            depth,
            heads: heads.ok_or_else(|| format!("an encoder {dim} wide needs `heads`"))?,
            mlp_dim,
            patch,
            grid,
            layer_scale,
            eps: written.eps.unwrap_or(usual.eps),
            activation: written.activation.unwrap_or(usual.activation),
            pre_norm: written.pre_norm.unwrap_or(usual.pre_norm),
            patch_bias: written.patch_bias.unwrap_or(usual.patch_bias),
            projection,
            pixels: written.pixels.unwrap_or(usual.pixels),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::vit::{tiny, tiny_clip};
    use crate::reference::assert_near;
    use crate::weights::Backbone;

    #[test]
    fn published_encoders_have_their_number_of_values() {
        let values = |config: VitConfig| -> i64 {
            config.shapes().values().map(|shape| shape.iter().product::<i64>()).sum()
        };
        assert_eq!(values(VitConfig::default()), 85_798_656);
        let clip =
            VitConfig { pre_norm: true, patch_bias: false, projection: Some(512), ..VitConfig::default() };
        // OpenAI's ViT-B/16: model.visual's parameters.
        assert_eq!(values(clip), 86_192_640);
    }

    #[test]
    fn metadata_of_earlier_checkpoints_still_mean_the_same() {
        let earlier = r#"{"dim":64,"depth":2,"mlp_dim":128,"patch":14,"grid":4,"layer_scale":true}"#;
        let config = tiny(true).config;
        assert_eq!(serde_json::from_str::<VitConfig>(earlier).unwrap(), config);
        assert_eq!(serde_json::to_string(&config).unwrap(), earlier, "and are still written so");
        let clip = tiny_clip(Activation::QuickGelu).config;
        let text = serde_json::to_string(&clip).unwrap();
        assert_eq!(serde_json::from_str::<VitConfig>(&text).unwrap(), clip, "{text}");
        assert_eq!((clip.heads, clip.eps, clip.projection), (2, 1e-5, Some(32)));
    }

    #[test]
    fn the_identity_of_clip_weights_depends_on_the_activation_and_that_of_others_on_the_tensors_alone() {
        for layer_scale in [false, true] {
            let backbone = tiny(layer_scale);
            assert_eq!(backbone.config.beyond_shapes(), "");
            assert_eq!(backbone.digest, backbone.tensors.digest().unwrap());
        }
        let (gelu, quick) = (tiny_clip(Activation::Gelu), tiny_clip(Activation::QuickGelu));
        assert_eq!(gelu.tensors.digest().unwrap(), quick.tensors.digest().unwrap());
        assert_ne!(gelu.digest, quick.digest);
        assert_eq!(quick.config.beyond_shapes(), "eps=1e-5;activation=quick_gelu;pixels=clip;");
        let two = Known { heads: Some(2), ..Known::default() };
        let other = Backbone::with(tiny(true).tensors, two).unwrap();
        assert_eq!(other.config.beyond_shapes(), "heads=2;");
        assert_ne!(other.digest, tiny(true).digest);
    }

    #[test]
    fn clip_weights_without_a_known_activation_are_refused() {
        let tensors = tiny_clip(Activation::Gelu).tensors;
        let error = format!("{:#}", Backbone::new(tensors).unwrap_err());
        assert!(error.contains("the shapes do not show which") && error.contains("--activation"), "{error}");
    }

    #[test]
    fn the_number_of_heads_follows_the_width_where_it_is_a_rule() {
        assert_eq!([384, 768, 1024, 1280].map(usual_heads), [Some(6), Some(12), Some(16), Some(16)]);
        assert_eq!(usual_heads(100), None);
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
        assert_near(&VitConfig::default().normalise(&pixels), &[-2.117_904, 0.205_182, 2.640_000], 1e-5);
        let clip = VitConfig { pixels: PixelStatistics::Clip, ..VitConfig::default() };
        assert_near(&clip.normalise(&pixels), &[-1.792_263, 0.168_897, 2.145_897], 1e-5);
    }
}
