//! What a set of weights is worth: accuracy along the line between two encoders, by several readouts.

pub mod features;
#[cfg(test)]
mod golden;
pub mod input;
pub mod knn;
mod pace;
pub mod parts;
pub mod probe;
pub mod readout;
pub mod refine;
mod rows;
pub mod standing;
pub mod store;
pub mod sweep;
#[cfg(test)]
mod testing;
pub mod work;
mod zero_shot;
