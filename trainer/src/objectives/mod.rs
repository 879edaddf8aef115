//! Objectives: the losses that language supervises the encoder with, one a file.

pub mod caption;
pub mod contrastive;
