//! Each format on tiny files made here, and the errors of files that are damaged or do not fit.

use super::super::asset::Asset;
use super::super::captions::Captions;
use super::*;
use ::image::{GrayImage, ImageFormat, Luma, Rgba, RgbaImage};
use flate2::{Compression, write::GzEncoder};
use std::io::Write;
use std::path::Path;

/// An asset of one format; `dataset` is what follows the common head.
fn asset(folder: &Path, kind: &str, format: &str, dataset: &str) -> Asset {
    let head = format!(
        "name = \"tiny\"\nkind = \"{kind}\"\nformat = \"{format}\"\ntitle = \"Tiny\"\nlicence = \"MIT\"\nsource = \"test\"\n"
    );
    std::fs::write(folder.join("asset.toml"), head + dataset).unwrap();
    Asset::read(folder).unwrap()
}

fn listing_error(folder: &Path, format: &str, dataset: &str) -> String {
    format!("{:#}", Dataset::list(&asset(folder, "dataset", format, dataset)).unwrap_err())
}

fn labels(images: &[Labelled]) -> Vec<u32> {
    images.iter().map(|image| image.label).collect()
}

fn idx_file(dims: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    dims.iter().for_each(|dim| bytes.extend(dim.to_be_bytes()));
    bytes.extend(values);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const IDX: &str = "[dataset]\n[dataset.bank]\npath = \"images.gz\"\nlabels = \"labels\"\n\
                   [dataset.query]\npath = \"images.gz\"\nlabels = \"labels\"\n";

#[test]
fn idx_is_read_plain_and_gzipped() {
    let folder = tempfile::tempdir().unwrap();
    let images = idx_file(&[3, 1, 2], &[10, 20, 30, 40, 50, 60]);
    std::fs::write(folder.path().join("images.gz"), gzip(&images)).unwrap();
    std::fs::write(folder.path().join("labels"), idx_file(&[3], &[1, 0, 1])).unwrap();
    let dataset = Dataset::list(&asset(folder.path(), "dataset", "idx", IDX)).unwrap();
    assert_eq!(labels(&dataset.bank), [1, 0, 1]);
    assert_eq!(dataset.classes, ["0", "1"]);
    assert_eq!(dataset.queries()[1].source.decode().unwrap().pixels, [30, 30, 30, 40, 40, 40]);
    assert_eq!(dataset.images().count(), 6);

    std::fs::write(folder.path().join("images.gz"), &images[..images.len() - 1]).unwrap();
    let error = listing_error(folder.path(), "idx", IDX);
    assert!(error.contains("promises [3, 1, 2] values, it holds 5"), "{error}");
    std::fs::write(folder.path().join("images.gz"), &gzip(&images)[..20]).unwrap();
    let error = listing_error(folder.path(), "idx", IDX);
    assert!(error.contains("images.gz; is the file complete?"), "{error}");
}

const CIFAR: &str =
    "[dataset]\nleave_one_out = true\nclasses = [\"cat\", \"dog\"]\n[dataset.bank]\nparts = [\"a.bin\"]\n";

#[test]
fn cifar10_records_are_label_and_three_planes() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = vec![1u8];
    bytes.extend((0..3072).map(|at| (at / 1024 * 100) as u8));
    bytes.extend(vec![0u8; 3073]);
    std::fs::write(folder.path().join("a.bin"), &bytes).unwrap();
    let dataset = Dataset::list(&asset(folder.path(), "dataset", "cifar10-binary", CIFAR)).unwrap();
    assert_eq!(labels(&dataset.bank), [1, 0]);
    let image = dataset.bank[0].source.decode().unwrap();
    assert_eq!((image.width, image.height, &image.pixels[..3]), (32, 32, &[0, 100, 200][..]));

    std::fs::write(folder.path().join("a.bin"), &bytes[..5000]).unwrap();
    let error = listing_error(folder.path(), "cifar10-binary", CIFAR);
    assert!(error.contains("a.bin has 5000 bytes, which is no multiple of 3073"), "{error}");
}

fn png(path: &Path, value: u8) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    GrayImage::from_pixel(2, 2, Luma([value])).save(path).unwrap();
}

const FOLDERS: &str = "[dataset]\n[dataset.bank]\npath = \"train\"\n[dataset.query]\npath = \"test\"\n";

#[test]
fn class_folders_are_labelled_by_sorted_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in
        [("train/b/1.png", 1), ("train/a/2.png", 2), ("train/a/10.png", 3), ("test/b/x.PNG", 4)]
    {
        png(&folder.path().join(name), value);
    }
    std::fs::write(folder.path().join("train/a/README"), "not an image").unwrap();
    let dataset = Dataset::list(&asset(folder.path(), "dataset", "class-folder", FOLDERS)).unwrap();
    assert_eq!(dataset.classes, ["a", "b"]);
    assert_eq!(labels(&dataset.bank), [0, 0, 1]);
    assert_eq!(labels(dataset.queries()), [1]);
    let first = dataset.bank[0].source.decode().unwrap();
    assert_eq!(first.pixels[0], 3, "10.png comes before 2.png");

    png(&folder.path().join("test/c/1.png"), 5);
    let error = listing_error(folder.path(), "class-folder", FOLDERS);
    assert!(error.contains("class `c` has no image in the bank"), "{error}");
    std::fs::remove_file(folder.path().join("test/c/1.png")).unwrap();
    let error = listing_error(folder.path(), "class-folder", FOLDERS);
    assert!(error.contains("test/c holds no image"), "{error}");
}

/// A list of two PNGs, one of them half transparent red.
fn jsonl(folder: &Path) {
    let mut lines = String::new();
    for (name, alpha, class) in [("r.png", 127, "z"), ("s.png", 255, "y")] {
        let path = folder.join(name);
        RgbaImage::from_pixel(2, 2, Rgba([255, 0, 0, alpha]))
            .save_with_format(&path, ImageFormat::Png)
            .unwrap();
        let sha256 = crate::data::asset::file_sha256(&path).unwrap();
        lines += &format!(
            "{{\"image\": \"{name}\", \"sha256\": \"{sha256}\", \"caption\": \"Red.\", \"class\": \"{class}\"}}\n"
        );
    }
    std::fs::write(folder.join("images.jsonl"), lines).unwrap();
}

const JSONL: &str = "[dataset]\nleave_one_out = true\n[dataset.bank]\npath = \"images.jsonl\"\n";

#[test]
fn a_list_names_images_by_digest() {
    let folder = tempfile::tempdir().unwrap();
    jsonl(folder.path());
    let dataset = Dataset::list(&asset(folder.path(), "dataset", "jsonl", JSONL)).unwrap();
    assert_eq!((dataset.classes.join(" "), labels(&dataset.bank)), ("y z".to_owned(), vec![1, 0]));
    assert_eq!(dataset.bank[0].source.decode().unwrap().pixels[..3], [255, 128, 128]);
    dataset.digest().unwrap();

    GrayImage::from_pixel(2, 2, Luma([9])).save(folder.path().join("s.png")).unwrap();
    let error = format!("{:#}", dataset.digest().unwrap_err());
    assert!(error.contains("s.png is damaged"), "{error}");

    let unlisted = JSONL.replace("leave_one_out = true", "leave_one_out = true\nclasses = [\"y\"]");
    let error = listing_error(folder.path(), "jsonl", &unlisted);
    assert!(error.contains("class `z` is not among `classes`"), "{error}");
    std::fs::write(folder.path().join("images.jsonl"), "\n").unwrap();
    let error = listing_error(folder.path(), "jsonl", JSONL);
    assert!(error.contains("images.jsonl is empty"), "{error}");
}

#[test]
fn equal_captions_share_a_row() {
    let folder = tempfile::tempdir().unwrap();
    jsonl(folder.path());
    let path = folder.path().join("images.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::copy(folder.path().join("r.png"), folder.path().join("t.png")).unwrap();
    let first = text.lines().next().unwrap();
    let third = first.replace("r.png", "t.png").replace("Red.", "A red square.");
    std::fs::write(&path, format!("{text}{third}\n")).unwrap();
    let captions = Captions::list(&asset(folder.path(), "captions", "jsonl", "")).unwrap();
    assert_eq!(captions.rows, [0, 0, 1]);
    assert_eq!(captions.distinct, ["Red.", "A red square."]);
}

#[test]
fn a_subset_is_balanced_decided_by_its_seed_and_another_dataset() {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<u8> = (0..60).collect();
    std::fs::write(folder.path().join("images"), idx_file(&[60, 1, 1], &values)).unwrap();
    let classes: Vec<u8> = values.iter().map(|value| value % 3).collect();
    std::fs::write(folder.path().join("labels"), idx_file(&[60], &classes)).unwrap();
    let list = |extra: &str| {
        let text = format!(
            "[dataset]\nleave_one_out = true\n[dataset.bank]\npath = \"images\"\nlabels = \"labels\"\n{extra}"
        );
        Dataset::list(&asset(folder.path(), "dataset", "idx", &text))
    };
    let (whole, one) = (list("").unwrap(), list("per_class = 4\nseed = 1").unwrap());
    let (again, other) = (list("per_class = 4\nseed = 1").unwrap(), list("per_class = 4\nseed = 2").unwrap());
    assert_eq!(one, again);
    for label in 0..3 {
        assert_eq!(labels(&one.bank).iter().filter(|found| **found == label).count(), 4);
    }
    let digests: BTreeSet<String> = [&whole, &one, &other].map(|dataset| dataset.digest().unwrap()).into();
    assert_eq!(digests.len(), 3);
    let error = format!("{:#}", list("per_class = 21").unwrap_err());
    assert!(error.contains("the class `0` has 20 images"), "{error}");
}

#[test]
fn the_digest_depends_on_labels_and_split() {
    let folder = tempfile::tempdir().unwrap();
    jsonl(folder.path());
    let mut dataset = Dataset::list(&asset(folder.path(), "dataset", "jsonl", JSONL)).unwrap();
    let alone = dataset.digest().unwrap();
    dataset.query = Some(Vec::new());
    let split = dataset.digest().unwrap();
    dataset.query = None;
    dataset.bank[0].label = 0;
    assert_ne!(alone, split);
    assert_ne!(alone, dataset.digest().unwrap());
}
