//! Full fine-tuning: every tensor of the backbone is trained and nothing is added.

/// Whether training may change the tensor of that name: always.
pub fn trains(_name: &str) -> bool {
    true
}
