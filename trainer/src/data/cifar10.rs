//! CIFAR-10's binary version: records of one label byte and 3072 bytes, the red, green and blue planes of 32 × 32.

use super::dataset::Source;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::sync::Arc;

const SIDE: usize = 32;
const RECORD: usize = 1 + 3 * SIDE * SIDE;
const CLASSES: u32 = 10;

/// The images of some files, in order, with their labels.
pub fn read(folder: &Path, parts: &[String]) -> Result<Vec<(Source, u32)>> {
    ensure!(!parts.is_empty(), "`parts` must name CIFAR-10's files, such as [\"data_batch_1.bin\"]");
    let mut images = Vec::new();
    for part in parts {
        let path = folder.join(part);
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        ensure!(
            !bytes.is_empty() && bytes.len() % RECORD == 0,
            "{} has {} bytes, which is no multiple of {RECORD}, the length of a record; fetch it again",
            path.display(),
            bytes.len()
        );
        let bytes: Arc<[u8]> = bytes.into();
        for begin in (0..bytes.len()).step_by(RECORD) {
            let label = u32::from(bytes[begin]);
            ensure!(
                label < CLASSES,
                "{}, record {}: the label is {label}; is it CIFAR-10's binary version?",
                path.display(),
                begin / RECORD
            );
            let (bytes, begin) = (bytes.clone(), begin + 1);
            images.push((Source::Planes { bytes, begin, width: SIDE, height: SIDE }, label));
        }
    }
    Ok(images)
}

/// Class names from `batches.meta.txt`, where the file is there.
pub fn class_names(folder: &Path) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(folder.join("batches.meta.txt")).ok()?;
    let names: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    (names.len() == CLASSES as usize).then_some(names)
}
