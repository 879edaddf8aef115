//! Methods: what is made trainable in the encoder. docs/methods.md gives each its equation and its source.

mod reading;

pub use reading::{
    CaptionForm, Film, FilmGenerator, Fusion, FusionAttention, NullText, Reading, Reads, TokenReplay,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is made trainable.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Method {
    /// Every tensor of the backbone.
    Full {},
    /// k of the backbone's blocks.
    Selective(Selective),
    /// Copies of blocks that start as the identity.
    BlockExpansion(BlockExpansion),
    /// Bottleneck adapters.
    Adapter(Adapter),
    /// Low-rank updates of linear layers.
    Lora(Lora),
    /// A scale and a shift after the LayerNorms.
    Film(Film),
    /// Attention between image and caption tokens.
    Fusion(Fusion),
    /// Tokens that are fed in again at every block.
    TokenReplay(TokenReplay),
    /// A small network beside the backbone.
    Ladder(Ladder),
    /// A learned change of the input.
    Reprogram(Reprogram),
    /// Visual tokens rewritten in the words of a language model.
    CrossModal(CrossModal),
}

/// The blocks that are trained, and nothing else ("selective k"; surgical fine-tuning, arXiv 2210.11466).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Selective {
    /// How they are chosen.
    #[serde(default)]
    pub rule: Selection,
    /// How many.
    pub k: u32,
    /// Batches over which `relative_gradient` averages, before training.
    #[serde(default = "default_selection_batches")]
    pub batches: u32,
    /// The blocks that were chosen, counted from 0: set by the trainer in what it writes down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Vec<u32>>,
}

/// How k blocks are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// Those nearest the output.
    #[default]
    Last,
    /// Those nearest the input.
    First,
    /// Those with the largest ‖gradient‖ / ‖weights‖.
    RelativeGradient,
}

/// Copies of blocks, each behind its original, with the last linear layer of both branches 0; only the copies are
/// trained.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BlockExpansion {
    /// How many copies: one behind the last block of each of so many equal groups.
    pub copies: u32,
}

/// Up(act(Down x)), of width `rank`, with the backbone frozen.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// Where it sits and how it is added.
    #[serde(default)]
    pub form: AdapterForm,
    /// Width r of the bottleneck.
    #[serde(default = "default_rank")]
    pub rank: u32,
    /// Initial values of Down and Up.
    #[serde(default)]
    pub init: AdapterInit,
    /// Learn a scale for each channel, initially 1. By default only `adapter_plus` does.
    #[serde(default)]
    pub learned_scale: Option<bool>,
    /// What the output is multiplied by; by default 0.1 for `parallel`, else 1.
    #[serde(default)]
    pub scale: Option<f64>,
    /// The blocks that get one, counted from 0; all by default.
    #[serde(default)]
    pub blocks: Option<Vec<u32>>,
}

/// Where an adapter sits. x̂ is the state of a block between attention and MLP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdapterForm {
    /// After the whole block, x + A(x): Adapter+ (arXiv 2406.06820).
    #[default]
    AdapterPlus,
    /// Between attention and MLP, x̂ + A(x̂).
    Pre,
    /// On the MLP's output y before it is added, y + A(y).
    Intermediate,
    /// On the output of attention and of the MLP, each y + A(y): Houlsby (arXiv 1902.00751).
    Houlsby,
    /// After the whole block with a LayerNorm of its own, x + A(LN x): Pfeiffer (arXiv 2005.00247).
    Pfeiffer,
    /// Beside the MLP, with ReLU, x̂ + MLP(LN x̂) + A(x̂): AdaptFormer (arXiv 2205.13535).
    Parallel,
}

/// Initial values of an adapter's two matrices. Biases start at 0. θ0 of the sweep always has Up = 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdapterInit {
    /// Down truncated normal (σ 0.01, cut at 2σ), Up 0: starts as the exact identity.
    #[default]
    Zero,
    /// Both truncated normal (σ 0.01, cut at 2σ): starts near the identity.
    Houlsby,
    /// Down uniform within ±1/√dim, as torch's `Linear`, Up 0: starts as the exact identity.
    Lora,
}

/// W + (alpha / rank)·B·A for chosen linear layers W (arXiv 2106.09685). B starts at 0.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Rank r of the update.
    #[serde(default = "default_rank")]
    pub rank: u32,
    /// The update is multiplied by alpha / rank; by default alpha = rank.
    #[serde(default)]
    pub alpha: Option<f64>,
    /// The layers that get one.
    #[serde(default = "default_targets")]
    pub targets: Vec<LoraTarget>,
    /// The blocks whose layers they are, counted from 0; all by default.
    #[serde(default)]
    pub blocks: Option<Vec<u32>>,
}

/// A linear layer of a block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoraTarget {
    /// The attention's queries.
    Query,
    /// The attention's keys.
    Key,
    /// The attention's values.
    Value,
    /// The attention's output.
    Proj,
    /// The MLP's first layer.
    Fc1,
    /// The MLP's second layer.
    Fc2,
}

/// Images of a dataset that training keeps looking at.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Buffer {
    /// Name of the dataset asset; the images come from its bank, which evaluations are not scored on.
    pub dataset: String,
    /// How many images are kept, chosen by the run's seed.
    #[serde(default = "default_buffer_images")]
    pub images: u32,
    /// How many of them each step looks at.
    #[serde(default = "default_buffer_batch")]
    pub batch_size: u32,
    /// Weight of the term.
    #[serde(default = "one")]
    pub weight: f64,
}

/// A side network of width dim / reduction that reads the frozen backbone's states (arXiv 2206.06522); no gradient
/// goes through the backbone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ladder {
    /// How much narrower the side network is.
    #[serde(default = "default_reduction")]
    pub reduction: u32,
}

/// A program added to the input, the same for every image (arXiv 1806.11146).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reprogram {
    /// What it looks like.
    #[serde(default)]
    pub program: Program,
    /// `border`: side of the image inside the frame, pixels; by default about seven eighths of the input. It stands in
    /// the middle, so both must be even or both odd.
    #[serde(default)]
    pub inner: Option<u32>,
}

/// The shape of a program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// x + tanh(W) over the whole image, W = 0 at the start: the exact identity.
    #[default]
    Additive,
    /// The image shrunk into the middle, tanh(W) around it. Its own start is the shrunk image in an empty frame, not
    /// the backbone's view of the whole image.
    Border,
}

/// Each visual token plus O·z, z a sparse convex combination of a frozen language model's word embeddings (after
/// arXiv 2012.03460), and adapters behind it; O = 0 at the start.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CrossModal {
    /// Name of the language model asset whose embedding table is the dictionary.
    pub language_model: String,
    /// Words in the dictionary, chosen evenly from the vocabulary.
    #[serde(default = "default_words")]
    pub words: u32,
    /// Most words of a combination.
    #[serde(default = "default_sparsity")]
    pub sparsity: u32,
    /// Temperature of the choice.
    #[serde(default = "one")]
    pub temperature: f64,
    /// Width of queries and keys, and of the adapters.
    #[serde(default = "default_rank")]
    pub rank: u32,
    /// Steps at the beginning in which the adapters stand still.
    #[serde(default)]
    pub alone_steps: u64,
}

impl Method {
    /// The word that names the method in keys, colours and file names.
    pub fn as_str(&self) -> &'static str {
        match self {
            Method::Full {} => "full",
            Method::Selective(_) => "selective",
            Method::BlockExpansion(_) => "block_expansion",
            Method::Adapter(_) => "adapter",
            Method::Lora(_) => "lora",
            Method::Film(_) => "film",
            Method::Fusion(_) => "fusion",
            Method::TokenReplay(_) => "token_replay",
            Method::Ladder(_) => "ladder",
            Method::Reprogram(_) => "reprogram",
            Method::CrossModal(_) => "cross_modal",
        }
    }

    /// Fills in the defaults that depend on other fields, so that a stored spec says them.
    pub(crate) fn fill_in(&mut self, image_size: u32) {
        match self {
            Method::Adapter(own) => {
                (own.learned_scale, own.scale) = (Some(own.has_learned_scale()), Some(own.fixed_scale()));
            }
            Method::Lora(own) => own.alpha = Some(own.numerator()),
            Method::Reprogram(own) if own.program == Program::Border => {
                own.inner = Some(own.inner_side(image_size));
            }
            _ => {}
        }
    }

    /// Names of the assets that it needs.
    pub fn assets(&self) -> Vec<&str> {
        match self {
            Method::CrossModal(own) => vec![&own.language_model],
            Method::TokenReplay(own) => own.buffer.iter().map(|buffer| buffer.dataset.as_str()).collect(),
            _ => Vec::new(),
        }
    }
}

impl Adapter {
    /// Whether a scale is learned for each channel.
    pub fn has_learned_scale(&self) -> bool {
        self.learned_scale.unwrap_or(self.form == AdapterForm::AdapterPlus)
    }

    /// What the output is multiplied by.
    pub fn fixed_scale(&self) -> f64 {
        self.scale.unwrap_or(if self.form == AdapterForm::Parallel { 0.1 } else { 1.0 })
    }
}

impl Lora {
    /// What is divided by the rank to give the factor of the update.
    pub fn numerator(&self) -> f64 {
        self.alpha.unwrap_or(f64::from(self.rank))
    }
}

impl Reprogram {
    /// Side of the image inside the frame, in an input of this side.
    pub fn inner_side(&self, image_size: u32) -> u32 {
        let edge = ((image_size + 8) / 16).max(1);
        self.inner.unwrap_or(image_size.saturating_sub(2 * edge))
    }
}

fn default_rank() -> u32 {
    8
}

fn default_selection_batches() -> u32 {
    4
}

fn default_targets() -> Vec<LoraTarget> {
    vec![LoraTarget::Query, LoraTarget::Value]
}

fn default_buffer_images() -> u32 {
    64
}

fn default_buffer_batch() -> u32 {
    16
}

fn default_reduction() -> u32 {
    8
}

fn default_words() -> u32 {
    2048
}

fn default_sparsity() -> u32 {
    8
}

fn one() -> f64 {
    1.0
}
