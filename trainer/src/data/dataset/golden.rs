//! The official formats: every file of `goldens/datasets/`, made by `goldens/datasets.py` with numpy, scipy, pyarrow,
//! pickle and Pillow, is read to the same classes, labels and pixels; damaged ones are refused with their names. The
//! manifests are the shipped ones wherever there is one.

use super::super::asset::Asset;
use super::*;
use crate::data::archive::zip_members;
use crate::data::fetch::catalogue;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What Python read: classes, then label and first half of the pixels' digest of each image.
#[derive(Deserialize)]
struct Expected {
    classes: Vec<String>,
    bank: Vec<(u32, String)>,
    query: Vec<(u32, String)>,
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/datasets")
}

/// A folder with some of the files.
fn folder(files: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        fs::copy(goldens().join(file), folder.path().join(file)).unwrap();
    }
    folder
}

/// The same, with a tar.gz unpacked.
fn unpacked(archive: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let file = fs::File::open(goldens().join(archive)).unwrap();
    ::tar::Archive::new(flate2::read::GzDecoder::new(file)).unpack(folder.path()).unwrap();
    folder
}

fn list(folder: &Path, manifest: &str) -> Result<Dataset> {
    fs::write(folder.join("asset.toml"), manifest).unwrap();
    Dataset::list(&Asset::read(folder)?)
}

fn shipped(name: &str) -> String {
    catalogue().into_iter().find(|set| set.name == name).unwrap().manifest
}

fn told(images: &[Labelled]) -> Vec<(u32, String)> {
    let one =
        |image: &Labelled| (image.label, image.source.decode().unwrap().pixel_digest()[..32].to_owned());
    images.iter().map(one).collect()
}

fn same(name: &str, dataset: &Dataset) {
    let text = fs::read_to_string(goldens().join("expected.json")).unwrap();
    let mut expected: BTreeMap<String, Expected> = serde_json::from_str(&text).unwrap();
    let expected = expected.remove(name).unwrap();
    assert_eq!(dataset.classes, expected.classes, "{name}");
    assert_eq!(told(&dataset.bank), expected.bank, "{name}");
    assert_eq!(told(dataset.query.as_deref().unwrap_or_default()), expected.query, "{name}");
}

fn error(result: Result<Dataset>) -> String {
    format!("{:#}", result.unwrap_err())
}

fn binary(format: &str, folder: &str, bank: &[&str], query: &str) -> String {
    let bank: Vec<String> = bank.iter().map(|file| format!("\"{folder}/{file}\"")).collect();
    format!(
        "name = \"t\"\nkind = \"dataset\"\nformat = \"{format}\"\ntitle = \"T\"\nlicence = \"\"\nsource = \"\"\n\
         [dataset]\nlabel = \"fine\"\n[dataset.bank]\nparts = [{}]\n[dataset.query]\nparts = [\"{folder}/{query}\"]\n",
        bank.join(", ")
    )
}

/// `manifest` with the files of both parts in an archive.
fn packed(manifest: &str, archive: &str) -> String {
    manifest.replace("\nparts", &format!("\narchive = \"{archive}\"\nparts"))
}

const BATCHES: [&str; 5] =
    ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"];

#[test]
fn cifar_is_read_as_pickles_and_as_records_from_folders_and_archives() {
    for name in ["cifar10", "cifar100"] {
        let archive = name.replace("cifar", "cifar-") + "-python.tar.gz";
        same(name, &list(unpacked(&archive).path(), &shipped(name)).unwrap());
        same(name, &list(folder(&[&archive]).path(), &packed(&shipped(name), &archive)).unwrap());
    }
    let ten = binary("cifar10-binary", "cifar-10-batches-bin", &BATCHES, "test_batch.bin");
    let hundred = binary("cifar100-binary", "cifar-100-binary", &["train.bin"], "test.bin");
    for (name, manifest) in [("cifar10", ten), ("cifar100", hundred.clone())] {
        let archive = name.replace("cifar", "cifar-") + "-binary.tar.gz";
        same(name, &list(unpacked(&archive).path(), &manifest).unwrap());
        same(name, &list(folder(&[&archive]).path(), &packed(&manifest, &archive)).unwrap());
    }
    let coarse = shipped("cifar100-coarse").replace("../cifar100/", "");
    same("cifar100-coarse", &list(unpacked("cifar-100-python.tar.gz").path(), &coarse).unwrap());
    let coarse = hundred.replace("fine", "coarse");
    same("cifar100-coarse", &list(unpacked("cifar-100-binary.tar.gz").path(), &coarse).unwrap());
}

#[test]
fn damaged_cifar_is_named() {
    let folder = unpacked("cifar-10-python.tar.gz");
    let batch = folder.path().join("cifar-10-batches-py/data_batch_2");
    let whole = fs::read(&batch).unwrap();
    let after = |bytes: &[u8]| {
        fs::write(&batch, bytes).unwrap();
        error(list(folder.path(), &shipped("cifar10")))
    };
    let found = after(&whole[..whole.len() / 2]);
    assert!(found.contains("data_batch_2") && found.contains("cut short"), "{found}");
    // The label 4 of `labels` becomes 11.
    let at = whole
        .windows(6)
        .position(|part| part == b"K\x01K\x04e.")
        .or_else(|| whole.windows(5).position(|part| part == b"K\x01K\x04e"));
    let mut wrong = whole.clone();
    wrong[at.unwrap() + 3] = 11;
    let found = after(&wrong);
    assert!(
        found.contains("data_batch_2") && found.contains("image 1: the label is 11, of 10 classes"),
        "{found}"
    );
    // A shape of three images, and a dtype of two bytes.
    let swap = |from: &[u8], to: &[u8]| {
        let at = whole.windows(from.len()).position(|part| part == from).unwrap();
        [&whole[..at], to, &whole[at + from.len()..]].concat()
    };
    let found = after(&swap(b"K\x02M\x00\x0c", b"K\x03M\x00\x0c"));
    assert!(found.contains("its shape is [3, 3072] but it holds 6144 values"), "{found}");
    let found = after(&swap(b"u1", b"u2"));
    assert!(found.contains("it holds u2, not bytes"), "{found}");
    let found = after(b"cos\nsystem\n(S'true'\ntR.");
    assert!(found.contains("it has no fine labels"), "{found}");

    let folder = unpacked("cifar-100-binary.tar.gz");
    let manifest = binary("cifar100-binary", "cifar-100-binary", &["train.bin"], "test.bin");
    let train = folder.path().join("cifar-100-binary/train.bin");
    let mut bytes = fs::read(&train).unwrap();
    bytes[3074 + 1] = 100;
    fs::write(&train, &bytes).unwrap();
    let found = error(list(folder.path(), &manifest));
    assert!(found.contains("train.bin, record 1: the label is 100, of 100 classes"), "{found}");
    fs::write(&train, &bytes[..3073 * 4]).unwrap();
    let found = error(list(folder.path(), &manifest));
    assert!(found.contains("no multiple of 3074"), "{found}");
    let found = error(list(folder.path(), &packed(&manifest, "cifar-100-binary.tar.gz")));
    assert!(found.contains("cifar-100-binary.tar.gz; is it complete?"), "{found}");
}

#[test]
fn svhn_is_read_in_columns_and_ten_is_zero() {
    let folder = folder(&["train_32x32.mat", "test_32x32.mat"]);
    same("svhn", &list(folder.path(), &shipped("svhn")).unwrap());
    let (train, test) = (folder.path().join("train_32x32.mat"), folder.path().join("test_32x32.mat"));
    let whole = fs::read(&train).unwrap();
    for cut in [whole.len() - 30, 400, 130, 20] {
        fs::write(&train, &whole[..cut]).unwrap();
        let found = error(list(folder.path(), &shipped("svhn")));
        assert!(found.contains("train_32x32.mat; is it one of SVHN's"), "{cut}: {found}");
    }
    fs::write(&train, &whole).unwrap();
    // The labels 10 and 7 as doubles, unpacked, at the end of the file.
    let mut bytes = fs::read(&test).unwrap();
    let at = bytes.windows(8).position(|part| part == 7f64.to_le_bytes()).unwrap();
    bytes[at..at + 8].copy_from_slice(&11f64.to_le_bytes());
    fs::write(&test, &bytes).unwrap();
    let found = error(list(folder.path(), &shipped("svhn")));
    assert!(
        found.contains("test_32x32.mat") && found.contains("image 1: the label is 11, not 1 to 10"),
        "{found}"
    );
    fs::write(&test, b"\x89HDF\r\n").unwrap();
    let found = error(list(folder.path(), &shipped("svhn")));
    assert!(found.contains("it is no MATLAB 5 file"), "{found}");
}

#[test]
fn eurosat_is_read_in_its_zip_by_lists_and_by_shares() {
    let folder = folder(&["EuroSAT.zip", "eurosat-train.txt", "eurosat-test.txt"]);
    let dataset = list(folder.path(), &shipped("eurosat")).unwrap();
    same("eurosat", &dataset);
    assert_eq!(dataset.title, "EuroSAT RGB");
    let seeded = list(folder.path(), &shipped("eurosat-seeded").replace("../eurosat/", "")).unwrap();
    // Three and one of the five images of each of ten classes, never the same.
    assert_eq!((seeded.bank.len(), seeded.queries().len()), (30, 10));
    assert_eq!(seeded.queries_per_class(), [1; 10]);
    assert!(seeded.queries().iter().all(|query| !seeded.bank.contains(query)));
    assert!(seeded.title.contains("60/20/20 of each class by SplitMix64, seed 0"), "{}", seeded.title);

    // As a folder too, in the same order.
    let members = zip_members(&goldens().join("EuroSAT.zip")).unwrap();
    assert_eq!(members.len(), 50);
    for (name, source) in members {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, source.encoded().unwrap()).unwrap();
    }
    let in_folder = shipped("eurosat").replace("archive = \"EuroSAT.zip\"\n", "");
    same("eurosat", &list(folder.path(), &in_folder).unwrap());

    fs::write(folder.path().join("eurosat-test.txt"), "Forest_5.jpg\nForest_9.jpg\n").unwrap();
    let found = error(list(folder.path(), &shipped("eurosat")));
    assert!(found.contains("eurosat-test.txt, line 2: the image Forest_9.jpg is not there"), "{found}");
    fs::write(folder.path().join("eurosat-test.txt"), "Forest_5.jpg\nForest/Forest_5.jpg\n").unwrap();
    let found = error(list(folder.path(), &shipped("eurosat")));
    assert!(
        found.contains("line 2: the image Forest/Forest_5.jpg is also in") && found.contains("line 1"),
        "{found}"
    );
    fs::write(folder.path().join("EuroSAT.zip"), &fs::read(goldens().join("EuroSAT.zip")).unwrap()[..9000])
        .unwrap();
    let found = error(list(folder.path(), &shipped("eurosat")));
    assert!(found.contains("EuroSAT.zip; is it complete?"), "{found}");
}

#[test]
fn dtd_has_ten_partitions_in_the_order_of_its_lists() {
    let folder = unpacked("dtd-r1.0.1.tar.gz");
    same("dtd", &list(folder.path(), &shipped("dtd")).unwrap());
    same("dtd-3", &list(folder.path(), &shipped("dtd-3").replace("../dtd/", "")).unwrap());
    let digest = |name: &str| {
        let manifest = shipped(name).replace("../dtd/", "");
        list(folder.path(), &manifest).unwrap().digest().unwrap()
    };
    assert_ne!(digest("dtd"), digest("dtd-3"), "a partition is a dataset of its own");
    fs::remove_file(folder.path().join("dtd/labels/val10.txt")).unwrap();
    let found = error(list(folder.path(), &shipped("dtd-10").replace("../dtd/", "")));
    assert!(found.contains("val10.txt; is the dataset complete?"), "{found}");
}

const PARQUET: &str = "name = \"t\"\nkind = \"dataset\"\nformat = \"parquet\"\ntitle = \"T\"\nlicence = \"\"\n\
    source = \"\"\n[dataset.bank]\nparts = [\"train-00000-of-00002.parquet\", \"train-00001-of-00002.parquet\"]\n\
    [dataset.query]\nparts = [\"test-00000-of-00001.parquet\"]\n";

#[test]
fn parquet_holds_the_images_of_the_binary_files_in_any_order_of_reading() {
    let files =
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"];
    let folder = folder(&files);
    let dataset = list(folder.path(), PARQUET).unwrap();
    same("cifar10", &dataset);
    let forwards = told(&dataset.bank);
    let again = list(folder.path(), PARQUET).unwrap();
    let backwards: Vec<Labelled> = again.bank.iter().rev().cloned().collect();
    assert!(told(&backwards).iter().rev().eq(&forwards));

    let whole = fs::read(folder.path().join(files[1])).unwrap();
    fs::write(folder.path().join(files[1]), &whole[..whole.len() - 9]).unwrap();
    let found = error(list(folder.path(), PARQUET));
    assert!(found.contains("train-00001-of-00002.parquet") && found.contains("was cut off"), "{found}");
    let other = goldens().join("two-labels.parquet");
    fs::copy(other, folder.path().join(files[1])).unwrap();
    let found = error(list(folder.path(), PARQUET));
    assert!(found.contains("names other classes than train-00000-of-00002.parquet"), "{found}");
}

#[test]
fn parquet_with_two_labels_gives_the_one_that_is_asked_for() {
    let folder = folder(&["two-labels.parquet", "train-00000-of-00002.parquet"]);
    let manifest = |file: &str, label: &str| {
        format!(
            "name = \"t\"\nkind = \"dataset\"\nformat = \"parquet\"\ntitle = \"T\"\nlicence = \"\"\nsource = \"\"\n\
             [dataset]\nleave_one_out = true\nlabel = \"{label}\"\n[dataset.bank]\nparts = [\"{file}\"]\n"
        )
    };
    same("two-labels", &list(folder.path(), &manifest("two-labels.parquet", "fine")).unwrap());
    same("two-labels-coarse", &list(folder.path(), &manifest("two-labels.parquet", "coarse")).unwrap());
    let found = error(list(folder.path(), &manifest("train-00000-of-00002.parquet", "coarse")));
    assert!(found.contains("no column coarse_label; it has img.bytes, img.path, label"), "{found}");
}

#[test]
fn fashion_mnist_is_read_as_it_is_served() {
    let files = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"];
    let files = files.map(|file| format!("{file}-ubyte.gz"));
    let folder = folder(&files.each_ref().map(String::as_str));
    same("fashion-mnist", &list(folder.path(), &shipped("fashion-mnist")).unwrap());
    fs::copy(folder.path().join(&files[3]), folder.path().join(&files[1])).unwrap();
    let found = error(list(folder.path(), &shipped("fashion-mnist")));
    assert!(found.contains("holds 10 images but") && found.contains("holds 2 labels"), "{found}");
}

#[test]
fn jpeg_is_decoded_to_the_bytes_that_pillow_gives() {
    let folder = folder(&["jpeg.zip"]);
    let manifest = "name = \"t\"\nkind = \"dataset\"\nformat = \"class-folder\"\ntitle = \"T\"\nlicence = \"\"\n\
        source = \"\"\n[dataset]\nleave_one_out = true\n[dataset.bank]\narchive = \"jpeg.zip\"\npath = \"\"\n";
    same("jpeg", &list(folder.path(), manifest).unwrap());
}

#[test]
fn a_field_that_the_format_does_not_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (manifest, part) in [
        (
            PARQUET.replace("[dataset.query]", "[dataset.query]\nlists = [\"a\"]"),
            "`lists` means nothing for the format parquet",
        ),
        (
            shipped("svhn").replace("[dataset.bank]", "[dataset]\nlabel = \"coarse\"\n[dataset.bank]"),
            "label = \"coarse\" goes with",
        ),
        (
            shipped("dtd").replacen("path =", "shares = [\"train\"]\npath =", 1),
            "`lists` and `shares` both choose",
        ),
        (shipped("eurosat-seeded").replace("\"test\"", "\"train\""), "the share Train is given twice"),
    ] {
        let found = error(list(folder.path(), &manifest));
        assert!(found.contains(part), "{found}");
    }
}
