//! What training and evaluation read: assets named by manifests, images, captions and labelled datasets.

mod archive;
pub mod asset;
pub mod augment;
pub mod captions;
pub mod check;
mod cifar;
mod cifar_python;
mod class_folder;
pub mod dataset;
pub mod fetch;
pub mod fingerprint;
mod idx;
pub mod image;
mod jpeg;
pub mod jsonl;
pub mod leaks;
mod lists;
pub mod loader;
mod mat;
mod parquet_table;
pub mod pixels;
pub mod resize;
pub mod source;
mod svhn;
mod tar;
pub mod tokenizer;
