//! `causeway-trainer data check`: what a folder or a file holds, before a run depends on it. Every image is decoded, so
//! what this command passes, a run can read; what it cannot read is named.

mod detect;
mod print;

use super::asset::{Asset, AssetKind, Format};
use super::captions::{Account, Captions, Missing};
use super::dataset::{Dataset, Source};
use super::fingerprint::{Fingerprint, scan};
use super::leaks::{Images, Likeness, pairs};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Names that are told of one kind; the numbers are always complete.
const NAMES: usize = 50;
/// Captions that are shown.
const EXAMPLES: usize = 5;

/// What to look at.
pub struct Check {
    /// An asset, or a folder or file in a layout that is known.
    pub path: PathBuf,
    /// Folder of the images, where it is not beside the list.
    pub images: Option<PathBuf>,
    /// What else to look at: images of `path` that are there too are leaks.
    pub against: Vec<PathBuf>,
    /// A machine reads the answer.
    pub json: bool,
    /// Threads that decode.
    pub threads: usize,
}

/// What a path holds.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Where.
    pub path: PathBuf,
    /// `dataset`, `captions`, `weights` or `text_encoder`.
    pub kind: &'static str,
    /// As in a manifest.
    pub format: Format,
    /// Images.
    pub images: usize,
    /// Classes in label order with their numbers of images.
    pub classes: Vec<(String, usize)>,
    /// The sides of the images.
    pub sizes: Option<Sizes>,
    /// What cannot be read, and why.
    pub unreadable: Names,
    /// Images that a list names and that are not there.
    pub missing: Names,
    /// Images with the pixels of an earlier one: both names.
    pub duplicates: Names,
    /// Images scored that are also neighbours: any k-NN gets them right.
    pub queries_in_bank: usize,
    /// The captions.
    pub captions: Option<CaptionsReport>,
    /// The digest that a run records; none where something cannot be read.
    pub digest: Option<String>,
    /// Images that are also in the other places.
    pub leaks: Vec<LeakReport>,
    /// Whether a run can read it all and no image is in the other places too.
    pub good: bool,
}

/// Least, median and greatest side, pixels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Sizes {
    /// Of the widths.
    pub width: [u32; 3],
    /// Of the heights.
    pub height: [u32; 3],
}

/// How many, and the first of them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Names {
    /// All.
    pub count: usize,
    /// The first.
    pub names: Vec<String>,
}

/// What the captions are like.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct CaptionsReport {
    /// Different texts.
    pub distinct: usize,
    /// Mean number of words.
    pub mean_words: f64,
    /// Images in the lists.
    pub listed: usize,
    /// Entries without image or caption, or whose image could be another's.
    pub incomplete: usize,
    /// Images whose captions are all empty.
    pub captionless: usize,
    /// Captions that were empty once cleaned.
    pub empty: usize,
    /// The first.
    pub examples: Vec<String>,
    /// sha256 of the choice that `limit` and `seed` made.
    pub chosen: String,
}

/// Images that are in another place too.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LeakReport {
    /// The other place.
    pub against: PathBuf,
    /// The same pixels.
    pub exact: Names,
    /// Perceptual hashes that hardly differ: a person must look.
    pub near: Names,
}

impl Names {
    fn of(all: impl IntoIterator<Item = String>) -> Names {
        let mut names = Names::default();
        for name in all {
            names.count += 1;
            if names.names.len() < NAMES {
                names.names.push(name);
            }
        }
        names
    }
}

/// What was read of a path.
struct Held {
    report: Report,
    sources: Vec<Source>,
    fingerprints: Vec<Fingerprint>,
}

impl Check {
    /// Looks, prints, and says whether all is good.
    pub fn run(&self) -> Result<bool> {
        let report = self.look()?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{}", print::report(&report));
        }
        Ok(report.good)
    }

    /// Looks, without printing anything but a progress bar.
    pub fn look(&self) -> Result<Report> {
        let mut held = self.hold(&self.path, self.images.as_deref())?;
        for path in &self.against {
            let other = self.hold(path, None)?;
            let [mine, theirs] = [&held, &other].map(|held| Images {
                sources: held.sources.iter().collect(),
                fingerprints: &held.fingerprints,
            });
            let found = pairs(&mine, &theirs, self.threads);
            let names = |exact: bool| {
                let kind = found.iter().filter(|(_, _, likeness)| (*likeness == Likeness::Exact) == exact);
                Names::of(kind.map(|(mine, theirs, likeness)| {
                    let (mine, theirs) = (held.sources[*mine].name(), other.sources[*theirs].name());
                    match likeness {
                        Likeness::Exact => format!("{mine} = {theirs}"),
                        Likeness::Near(bits) => format!("{mine} ~ {theirs} ({bits} of 64 bits differ)"),
                    }
                }))
            };
            let leak = LeakReport { against: path.clone(), exact: names(true), near: names(false) };
            held.report.good &= leak.exact.count == 0 && other.report.good;
            held.report.leaks.push(leak);
        }
        Ok(held.report)
    }

    fn hold(&self, path: &Path, images: Option<&Path>) -> Result<Held> {
        let asset = detect::detect(path, images)?;
        asset.verify()?;
        let report = Report {
            path: path.to_owned(),
            kind: asset.manifest.kind.as_str(),
            format: asset.manifest.format,
            images: 0,
            classes: Vec::new(),
            sizes: None,
            unreadable: Names::default(),
            missing: Names::default(),
            duplicates: Names::default(),
            queries_in_bank: 0,
            captions: None,
            digest: None,
            leaks: Vec::new(),
            good: true,
        };
        match asset.manifest.kind {
            AssetKind::Dataset => self.dataset(&asset, report),
            AssetKind::Captions => self.captions(asset, report),
            // Weights are not data: their files are there in full, and loading them is another matter.
            _ => Ok(Held { report, sources: Vec::new(), fingerprints: Vec::new() }),
        }
    }

    fn dataset(&self, asset: &Asset, mut report: Report) -> Result<Held> {
        let dataset = Dataset::list(asset)?;
        let sources: Vec<&Source> = dataset.images().map(|image| &image.source).collect();
        let bar = bar(sources.len());
        let prints = scan(&sources, self.threads, &|done| bar.set_position(done as u64));
        bar.finish_and_clear();
        let failed = prints.iter().filter_map(|print| print.as_ref().err().map(|error| format!("{error:#}")));
        report.unreadable = Names::of(failed);
        let readable = prints.into_iter().zip(&sources).zip(dataset.splits());
        let readable: Vec<(Fingerprint, &Source, &str)> =
            readable.filter_map(|((print, source), split)| Some((print.ok()?, *source, split))).collect();
        let fingerprints: Vec<Fingerprint> = readable.iter().map(|(print, ..)| *print).collect();

        let mut first: HashMap<[u8; 32], (&Source, &str)> = HashMap::new();
        let mut duplicates = Vec::new();
        for (print, source, split) in &readable {
            match first.get(&print.pixels) {
                Some((other, side)) => {
                    duplicates.push(format!("{} = {}", source.name(), other.name()));
                    report.queries_in_bank += usize::from(*side == "bank" && *split == "query");
                }
                None => drop(first.insert(print.pixels, (*source, *split))),
            }
        }
        report.duplicates = Names::of(duplicates);
        report.images = sources.len();
        let count = |label: usize| dataset.images().filter(|image| image.label as usize == label).count();
        report.classes =
            dataset.classes.iter().enumerate().map(|(label, class)| (class.clone(), count(label))).collect();
        report.sizes = sizes(&fingerprints);
        report.good = report.unreadable.count == 0;
        report.digest = report.good.then(|| dataset.digest_of(&fingerprints));
        let sources = readable.iter().map(|(_, source, _)| (*source).clone()).collect();
        Ok(Held { report, sources, fingerprints })
    }

    fn captions(&self, mut asset: Asset, mut report: Report) -> Result<Held> {
        let format = asset.manifest.format;
        let options = asset.manifest.captions.get_or_insert_default();
        let usual = options.missing(format);
        // To tell all that is wrong, and not only the first.
        options.missing = Some(Missing::Skip);
        let bar = bar(0);
        let done = |done: usize, total: usize| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        };
        let captions = Captions::read(&asset, self.threads, &done);
        bar.finish_and_clear();
        let captions = captions.with_context(|| format!("checking {}", report.path.display()))?;
        let Account { listed, incomplete, missing, unreadable, captionless, empty, duplicates, chosen } =
            captions.account.clone();
        report.images = captions.images.len();
        report.sizes = sizes(&captions.fingerprints);
        report.unreadable = Names { count: unreadable.count, names: unreadable.examples };
        report.missing = Names { count: missing.count, names: missing.examples };
        report.duplicates =
            Names::of(duplicates.iter().map(|duplicate| format!("{} = {}", duplicate.image, duplicate.of)));
        let lost = missing.count + unreadable.count;
        report.good = unreadable.count == 0 && (usual == Missing::Skip || lost == 0);
        report.digest = if report.good { captions.digest() } else { None };
        let words = |at: usize| captions.caption(at).split(' ').count();
        let total: usize = (0..captions.images.len()).map(words).sum();
        report.captions = Some(CaptionsReport {
            distinct: captions.distinct.len(),
            mean_words: total as f64 / captions.images.len().max(1) as f64,
            listed,
            incomplete,
            captionless: captionless.count,
            empty,
            examples: captions.distinct.iter().take(EXAMPLES).cloned().collect(),
            chosen,
        });
        Ok(Held { report, sources: captions.images, fingerprints: captions.fingerprints })
    }
}

fn sizes(prints: &[Fingerprint]) -> Option<Sizes> {
    let of = |side: &dyn Fn(&Fingerprint) -> u32| {
        let mut sides: Vec<u32> = prints.iter().map(side).collect();
        sides.sort_unstable();
        Some([*sides.first()?, sides[sides.len() / 2], *sides.last()?])
    };
    Some(Sizes { width: of(&|print| print.width)?, height: of(&|print| print.height)? })
}

/// Shown while images are decoded, on a terminal only.
fn bar(length: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("images [{bar:30}] {pos}/{len} {per_sec} {eta}");
    let bar = ProgressBar::new(length as u64);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests;
