//! What a set of weights is worth: accuracy along the line between two encoders.

pub mod features;
pub mod input;
pub mod knn;
mod pace;
pub mod parts;
pub mod refine;
pub mod store;
pub mod sweep;
#[cfg(test)]
mod testing;
pub mod work;
