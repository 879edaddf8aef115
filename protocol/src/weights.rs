//! Where the two ends of the line come from.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

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
