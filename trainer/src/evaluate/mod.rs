//! What a set of weights is worth: accuracy along the line between two encoders, by several readouts.

#[cfg(test)]
mod golden;
pub mod knn;
pub mod probe;
pub mod readout;
mod rows;
pub mod standing;
pub mod sweep;
mod zero_shot;
