//! A list with one JSON object a line: `image`, the path relative to the list, and `caption` or `captions`; `sha256` of
//! the image file and `split` where known. Other fields, such as a licence, are passed over. Lines of the same image are
//! further captions of it.

use super::{Candidate, Picture, Text};
use crate::data::dataset::Source;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;

#[derive(Deserialize)]
struct Line {
    image: String,
    sha256: Option<String>,
    caption: Option<String>,
    #[serde(default)]
    captions: Vec<String>,
    split: Option<String>,
}

/// The images of the list.
pub fn read(path: &Path, splits: &[String]) -> Result<Vec<Candidate>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading the list {}", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut images: Vec<(Line, Vec<String>)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let mut line: Line =
            serde_json::from_str(line).with_context(|| format!("{}, line {}", path.display(), at + 1))?;
        if !splits.is_empty() && !line.split.as_ref().is_some_and(|split| splits.contains(split)) {
            continue;
        }
        let captions = line.caption.take().into_iter().chain(std::mem::take(&mut line.captions)).collect();
        match places.get(&line.image) {
            Some(place) => images[*place].1.extend::<Vec<String>>(captions),
            None => {
                places.insert(line.image.clone(), images.len());
                images.push((line, captions));
            }
        }
    }
    ensure!(
        !images.is_empty(),
        "the list {} is empty{}",
        path.display(),
        if splits.is_empty() { String::new() } else { format!(" in the splits {splits:?}") }
    );
    let candidate = |(line, captions): (Line, Vec<String>)| Candidate {
        picture: Picture::Ready(Source::File { path: folder.join(&line.image), sha256: line.sha256 }),
        text: Text::Ready(captions),
        key: line.image,
    };
    Ok(images.into_iter().map(candidate).collect())
}
