//! CIFAR-10 and CIFAR-100 as most people have them: pickles, made for Python, of a dictionary with `data`, u8
//! `[images, 3072]`, and `labels` or `fine_labels` and `coarse_labels`. They are read by the interpreter that reads
//! checkpoints and runs nothing.

use super::cifar::{PIXELS, SIDE};
use super::dataset::manifest::Label;
use super::source::Source;
use crate::weights::pickle::{Node, Pickle};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest pickle; CIFAR-100's training images have 154 million bytes.
const BYTES_MAX: usize = 512 << 20;

/// The images of some files, in order, with their labels.
pub fn read(files: Vec<(PathBuf, Vec<u8>)>, label: Label) -> Result<Vec<(Source, u32)>> {
    let mut images = Vec::new();
    for (path, bytes) in files {
        let place = || format!("{}: is it a batch of CIFAR's Python version?", path.display());
        images.extend(batch(&path, &bytes, label).with_context(place)?);
    }
    Ok(images)
}

fn batch(path: &Path, bytes: &[u8], label: Label) -> Result<Vec<(Source, u32)>> {
    let pickle = Pickle::read_up_to(bytes, BYTES_MAX)?;
    let entry =
        |wanted: &str| pickle.entries(pickle.root()).find(|(key, _)| *key == wanted).map(|(_, at)| at);
    // CIFAR-10 has one label, which is the finer.
    let (labels, classes) = match (label, entry("labels"), entry("fine_labels"), entry("coarse_labels")) {
        (Label::Fine, Some(labels), ..) => (labels, 10),
        (Label::Fine, None, Some(labels), _) => (labels, 100),
        (Label::Coarse, _, _, Some(labels)) => (labels, 20),
        _ => bail!("it has no {} labels", if label == Label::Fine { "fine" } else { "coarse" }),
    };
    let data = entry("data").context("it has no `data`")?;
    let (shape, pixels) = pickle.array_u8(data, bytes).context("`data`")?;
    ensure!(shape.len() == 2 && shape[1] == PIXELS, "`data` has the shape {shape:?}, not [images, {PIXELS}]");
    let Node::List(labels) = pickle.node(labels) else { bail!("the labels are no list") };
    ensure!(labels.len() == shape[0], "it holds {} images but {} labels", shape[0], labels.len());
    let (file, pixels): (Arc<Path>, Arc<[u8]>) = (path.into(), pixels.into());
    let image = |(at, label): (usize, &usize)| {
        let label = match pickle.node(*label) {
            Node::Int(label) if (0..classes).contains(label) => *label as u32,
            Node::Int(label) => bail!("image {at}: the label is {label}, of {classes} classes"),
            _ => bail!("image {at}: the label is {}", pickle.describe(*label)),
        };
        let (file, bytes, begin) = (file.clone(), pixels.clone(), at * PIXELS);
        Ok((Source::Planes { file, at, bytes, begin, width: SIDE, height: SIDE }, label))
    };
    labels.iter().enumerate().map(image).collect()
}

/// Class names from CIFAR-10's `batches.meta` or CIFAR-100's `meta`.
pub fn class_names(bytes: &[u8], label: Label) -> Option<Vec<String>> {
    let pickle = Pickle::read_up_to(bytes, BYTES_MAX).ok()?;
    let keys: &[&str] = match label {
        Label::Fine => &["label_names", "fine_label_names"],
        Label::Coarse => &["coarse_label_names"],
    };
    let (_, names) = pickle.entries(pickle.root()).find(|(key, _)| keys.contains(key))?;
    let Node::List(names) = pickle.node(names) else { return None };
    names.iter().map(|name| pickle.text(*name).map(str::to_owned)).collect()
}
