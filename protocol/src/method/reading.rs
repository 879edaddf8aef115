//! Methods that read captions, and how they live without.

use super::{Buffer, Method, default_rank};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// (1 + Δγ) ⊙ LN(x) + β after both LayerNorms of a block (arXiv 1709.07871), Δγ = β = 0 at the start.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Film {
    /// Generate Δγ and β from the caption; without it they are plain vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<FilmGenerator>,
    /// The blocks whose LayerNorms they follow, counted from 0; all by default.
    #[serde(default)]
    pub blocks: Option<Vec<u32>>,
}

/// Δγ and β of all sites as V·GELU(U·c + u) + v of the caption's embedding c, V = v = 0 at the start.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FilmGenerator {
    /// Width of the hidden layer, which all sites share.
    #[serde(default = "default_hidden")]
    pub hidden: u32,
    /// What stands in for the caption where there is none.
    #[serde(default)]
    pub null_text: NullText,
    /// Share of captions that the reconstruction sees as the null text.
    #[serde(default = "default_caption_dropout")]
    pub caption_dropout: f64,
    /// Show the encoder the caption that its output is then compared with. Such a loss can be solved without looking
    /// at the image.
    #[serde(default)]
    pub leak: bool,
}

/// What a method that reads captions is given where there is none: at every evaluation, and wherever the output is
/// compared with the caption.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NullText {
    /// A learned vector.
    #[default]
    Learned,
    /// Nothing: the image alone.
    Drop,
}

/// x + tanh(g)·Attention in a bottleneck of width `rank`, after a block, between image tokens V and caption tokens T
/// (names from arXiv 2102.00529); g = 0 at the start.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Fusion {
    /// Who attends to whom.
    #[serde(default)]
    pub attention: FusionAttention,
    /// Width of queries, keys and values.
    #[serde(default = "default_rank")]
    pub rank: u32,
    /// What stands in for the caption where there is none.
    #[serde(default)]
    pub null_text: NullText,
    /// Share of captions that the reconstruction sees as the null text.
    #[serde(default = "default_caption_dropout")]
    pub caption_dropout: f64,
    /// Show the encoder the caption that its output is then compared with.
    #[serde(default)]
    pub leak: bool,
    /// The blocks that get one, counted from 0; all by default.
    #[serde(default)]
    pub blocks: Option<Vec<u32>>,
}

/// Who attends to whom.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FusionAttention {
    /// Both streams attend to both, under one softmax.
    #[default]
    Merged,
    /// Each stream attends to the other.
    CoAttention,
    /// The image attends to the caption, which stays as it is.
    Asymmetric,
    /// As `merged`, inside one bottleneck that both streams share: Up·Attention(Down LN V, Down LN T).
    Joint,
}

/// Token replay has no public definition; these are three readings of the words.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenReplay {
    /// Which reading.
    #[serde(default)]
    pub reading: Reading,
    /// Width of the bottleneck.
    #[serde(default = "default_rank")]
    pub rank: u32,
    /// Reading A: tokens of the memory that stands in for the caption where there is none.
    #[serde(default = "default_memory")]
    pub memory: u32,
    /// Reading A: share of captions that the reconstruction sees as the memory.
    #[serde(default = "default_caption_dropout")]
    pub caption_dropout: f64,
    /// Reading A: show the encoder the caption that its output is then compared with.
    #[serde(default)]
    pub leak: bool,
    /// Reading C, which needs it: the images whose tokens are replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffer: Option<Buffer>,
    /// The blocks that get an adapter, counted from 0; all by default.
    #[serde(default)]
    pub blocks: Option<Vec<u32>>,
}

/// Which tokens are replayed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reading {
    /// The caption's: computed once, the same ones attended to by the image tokens after every block.
    #[default]
    A,
    /// The image's own as they entered the first block: x + Up(GELU(Down [x; x₀])) after every block.
    B,
    /// θ0's of a few images kept from elsewhere: adapters are trained to leave those as they were.
    C,
}

impl Method {
    /// In which form the method reads captions, if it does, and how it lives without.
    pub fn reads(&self) -> Option<Reads> {
        let reads = |form, caption_dropout, leak, without| Reads { form, caption_dropout, leak, without };
        let of_null = |null_text| match null_text {
            NullText::Learned => "a learned null text",
            NullText::Drop => "no text at all",
        };
        match self {
            Method::Film(Film { generator: Some(own), .. }) => {
                Some(reads(CaptionForm::Embedding, own.caption_dropout, own.leak, of_null(own.null_text)))
            }
            Method::Fusion(own) => {
                Some(reads(CaptionForm::Tokens, own.caption_dropout, own.leak, of_null(own.null_text)))
            }
            Method::TokenReplay(own) if own.reading == Reading::A => {
                let memory = "a replay memory of the training captions";
                Some(reads(CaptionForm::Tokens, own.caption_dropout, own.leak, memory))
            }
            _ => None,
        }
    }
}

/// How a method reads captions.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Reads {
    /// In which form.
    pub form: CaptionForm,
    /// Share of captions that the reconstruction sees as missing.
    pub caption_dropout: f64,
    /// Whether the encoder sees the caption that its output is compared with.
    pub leak: bool,
    /// What stands in for a missing caption, in words.
    pub without: &'static str,
}

/// What of a caption a method reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptionForm {
    /// One vector.
    Embedding,
    /// The text encoder's state of every token.
    Tokens,
}

fn default_hidden() -> u32 {
    64
}

fn default_caption_dropout() -> f64 {
    0.3
}

fn default_memory() -> u32 {
    16
}
