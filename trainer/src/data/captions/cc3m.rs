//! Conceptual Captions (`Train_GCC-training.tsv`): a caption, a tab, a URL on each line, without a header; img2dataset
//! wants one, so it may be there. The images are files that someone fetched, and many URLs are dead: a row without a
//! file is normal.

use super::manifest::Naming;
use super::{Candidate, Picture, Text};
use anyhow::{Context, Result, ensure};
use std::collections::HashMap;
use std::path::Path;

/// Samples in a folder of img2dataset, unless it was told otherwise.
const SHARD: usize = 10_000;

/// The rows of a list and how many were left out because their image could be another's.
pub fn read(path: &Path, images: &Path, naming: Naming) -> Result<(Vec<Candidate>, usize)> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading the captions {}", path.display()))?;
    let mut lines = text.lines().enumerate().peekable();
    let header = lines.next_if(|(_, line)| !line.contains("://")).map(|(_, line)| line);
    let (caption_at, url_at) = columns(header, path)?;
    let mut rows = Vec::new();
    for (at, line) in lines {
        let fields: Vec<&str> = line.split('\t').collect();
        let (caption, url) = match (fields.get(caption_at), fields.get(url_at)) {
            (Some(caption), Some(url)) if url.contains("://") => (*caption, url.trim()),
            _ => anyhow::bail!(
                "{}, line {}: it is not a caption, a tab and a URL: `{line}`",
                path.display(),
                at + 1
            ),
        };
        rows.push((caption, url));
    }
    ensure!(!rows.is_empty(), "{} has no rows", path.display());
    let mut files: HashMap<&str, usize> = HashMap::new();
    if naming == Naming::Url {
        rows.iter().for_each(|(_, url)| *files.entry(file_name(url)).or_default() += 1);
    }
    let mut candidates = Vec::with_capacity(rows.len());
    let mut ambiguous = 0;
    for (row, (caption, url)) in rows.into_iter().enumerate() {
        let picture = match naming {
            Naming::Img2dataset => Picture::Stem(images.join(format!("{:05}/{row:09}", row / SHARD))),
            Naming::Row => Picture::Stem(images.join(row.to_string())),
            // Two URLs that end alike: the file is one of the two images, and nobody knows which.
            Naming::Url if files[file_name(url)] > 1 || file_name(url).is_empty() => {
                ambiguous += 1;
                continue;
            }
            Naming::Url => Picture::file(images.join(file_name(url))),
        };
        candidates.push(Candidate {
            key: url.to_owned(),
            picture,
            text: Text::Ready(vec![caption.to_owned()]),
        });
    }
    Ok((candidates, ambiguous))
}

/// Places of caption and URL: as the header names them, or the first and the second.
fn columns(header: Option<&str>, path: &Path) -> Result<(usize, usize)> {
    let Some(header) = header else { return Ok((0, 1)) };
    let place = |name: &str| {
        header.split('\t').position(|field| field.trim().eq_ignore_ascii_case(name)).with_context(|| {
            format!(
                "{}: the first line has no URL, and as a header it has no column `{name}`: `{header}`",
                path.display()
            )
        })
    };
    Ok((place("caption")?, place("url")?))
}

/// The last part of a URL's path.
fn file_name(url: &str) -> &str {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    path.rsplit('/').next().unwrap_or_default()
}
