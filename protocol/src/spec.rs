//! The spec: the typed description of a run. What was POSTed, with every default filled in, so that a spec read
//! years later still says everything that decided the result.

use crate::{Analysis, COMMANDS_LABEL, Command, Dtype, Evaluation, Method, Resources, Retention};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

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
    /// The project whose share and quota it counts against.
    #[serde(default = "default_project", skip_serializing_if = "is_default_project")]
    pub project: String,
    /// Devices, workers and time.
    #[serde(default, skip_serializing_if = "Resources::is_default")]
    pub resources: Resources,
    /// Runs that must have succeeded before it begins. Runs named under `weights` count without being named here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Uuid>,
    /// Tries before a crashing run is given up. What is no fault of the run's, such as a lost worker, spends none.
    #[serde(default = "default_max_attempts")]
    pub max_attempts: u32,
    /// Labels to find the run by.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Free text.
    #[serde(default)]
    pub note: String,
    /// θ0 and θ1.
    #[serde(default, skip_serializing_if = "Weights::is_none")]
    pub weights: Weights,
    /// What is made trainable (finetune). A pretraining trains everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// The images and their captions (finetune, pretrain).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captions: Option<Captions>,
    /// The weighted sum of losses (finetune, pretrain).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
    /// What holds the encoder near θ0 (finetune).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// The training loop (finetune, pretrain).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
    /// The program (command).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// The α sweep.
    #[serde(default, skip_serializing_if = "Evaluation::is_none")]
    pub evaluation: Evaluation,
    /// What is asked of weights and features after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<Analysis>,
}

/// What a run does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Trains a fresh encoder as a masked autoencoder, keeps encoder and decoder, then evaluates it.
    Pretrain,
    /// Fine-tunes θ0, keeps the checkpoint, then sweeps α.
    Finetune,
    /// Sweeps α between two sets of weights that exist already.
    Evaluate,
    /// Runs a program of one's own.
    Command,
}

/// The two ends of the line. `theta1` is given for `evaluate` only; the other kinds make their own.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// The pretrained encoder.
    pub theta0: WeightSource,
    /// The fine-tuned encoder: a Causeway checkpoint, or a full set of weights of the same shape as θ0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub theta1: Option<WeightSource>,
}

impl Default for Weights {
    /// No weights, for runs that have none.
    fn default() -> Weights {
        Weights { theta0: WeightSource::Asset(String::new()), theta1: None }
    }
}

impl Weights {
    /// Whether there are none.
    pub fn is_none(&self) -> bool {
        *self == Weights::default()
    }
}

/// Where weights come from. Specs name assets and blobs, never paths.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum WeightSource {
    /// A weights asset that workers hold.
    Asset(String),
    /// A safetensors file in the server's blob store, by sha256 (64 hex digits). A checkpoint's digest is its blob.
    Blob(String),
    /// The checkpoint that another run makes: it is waited for.
    Run(Uuid),
    /// A file on the submitter's machine. `causeway submit` uploads it and sends `blob` instead; the server refuses it.
    File(String),
    /// Random values under the run's seed: what a pretraining starts from.
    Fresh(Architecture),
    /// The mean of checkpoints of one backbone and method (for `theta1` of `evaluate`).
    Soup(Soup),
}

/// A model soup (arXiv 2203.05482): the mean of the weights of several checkpoints.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Soup {
    /// Digests of the checkpoints, two at least.
    pub checkpoints: Vec<String>,
    /// Name of a dataset asset. Given, the soup is greedy: checkpoints are tried from the best to the worst on it, and
    /// one stays where the soup with it is no worse. Otherwise all are averaged. It must not be one that the result is
    /// judged by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub greedy_on: Option<String>,
}

/// A vision transformer to be made. Heads are as wide as dim / heads, the MLP is four times as wide as a token.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Width of a token.
    pub dim: u32,
    /// Number of blocks.
    pub depth: u32,
    /// Attention heads of a block.
    pub heads: u32,
    /// Side of a patch, pixels.
    pub patch: u32,
    /// Side of the images its position table is made for, pixels.
    pub image_size: u32,
}

/// The image-caption pairs and what reads the captions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Captions {
    /// Name of the captions asset.
    pub asset: String,
    /// Name of the text encoder asset that the contrastive loss needs. Each caption is embedded once, unless it is trained.
    #[serde(default)]
    pub text_encoder: Option<String>,
    /// Train the text encoder along with the image encoder, at the encoder's rate, as FLYP does (arXiv 2212.00638). No
    /// feature rests on it: it is no part of the checkpoint.
    #[serde(default)]
    pub train_text_encoder: bool,
    /// Train on so many of the images only, chosen by `subset_seed`; all by default.
    #[serde(default)]
    pub limit: Option<u64>,
    /// Seed of that choice: apart from the run's seed, so that seeds compare on the same images.
    #[serde(default)]
    pub subset_seed: u64,
    /// Train although some of the images are also in an evaluation dataset.
    #[serde(default)]
    pub allow_leaks: bool,
}

/// The loss: the weighted sum of those terms that are given, one at least.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// Symmetric contrastive loss between image features and caption embeddings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contrastive: Option<Contrastive>,
    /// Masked patches reconstructed from the visible ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconstruction: Option<Reconstruction>,
    /// The caption's likelihood under a frozen language model that is shown the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caption: Option<Captioning>,
}

/// What an encoder is given of an image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// The whole image.
    #[default]
    Full,
    /// The patches that the reconstruction leaves visible: one pass serves both losses.
    Visible,
}

/// The masked autoencoder's loss (arXiv 2111.06377): mean squared error over the removed patches of a batch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reconstruction {
    /// Weight of the term.
    #[serde(default = "one")]
    pub weight: f64,
    /// Share of the patches that is removed.
    #[serde(default = "default_mask_ratio")]
    pub mask_ratio: f64,
    /// Each patch's values less their mean, over their deviation; otherwise the pixels as the encoder sees them.
    #[serde(default = "yes")]
    pub norm_pix: bool,
    /// The decoder where the weights of θ0 bring none.
    #[serde(default)]
    pub decoder: Decoder,
}

/// A fresh decoder; MAE's own by default.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Decoder {
    /// Width of a token.
    #[serde(default = "default_decoder_dim")]
    pub dim: u32,
    /// Number of blocks.
    #[serde(default = "default_decoder_depth")]
    pub depth: u32,
    /// Attention heads of a block.
    #[serde(default = "default_decoder_heads")]
    pub heads: u32,
}

/// −log p(caption | image) a token, under a frozen language model that reads the encoder's tokens through a linear map
/// (LiMBeR, arXiv 2209.15162).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Captioning {
    /// Weight of the term.
    #[serde(default = "one")]
    pub weight: f64,
    /// Name of the language model asset.
    pub language_model: String,
    /// Which tokens the language model is shown.
    #[serde(default)]
    pub view: View,
    /// Share of the prefix's values that is dropped in training; LiMBeR and MAGMA drop a tenth.
    #[serde(default)]
    pub dropout: f64,
}

/// ½ [CE(s·V Tᵀ, I) + CE(s·T Vᵀ, I)] over a batch; V and T are projected and L2-normalised.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Contrastive {
    /// Weight of the term.
    #[serde(default = "one")]
    pub weight: f64,
    /// Put a linear projection on either side; without, features and caption embeddings are compared as they are and
    /// must be equally wide, as CLIP's are.
    #[serde(default = "yes")]
    pub projections: bool,
    /// Width of the joint space of the two linear projections.
    #[serde(default = "default_projection_dim")]
    pub projection_dim: u32,
    /// Initial temperature τ; s = 1/τ is learned and kept at or below 100.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
    /// What of the image is compared with the caption.
    #[serde(default)]
    pub view: View,
}

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

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { dim: default_decoder_dim(), depth: default_decoder_depth(), heads: default_decoder_heads() }
    }
}

impl Kind {
    /// The word used in SQL, JSON and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Pretrain => "pretrain",
            Kind::Finetune => "finetune",
            Kind::Evaluate => "evaluate",
            Kind::Command => "command",
        }
    }
}

impl Spec {
    /// Names of the assets a worker must hold to work on this run.
    pub fn assets(&self) -> Vec<&str> {
        let sources = [Some(&self.weights.theta0), self.weights.theta1.as_ref()];
        let weights = sources.into_iter().flatten().filter_map(|source| match source {
            WeightSource::Asset(name) => Some(name.as_str()).filter(|name| !name.is_empty()),
            WeightSource::Soup(soup) => soup.greedy_on.as_deref(),
            WeightSource::Blob(_) | WeightSource::Run(_) | WeightSource::File(_) | WeightSource::Fresh(_) => {
                None
            }
        });
        let language_model = self.objective.iter().filter_map(|objective| objective.caption.as_ref());
        let captions = self.captions.iter().flat_map(|captions| {
            std::iter::once(captions.asset.as_str()).chain(captions.text_encoder.as_deref())
        });
        let captions = captions.chain(language_model.map(|caption| caption.language_model.as_str()));
        let datasets = self.evaluation.datasets.iter().map(|dataset| dataset.asset.as_str());
        let method = self.method.iter().flat_map(Method::assets);
        let retention = self.retention.iter().flat_map(Retention::assets);
        let zero_shot = self.evaluation.zero_shot.iter().map(|zero_shot| zero_shot.text_encoder.as_str());
        let command = self.command.iter().flat_map(|command| command.assets.iter().map(String::as_str));
        let evaluation = datasets.chain(zero_shot);
        weights.chain(captions).chain(method).chain(retention).chain(evaluation).chain(command).collect()
    }

    /// The word that names what is trained: the method's, `mae` for a pretraining, `evaluate` where nothing is.
    pub fn trained(&self) -> &'static str {
        match (self.kind, &self.method) {
            (Kind::Pretrain, _) => "mae",
            (Kind::Finetune, Some(method)) => method.as_str(),
            (Kind::Command, _) => "command",
            _ => "evaluate",
        }
    }

    /// Labels that its workers must have.
    pub fn labels(&self) -> Vec<String> {
        let commands = (self.kind == Kind::Command).then(|| COMMANDS_LABEL.to_owned());
        self.resources.labels.iter().cloned().chain(commands).collect()
    }

    /// Names of the blobs in the server's store that this run reads.
    pub fn blobs(&self) -> Vec<&str> {
        let sources = [Some(&self.weights.theta0), self.weights.theta1.as_ref()];
        let blobs = sources.into_iter().flatten().flat_map(|source| match source {
            WeightSource::Blob(sha256) => std::slice::from_ref(sha256),
            WeightSource::Soup(soup) => &soup.checkpoints,
            WeightSource::Asset(_)
            | WeightSource::Run(_)
            | WeightSource::File(_)
            | WeightSource::Fresh(_) => &[],
        });
        blobs.map(String::as_str).collect()
    }

    /// The runs that must have succeeded before this one begins, each once.
    pub fn waits_for(&self) -> Vec<Uuid> {
        let sources = [Some(&self.weights.theta0), self.weights.theta1.as_ref()];
        let weights = sources.into_iter().flatten().filter_map(|source| match source {
            WeightSource::Run(run) => Some(*run),
            _ => None,
        });
        let mut runs: Vec<Uuid> = self.after.iter().copied().chain(weights).collect();
        runs.sort_unstable();
        runs.dedup();
        runs
    }
}

/// The project there always is.
pub const DEFAULT_PROJECT: &str = "default";

fn default_project() -> String {
    DEFAULT_PROJECT.to_owned()
}

fn is_default_project(name: &str) -> bool {
    name == DEFAULT_PROJECT
}

fn default_max_attempts() -> u32 {
    3
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

fn default_accumulate() -> u32 {
    1
}

fn default_mask_ratio() -> f64 {
    0.75
}

fn default_decoder_dim() -> u32 {
    512
}

fn default_decoder_depth() -> u32 {
    8
}

fn default_decoder_heads() -> u32 {
    16
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
