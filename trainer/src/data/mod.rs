//! What training and evaluation read: assets named by manifests, images, captions and labelled datasets.

pub mod asset;
pub mod captions;
mod cifar10;
mod class_folder;
pub mod dataset;
mod html;
mod idx;
pub mod image;
pub mod jsonl;
pub mod pixels;
pub mod resize;
pub mod tokenizer;
