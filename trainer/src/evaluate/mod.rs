//! What a set of weights is worth: accuracy along the line between two encoders, by several readouts.

pub mod knn;
pub mod standing;
pub mod sweep;
