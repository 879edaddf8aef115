//! Each layout as a person may have it, without a manifest; damaged, doubled and leaked images.

use super::*;
use ::image::{GrayImage, ImageFormat, Luma};
use serde_json::json;
use std::fs;
use tempfile::TempDir;

/// An image that differs from that of every other number.
fn picture(number: u8) -> GrayImage {
    GrayImage::from_fn(16, 12, |x, y| {
        Luma([number.wrapping_mul(37).wrapping_add((x * 9 + y * u32::from(number)) as u8)])
    })
}

fn write(folder: &TempDir, path: &str, number: u8) {
    let path = folder.path().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    picture(number).save_with_format(path, ImageFormat::Png).unwrap();
}

fn check(path: &Path, against: &[&Path]) -> Result<Report> {
    let against = against.iter().map(|path| path.to_path_buf()).collect();
    Check { path: path.to_owned(), images: None, against, json: false, threads: 2 }.look()
}

fn classes() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, number) in [
        ("train/a/1.png", 1),
        ("train/a/2.png", 2),
        ("train/b/3.png", 3),
        ("test/a/4.png", 4),
        ("test/b/2.png", 2),
    ] {
        write(&folder, path, number);
    }
    folder
}

#[test]
fn class_folders_are_counted_with_sizes_and_doubles() {
    let folder = classes();
    let report = check(folder.path(), &[]).unwrap();
    assert_eq!((report.kind, report.format, report.images), ("dataset", Format::ClassFolder, 5));
    assert_eq!(report.classes, [("a".to_owned(), 3), ("b".to_owned(), 2)]);
    assert_eq!(report.sizes, Some(Sizes { width: [16; 3], height: [12; 3] }));
    assert_eq!((report.duplicates.count, report.queries_in_bank), (1, 1));
    assert!(report.duplicates.names[0].contains("test/b/2.png = "), "{:?}", report.duplicates);
    assert!(report.good && report.digest.is_some());
    let text = print::report(&report);
    for part in ["holds       dataset", "      3 a", "1 scored images are also neighbours"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let only = check(&folder.path().join("train"), &[]).unwrap();
    assert_eq!((only.images, only.queries_in_bank), (3, 0));
}

#[test]
fn every_unreadable_image_is_told() {
    let folder = classes();
    for name in ["train/a/5.png", "test/b/6.jpg"] {
        fs::write(folder.path().join(name), "no image").unwrap();
    }
    let report = check(folder.path(), &[]).unwrap();
    assert_eq!((report.images, report.unreadable.count, report.good), (7, 2, false));
    assert!(report.unreadable.names.iter().any(|name| name.contains("6.jpg cannot be decoded")));
    assert_eq!(report.digest, None);
    assert!(serde_json::to_string(&report).unwrap().contains("\"format\":\"class-folder\""));
}

#[test]
fn a_list_of_captions_is_told_with_examples_and_leaks() {
    let folder = tempfile::tempdir().unwrap();
    let mut lines = String::new();
    for number in [2, 7, 8] {
        write(&folder, &format!("{number}.png"), number);
        lines +=
            &json!({"image": format!("{number}.png"), "caption": format!("number {number}")}).to_string();
        lines += "\n";
    }
    fs::write(folder.path().join("list.jsonl"), &lines).unwrap();
    let report = check(folder.path(), &[]).unwrap();
    let captions = report.captions.as_ref().unwrap();
    assert_eq!((captions.distinct, captions.mean_words, captions.listed), (3, 2.0, 3));
    assert_eq!(captions.examples[0], "number 2");
    assert!(report.good);

    let dataset = classes();
    let report = check(&folder.path().join("list.jsonl"), &[dataset.path()]).unwrap();
    assert!(!report.good);
    assert_eq!(report.leaks[0].exact.count, 2, "2.png is in the bank and in the query part");
    assert!(print::report(&report).contains("2 images are also in"));

    fs::write(folder.path().join("list.jsonl"), lines.replace("7.png", "9.png")).unwrap();
    let report = check(folder.path(), &[]).unwrap();
    assert_eq!((report.missing.count, report.good), (1, false));
}

#[test]
fn files_without_a_manifest_are_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let mut records = vec![1u8; 2 * 3073];
    records[3073] = 0;
    records[4000] = 9;
    fs::write(folder.path().join("data_batch_1.bin"), &records).unwrap();
    fs::write(folder.path().join("test_batch.bin"), &records[..3073]).unwrap();
    let report = check(folder.path(), &[]).unwrap();
    assert_eq!((report.format, report.images, report.classes.len()), (Format::Cifar10Binary, 3, 2));

    let folder = tempfile::tempdir().unwrap();
    let images = [&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2][..], &[1, 2, 3, 4]].concat();
    fs::write(folder.path().join("train-images-idx3-ubyte"), images).unwrap();
    let without = check(folder.path(), &[]).unwrap_err().to_string();
    assert!(without.contains("train-labels-idx1-ubyte is not there"), "{without}");
    fs::write(folder.path().join("train-labels-idx1-ubyte"), [0, 0, 8, 1, 0, 0, 0, 2, 0, 1]).unwrap();
    let report = check(folder.path(), &[]).unwrap();
    assert_eq!((report.format, report.images), (Format::Idx, 2));

    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.safetensors"), "x").unwrap();
    assert_eq!(check(folder.path(), &[]).unwrap().kind, "weights");
    write(&folder, "a.png", 1);
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let error = check(folder.path(), &[]).unwrap_err().to_string();
    assert!(error.contains("without classes or captions"), "{error}");
    let error = check(&folder.path().join("nothing"), &[]).unwrap_err().to_string();
    assert!(error.contains("nothing is not there"), "{error}");
}

#[test]
fn coco_as_it_is_unpacked_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut images = Vec::new();
    let mut annotations = Vec::new();
    for id in [1u8, 2] {
        write(&folder, &format!("val2017/{id}.png"), id);
        images.push(json!({"id": id, "file_name": format!("{id}.png")}));
        annotations.push(json!({"id": id, "image_id": id, "caption": format!("c {id}")}));
    }
    fs::create_dir(folder.path().join("annotations")).unwrap();
    let document = json!({"images": images, "annotations": annotations}).to_string();
    fs::write(folder.path().join("annotations/captions_val2017.json"), document).unwrap();
    let report = check(folder.path(), &[]).unwrap();
    assert_eq!((report.format, report.images), (Format::CocoCaptions, 2));
}

/// Every official layout, from the goldens, without a manifest.
#[test]
fn the_official_layouts_are_known_without_a_manifest() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/datasets");
    let archives = [
        ("cifar-10-python.tar.gz", "cifar-10-batches-py", Format::CifarPython, 12),
        ("cifar-10-binary.tar.gz", "cifar-10-batches-bin", Format::Cifar10Binary, 12),
        ("cifar-100-python.tar.gz", "cifar-100-python", Format::CifarPython, 102),
        ("cifar-100-binary.tar.gz", "cifar-100-binary", Format::Cifar100Binary, 102),
        ("dtd-r1.0.1.tar.gz", "dtd", Format::ClassFolder, 12),
    ];
    for (archive, inner, format, images) in archives {
        let folder = tempfile::tempdir().unwrap();
        let file = fs::File::open(goldens.join(archive)).unwrap();
        ::tar::Archive::new(flate2::read::GzDecoder::new(file)).unpack(folder.path()).unwrap();
        let report = check(&folder.path().join(inner), &[]).unwrap();
        assert_eq!((report.format, report.images, report.good), (format, images, true), "{archive}");
    }
    for (files, format, images) in [
        (&["train_32x32.mat", "test_32x32.mat"][..], Format::SvhnMat, 13),
        (&["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], Format::Parquet, 10),
        (&["EuroSAT.zip"], Format::ClassFolder, 50),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            fs::copy(goldens.join(file), folder.path().join(file)).unwrap();
        }
        let report = check(folder.path(), &[]).unwrap();
        assert_eq!((report.format, report.images, report.good), (format, images, true), "{files:?}");
        assert_eq!(report.classes.len(), 10, "{files:?}");
    }
}
