//! The masked autoencoder (He et al., arXiv 2111.06377): most patches are removed, the encoder sees the rest, and a small
//! decoder says what the removed ones looked like. Here are the mask, the decoder and the loss; the encoder is
//! [`Vit::tokens`](super::vit::Vit::tokens). Nothing here draws random numbers while training: noise comes as an
//! argument, so that equal noise makes an equal loss.

use super::check_shapes;
use super::vit::VitConfig;
use super::vit::config::block_shapes;
use super::vit::{attention, layer_norm, linear, some_rows};
use crate::weights::{Tensors, initial};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Heads of every published decoder; shapes do not show them.
const HEADS: i64 = 16;
/// LayerNorm's ε in the decoder, as in training.
const EPS: f64 = 1e-6;
/// What keeps patches of one colour from dividing by 0 when targets are normalised.
const VARIANCE_FLOOR: f64 = 1e-6;
/// Standard deviation of the class and the mask token at the start.
const TOKEN_DEVIATION: f64 = 0.02;

/// Names of the two position tables, which are fixed: pretraining never changes them.
pub const FIXED: [&str; 2] = ["pos_embed", "decoder_pos_embed"];

/// A decoder's architecture.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DecoderConfig {
    /// Width of the encoder's tokens.
    pub encoder_dim: i64,
    /// Width of its own.
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
}

/// Which patches of each image are removed.
#[derive(Debug)]
pub struct Mask {
    /// Places of the patches that are kept, in the order in which the encoder sees them. i64 [batch, kept]
    pub visible: Tensor,
    /// For each patch its place among the kept and then the removed ones. i64 [batch, patches]
    pub restore: Tensor,
    /// 1 where a patch is removed, else 0. f32 [batch, patches]
    pub removed: Tensor,
}

/// Removes the patches with the most noise. Equal noise is ordered by place.
///
/// # Shapes
/// `noise` [batch, patches], f32 or f64: f16 has collisions; 0 < `keep` < patches
pub fn random_masking(noise: &Tensor, keep: i64) -> Mask {
    let (batch, patches) = (noise.size()[0], noise.size()[1]);
    let shuffle = noise.argsort_stable(true, 1, false); // [batch, patches]
    let restore = shuffle.argsort_stable(true, 1, false);
    let options = (Kind::Float, noise.device());
    let sorted = Tensor::cat(
        &[Tensor::zeros([batch, keep], options), Tensor::ones([batch, patches - keep], options)],
        1,
    );
    Mask { visible: shuffle.narrow(1, 0, keep), removed: sorted.gather(1, &restore, false), restore }
}

/// An image as rows of patches; within a patch by pixel row, pixel column, channel.
///
/// # Shapes
/// [batch, 3, height, width] → [batch, patches, patch² · 3]
pub fn patchify(pixels: &Tensor, patch: i64) -> Tensor {
    let size = pixels.size();
    let (batch, rows, columns) = (size[0], size[2] / patch, size[3] / patch);
    pixels
        .reshape([batch, 3, rows, patch, columns, patch])
        .permute([0, 2, 4, 3, 5, 1]) // [batch, rows, columns, patch, patch, 3]
        .reshape([batch, rows * columns, patch * patch * 3])
}

/// The image that was cut into patches: the inverse of [`patchify`].
///
/// # Shapes
/// [batch, rows · columns, patch² · 3] → [batch, 3, rows · patch, columns · patch]
pub fn unpatchify(patches: &Tensor, patch: i64, rows: i64, columns: i64) -> Tensor {
    let batch = patches.size()[0];
    patches
        .reshape([batch, rows, columns, patch, patch, 3])
        .permute([0, 5, 1, 3, 2, 4]) // [batch, 3, rows, patch, columns, patch]
        .reshape([batch, 3, rows * patch, columns * patch])
}

/// What the decoder is to say: the patches' pixels, with `norm_pix` each patch's at mean 0 and (unbiased) variance 1.
///
/// # Shapes
/// [batch, 3, height, width] → f32 [batch, patches, patch² · 3]
pub fn target(pixels: &Tensor, patch: i64, norm_pix: bool) -> Tensor {
    let patches = patchify(&pixels.to_kind(Kind::Float), patch);
    if !norm_pix {
        return patches;
    }
    let mean = patches.mean_dim(-1, true, Kind::Float);
    let variance = patches.var_dim(-1, true, true);
    (patches - mean) / (variance + VARIANCE_FLOOR).sqrt()
}

/// The mean square error over the removed patches of the whole batch, in f32.
///
/// # Shapes
/// `prediction`, `target` [batch, patches, patch² · 3] → []
pub fn loss(prediction: &Tensor, target: &Tensor, mask: &Mask) -> Tensor {
    let error = (prediction.to_kind(Kind::Float) - target).square().mean_dim(-1, false, Kind::Float); // [batch, patches]
    (error * &mask.removed).sum(Kind::Float) / mask.removed.sum(Kind::Float)
}

impl DecoderConfig {
    /// A decoder for an encoder's tokens, its MLP four times as wide as its tokens.
    ///
    /// # Errors
    /// Heads that do not divide the width, or a width that the position table cannot have.
    pub fn new(encoder: &VitConfig, dim: i64, depth: i64, heads: i64) -> Result<DecoderConfig> {
        ensure!(dim > 0 && dim % 4 == 0, "a decoder's width must be a multiple of 4, not {dim}");
        ensure!(heads > 0 && dim % heads == 0, "{heads} heads do not divide a decoder's width of {dim}");
        let VitConfig { patch, grid, .. } = *encoder;
        Ok(DecoderConfig { encoder_dim: encoder.dim, dim, depth, heads, mlp_dim: 4 * dim, patch, grid })
    }

    /// The architecture of a decoder's tensors under the original's names, with the 16 heads that all published have
    /// where none are given.
    ///
    /// # Errors
    /// Tensors that are unknown, missing or misshapen; all are listed.
    pub fn infer(encoder: &VitConfig, tensors: &Tensors, heads: Option<i64>) -> Result<DecoderConfig> {
        let rows = |name: &str| -> Result<i64> {
            let size = tensors.get(name).with_context(|| format!("{name} is missing"))?.size();
            size.first().copied().with_context(|| format!("{name} is a single number"))
        };
        let depth = tensors
            .names()
            .filter_map(|name| name.strip_prefix("decoder_blocks.")?.split('.').next()?.parse().ok())
            .max()
            .map_or(0, |last: i64| last + 1);
        let config = DecoderConfig {
            mlp_dim: rows("decoder_blocks.0.mlp.fc1.weight")?,
            ..DecoderConfig::new(encoder, rows("decoder_embed.weight")?, depth, heads.unwrap_or(HEADS))?
        };
        check_shapes(tensors, &config.shapes())?;
        Ok(config)
    }

    /// Name and shape of every tensor of the decoder.
    pub fn shapes(&self) -> BTreeMap<String, Vec<i64>> {
        let (dim, values) = (self.dim, self.patch * self.patch * 3);
        let mut shapes = BTreeMap::from([
            ("decoder_embed.weight".to_owned(), vec![dim, self.encoder_dim]),
            ("decoder_embed.bias".to_owned(), vec![dim]),
            ("mask_token".to_owned(), vec![1, 1, dim]),
            ("decoder_pos_embed".to_owned(), vec![1, self.grid * self.grid + 1, dim]),
            ("decoder_norm.weight".to_owned(), vec![dim]),
            ("decoder_norm.bias".to_owned(), vec![dim]),
            ("decoder_pred.weight".to_owned(), vec![values, dim]),
            ("decoder_pred.bias".to_owned(), vec![values]),
        ]);
        for block in 0..self.depth {
            shapes.extend(block_shapes(&format!("decoder_blocks.{block}"), dim, self.mlp_dim));
        }
        shapes
    }

    /// A decoder as training begins with it.
    pub fn fresh(&self, seed: u64) -> Tensors {
        let table = || positions(self.dim, self.grid);
        self.shapes().into_iter().map(|(name, shape)| fresh(name, &shape, seed, table)).collect()
    }

    /// Whether images of this side have as many patches as the decoder has positions.
    ///
    /// # Errors
    /// Any other side: the table is fixed.
    pub fn check_image_size(&self, image_size: u32) -> Result<()> {
        let own = self.patch * self.grid;
        ensure!(
            i64::from(image_size) == own,
            "the decoder's positions are those of {own} px images, not of {image_size} px; take {own} or a fresh decoder"
        );
        Ok(())
    }

    /// What all patches look like, in the decoder's opinion.
    ///
    /// # Shapes
    /// `tokens` [batch, 1 + kept, encoder_dim], what [`Vit::tokens`](super::vit::Vit::tokens) makes of the mask's visible
    /// patches → [batch, patches, patch² · 3]
    pub fn decode(&self, tensors: &Tensors, tokens: &Tensor, mask: &Mask) -> Tensor {
        let outside = |name: &str| &tensors[name];
        let kept = tokens.size()[1] - 1;
        let (batch, patches) = (mask.restore.size()[0], mask.restore.size()[1]);
        let x = linear(tokens, &outside, "decoder_embed"); // [batch, 1 + kept, dim]
        let unseen = tensors["mask_token"].expand([batch, patches - kept, -1], false);
        let places = mask.restore.unsqueeze(-1).expand([-1, -1, self.dim], false);
        let shuffled = Tensor::cat(&[x.narrow(1, 1, kept), unseen], 1);
        let in_order = shuffled.gather(1, &places, false); // [batch, patches, dim]
        let mut x = Tensor::cat(&[x.narrow(1, 0, 1), in_order], 1) + &tensors["decoder_pos_embed"];
        for block in 0..self.depth {
            x = self.block(tensors, block, &x);
        }
        let x = layer_norm(&x, &tensors["decoder_norm.weight"], &tensors["decoder_norm.bias"], EPS);
        linear(&x.narrow(1, 1, patches), &outside, "decoder_pred")
    }

    /// x + attn(LN1 x), then x + mlp(LN2 x).
    ///
    /// # Shapes
    /// [batch, tokens, dim] → the same
    fn block(&self, tensors: &Tensors, block: i64, x: &Tensor) -> Tensor {
        let at = |name: &str| &tensors[&format!("decoder_blocks.{block}.{name}")];
        let norm = |x: &Tensor, name: &str| {
            layer_norm(x, at(&format!("{name}.weight")), at(&format!("{name}.bias")), EPS)
        };
        let mixed = attention(&norm(x, "norm1"), self.heads, x.size()[1], &mut |x, rows| {
            some_rows(x, &at, "attn.qkv", rows)
        });
        let x = x + linear(&mixed, &at, "attn.proj");
        let hidden = linear(&norm(&x, "norm2"), &at, "mlp.fc1").gelu("none");
        &x + linear(&hidden, &at, "mlp.fc2")
    }
}

/// An encoder as MAE's pretraining begins with it: Xavier-uniform weights (the patch projection's as a matrix), biases
/// 0, a class token from N(0, 0.02²), fixed sin-cos positions. The original leaves the patch projection's bias to torch's
/// uniform default; Hugging Face's and ours is 0.
pub fn fresh_encoder(config: &VitConfig, seed: u64) -> Tensors {
    let table = || positions(config.dim, config.grid);
    config.shapes().into_iter().map(|(name, shape)| fresh(name, &shape, seed, table)).collect()
}

fn fresh(name: String, shape: &[i64], seed: u64, table: impl Fn() -> Tensor) -> (String, Tensor) {
    let options = (Kind::Float, Device::Cpu);
    let leaf = name.rsplit('.').next().unwrap_or_default();
    let value = match name.as_str() {
        fixed if FIXED.contains(&fixed) => table(),
        "cls_token" | "mask_token" => initial::normal(seed, &name, shape, TOKEN_DEVIATION),
        _ if leaf == "bias" => Tensor::zeros(shape, options),
        _ if leaf == "gamma" || name.contains("norm") => Tensor::ones(shape, options),
        _ => xavier_uniform(seed, &name, shape),
    };
    (name, value)
}

/// Uniform between ±√(6 / (fan in + fan out)) (Glorot and Bengio 2010), for a matrix of all but the first dimension.
fn xavier_uniform(seed: u64, name: &str, shape: &[i64]) -> Tensor {
    let (rows, columns) = (shape[0], shape[1..].iter().product::<i64>());
    initial::uniform(seed, name, shape, (6.0 / (rows + columns) as f64).sqrt())
}

/// The fixed position table: the first half of the channels says the column, the second the row, each by sines and then
/// cosines of dim/4 falling frequencies. The class token's is 0. Computed in f64, kept in f32.
///
/// # Shapes
/// → [1, 1 + grid², dim]
pub fn positions(dim: i64, grid: i64) -> Tensor {
    let quarter = dim / 4;
    let frequencies: Vec<f64> =
        (0..quarter).map(|at| 1.0 / 10_000f64.powf(at as f64 / quarter as f64)).collect();
    let mut values = vec![0f32; dim as usize];
    for place in 0..grid * grid {
        for coordinate in [place % grid, place / grid] {
            let angles = || frequencies.iter().map(move |frequency| coordinate as f64 * frequency);
            values.extend(angles().map(|angle| angle.sin() as f32));
            values.extend(angles().map(|angle| angle.cos() as f32));
        }
    }
    Tensor::from_slice(&values).reshape([1, grid * grid + 1, dim])
}

#[cfg(test)]
mod tests;
