//! Image-caption pairs. Images that share a caption share its row, so that the contrastive loss can leave them out of
//! each other's negatives and each text is embedded once.

use super::asset::Asset;
use super::dataset::Source;
use super::jsonl;
use anyhow::{Context, Result, ensure};
use std::collections::HashMap;

/// The pairs of a captions asset.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Captions {
    /// The images in the order of the list.
    pub images: Vec<Source>,
    /// For each image the place of its caption among the distinct ones.
    pub rows: Vec<usize>,
    /// The distinct captions in the order of their first appearance.
    pub distinct: Vec<String>,
}

impl Captions {
    /// Lists the pairs. No image is opened yet.
    pub fn list(asset: &Asset) -> Result<Captions> {
        let path = asset.file_ending(".jsonl", "images.jsonl");
        let mut captions = Captions { images: Vec::new(), rows: Vec::new(), distinct: Vec::new() };
        let mut places = HashMap::new();
        for (source, entry) in jsonl::read(&path)? {
            let text = entry.caption.map(|caption| caption.trim().to_owned()).unwrap_or_default();
            ensure!(
                !text.is_empty(),
                "{}: the image {} has no caption; give it one or take it out",
                path.display(),
                entry.image
            );
            let row = *places.entry(text.clone()).or_insert(captions.distinct.len());
            if row == captions.distinct.len() {
                captions.distinct.push(text);
            }
            captions.images.push(source);
            captions.rows.push(row);
        }
        ensure!(captions.distinct.len() > 1, "{} has only one distinct caption", path.display());
        Ok(captions)
    }

    /// The pairs of an asset whose files were checked against the manifest.
    pub fn read(asset: &Asset) -> Result<Captions> {
        asset.verify()?;
        Captions::list(asset).with_context(|| format!("reading the captions `{}`", asset.manifest.name))
    }
}
