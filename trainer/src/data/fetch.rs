//! `causeway-trainer data fetch`: the official datasets from the addresses of their owners, as ready assets. Nothing is
//! used before its checksum is right, and the manifest, by which `data list` and runs know an asset, is written last: a
//! folder with one is whole.

mod catalogue;
mod digests;
mod download;
mod progress;
mod space;
mod unpack;

use super::asset::{Asset, Manifest, file_sha256};
use super::dataset::Dataset;
use anyhow::{Context, Result, ensure};
pub use catalogue::{KnownSet, Remote, catalogue};
use causeway_protocol::sha256_hex;
use digests::Digests;
use download::Download;
pub use download::{Patience, unfinished};
use std::path::{Path, PathBuf};

/// What to do about a dataset that is not here, if it can be fetched.
pub fn hint(name: &str) -> String {
    let known = catalogue().iter().any(|set| set.name == name);
    if known { format!("; `causeway-trainer data fetch {name} --to DIR` fetches it") } else { String::new() }
}

/// What to fetch, and how.
pub struct Fetch {
    /// What can be fetched.
    pub sets: Vec<KnownSet>,
    /// Names of those that are wanted.
    pub names: Vec<String>,
    /// The data folder.
    pub to: PathBuf,
    /// Another server, which has each file as `URL/SET/FILE`.
    pub mirror: Option<String>,
    /// How patient to be with servers.
    pub patience: Patience,
}

impl Fetch {
    /// Fetches one after another. One that fails does not keep the others from being fetched.
    pub fn run(&self) -> Result<()> {
        let wanted = self.names.iter().map(|name| self.known(name)).collect::<Result<Vec<&KnownSet>>>()?;
        let mut failed = Vec::new();
        for set in wanted {
            if let Err(error) = self.set(set) {
                eprintln!("{}: {error:#}", set.name);
                failed.push(set.name.as_str());
            }
        }
        ensure!(failed.is_empty(), "not fetched: {}; the reasons are above", failed.join(", "));
        Ok(())
    }

    fn known(&self, name: &str) -> Result<&KnownSet> {
        self.sets.iter().find(|set| set.name == name).with_context(|| {
            let names: Vec<&str> = self.sets.iter().map(|set| set.name.as_str()).collect();
            format!("`{name}` is no dataset that can be fetched; those are {}", names.join(", "))
        })
    }

    fn set(&self, set: &KnownSet) -> Result<()> {
        if let Some(base) = set.base {
            self.set(self.known(base)?)?;
        }
        let folder = self.to.join(&set.name);
        if folder.join("asset.toml").is_file() {
            Asset::read(&folder)?.check_sizes()?;
            println!("{}: is in {}", set.name, folder.display());
            return Ok(());
        }
        let fetched: u64 = set.files.iter().filter_map(|file| unfinished(&folder.join(file.file()))).sum();
        let missing = (set.fetched_mb * 1_000_000).saturating_sub(fetched) + set.unpacked_mb * 1_000_000;
        let there = set.files.iter().all(|file| folder.join(file.file()).is_file());
        if !there {
            space::check(&folder, missing)?;
        }
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("making the folder {}", folder.display()))?;
        let files =
            set.files.iter().map(|remote| self.file(set, remote, &folder)).collect::<Result<Vec<_>>>()?;
        let asset = manifest(set, &folder, &files)?;
        write(&folder, &asset.text)?;
        for remote in set.files.iter().filter(|remote| remote.unpack.is_some()) {
            let archive = folder.join(remote.file());
            std::fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))?;
        }
        println!("{}: {} + {} images in {}", set.name, asset.images.0, asset.images.1, folder.display());
        Ok(())
    }

    /// Fetches a file and unpacks it where it is an archive that is not read as it is.
    fn file(&self, set: &KnownSet, remote: &Remote, folder: &Path) -> Result<Digests> {
        let url = match &self.mirror {
            Some(mirror) => format!("{}/{}/{}", mirror.trim_end_matches('/'), set.name, remote.file()),
            None => remote.url.clone(),
        };
        let path = folder.join(remote.file());
        let download = Download { url, path: path.clone(), md5: &remote.md5, patience: self.patience };
        let digests = download.run(&download::agent(self.patience.silence))?;
        if let Some(inner) = remote.unpack
            && !folder.join(inner).is_dir()
        {
            unpack::unpack(&path, folder, inner)?;
        }
        Ok(digests)
    }
}

struct Written {
    text: String,
    images: (usize, usize),
}

/// The text of the manifest: the known one, where the files came from, and their digests. What it describes is listed
/// once, so that a manifest is only written for a dataset that can be used.
fn manifest(set: &KnownSet, folder: &Path, fetched: &[Digests]) -> Result<Written> {
    let mut text = set.manifest.clone();
    if !fetched.is_empty() {
        text += "\n# Fetched, and checked by the md5 that is published:\n";
    }
    for (remote, digests) in set.files.iter().zip(fetched) {
        let Digests { md5, sha256, bytes } = digests;
        text += &format!("# {}: {bytes} bytes, md5 {md5}, sha256 {sha256}\n", remote.url);
    }
    let parsed = |text: &str| -> Result<Manifest> { Ok(toml::from_str(text)?) };
    let bare = parsed(&text).with_context(|| format!("the manifest of `{}`", set.name))?;
    for path in bare.dataset.iter().flat_map(|dataset| dataset.files()) {
        let file = folder.join(&path);
        if !file.is_file() {
            continue;
        }
        let bytes = std::fs::metadata(&file)?.len();
        text += &format!(
            "\n[[files]]\npath = \"{path}\"\nsha256 = \"{}\"\nbytes = {bytes}\n",
            file_sha256(&file)?
        );
    }
    let digest = sha256_hex(text.as_bytes());
    let asset = Asset { folder: folder.to_owned(), manifest: parsed(&text)?, digest };
    let dataset = Dataset::list(&asset)?;
    let images = (dataset.bank.len(), dataset.query.as_ref().map_or(0, Vec::len));
    ensure!(
        images == set.images,
        "it has {} + {} images, where {} + {} are known; the files in {} are not the published ones",
        images.0,
        images.1,
        set.images.0,
        set.images.1,
        folder.display()
    );
    Ok(Written { text, images })
}

/// Under its final name only once it is whole.
fn write(folder: &Path, text: &str) -> Result<()> {
    let (new, path) = (folder.join("asset.toml.new"), folder.join("asset.toml"));
    std::fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
    std::fs::rename(&new, &path).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests;
