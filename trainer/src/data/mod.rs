//! What training and evaluation read: assets named by manifests, images, captions and labelled datasets.

pub mod asset;
pub mod augment;
pub mod captions;
pub mod check;
mod cifar10;
mod class_folder;
pub mod dataset;
pub mod fingerprint;
mod idx;
pub mod image;
pub mod jsonl;
pub mod leaks;
pub mod loader;
pub mod pixels;
pub mod resize;
mod tar;
pub mod tokenizer;
