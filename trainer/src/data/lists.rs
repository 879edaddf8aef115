//! Which of a folder's images belong to a part: those that published lists name, or, where a set has no split of its own
//! and no list is at hand, seeded shares of each class.

use super::class_folder::Image;
use super::dataset::manifest::Share;
use crate::random::SplitMix64;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

/// The images that the lists name, in the order of the lists. A line is `class/file.jpg`, as DTD's, or `file.jpg`, as
/// EuroSAT's, whose file names tell the class.
pub fn named(images: Vec<Image>, lists: &[PathBuf]) -> Result<Vec<Image>> {
    let mut places: HashMap<String, Option<usize>> = HashMap::new();
    for (at, image) in images.iter().enumerate() {
        places.insert(format!("{}/{}", image.class, image.file), Some(at));
        // A file name that two classes have names none.
        places.entry(image.file.clone()).and_modify(|place| *place = None).or_insert(Some(at));
    }
    let mut given: Vec<Option<String>> = vec![None; images.len()];
    let mut chosen = Vec::new();
    for list in lists {
        let text = std::fs::read_to_string(list)
            .with_context(|| format!("reading the list {}; is the dataset complete?", list.display()))?;
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let line = line.trim().trim_start_matches("./");
            let place = || format!("{}, line {}", list.display(), at + 1);
            let found = places.get(line).with_context(|| {
                format!("{}: the image {line} is not there; fetch the dataset again, or take it out", place())
            })?;
            let found =
                found.with_context(|| format!("{}: two classes have a {line}; name its class", place()))?;
            let first = given[found].replace(place());
            ensure!(
                first.is_none(),
                "{}: the image {line} is also in {}",
                place(),
                first.unwrap_or_default()
            );
            chosen.push(images[found].clone());
        }
    }
    ensure!(!chosen.is_empty(), "the lists name no image");
    Ok(chosen)
}

/// The images of some shares, in their own order: of each class the images by the number that ends their names, shuffled
/// by SplitMix64 from (0, place of the class); 60 % are `train`, the next 20 % `val`, the rest `test`.
pub fn shares(images: Vec<Image>, wanted: &[Share]) -> Vec<Image> {
    let mut classes: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, image) in images.iter().enumerate() {
        classes.entry(&image.class).or_default().push(at);
    }
    let mut chosen = vec![false; images.len()];
    for (label, mut places) in classes.into_values().enumerate() {
        places.sort_by_key(|at| (number(&images[*at].file), &images[*at].file));
        SplitMix64::from_parts(&[0, label as u64]).shuffle(&mut places);
        let (train, val) = (places.len() * 60 / 100, places.len() * 80 / 100);
        for share in wanted {
            let range = match share {
                Share::Train => 0..train,
                Share::Val => train..val,
                Share::Test => val..places.len(),
            };
            places[range].iter().for_each(|at| chosen[*at] = true);
        }
    }
    images.into_iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(image, _)| image).collect()
}

/// 142 for `AnnualCrop_142.jpg`; names without a number come last.
fn number(file: &str) -> u64 {
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let digits = stem.len() - stem.trim_end_matches(|letter: char| letter.is_ascii_digit()).len();
    stem[stem.len() - digits..].parse().unwrap_or(u64::MAX)
}
