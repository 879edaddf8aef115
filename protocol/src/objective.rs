//! The loss of a training: which terms it has, and what each of them reads.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { dim: default_decoder_dim(), depth: default_decoder_depth(), heads: default_decoder_heads() }
    }
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
