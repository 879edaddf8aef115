//! Image-caption pairs, whatever format they come in. Every format lists candidates; the rest is the same for all:
//! captions are cleaned, a seeded subset is chosen, images that are there twice are kept once. Images that share a
//! caption share its row, so that the contrastive loss can leave them out of each other's negatives and each text is
//! embedded once.

mod account;
mod cc3m;
mod choose;
mod clean;
mod coco;
mod imagenet_captions;
mod jsonl;
mod manifest;
mod webdataset;

pub use account::{Account, Duplicate, LeftOut};
pub use clean::{clean, unescape};
pub use manifest::{CaptionsManifest, Choice, Field, Missing, Naming};

use super::asset::{Asset, Format};
use super::class_folder::ENDINGS;
use super::dataset::{Source, read_range};
use super::fingerprint::{Fingerprint, scan};
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::hex;
use choose::{Chooser, Chosen};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The pairs of a captions asset.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Captions {
    /// The images in the order of the lists, or, with a `limit`, in the order in which the seed chose them: a smaller
    /// subset is the beginning of a larger one.
    pub images: Vec<Source>,
    /// For each image the place of its caption among the distinct ones.
    pub rows: Vec<usize>,
    /// The distinct captions in the order of their first appearance.
    pub distinct: Vec<String>,
    /// For each image what it is recognised by; empty where the pairs were only listed.
    pub fingerprints: Vec<Fingerprint>,
    /// What was left out, and what was chosen.
    pub account: Account,
}

/// An image that a list names, with its captions, before anything is chosen.
struct Candidate {
    /// What names the image in every copy of its collection: the choice of a subset depends on seed and key alone.
    key: String,
    picture: Picture,
    text: Text,
}

/// Where a candidate's image may be.
enum Picture {
    Ready(Source),
    /// This path with one of the usual endings.
    Stem(PathBuf),
    /// The first of these that is there.
    Either(PathBuf, PathBuf),
}

/// A candidate's captions, not cleaned.
enum Text {
    Ready(Vec<String>),
    /// In a shard: the text itself, or the `caption` of a JSON object.
    Member {
        file: Arc<Path>,
        begin: u64,
        length: u64,
        json: bool,
    },
}

impl Captions {
    /// Lists the pairs. No image is opened yet, so one that is there twice or damaged is not noticed.
    pub fn list(asset: &Asset) -> Result<Captions> {
        let context = || format!("listing the captions `{}`", asset.manifest.name);
        let (candidates, options, incomplete) = candidates(asset).with_context(context)?;
        let mut chooser = Chooser::new(&candidates, &options, asset.manifest.format, incomplete);
        let chosen = chooser.take(options.limit.unwrap_or(usize::MAX)).with_context(context)?;
        Captions::of(chosen, Vec::new(), chooser.account, &options).with_context(context)
    }

    /// The pairs of an asset whose files were checked against the manifest. Every image is decoded once, in `threads`
    /// threads, so that a damaged one is found before the first step, one that is there twice is kept once, and the
    /// captions have a digest. `done` is told how many images of how many are done.
    pub fn read(asset: &Asset, threads: usize, done: &(dyn Fn(usize, usize) + Sync)) -> Result<Captions> {
        asset.verify()?;
        let context = || format!("reading the captions `{}`", asset.manifest.name);
        let (candidates, options, incomplete) = candidates(asset).with_context(context)?;
        let mut chooser = Chooser::new(&candidates, &options, asset.manifest.format, incomplete);
        let limit = options.limit.unwrap_or(usize::MAX);
        let total = limit.min(candidates.len());
        let (mut kept, mut fingerprints) = (Vec::new(), Vec::new());
        let mut seen: HashMap<[u8; 32], usize> = HashMap::new();
        // Once, and again for as many as turned out to be there twice or unreadable.
        loop {
            let fresh = chooser.take(limit - kept.len()).with_context(context)?;
            if fresh.is_empty() {
                break;
            }
            let sources: Vec<&Source> = fresh.iter().map(|chosen| &chosen.source).collect();
            let before = kept.len();
            let prints = scan(&sources, threads, &|now| done(before + now, total.max(before + now)));
            for (chosen, print) in fresh.into_iter().zip(prints) {
                let print = match print {
                    Ok(print) => print,
                    Err(error) if chooser.missing == Missing::Skip => {
                        chooser.account.unreadable.add(format!("{error:#}"));
                        continue;
                    }
                    Err(error) => return Err(error).with_context(context),
                };
                match seen.get(&print.pixels) {
                    Some(first) => {
                        let of: &Chosen = &kept[*first];
                        let duplicate = Duplicate { image: chosen.source.name(), of: of.source.name() };
                        chooser.account.duplicates.push(duplicate);
                    }
                    None => {
                        seen.insert(print.pixels, kept.len());
                        kept.push(chosen);
                        fingerprints.push(print);
                    }
                }
            }
        }
        Captions::of(kept, fingerprints, chooser.account, &options).with_context(context)
    }

    fn of(
        chosen: Vec<Chosen>,
        fingerprints: Vec<Fingerprint>,
        mut account: Account,
        options: &CaptionsManifest,
    ) -> Result<Captions> {
        if let Some(limit) = options.limit {
            ensure!(
                chosen.len() == limit,
                "[captions] limit = {limit}, but only {} images can be used: {account}; lower it",
                chosen.len()
            );
        }
        let mut captions = Captions { fingerprints, ..Captions::default() };
        let mut places = HashMap::new();
        let mut sha = Sha256::new();
        for Chosen { key, source, caption } in chosen {
            sha.update(format!("{key}\t{caption}\n"));
            let row = *places.entry(caption.clone()).or_insert(captions.distinct.len());
            if row == captions.distinct.len() {
                captions.distinct.push(caption);
            }
            captions.images.push(source);
            captions.rows.push(row);
        }
        account.chosen = hex(&sha.finalize());
        captions.account = account;
        ensure!(
            captions.distinct.len() > 1,
            "there are {} distinct captions, a contrastive loss needs two at least: {}",
            captions.distinct.len(),
            captions.account
        );
        Ok(captions)
    }

    /// The caption of an image.
    pub fn caption(&self, at: usize) -> &str {
        &self.distinct[self.rows[at]]
    }

    /// sha256 over one line for each pair in order, `pixel-sha256 caption`: what was trained on, whatever the files are
    /// called and however they are packed. Over pixels and not over files, because every image is decoded before
    /// training anyway, to find damaged ones and leaks; none where the pairs were only listed.
    pub fn digest(&self) -> Option<String> {
        if self.fingerprints.len() != self.images.len() {
            return None;
        }
        let mut sha = Sha256::new();
        for (at, print) in self.fingerprints.iter().enumerate() {
            sha.update(format!("{} {}\n", print.pixel_digest(), self.caption(at)));
        }
        Some(hex(&sha.finalize()))
    }
}

/// How many images an asset promises, without looking for each of millions of files: the `limit`, where there is one.
pub fn count(asset: &Asset) -> Result<usize> {
    match asset.manifest.captions.as_ref().and_then(|options| options.limit) {
        Some(limit) => {
            for path in lists(asset, &asset.manifest.captions.clone().unwrap_or_default())? {
                path.metadata().with_context(|| format!("{} cannot be read", path.display()))?;
            }
            Ok(limit)
        }
        None => Ok(Captions::list(asset)?.images.len()),
    }
}

/// Every image that the lists name, the options, and how many entries cannot be used whatever is chosen.
fn candidates(asset: &Asset) -> Result<(Vec<Candidate>, CaptionsManifest, usize)> {
    let options = asset.manifest.captions.clone().unwrap_or_default();
    let lists = lists(asset, &options)?;
    let images = asset.path(options.images.as_deref().unwrap_or("images"));
    let (mut found, mut incomplete) = (Vec::new(), 0);
    if asset.manifest.format == Format::Webdataset {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (samples, incomplete) = webdataset::read(&lists, threads)?;
        return Ok((samples, options, incomplete));
    }
    for list in lists {
        found.extend(match asset.manifest.format {
            Format::Jsonl => jsonl::read(&list, &options.splits)?,
            Format::CocoCaptions => {
                coco::read(&list, &asset.folder, options.images.as_deref(), &options.splits)?
            }
            Format::ImagenetCaptions => imagenet_captions::read(&list, &images, &options.fields)?,
            Format::Cc3mTsv => {
                let (rows, ambiguous) = cc3m::read(&list, &images, options.naming.unwrap_or_default())?;
                incomplete += ambiguous;
                rows
            }
            other => bail!("{other:?} is no format of captions"),
        });
    }
    Ok((found, options, incomplete))
}

/// The files of the lists: those that `paths` names, or the one that is listed, or the one that the format expects.
fn lists(asset: &Asset, options: &CaptionsManifest) -> Result<Vec<PathBuf>> {
    let (ending, expected) = match asset.manifest.format {
        Format::CocoCaptions => (".json", "annotations/captions_train2017.json"),
        Format::ImagenetCaptions => (".json", "imagenet_captions.json"),
        Format::Cc3mTsv => (".tsv", "Train_GCC-training.tsv"),
        Format::Webdataset => {
            let listed = asset.manifest.files.iter().filter(|file| file.path.ends_with(".tar"));
            let listed: Vec<PathBuf> = listed.map(|file| asset.path(&file.path)).collect();
            ensure!(
                !listed.is_empty() || !options.paths.is_empty(),
                "[captions] needs `paths` with the shards, such as [\"shard-{{0000..0575}}.tar\"]"
            );
            if options.paths.is_empty() {
                return Ok(listed);
            }
            (".tar", "")
        }
        _ => (".jsonl", "images.jsonl"),
    };
    if options.paths.is_empty() {
        return Ok(vec![asset.file_ending(ending, expected)]);
    }
    let mut paths = Vec::new();
    for path in &options.paths {
        paths.extend(webdataset::expand(path)?.iter().map(|path| asset.path(path)));
    }
    Ok(paths)
}

impl Picture {
    /// A file whose digest nobody wrote down.
    fn file(path: PathBuf) -> Picture {
        Picture::Ready(Source::File { path, sha256: None })
    }

    /// The image, if its file is there.
    fn find(&self) -> Option<Source> {
        let there = |path: PathBuf| path.is_file().then_some(Source::File { path, sha256: None });
        match self {
            Picture::Ready(Source::File { path, .. }) if !path.is_file() => None,
            Picture::Ready(source) => Some(source.clone()),
            Picture::Stem(stem) => {
                ENDINGS.iter().find_map(|ending| there(PathBuf::from(format!("{}.{ending}", stem.display()))))
            }
            Picture::Either(one, other) => there(one.clone()).or_else(|| there(other.clone())),
        }
    }

    /// What an error calls it.
    fn name(&self) -> String {
        match self {
            Picture::Ready(source) => source.name(),
            Picture::Stem(stem) => format!("{}.jpg", stem.display()),
            Picture::Either(one, _) => one.display().to_string(),
        }
    }
}

impl Text {
    /// The captions as they are written.
    fn read(&self) -> Result<Vec<String>> {
        match self {
            Text::Ready(captions) => Ok(captions.clone()),
            Text::Member { file, begin, length, json } => {
                let bytes = read_range(file, *begin, *length)?;
                if !json {
                    return Ok(vec![String::from_utf8_lossy(&bytes).into_owned()]);
                }
                let value: Value = serde_json::from_slice(&bytes)
                    .with_context(|| format!("the JSON at byte {begin} of {}", file.display()))?;
                Ok(value["caption"].as_str().map(str::to_owned).into_iter().collect())
            }
        }
    }
}

#[cfg(test)]
mod tests;
