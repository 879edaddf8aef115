//! Full fine-tuning: every tensor of the backbone is trained and nothing is added.

use super::Tuner;
use crate::models::vit::VitConfig;

/// Every tensor.
pub struct Full;

impl Tuner for Full {
    fn trains(&self, _name: &str) -> bool {
        true
    }

    /// All: which of the weights moved is another question.
    fn untouched_blocks(&self, config: &VitConfig) -> Option<i64> {
        Some(config.depth)
    }
}
