//! Retention: terms of the loss that hold a fine-tuned encoder near what it could do before (methods.md §15).

use crate::Buffer;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is added to the loss against forgetting; any of them together.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// Distance of the weights to θ0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2_sp: Option<L2Sp>,
    /// Distance of the features to θ0's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_distillation: Option<FeatureDistillation>,
    /// Distance of the weights to θ0, each by its importance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ewc: Option<Ewc>,
    /// Divergence of the soft assignments to prototypes from θ0's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lwf: Option<Lwf>,
    /// Reconstruction of images from elsewhere, beside the captioned ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<Buffer>,
}

/// weight · Σ (θ − θ0)² over all values that the encoder trains, a sum and no mean (L²-SP, arXiv 1802.01483).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct L2Sp {
    /// Weight of the term.
    #[serde(default = "default_l2_sp")]
    pub weight: f64,
}

/// weight · mean over images of ‖f_θ(x) − f_θ0(x)‖², on the images of the batch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FeatureDistillation {
    /// Weight of the term.
    #[serde(default = "one")]
    pub weight: f64,
    /// Compare every token, and take the mean over them; otherwise the feature alone.
    #[serde(default)]
    pub tokens: bool,
}

/// weight / 2 · Σ Fᵢ (θᵢ − θ0ᵢ)², F the diagonal of the Fisher information at θ0 of p(prototype | image) (EWC, arXiv
/// 1612.00796).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ewc {
    /// Weight of the term.
    #[serde(default = "default_ewc")]
    pub weight: f64,
    /// Images over which F is averaged, one backward pass each.
    #[serde(default = "default_fisher_images")]
    pub images: u32,
    /// Prototypes: θ0's features of so many training images.
    #[serde(default = "default_prototypes")]
    pub prototypes: u32,
}

/// weight · T² · KL(p_θ0 ‖ p_θ), p the softmax at temperature T over similarities to prototypes: learning without
/// forgetting (arXiv 1606.09282) for an encoder without a classifier.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Lwf {
    /// Weight of the term.
    #[serde(default = "one")]
    pub weight: f64,
    /// T.
    #[serde(default = "default_lwf_temperature")]
    pub temperature: f64,
    /// Prototypes: θ0's features of so many training images.
    #[serde(default = "default_prototypes")]
    pub prototypes: u32,
}

impl Retention {
    /// Names of the assets that it needs.
    pub fn assets(&self) -> Vec<&str> {
        self.rehearsal.iter().map(|buffer| buffer.dataset.as_str()).collect()
    }
}

fn one() -> f64 {
    1.0
}

fn default_l2_sp() -> f64 {
    0.01
}

fn default_ewc() -> f64 {
    100.0
}

fn default_fisher_images() -> u32 {
    64
}

fn default_prototypes() -> u32 {
    64
}

fn default_lwf_temperature() -> f64 {
    2.0
}
