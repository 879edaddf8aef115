//! What an evaluation measures and under which protocol: everything that decides a number besides weights and
//! data. Two points compare only under one protocol, so its id spells all of it out.

use crate::Alpha;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which datasets a checkpoint is scored on, at which α, and how.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// The datasets, in the order in which figures show them inside a role.
    pub datasets: Vec<EvaluatedDataset>,
    /// The α of the sweep, ascending. α = 0 is the bare backbone and is computed once for all runs.
    #[serde(default = "default_alphas")]
    pub alphas: Vec<Alpha>,
    /// Numbers of neighbours; one top-k serves them all.
    #[serde(default = "default_k")]
    pub k: Vec<u32>,
    /// Temperature T of the vote exp(sim / T); DINO's is 0.07.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
    /// How an image becomes the encoder's input.
    #[serde(default)]
    pub preprocess: Preprocess,
    /// Side of the encoder's input, pixels; a multiple of the patch size.
    #[serde(default = "default_image_size")]
    pub image_size: u32,
    /// Which output of the encoder is compared.
    #[serde(default)]
    pub feature: Feature,
    /// How the position table is resized where the images have another grid than it has.
    #[serde(default)]
    pub positions: Positions,
    /// Arithmetic of the forward pass. Similarities are always f32, sums of votes f64.
    #[serde(default)]
    pub dtype: Dtype,
    /// Images per forward pass; part of the numerics stamp, not of the protocol.
    #[serde(default = "default_batch_size")]
    pub batch_size: u32,
}

/// A dataset and the part it plays in one evaluation.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluatedDataset {
    /// Name of the dataset asset.
    pub asset: String,
    /// What the dataset is to this backbone and these captions.
    pub role: Role,
}

/// What a dataset is to the backbone and the captions of a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Near the backbone's pretraining data: the talk's in-distribution.
    Id,
    /// The distribution of the captions the encoder was fine-tuned on: what WiSE-FT calls ID.
    Target,
    /// Neither.
    Ood,
}

/// How an image becomes a square of `image_size` pixels. All resizing is bicubic and bit-exact with Pillow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preprocess {
    /// The whole image straight to the square, aspect ratio given up.
    #[default]
    Direct,
    /// DINO's: short side to 256/224 of `image_size`, then the centre square.
    ResizeCrop,
}

/// Which output of the encoder is compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// The class token after the final LayerNorm.
    #[default]
    Cls,
}

/// How an encoder's position table is resized for images of another size. All are bicubic with corners not aligned, and
/// all leave the table as it is at its own size; elsewhere their features differ visibly.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// To the grid's size itself: Hugging Face's.
    #[default]
    HfSize,
    /// By the factor (size + 0.1) / table, which shifts where the kernel samples: DINO's and DINOv2's own.
    DinoScaleOffset,
    /// To the grid's size, smoothed where it shrinks: timm's.
    TimmAntialias,
}

/// Arithmetic of the forward pass.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// IEEE single precision.
    #[default]
    F32,
    /// Eight bits of mantissa, the range of f32.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// Everything that decides one number besides weights and data.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Protocol {
    /// The id: readable, and equal exactly when all other fields are.
    pub id: String,
    /// Number of neighbours.
    pub k: u32,
    /// Temperature of the vote.
    pub temperature: f64,
    /// How an image becomes the encoder's input.
    pub preprocess: Preprocess,
    /// Side of the encoder's input, pixels.
    pub image_size: u32,
    /// Which output is compared.
    pub feature: Feature,
    /// Arithmetic of the forward pass.
    pub dtype: Dtype,
    /// How the position table is resized to another grid.
    pub positions: Positions,
    /// How equal similarities and equal scores are ordered, in words.
    pub ties: String,
}

impl Evaluation {
    /// The protocols of this evaluation, one for each k in the order given.
    pub fn protocols(&self) -> Vec<Protocol> {
        self.k.iter().map(|k| self.protocol(*k)).collect()
    }

    fn protocol(&self, k: u32) -> Protocol {
        let preprocess = match self.preprocess {
            Preprocess::Direct => "direct",
            Preprocess::ResizeCrop => "crop",
        };
        let positions = match self.positions {
            Positions::HfSize => "",
            Positions::DinoScaleOffset => "-dinopos",
            Positions::TimmAntialias => "-timmpos",
        };
        Protocol {
            id: format!("knn{k}-t{}-{preprocess}{}-cls-f32{positions}", self.temperature, self.image_size),
            k,
            temperature: self.temperature,
            preprocess: self.preprocess,
            image_size: self.image_size,
            feature: self.feature,
            dtype: self.dtype,
            positions: self.positions,
            ties: "neighbours by similarity, then index; classes by score, then id".to_owned(),
        }
    }
}

impl Role {
    /// The word used in SQL, JSON and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Id => "id",
            Role::Target => "target",
            Role::Ood => "ood",
        }
    }
}

fn default_alphas() -> Vec<Alpha> {
    (0..=10).filter_map(|tenth| Alpha::from_ten_thousandths(tenth * 1000)).collect()
}

fn default_k() -> Vec<u32> {
    vec![1, 5, 10, 20]
}

fn default_temperature() -> f64 {
    0.07
}

fn default_image_size() -> u32 {
    224
}

fn default_batch_size() -> u32 {
    32
}
