//! A list of images, one JSON object a line: path relative to the list, sha256, caption, class.

use super::source::Source;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::path::Path;

/// One line of the list.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Path relative to the folder of the list.
    pub image: String,
    /// Digest of the image file.
    pub sha256: String,
    /// What a person wrote about it.
    #[serde(default)]
    pub caption: Option<String>,
    /// Name of its class.
    #[serde(default)]
    pub class: Option<String>,
}

/// The entries of a list, each with its image.
pub fn read(path: &Path) -> Result<Vec<(Source, Entry)>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading the list {}", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut entries = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let entry: Entry =
            serde_json::from_str(line).with_context(|| format!("{}, line {}", path.display(), at + 1))?;
        let source = Source::File { path: folder.join(&entry.image), sha256: Some(entry.sha256.clone()) };
        entries.push((source, entry));
    }
    ensure!(!entries.is_empty(), "the list {} is empty", path.display());
    Ok(entries)
}

/// The images of a list with the names of their classes.
pub fn read_labelled(path: &Path) -> Result<Vec<(Source, String)>> {
    let labelled = |(source, entry): (Source, Entry)| {
        let class = entry.class.with_context(|| {
            format!("{}: the image {} has no class; give it one", path.display(), entry.image)
        })?;
        Ok((source, class))
    };
    read(path)?.into_iter().map(labelled).collect()
}
