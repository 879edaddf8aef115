//! What a pilot would hold. The newest pilot that the server has heard of told it; and where this machine sees the same
//! data folders, an asset that came later shows there.

use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};
use time::OffsetDateTime;

/// The file that makes a folder an asset.
const MANIFEST: &str = "asset.toml";
/// How deep below a data folder the trainer looks for assets.
const DEPTH_MAX: usize = 3;
/// Most assets looked at.
const ASSETS_MAX: usize = 10_000;

/// What the newest pilot told of itself.
#[derive(Clone, PartialEq, Debug)]
pub struct Told {
    /// When it was last heard of.
    pub seen_at: OffsetDateTime,
    /// What it held then.
    pub assets: BTreeSet<String>,
}

/// The assets below the folders as far as this machine sees them, and when their manifests were written; none if it sees
/// none of the folders.
pub fn seen_here(folders: &[PathBuf]) -> Option<BTreeMap<String, OffsetDateTime>> {
    let mut found = BTreeMap::new();
    let there: Vec<&PathBuf> = folders.iter().filter(|folder| folder.is_dir()).collect();
    there.iter().for_each(|folder| search(folder, 0, &mut found));
    (!there.is_empty()).then_some(found)
}

fn search(folder: &Path, depth: usize, found: &mut BTreeMap<String, OffsetDateTime>) {
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    let manifest = folder.join(MANIFEST);
    if let Ok(text) = fs::read_to_string(&manifest) {
        let written = fs::metadata(&manifest).and_then(|manifest| manifest.modified());
        // One that cannot be read is the trainer's to tell.
        if let (Ok(Named { name }), Ok(written)) = (toml::from_str(&text), written) {
            found.insert(name, written.into());
        }
        return;
    }
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if depth < DEPTH_MAX && found.len() < ASSETS_MAX && path.is_dir() {
            search(&path, depth + 1, found);
        }
    }
}

/// What the next pilot would hold; none if there is nothing to tell it from. What a pilot did not hold although it was
/// here before that pilot was last heard of cannot be used there, and will not be held by another.
pub fn held(
    told: Option<&Told>,
    here: Option<&BTreeMap<String, OffsetDateTime>>,
) -> Option<BTreeSet<String>> {
    let newer = |told: &Told| {
        let here = here.into_iter().flatten();
        here.filter(|(_, written)| **written > told.seen_at).map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    match (told, here) {
        (Some(told), _) => Some(told.assets.iter().cloned().chain(newer(told)).collect()),
        (None, Some(here)) => Some(here.keys().cloned().collect()),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::Duration;

    #[test]
    fn the_newest_pilot_is_believed_and_what_came_after_it_is_seen() {
        let data = tempfile::tempdir().unwrap();
        let asset = |path: &str, text: &str| {
            fs::create_dir_all(data.path().join(path)).unwrap();
            fs::write(data.path().join(path).join(MANIFEST), text).unwrap();
        };
        asset("vit", "name = \"vit\"\nkind = \"weights\"\n");
        asset("sets/birds", "name = \"birds\"\n");
        asset("sets/broken", "name = ");
        asset("a/b/c/d", "name = \"too-deep\"\n");
        let folders = [data.path().to_owned()];
        let here = seen_here(&folders).unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(here.keys().cloned().collect::<BTreeSet<_>>(), names(&["birds", "vit"]));
        assert_eq!(held(None, Some(&here)), Some(names(&["birds", "vit"])));

        let now = OffsetDateTime::now_utc();
        let after = Told { seen_at: now + Duration::HOUR, assets: names(&["vit"]) };
        assert_eq!(held(Some(&after), Some(&here)), Some(names(&["vit"])), "birds cannot be used there");
        let before = Told { seen_at: now - Duration::HOUR, ..after };
        assert_eq!(held(Some(&before), Some(&here)), Some(names(&["birds", "vit"])));
        assert_eq!(held(Some(&before), None), Some(names(&["vit"])));
        assert_eq!(seen_here(&[data.path().join("not-here")]), None);
        assert_eq!(held(None, None), None);
    }
}
