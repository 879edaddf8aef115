//! CIFAR's binary versions: records of the labels and 3072 bytes, the red, green and blue planes of 32 × 32. CIFAR-10 has
//! one label byte, CIFAR-100 two, the coarse one first.

use super::dataset::manifest::Label;
use super::source::Source;
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Pixels in a row, and rows.
pub const SIDE: usize = 32;
/// Bytes of an image.
pub const PIXELS: usize = 3 * SIDE * SIDE;

/// How a record begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// Bytes before the pixels.
    labels: usize,
    /// Which of them counts.
    which: usize,
    /// How many classes that has.
    pub classes: u32,
}

impl Record {
    /// CIFAR-10's.
    pub const CIFAR10: Record = Record { labels: 1, which: 0, classes: 10 };

    /// CIFAR-100's.
    pub fn cifar100(label: Label) -> Record {
        match label {
            Label::Coarse => Record { labels: 2, which: 0, classes: 20 },
            Label::Fine => Record { labels: 2, which: 1, classes: 100 },
        }
    }

    /// The file of class names that lies beside the records.
    pub fn names_file(self) -> &'static str {
        match self.classes {
            10 => "batches.meta.txt",
            20 => "coarse_label_names.txt",
            _ => "fine_label_names.txt",
        }
    }

    /// The images of some files, in order, with their labels.
    pub fn read(self, files: Vec<(PathBuf, Vec<u8>)>) -> Result<Vec<(Source, u32)>> {
        let length = self.labels + PIXELS;
        let mut images = Vec::new();
        for (path, bytes) in files {
            ensure!(
                !bytes.is_empty() && bytes.len().is_multiple_of(length),
                "{} has {} bytes, which is no multiple of {length}, the length of a record; fetch it again",
                path.display(),
                bytes.len()
            );
            let (file, bytes): (Arc<Path>, Arc<[u8]>) = (path.into(), bytes.into());
            for (at, begin) in (0..bytes.len()).step_by(length).enumerate() {
                let label = u32::from(bytes[begin + self.which]);
                ensure!(
                    label < self.classes,
                    "{}, record {at}: the label is {label}, of {} classes; is it this version of CIFAR?",
                    file.display(),
                    self.classes
                );
                let (file, bytes, begin) = (file.clone(), bytes.clone(), begin + self.labels);
                images.push((Source::Planes { file, at, bytes, begin, width: SIDE, height: SIDE }, label));
            }
        }
        Ok(images)
    }
}

/// Class names, one a line, if there are as many as there should be.
pub fn class_names(text: &str, classes: u32) -> Option<Vec<String>> {
    let names: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    (names.len() == classes as usize).then_some(names)
}
