//! ImageNet-Captions (Fang et al. 2022, `imagenet_captions.json`): what the photographers wrote on Flickr about images
//! that became ImageNet. The texts are poor, and that is what makes them interesting.

use super::clean::{clean, without_tags};
use super::manifest::Field;
use super::{Candidate, Picture, Text};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

#[derive(Deserialize)]
struct Entry {
    filename: String,
    wnid: Option<String>,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    description: Option<String>,
}

/// The images of the list. An image is `<wnid>/<filename>` below the folder, as ImageNet is unpacked, or `<filename>`.
pub fn read(path: &Path, images: &Path, fields: &[Field]) -> Result<Vec<Candidate>> {
    let context = || format!("reading the captions {}", path.display());
    let file = File::open(path).with_context(context)?;
    let entries: Vec<Entry> = serde_json::from_reader(BufReader::new(file)).with_context(context)?;
    ensure!(!entries.is_empty(), "{} is empty", path.display());
    let fields = if fields.is_empty() { &[Field::Title] } else { fields };
    let candidate = |entry: Entry| {
        let named = entry.filename.split_once('_').map(|(wnid, _)| wnid);
        let wnid = entry.wnid.as_deref().or(named).unwrap_or_default();
        Candidate {
            picture: Picture::Either(images.join(wnid).join(&entry.filename), images.join(&entry.filename)),
            text: Text::Ready(vec![caption(&entry, fields)]),
            key: entry.filename,
        }
    };
    Ok(entries.into_iter().map(candidate).collect())
}

/// The chosen texts in their order, a space between.
fn caption(entry: &Entry, fields: &[Field]) -> String {
    let text = |field: &Field| match field {
        Field::Title => entry.title.clone().unwrap_or_default(),
        Field::Tags => entry.tags.join(" "),
        Field::Description => without_tags(entry.description.as_deref().unwrap_or_default()),
    };
    let texts: Vec<String> = fields.iter().map(|field| clean(&text(field))).collect();
    texts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ")
}
