//! What a path holds, told by its files, so that data can be looked at before anyone has written a manifest for it.

use crate::data::archive::zip_members;
use crate::data::asset::{Asset, AssetKind, Format, Manifest};
use crate::data::captions::CaptionsManifest;
use crate::data::class_folder::{is_image, sorted};
use crate::data::dataset::manifest::{DatasetManifest, Label, Part};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Endings of files that hold weights.
const WEIGHTS: [&str; 6] = ["safetensors", "pth", "pt", "ckpt", "gguf", "onnx"];
/// Lengths of a record of CIFAR-10 and CIFAR-100, how many classes its first byte tells, and the format.
const CIFAR: [(u64, u8, Format); 2] = [(3073, 10, Format::Cifar10Binary), (3074, 20, Format::Cifar100Binary)];
/// CIFAR's pickles: training batches, test batch.
const CIFAR_PYTHON: [(&[&str], &str); 2] = [
    (&["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"], "test_batch"),
    (&["train"], "test"),
];

/// The asset in a folder, or what a manifest for these files would say. `images` is the folder of the images, where it
/// is not beside the list.
pub fn detect(path: &Path, images: Option<&Path>) -> Result<Asset> {
    ensure!(path.exists(), "{} is not there", path.display());
    let mut asset = if path.is_dir() { folder(path)? } else { file(path)? };
    if let (Some(images), Some(options)) = (images, &mut asset.manifest.captions) {
        let images = std::path::absolute(images).with_context(|| images.display().to_string())?;
        options.images = Some(images.to_string_lossy().into_owned());
    }
    Ok(asset)
}

fn folder(path: &Path) -> Result<Asset> {
    if path.join("asset.toml").is_file() {
        return Asset::read(path);
    }
    let entries = sorted(path)?;
    let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) = entries.into_iter().partition(|path| path.is_dir());
    let with = |ending: &str| {
        files.iter().filter(|path| has_ending(path, ending)).cloned().collect::<Vec<PathBuf>>()
    };
    let tars = with("tar");
    if !tars.is_empty() {
        return Ok(shards(path, &tars));
    }
    let bins = with("bin");
    if let Some((_, format)) = bins.iter().find_map(|path| Some((path, cifar(path)?))) {
        let records: Vec<PathBuf> = bins.into_iter().filter(|path| cifar(path) == Some(format)).collect();
        return Ok(parts(path, format, &records));
    }
    let there = |name: &str| files.contains(&path.join(name));
    if let Some((train, test)) = CIFAR_PYTHON.iter().find(|(train, test)| there(train[0]) && there(test)) {
        let batches: Vec<PathBuf> = train.iter().chain([test]).map(|name| path.join(name)).collect();
        return Ok(parts(path, Format::CifarPython, &batches));
    }
    for (ending, format) in [("mat", Format::SvhnMat), ("parquet", Format::Parquet)] {
        let held = with(ending);
        if !held.is_empty() {
            return Ok(parts(path, format, &held));
        }
    }
    let lists: Vec<PathBuf> = [with("jsonl"), with("tsv"), with("json")].concat();
    let annotations = sorted(&path.join("annotations")).unwrap_or_default();
    let list = lists.iter().chain(&annotations).find(|path| {
        let name = name(path);
        has_ending(path, "jsonl") || has_ending(path, "tsv") || is_caption_list(&name)
    });
    if let Some(list) = list {
        return file(list);
    }
    if files.iter().any(|path| is_idx(path, 3)) {
        return idx(path, &files);
    }
    let below = |inner: &str| folders.iter().any(|path| name(path) == inner);
    if below("images") && path.join("labels/train1.txt").is_file() {
        let part = |splits: &[&str]| Part {
            path: Some("images".to_owned()),
            lists: splits.iter().map(|split| format!("labels/{split}1.txt")).collect(),
            ..Part::default()
        };
        return Ok(dataset(path, Format::ClassFolder, part(&["train", "val"]), Some(part(&["test"]))));
    }
    if let Some(zip) = with("zip").first() {
        return file(zip);
    }
    let held = |inner: &str| folders.iter().find(|path| name(path) == inner && holds_classes(path));
    if let (Some(train), Some(test)) = (held("train"), held("test").or(held("val"))) {
        let part = |path: &Path| Part { path: Some(name(path)), ..Part::default() };
        return Ok(dataset(path, Format::ClassFolder, part(train), Some(part(test))));
    }
    if holds_classes(path) {
        let bank = Part { path: Some(String::new()), ..Part::default() };
        return Ok(dataset(path, Format::ClassFolder, bank, None));
    }
    if let Some(weights) = files.iter().find(|path| is_weights(path)) {
        return file(weights);
    }
    if files.iter().any(|path| is_image(path)) {
        bail!(
            "{} holds images without classes or captions; put them into a folder for each class, or write a list \
             with a line {{\"image\": …, \"caption\": …}} for each",
            path.display()
        );
    }
    bail!(
        "{} is in no layout that is known: an asset (asset.toml), a folder for each class, train/ and test/ of these, \
         CIFAR's files, SVHN's, EuroSAT.zip, DTD's, parquet, idx files, a list (jsonl, COCO's json, cc3m's tsv, ImageNet-Captions) or tar shards",
        path.display()
    )
}

fn file(path: &Path) -> Result<Asset> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let paths = vec![name(path)];
    if has_ending(path, "tar") {
        return Ok(shards(folder, &[path.to_owned()]));
    }
    if has_ending(path, "tsv") {
        return Ok(captions(folder, Format::Cc3mTsv, CaptionsManifest { paths, ..Default::default() }));
    }
    if has_ending(path, "jsonl") {
        let mut first = String::new();
        BufReader::new(File::open(path)?).read_line(&mut first)?;
        let line: Value = serde_json::from_str(&first)
            .with_context(|| format!("{}, line 1, is no JSON object", path.display()))?;
        if line.get("caption").or(line.get("captions")).is_none() && line.get("class").is_some() {
            let bank = Part { path: Some(name(path)), ..Part::default() };
            return Ok(dataset(folder, Format::Jsonl, bank, None));
        }
        return Ok(captions(folder, Format::Jsonl, CaptionsManifest { paths, ..Default::default() }));
    }
    if has_ending(path, "json") {
        return json(path, folder);
    }
    if let Some(format) = cifar(path) {
        return Ok(parts(folder, format, &[path.to_owned()]));
    }
    for (ending, format) in [("mat", Format::SvhnMat), ("parquet", Format::Parquet)] {
        if has_ending(path, ending) {
            return Ok(parts(folder, format, &[path.to_owned()]));
        }
    }
    if has_ending(path, "zip") {
        // The folder that holds the classes: EuroSAT's is 2750.
        let members = zip_members(path)?;
        let image = members.iter().find(|(member, _)| is_image(Path::new(member)));
        let image = image.with_context(|| format!("{} holds no images", path.display()))?;
        let above = Path::new(&image.0).ancestors().nth(2).unwrap_or(Path::new(""));
        let (above, archive) = (above.to_string_lossy().into_owned(), Some(name(path)));
        let bank = Part { path: Some(above), archive, ..Part::default() };
        return Ok(dataset(folder, Format::ClassFolder, bank, None));
    }
    // PyTorch's older name for weights is .bin.
    if is_weights(path) || has_ending(path, "bin") {
        return Ok(asset(folder, AssetKind::Weights, Format::Vit, None, None));
    }
    if is_idx(path, 3) {
        return idx(folder, &[path.to_owned(), partner(path)]);
    }
    bail!("{} is no file of a kind that is known", path.display())
}

/// COCO's is an object, ImageNet-Captions a list.
fn json(path: &Path, folder: &Path) -> Result<Asset> {
    let first = BufReader::new(File::open(path)?)
        .bytes()
        .find(|byte| byte.as_ref().map_or(true, |byte| !byte.is_ascii_whitespace()));
    let listed = |folder: &Path, name: String| {
        let options = CaptionsManifest { paths: vec![name], ..Default::default() };
        (folder.to_owned(), options)
    };
    match first.transpose()? {
        Some(b'[') => {
            let (folder, options) = listed(folder, name(path));
            Ok(captions(&folder, Format::ImagenetCaptions, options))
        }
        Some(b'{') => {
            // As COCO is unpacked: annotations/ beside train2017/.
            let above = folder.parent().unwrap_or(folder);
            let (folder, options) = match name(folder).as_str() {
                "annotations" => listed(above, format!("annotations/{}", name(path))),
                _ => listed(folder, name(path)),
            };
            Ok(captions(&folder, Format::CocoCaptions, options))
        }
        _ => bail!("{} is no list of captions", path.display()),
    }
}

/// Files of one format, those of the test set told by their names.
fn parts(folder: &Path, format: Format, files: &[PathBuf]) -> Asset {
    let (test, train): (Vec<_>, Vec<_>) = files.iter().partition(|path| name(path).contains("test"));
    let part = |paths: Vec<&PathBuf>| Part {
        parts: paths.into_iter().map(|path| name(path)).collect(),
        ..Part::default()
    };
    if train.is_empty() || test.is_empty() {
        return dataset(folder, format, part(files.iter().collect()), None);
    }
    dataset(folder, format, part(train), Some(part(test)))
}

fn idx(folder: &Path, files: &[PathBuf]) -> Result<Asset> {
    let mut parts = Vec::new();
    for images in files.iter().filter(|path| is_idx(path, 3)) {
        let labels = partner(images);
        ensure!(labels.is_file(), "{} has no labels: {} is not there", images.display(), labels.display());
        parts.push(Part { path: Some(name(images)), labels: Some(name(&labels)), ..Part::default() });
    }
    // `train-…` after `t10k-…` by name; the larger one is the bank.
    parts.sort_by_key(|part| !part.path.as_ref().is_some_and(|path| path.starts_with("train")));
    let mut parts = parts.into_iter();
    let bank = parts.next().context("there are no images")?;
    Ok(dataset(folder, Format::Idx, bank, parts.next()))
}

/// The labels that go with images of MNIST's naming.
fn partner(images: &Path) -> PathBuf {
    images.with_file_name(
        name(images).replace("images-idx3", "labels-idx1").replace("images.idx3", "labels.idx1"),
    )
}

fn shards(folder: &Path, tars: &[PathBuf]) -> Asset {
    let paths = tars.iter().map(|path| name(path)).collect();
    captions(folder, Format::Webdataset, CaptionsManifest { paths, ..Default::default() })
}

fn captions(folder: &Path, format: Format, options: CaptionsManifest) -> Asset {
    asset(folder, AssetKind::Captions, format, None, Some(options))
}

fn dataset(folder: &Path, format: Format, bank: Part, query: Option<Part>) -> Asset {
    let leave_one_out = query.is_none();
    let manifest = DatasetManifest { leave_one_out, classes: None, label: Label::Fine, bank, query };
    asset(folder, AssetKind::Dataset, format, Some(manifest), None)
}

fn asset(
    folder: &Path,
    kind: AssetKind,
    format: Format,
    dataset: Option<DatasetManifest>,
    captions: Option<CaptionsManifest>,
) -> Asset {
    let folder = folder.to_owned();
    let named = folder.canonicalize().unwrap_or_else(|_| folder.clone());
    let manifest = Manifest {
        name: name(&named),
        kind,
        format,
        title: String::new(),
        licence: String::new(),
        source: String::new(),
        files: Vec::new(),
        dataset,
        captions,
    };
    Asset { folder, manifest, digest: String::new() }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending))
}

fn is_weights(path: &Path) -> bool {
    WEIGHTS.iter().any(|ending| has_ending(path, ending))
}

fn is_caption_list(name: &str) -> bool {
    let known = ["dataset_coco.json", "imagenet_captions.json"];
    known.contains(&name) || (name.starts_with("captions") && name.ends_with(".json"))
}

/// Whole records, the first of which begins with a label.
fn cifar(path: &Path) -> Option<Format> {
    let mut label = [0u8];
    let length = path.metadata().ok().filter(|metadata| metadata.len() > 0)?.len();
    File::open(path).and_then(|mut file| file.read_exact(&mut label)).ok()?;
    let fits =
        |(record, classes, _): &&(u64, u8, Format)| length.is_multiple_of(*record) && label[0] < *classes;
    let (_, _, format) = CIFAR.iter().filter(|_| has_ending(path, "bin")).find(fits)?;
    Some(*format)
}

/// The magic number of idx, behind gzip or not.
fn is_idx(path: &Path, dimensions: u8) -> bool {
    let mut magic = [0u8; 4];
    let Ok(mut file) = File::open(path) else { return false };
    if has_ending(path, "gz") {
        return flate2::read::GzDecoder::new(file).read_exact(&mut magic).is_ok()
            && magic == [0, 0, 8, dimensions];
    }
    file.read_exact(&mut magic).is_ok() && magic == [0, 0, 8, dimensions]
}

/// Folders, and images in the first of them.
fn holds_classes(path: &Path) -> bool {
    let folders = sorted(path).unwrap_or_default().into_iter().filter(|path| path.is_dir());
    folders.take(1).any(|class| sorted(&class).unwrap_or_default().iter().any(|path| is_image(path)))
}
