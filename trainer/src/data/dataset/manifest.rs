//! `[dataset]` in an asset's manifest: which files are the bank and the query part, and which fields go with which
//! format. A field that a format does not read is an error, for it would silently change nothing.

use crate::data::asset::Format;
use anyhow::{Result, ensure};
use serde::Deserialize;

/// How a dataset is put together.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetManifest {
    /// Bank and query are the same images, each scored against the others.
    #[serde(default)]
    pub leave_one_out: bool,
    /// Class names in label order; otherwise sorted, or as the format numbers them.
    pub classes: Option<Vec<String>>,
    /// Which label counts where an image has two, as in CIFAR-100.
    #[serde(default)]
    pub label: Label,
    /// The images that are neighbours.
    pub bank: Part,
    /// The images that are scored; none with `leave_one_out`.
    pub query: Option<Part>,
}

/// Which of two labels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// The finer: CIFAR-100's 100 classes, or the only one.
    #[default]
    Fine,
    /// The coarser: CIFAR-100's 20 superclasses.
    Coarse,
}

/// One side of a dataset.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The list (jsonl), the folder (class-folder) or the images (idx).
    pub path: Option<String>,
    /// The labels (idx).
    pub labels: Option<String>,
    /// The files, in order (cifar10-binary, cifar100-binary, cifar-python, svhn-mat, parquet).
    #[serde(default)]
    pub parts: Vec<String>,
    /// The archive that holds `path` (class-folder: a zip) or `parts` (CIFAR: a tar.gz); none where they are files.
    pub archive: Option<String>,
    /// Text files with an image a line, `class/file.jpg` or `file.jpg`: these images, in this order (class-folder).
    #[serde(default)]
    pub lists: Vec<String>,
    /// Where there are no lists: seeded shares of 60, 20 and 20 % of each class (class-folder).
    #[serde(default)]
    pub shares: Vec<Share>,
    /// Take only so many images of each class, chosen by `seed`.
    pub per_class: Option<usize>,
    /// Seed of that choice.
    #[serde(default)]
    pub seed: u64,
}

/// A share of each class's images.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// The first 60 %.
    Train,
    /// The next 20 %.
    Val,
    /// The rest.
    Test,
}

impl DatasetManifest {
    /// Checks that every field goes with the others and with the format.
    pub fn check(&self, format: Format) -> Result<()> {
        ensure!(
            self.leave_one_out != self.query.is_some(),
            "[dataset.query] is needed exactly when leave_one_out is false"
        );
        let two_labels = matches!(format, Format::Cifar100Binary | Format::CifarPython | Format::Parquet);
        ensure!(
            two_labels || self.label == Label::Fine,
            "label = \"coarse\" goes with cifar100-binary, cifar-python and parquet only"
        );
        let shares =
            [Some(&self.bank), self.query.as_ref()].into_iter().flatten().flat_map(|part| &part.shares);
        let shares: Vec<&Share> = shares.collect();
        for (at, share) in shares.iter().enumerate() {
            ensure!(
                !shares[..at].contains(share),
                "the share {share:?} is given twice, so images would be too"
            );
        }
        self.bank.check(format)?;
        self.query.as_ref().map_or(Ok(()), |query| query.check(format))
    }

    /// Every path that the parts name, once, in order; folders too.
    pub fn files(&self) -> Vec<String> {
        let mut files: Vec<String> = Vec::new();
        for part in [Some(&self.bank), self.query.as_ref()].into_iter().flatten() {
            let single = [&part.archive, &part.path, &part.labels].into_iter().flatten();
            for path in single.chain(&part.parts).chain(&part.lists) {
                if !files.contains(path) {
                    files.push(path.clone());
                }
            }
        }
        files
    }

    /// What a title says of the choice of images, where it is not the owner's.
    pub fn remark(&self) -> Option<&'static str> {
        let seeded = !self.bank.shares.is_empty();
        seeded.then_some("(60/20/20 of each class by SplitMix64, seed 0; no published list)")
    }
}

impl Part {
    fn check(&self, format: Format) -> Result<()> {
        use Format::{Cifar10Binary, Cifar100Binary, CifarPython, ClassFolder, Idx, Jsonl, Parquet, SvhnMat};
        let cifar = matches!(format, Cifar10Binary | Cifar100Binary | CifarPython);
        let goes = [
            ("path", self.path.is_some(), matches!(format, Jsonl | ClassFolder | Idx)),
            ("labels", self.labels.is_some(), format == Idx),
            ("parts", !self.parts.is_empty(), cifar || matches!(format, SvhnMat | Parquet)),
            ("archive", self.archive.is_some(), cifar || format == ClassFolder),
            ("lists", !self.lists.is_empty(), format == ClassFolder),
            ("shares", !self.shares.is_empty(), format == ClassFolder),
        ];
        for (field, given, fits) in goes {
            ensure!(!given || fits, "`{field}` means nothing for the format {}", format.as_str());
        }
        ensure!(
            self.lists.is_empty() || self.shares.is_empty(),
            "`lists` and `shares` both choose the images; leave one out"
        );
        Ok(())
    }
}
