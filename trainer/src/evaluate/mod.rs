//! What a set of weights is worth: k-NN accuracy along the line between two encoders.

pub mod knn;
pub mod sweep;
