//! The spec: the typed description of a run. What was POSTed, with every default filled in, so that a spec read
//! years later still says everything that decided the result.

use crate::Evaluation;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One run, described completely. The same document as JSON (API) or TOML (`causeway submit`).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The experiment the run belongs to; made if it does not exist.
    pub experiment: String,
    /// Name of the run; by default method and seed.
    #[serde(default)]
    pub name: String,
    /// What the run does.
    pub kind: Kind,
    /// Seeds everything random: order, initial values, augmentation.
    #[serde(default)]
    pub seed: u64,
    /// Higher goes first in the queue.
    #[serde(default)]
    pub priority: i32,
    /// Tries before a crashing or lost run is given up.
    #[serde(default = "default_max_attempts")]
    pub max_attempts: u32,
    /// Labels to find the run by.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Free text.
    #[serde(default)]
    pub note: String,
    /// θ0 and θ1.
    pub weights: Weights,
    /// What is made trainable (finetune).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// The image-caption pairs (finetune).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captions: Option<Captions>,
    /// The weighted sum of losses (finetune).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
    /// The training loop (finetune).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
    /// The α sweep.
    pub evaluation: Evaluation,
}

/// What a run does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Fine-tunes θ0, keeps the checkpoint, then sweeps α.
    Finetune,
    /// Sweeps α between two sets of weights that exist already.
    Evaluate,
}

/// The two ends of the line. `theta1` is given for `evaluate` only; a finetune run makes its own.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// The pretrained encoder.
    pub theta0: WeightSource,
    /// The fine-tuned encoder: a Causeway checkpoint, or a full set of weights of the same shape as θ0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub theta1: Option<WeightSource>,
}

/// Where weights come from. Specs name assets and blobs, never paths.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum WeightSource {
    /// A weights asset that workers hold.
    Asset(String),
    /// A safetensors file in the server's blob store, by sha256 (64 hex digits). A checkpoint's digest is its blob.
    Blob(String),
    /// A file on the submitter's machine. `causeway submit` uploads it and sends `blob` instead; the server refuses it.
    File(String),
}

/// What is made trainable.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Method {
    /// Every tensor of the backbone.
    Full {},
    /// Adapter+ after every block: x + s ⊙ Up(GELU(Down x)) (arXiv 2406.06820).
    Adapter {
        /// Width r of the bottleneck.
        #[serde(default = "default_rank")]
        rank: u32,
        /// Initial values of Down and Up.
        #[serde(default)]
        init: AdapterInit,
        /// Learn the per-channel scale s (initially 1); otherwise s = 1.
        #[serde(default = "yes")]
        learned_scale: bool,
    },
    /// Static FiLM after both LayerNorms of every block: (1 + Δγ) ⊙ LN(x) + β, Δγ = β = 0 at the start.
    Film {},
}

/// Initial values of an adapter's two matrices. Biases start at 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdapterInit {
    /// Down truncated normal (σ 0.01, cut at 2σ), Up 0: starts as the exact identity.
    #[default]
    Zero,
    /// Both truncated normal (σ 0.01, cut at 2σ): starts near the identity. θ0 of the sweep still has Up = 0.
    Houlsby,
}

/// The image-caption pairs and what reads the captions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Captions {
    /// Name of the captions asset.
    pub asset: String,
    /// Name of the text encoder asset. Frozen; each caption is embedded once.
    pub text_encoder: String,
}

/// The loss: a weighted sum. One term so far.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// Symmetric contrastive loss between image features and caption embeddings.
    pub contrastive: Contrastive,
}

/// ½ [CE(s·V Tᵀ, I) + CE(s·T Vᵀ, I)] over a batch; V and T are projected and L2-normalised.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Contrastive {
    /// Weight of the term.
    #[serde(default = "one")]
    pub weight: f64,
    /// Width of the joint space of the two linear projections.
    #[serde(default = "default_projection_dim")]
    pub projection_dim: u32,
    /// Initial temperature τ; s = 1/τ is learned and kept at or below 100.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
}

/// The training loop: AdamW, warm-up, clipping.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Optimiser steps.
    pub steps: u64,
    /// Pairs per step.
    #[serde(default = "default_batch_size")]
    pub batch_size: u32,
    /// Peak rate of the encoder's tensors.
    pub learning_rate: f64,
    /// Peak rate of the projections and the temperature.
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
    /// Stays at the peak.
    Constant,
}

impl Method {
    /// The word that names the method in keys, colours and file names.
    pub fn as_str(&self) -> &'static str {
        match self {
            Method::Full {} => "full",
            Method::Adapter { .. } => "adapter",
            Method::Film {} => "film",
        }
    }
}

impl Kind {
    /// The word used in SQL, JSON and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Finetune => "finetune",
            Kind::Evaluate => "evaluate",
        }
    }
}

impl Spec {
    /// Names of the assets a worker must hold to work on this run.
    pub fn assets(&self) -> Vec<&str> {
        let sources = [Some(&self.weights.theta0), self.weights.theta1.as_ref()];
        let weights = sources.into_iter().flatten().filter_map(|source| match source {
            WeightSource::Asset(name) => Some(name.as_str()),
            WeightSource::Blob(_) | WeightSource::File(_) => None,
        });
        let captions = self.captions.iter().flat_map(|c| [c.asset.as_str(), c.text_encoder.as_str()]);
        let datasets = self.evaluation.datasets.iter().map(|dataset| dataset.asset.as_str());
        weights.chain(captions).chain(datasets).collect()
    }

    /// Names of the blobs in the server's store that this run reads.
    pub fn blobs(&self) -> Vec<&str> {
        let sources = [Some(&self.weights.theta0), self.weights.theta1.as_ref()];
        let blobs = sources.into_iter().flatten().filter_map(|source| match source {
            WeightSource::Blob(sha256) => Some(sha256.as_str()),
            WeightSource::Asset(_) | WeightSource::File(_) => None,
        });
        blobs.collect()
    }
}

fn default_max_attempts() -> u32 {
    3
}

fn default_rank() -> u32 {
    8
}

fn yes() -> bool {
    true
}

fn one() -> f64 {
    1.0
}

fn default_projection_dim() -> u32 {
    256
}

fn default_temperature() -> f64 {
    0.07
}

fn default_batch_size() -> u32 {
    32
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
