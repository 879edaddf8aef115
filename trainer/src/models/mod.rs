//! Models, one a file, written as functions of their named tensors: training, interpolation and evaluation hand
//! them whatever weights they hold.

pub mod bert;
pub mod mae;
pub mod vit;

#[cfg(test)]
mod golden;
