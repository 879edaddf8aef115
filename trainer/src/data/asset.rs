//! Assets: folders with a manifest, `asset.toml`, that gives a name to weights, a text encoder, a language model,
//! captions or a labelled dataset. Specs name assets and never paths; a worker reports which it holds under its data
//! folders.

use super::dataset::{Dataset, manifest::DatasetManifest};
use super::{captions, fetch};
use crate::weights::digest::HashingWriter;
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::{AssetSummary, sha256_hex};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Name of the manifest in an asset's folder.
const MANIFEST: &str = "asset.toml";
/// How many folders below a data folder an asset may lie.
const DEPTH_MAX: usize = 3;

/// What an asset is, as its manifest says it.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Name that specs use.
    pub name: String,
    /// What it holds.
    pub kind: AssetKind,
    /// How its files are to be read.
    pub format: Format,
    /// As figures show it.
    pub title: String,
    /// Licence, SPDX where possible.
    pub licence: String,
    /// Where it comes from.
    pub source: String,
    /// Files with their digests.
    #[serde(default)]
    pub files: Vec<ListedFile>,
    /// How a dataset is put together.
    pub dataset: Option<DatasetManifest>,
    /// How captions are put together.
    pub captions: Option<captions::CaptionsManifest>,
}

/// What an asset holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AssetKind {
    /// A vision encoder: `model.safetensors`.
    Weights,
    /// A text encoder: `model.safetensors`, `config.json` and a tokenizer.
    TextEncoder,
    /// A causal language model, frozen: the same, or one `.gguf` file.
    LanguageModel,
    /// Image-caption pairs.
    Captions,
    /// Labelled images.
    Dataset,
}

/// How an asset's files are to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A vision transformer.
    Vit,
    /// A BERT encoder with WordPiece.
    Bert,
    /// CLIP's text transformer with its byte pairs.
    ClipText,
    /// GPT-2 as Hugging Face keeps it.
    Gpt2,
    /// Llama and its like, from safetensors or GGUF.
    Llama,
    /// One JSON object a line.
    Jsonl,
    /// A folder for each class.
    ClassFolder,
    /// LeCun's format of MNIST, plain or gzipped.
    Idx,
    /// CIFAR-10's binary records.
    Cifar10Binary,
    /// CIFAR-100's binary records.
    Cifar100Binary,
    /// CIFAR-10's or CIFAR-100's pickles for Python.
    CifarPython,
    /// SVHN's cropped digits, MATLAB 5.
    SvhnMat,
    /// Hugging Face's tables of images and labels.
    Parquet,
    /// COCO's captions, or Karpathy's split of them.
    CocoCaptions,
    /// Conceptual Captions: caption, tab, URL.
    Cc3mTsv,
    /// Tar shards of images and captions.
    Webdataset,
    /// ImageNet-Captions.
    ImagenetCaptions,
}

/// A file of an asset.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedFile {
    /// Path relative to the asset's folder.
    pub path: String,
    /// Digest.
    pub sha256: String,
    /// Size, bytes.
    pub bytes: u64,
}

/// An asset on this machine.
#[derive(Clone, PartialEq, Debug)]
pub struct Asset {
    /// Where it lies.
    pub folder: PathBuf,
    /// What it is.
    pub manifest: Manifest,
    /// sha256 of the manifest's text.
    pub digest: String,
}

/// The assets found below some data folders.
#[derive(Clone, Debug, Default)]
pub struct Library {
    /// By name.
    pub assets: BTreeMap<String, Asset>,
    /// What could not be used, and why. One bad manifest does not hide the others.
    pub problems: Vec<String>,
}

impl Library {
    /// Finds every asset below the data folders, the folders themselves included.
    pub fn find(folders: &[PathBuf]) -> Library {
        let mut library = Library::default();
        for folder in folders {
            library.search(folder, 0);
        }
        library
    }

    fn search(&mut self, folder: &Path, depth: usize) {
        if folder.join(MANIFEST).is_file() {
            match Asset::read(folder) {
                Ok(asset) => self.add(asset),
                Err(error) => self.problems.push(format!("{error:#}")),
            }
            return;
        }
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if depth == 0 => {
                return self.problems.push(format!("reading the data folder {}: {error}", folder.display()));
            }
            Err(_) => return,
        };
        let mut folders: Vec<PathBuf> =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        folders.sort();
        if depth < DEPTH_MAX {
            folders.iter().for_each(|folder| self.search(folder, depth + 1));
        }
    }

    fn add(&mut self, asset: Asset) {
        let name = asset.manifest.name.clone();
        match self.assets.get(&name) {
            None => drop(self.assets.insert(name, asset)),
            Some(first) => self.problems.push(format!(
                "the asset `{name}` in {} is not used: {} has the same name",
                asset.folder.display(),
                first.folder.display()
            )),
        }
    }

    /// The asset of that name and kind.
    pub fn get(&self, name: &str, kind: AssetKind) -> Result<&Asset> {
        let asset = self.assets.get(name).with_context(|| {
            let problems = self.problems.join("; ");
            let held: Vec<&str> = self.assets.keys().map(String::as_str).collect();
            format!(
                "there is no asset `{name}` under the data folders (held: {}){} {problems}",
                held.join(", "),
                fetch::hint(name)
            )
        })?;
        ensure!(
            asset.manifest.kind == kind,
            "the asset `{name}` is of kind {}, not {}",
            asset.manifest.kind.as_str(),
            kind.as_str()
        );
        Ok(asset)
    }

    /// What a worker tells of its assets, and what is wrong with them. An asset whose files are there but damaged or
    /// inconsistent is told too: the run that names it then fails with the reason, where it would otherwise wait for
    /// ever. One whose files are missing is not.
    pub fn summaries(&self) -> (Vec<AssetSummary>, Vec<String>) {
        let mut problems = self.problems.clone();
        let mut summaries = Vec::new();
        for (name, asset) in &self.assets {
            if let Err(error) = asset.check_presence() {
                problems.push(format!("the asset `{name}` is incomplete: {error:#}"));
                continue;
            }
            let images = asset.check_sizes().and_then(|()| asset.images()).unwrap_or_else(|error| {
                problems.push(format!("the asset `{name}` is not usable: {error:#}"));
                0
            });
            summaries.push(AssetSummary {
                name: name.clone(),
                kind: asset.manifest.kind.as_str().to_owned(),
                title: asset.manifest.title.clone(),
                licence: asset.manifest.licence.clone(),
                source: asset.manifest.source.clone(),
                digest: asset.digest.clone(),
                images,
            });
        }
        (summaries, problems)
    }
}

impl Asset {
    /// Reads the manifest in a folder.
    pub fn read(folder: &Path) -> Result<Asset> {
        let path = folder.join(MANIFEST);
        let context = || format!("reading {}", path.display());
        let text = std::fs::read_to_string(&path).with_context(context)?;
        let manifest: Manifest = toml::from_str(&text).with_context(context)?;
        manifest.check().with_context(context)?;
        Ok(Asset { folder: folder.to_owned(), manifest, digest: sha256_hex(text.as_bytes()) })
    }

    /// A file of the asset by its path in the manifest.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.join(relative)
    }

    /// The first listed file with that ending, or the one that the format expects where none is listed.
    pub fn file_ending(&self, ending: &str, expected: &str) -> PathBuf {
        let listed = self.manifest.files.iter().find(|file| file.path.ends_with(ending));
        self.path(listed.map_or(expected, |file| &file.path))
    }

    /// The file of an asset of weights: safetensors if it has such a file, else torch's.
    pub fn weights_file(&self) -> PathBuf {
        let listed = |ending: &&str| self.manifest.files.iter().any(|file| file.path.ends_with(*ending));
        let ending = [".safetensors", ".pth", ".pt", ".bin"].into_iter().find(|ending| listed(ending));
        self.file_ending(ending.unwrap_or(".safetensors"), "model.safetensors")
    }

    /// Checks that the listed files are there.
    pub fn check_presence(&self) -> Result<()> {
        self.manifest.files.iter().try_for_each(|file| self.size(file).map(drop))
    }

    fn size(&self, file: &ListedFile) -> Result<u64> {
        let path = self.path(&file.path);
        let metadata = std::fs::metadata(&path)
            .with_context(|| format!("{} is listed in {MANIFEST} but cannot be read", path.display()))?;
        Ok(metadata.len())
    }

    /// Checks that the listed files are there in full. Cheap enough for every start of a worker.
    pub fn check_sizes(&self) -> Result<()> {
        for file in &self.manifest.files {
            let (path, found) = (self.path(&file.path), self.size(file)?);
            ensure!(
                found == file.bytes,
                "{} has {found} bytes, {MANIFEST} says {}; fetch it again",
                path.display(),
                file.bytes
            );
        }
        Ok(())
    }

    /// Checks the digests of the listed files. A file that an attempt uses is the file that the manifest means.
    pub fn verify(&self) -> Result<()> {
        self.check_sizes()?;
        for file in &self.manifest.files {
            let path = self.path(&file.path);
            let found = file_sha256(&path)?;
            ensure!(
                found == file.sha256,
                "{} is damaged: its sha256 is {found}, {MANIFEST} says {}; fetch it again",
                path.display(),
                file.sha256
            );
        }
        Ok(())
    }

    fn images(&self) -> Result<u64> {
        match self.manifest.kind {
            AssetKind::Weights | AssetKind::TextEncoder | AssetKind::LanguageModel => Ok(0),
            AssetKind::Captions => Ok(captions::count(self)? as u64),
            AssetKind::Dataset => Ok(Dataset::list(self)?.images().count() as u64),
        }
    }
}

impl Manifest {
    fn check(&self) -> Result<()> {
        use AssetKind::{Captions, Dataset, LanguageModel, TextEncoder, Weights};
        use Format::{
            Bert, Cc3mTsv, ClipText, CocoCaptions, Gpt2, ImagenetCaptions, Jsonl, Llama, Vit, Webdataset,
        };
        let fits = match self.kind {
            Weights => self.format == Vit,
            TextEncoder => matches!(self.format, Bert | ClipText),
            LanguageModel => matches!(self.format, Gpt2 | Llama),
            Captions => {
                matches!(self.format, Jsonl | CocoCaptions | Cc3mTsv | Webdataset | ImagenetCaptions)
            }
            Dataset => self.format.is_labelled(),
        };
        ensure!(fits, "format {:?} does not go with kind = \"{}\"", self.format, self.kind.as_str());
        ensure!(!self.name.trim().is_empty(), "`name` is empty");
        match &self.dataset {
            None if self.kind == Dataset => bail!("kind = \"dataset\" needs a table [dataset]"),
            Some(_) if self.kind != Dataset => bail!("[dataset] goes with kind = \"dataset\" only"),
            Some(dataset) => dataset.check(self.format)?,
            None => {}
        }
        match &self.captions {
            Some(_) if self.kind != Captions => bail!("[captions] goes with kind = \"captions\" only"),
            Some(options) => options.check(self.format),
            None => Ok(()),
        }
    }
}

impl Format {
    /// Whether it is a format of labelled images.
    pub fn is_labelled(self) -> bool {
        use Format::{Cifar10Binary, Cifar100Binary, CifarPython, ClassFolder, Idx, Jsonl, Parquet, SvhnMat};
        matches!(
            self,
            Jsonl | ClassFolder | Idx | Cifar10Binary | Cifar100Binary | CifarPython | SvhnMat | Parquet
        )
    }

    /// The word in manifests.
    pub fn as_str(self) -> String {
        serde_json::to_value(self).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

impl AssetKind {
    /// The word in manifests and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            AssetKind::Weights => "weights",
            AssetKind::TextEncoder => "text_encoder",
            AssetKind::LanguageModel => "language_model",
            AssetKind::Captions => "captions",
            AssetKind::Dataset => "dataset",
        }
    }
}

/// sha256 of a file, read in pieces.
pub fn file_sha256(path: &Path) -> Result<String> {
    let context = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let mut writer = HashingWriter::new(std::io::sink());
    std::io::copy(&mut file, &mut writer).with_context(context)?;
    Ok(writer.finish().1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        std::fs::write(folder.join(name).join(MANIFEST), text).unwrap();
        folder.join(name)
    }

    const WEIGHTS: &str = r#"
        name = "vit"
        kind = "weights"
        format = "vit"
        title = "A ViT"
        licence = "MIT"
        source = "here"
        [[files]]
        path = "model.safetensors"
        sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        bytes = 3
    "#;

    #[test]
    fn a_bad_manifest_is_reported_and_does_not_hide_the_others() {
        let data = tempfile::tempdir().unwrap();
        let vit = write(data.path(), "a/nested", WEIGHTS);
        std::fs::write(vit.join("model.safetensors"), "abc").unwrap();
        write(data.path(), "b", "name = 3");
        write(data.path(), "c", WEIGHTS);
        write(data.path(), "d", &WEIGHTS.replace("\"vit\"\n        kind", "\"absent\"\n        kind"));
        let (summaries, problems) = Library::find(&[data.path().to_owned()]).summaries();
        let names: Vec<&str> = summaries.iter().map(|asset| asset.name.as_str()).collect();
        assert_eq!(names, ["vit"]);
        let expected = ["b/asset.toml", "c is not used", "`absent` is incomplete"];
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems.iter().zip(expected).all(|(problem, part)| problem.contains(part)), "{problems:?}");

        std::fs::write(vit.join("model.safetensors"), "ab").unwrap();
        let (summaries, problems) = Library::find(&[data.path().to_owned()]).summaries();
        assert_eq!(summaries.len(), 1, "a damaged asset is told, so that its run fails instead of waiting");
        assert!(
            problems.iter().any(|problem| problem.contains("2 bytes, asset.toml says 3")),
            "{problems:?}"
        );
    }

    #[test]
    fn a_damaged_file_is_named_with_both_digests() {
        let data = tempfile::tempdir().unwrap();
        let asset = Asset::read(&write(data.path(), "a", WEIGHTS)).unwrap();
        std::fs::write(asset.path("model.safetensors"), "abc").unwrap();
        asset.verify().unwrap();
        std::fs::write(asset.path("model.safetensors"), "abd").unwrap();
        asset.check_sizes().unwrap();
        let error = asset.verify().unwrap_err().to_string();
        assert!(error.contains("model.safetensors is damaged") && error.contains("ba7816bf"), "{error}");
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let text = WEIGHTS.replace("\"vit\"\n        title", "\"idx\"\n        title");
        let error = format!("{:#}", Asset::read(&write(data.path(), "a", &text)).unwrap_err());
        assert!(error.contains("does not go with kind = \"weights\""), "{error}");
    }
}
