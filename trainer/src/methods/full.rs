//! Full fine-tuning: every tensor of the backbone is trained and nothing is added.

use super::Tuner;

/// Every tensor.
pub struct Full;

impl Tuner for Full {
    fn trains(&self, _name: &str) -> bool {
        true
    }
}
