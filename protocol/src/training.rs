//! The training loop's settings.

use crate::Dtype;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The training loop: AdamW, warm-up, clipping.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Optimiser steps.
    pub steps: u64,
    /// Pairs per forward pass; the contrastive loss compares these with each other.
    #[serde(default = "default_batch_size")]
    pub batch_size: u32,
    /// Forward passes per step, their gradients averaged. It stretches memory, not the contrast.
    #[serde(default = "default_accumulate")]
    pub accumulate: u32,
    /// Arithmetic of encoder and decoder. Weights, moments and losses are f32; f16 scales the loss dynamically.
    #[serde(default)]
    pub dtype: Dtype,
    /// Peak rate of the encoder's tensors.
    pub learning_rate: f64,
    /// What the encoder's rate is multiplied by from each layer to the one before it; 1 gives all the same.
    #[serde(default = "one")]
    pub layer_decay: f64,
    /// Peak rate of what is trained beside the encoder: projections, temperature, decoder, linear map.
    #[serde(default = "default_head_learning_rate")]
    pub head_learning_rate: f64,
    /// AdamW's decoupled decay; none on biases, norms, scales and gates.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,
    /// AdamW's β1 and β2.
    #[serde(default = "default_betas")]
    pub betas: (f64, f64),
    /// Steps of linear warm-up.
    #[serde(default)]
    pub warmup_steps: u64,
    /// Rate after the warm-up.
    #[serde(default)]
    pub schedule: Schedule,
    /// Largest global gradient norm.
    #[serde(default = "one")]
    pub clip_norm: f64,
    /// Side of the training images, pixels; the whole image straight to the square.
    #[serde(default = "default_image_size")]
    pub image_size: u32,
    /// Mirror half of the images.
    #[serde(default)]
    pub flip: bool,
    /// Cut a random part of the image, of this share of its area at least and at most, before resizing; MAE's is
    /// [0.2, 1]. The whole image by default.
    #[serde(default)]
    pub crop_scale: Option<(f64, f64)>,
    /// Steps at the beginning in which the encoder stands still and only what reads it is trained. By default a tenth
    /// of the steps where a fresh decoder meets a pretrained encoder, whose weights its noise would spoil; else none.
    #[serde(default)]
    pub encoder_frozen_steps: Option<u64>,
    /// The checkpoint keeps the exponential moving average of the weights, with this decay.
    #[serde(default)]
    pub ema: Option<f64>,
    /// When a training counts as diverged, and what is done then.
    #[serde(default)]
    pub divergence: Divergence,
    /// Steps between resume states.
    #[serde(default = "default_resume_every")]
    pub resume_every: u64,
}

/// Learning rate after the warm-up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine down to 0.
    #[default]
    Cosine,
    /// A straight line down to 0.
    Linear,
    /// Stays at the peak.
    Constant,
}

/// When a training counts as diverged, and what is done then. A loss or gradient that is no number always counts.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Divergence {
    /// A loss of more than this many times the median of the last 20; never by default.
    #[serde(default)]
    pub spike: Option<f64>,
    /// A gradient norm, before clipping, above this; never by default.
    #[serde(default)]
    pub gradient_norm: Option<f64>,
    /// How often to go back to the last resume state with lower rates before the run fails.
    #[serde(default)]
    pub rollbacks: u32,
    /// What the rates are multiplied by at each rollback.
    #[serde(default = "default_lower")]
    pub lower: f64,
}

impl Default for Divergence {
    fn default() -> Divergence {
        Divergence { spike: None, gradient_norm: None, rollbacks: 0, lower: default_lower() }
    }
}

fn one() -> f64 {
    1.0
}

fn default_batch_size() -> u32 {
    32
}

fn default_accumulate() -> u32 {
    1
}

fn default_lower() -> f64 {
    0.5
}

fn default_head_learning_rate() -> f64 {
    1e-3
}

fn default_weight_decay() -> f64 {
    0.05
}

fn default_betas() -> (f64, f64) {
    (0.9, 0.98)
}

fn default_image_size() -> u32 {
    224
}

fn default_resume_every() -> u64 {
    50
}
