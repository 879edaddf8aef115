use super::*;
use crate::models::vit::{Activation, tiny, tiny_clip};
use crate::weights::interpolate::Line;
use crate::weights::{Backbone, bitwise_equal, memory};
use std::fs;
use std::io::Write;
use std::path::PathBuf;

/// A file that `goldens/pickle/make.py` made.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("goldens/pickle").join(name)
}

fn error(path: &Path, key: Option<&str>) -> String {
    format!("{:#}", read(path, key).unwrap_err())
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(&tensor.flatten(0, -1).to_kind(Kind::Double)).unwrap()
}

#[test]
fn tensors_are_what_torch_saved_whatever_their_strides_and_dtypes() {
    let file = read(&fixture("flat.pth"), None).unwrap();
    assert!(!file.torchscript && file.others.is_empty());
    let tensors = &file.contents.tensors;
    let expect = |name: &str, shape: &[i64], expected: &[f64]| {
        assert_eq!(tensors[name].size(), shape, "{name}");
        assert_eq!(values(&tensors[name]), expected, "{name}");
    };
    expect("rows", &[2, 3], &[0., 1., 2., 3., 4., 5.]);
    expect("columns", &[3, 2], &[0., 3., 1., 4., 2., 5.]);
    expect("offset", &[2, 2], &[6., 7., 14., 15.]);
    expect("scalar", &[], &[7.]);
    expect("empty", &[0, 3], &[]);
    expect("repeated", &[4], &[3.; 4]);
    expect("parameter", &[2], &[1., -2.]);
    for name in ["float16", "bfloat16", "float64"] {
        expect(name, &[4], &[0., 1., 2., 100.]);
        assert_eq!(tensors[name].kind(), Kind::Float, "{name}");
    }
    for (name, kind) in
        [("int64", Kind::Int64), ("int32", Kind::Int), ("int16", Kind::Int16), ("int8", Kind::Int8)]
    {
        expect(name, &[4], &[0., 1., 2., 100.]);
        assert_eq!(tensors[name].kind(), kind);
    }
    expect("uint8", &[4], &[0., 1., 2., 100.]);
    expect("bool", &[4], &[0., 1., 1., 1.]);
}

#[test]
fn tensors_that_shared_a_storage_are_apart() {
    let tensors = read(&fixture("flat.pth"), None).unwrap().contents.tensors;
    let before = tensors["columns"].copy();
    let _ = tensors["rows"].shallow_clone().fill_(9.0);
    assert!(bitwise_equal(&tensors["columns"], &before));
}

#[test]
fn the_teacher_is_taken_from_a_training_checkpoint_unless_told_otherwise() {
    let of = |key| read(&fixture("training.pth"), key).unwrap().contents.tensors;
    let teacher = of(None);
    let names: Vec<&str> = teacher.names().collect();
    assert_eq!(names, ["module.backbone.bias", "module.backbone.weight", "module.head.weight"]);
    assert_eq!(values(&teacher["module.backbone.weight"]), [1., 1.]);
    let student = of(Some("student"));
    assert!(values(&student["module.backbone.weight"])[0] < 1.0, "the optimiser has moved it");
    let error = error(&fixture("training.pth"), Some("ema"));
    assert!(
        error.contains("no state dict under the key ema") && error.contains("teacher (a dict of 3)"),
        "{error}"
    );
    assert!(error.contains("args (a argparse.Namespace)"), "{error}");
}

#[test]
fn a_torchscript_archive_is_the_tree_of_its_modules() {
    let file = read(&fixture("script.pt"), None).unwrap();
    assert!(file.torchscript);
    let names: Vec<&str> = file.contents.tensors.names().collect();
    let expected =
        ["resolution", "scale", "visual.0.bias", "visual.0.weight", "visual.1.bias", "visual.1.weight"];
    assert_eq!(names, expected);
    assert_eq!(values(&file.contents.tensors["visual.1.weight"]), [2., 2.]);
    assert_eq!(file.contents.tensors["visual.1.weight"].kind(), Kind::Float, "it is f16 in the file");
    assert_eq!(values(&file.contents.tensors["resolution"]), [224.]);
}

#[test]
fn a_file_of_another_kind_is_an_error_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pth");
    for (name, part) in [
        ("legacy.pth", "format of torch before 1.6"),
        ("module.pth", "holds a whole torch.nn.modules.linear.Linear; `torch.save` the state_dict()"),
        ("no_weights.pth", "its keys are: epoch (an int), history (a list of 2)"),
    ] {
        let error = error(&fixture(name), None);
        assert!(error.contains(part) && error.contains(name), "{error}");
    }
    for (bytes, part) in [
        (&b"version https://git-lfs.github.com/spec/v1\n"[..], "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"", "no archive of torch's"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = error(&path, None);
        assert!(error.contains(part) && error.contains("weights.pth"), "{error}");
    }
    assert!(error(&folder.path().join("absent.pth"), None).contains("absent.pth"));
}

#[test]
fn a_damaged_file_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pth");
    let whole = fs::read(fixture("flat.pth")).unwrap();
    for length in [4, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = error(&path, None);
        assert!(error.contains("weights.pth") && error.contains("fetch it again"), "{error}");
    }
    // One flipped bit of a storage: the checksum of the archive.
    let pattern: Vec<u8> = [4f32, 5., 6.].iter().flat_map(|value| value.to_le_bytes()).collect();
    let at = whole.windows(pattern.len()).position(|window| window == pattern).unwrap();
    let mut flipped = whole.clone();
    flipped[at] ^= 1;
    fs::write(&path, flipped).unwrap();
    let error = error(&path, None);
    assert!(error.contains("data/0 in the archive is damaged"), "{error}");
}

/// An archive with this pickle and one storage of these bytes.
fn archive(path: &Path, pickle: &[u8], storage: &[u8]) {
    let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
    let stored = zip::write::FileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", storage)] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// A pickle of {"w": a tensor over `count` values of f32}, sizes and strides as opcodes.
fn pickled(count: u8, sizes: &str, strides: &str) -> Vec<u8> {
    let text = |text: &str| format!("X{}\0\0\0{text}", char::from(text.len() as u8));
    format!(
        "}}{}ctorch._utils\n_rebuild_tensor_v2\n(({}ctorch\nFloatStorage\n{}{}K{}tQK\0{sizes}{strides}I00\nNtRs.",
        text("w"),
        text("storage"),
        text("0"),
        text("cpu"),
        char::from(count)
    )
    .into_bytes()
}

#[test]
fn a_tensor_that_does_not_fit_its_storage_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pt");
    let bytes: Vec<u8> = [1f32, 2., 3., 4.].iter().flat_map(|value| value.to_le_bytes()).collect();
    let of = |count, sizes: &str, strides: &str| {
        archive(&path, &pickled(count, sizes, strides), &bytes);
        read(&path, None)
    };
    let sound = of(4, "(K\u{2}K\u{2}t", "(K\u{1}K\u{2}t").unwrap();
    assert_eq!(values(&sound.contents.tensors["w"]), [1., 3., 2., 4.]);
    let huge = "I4611686018427387904\n";
    for (count, sizes, strides, part) in [
        (5, "(K\u{4}t", "(K\u{1}t", "data/0 has 16 bytes, must have 20"),
        (4, "(K\u{5}t", "(K\u{1}t", "does not fit its storage of 4 values"),
        (4, "(K\u{2}K\u{2}t", "(K\u{3}K\u{1}t", "does not fit"),
        (4, &format!("({huge}{huge}t"), "(K\u{1}K\u{1}t", "does not fit"),
        (4, &format!("({huge}t"), "(K\0t", "does not fit"),
        (4, "(I-1\nt", "(K\u{1}t", "no length"),
        (4, "(K\u{2}t", "(K\u{1}K\u{1}t", "and strides"),
    ] {
        let error = format!("{:#}", of(count, sizes, strides).unwrap_err());
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_malicious_file_does_nothing_and_has_no_weights() {
    let folder = tempfile::tempdir().unwrap();
    let (path, marker) = (folder.path().join("weights.pth"), folder.path().join("ran"));
    let pickle = format!("}}X\u{1}\0\0\0wcposix\nsystem\n(S'touch {}'\ntRs.", marker.display());
    archive(&path, pickle.as_bytes(), b"");
    let error = error(&path, None);
    assert!(error.contains("no state dict") && error.contains("w (a posix.system)"), "{error}");
    assert!(!marker.exists());
    // A path that leaves the archive is only a name that is not in it.
    let pickle = pickled(4, "(K\u{4}t", "(K\u{1}t");
    let pickle: Vec<u8> =
        String::from_utf8(pickle).unwrap().replace("X\u{1}\0\0\x000", "X\u{4}\0\0\0../0").into();
    archive(&path, &pickle, &[0; 16]);
    assert!(super::tests::error(&path, None).contains("data/../0 in the archive is damaged or missing"));
}

/// Tensors as `torch.save` would write them in a dictionary, or as attributes of a TorchScript module.
fn save(path: &Path, tensors: &Tensors, torchscript: bool) {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let int = |int: i64| [b"J", &(int as i32).to_le_bytes()[..]].concat();
    let ints = |list: &[i64]| {
        [b"(", &list.iter().flat_map(|item| int(*item)).collect::<Vec<u8>>()[..], b"t"].concat()
    };
    let mut pickle = if torchscript { b"c__torch__\nModel\n)\x81}".to_vec() } else { b"}".to_vec() };
    let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
    let stored = zip::write::FileOptions::default().compression_method(CompressionMethod::Stored);
    for (at, (name, tensor)) in tensors.iter().enumerate() {
        let parts = [
            text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
            text("storage"),
            b"ctorch\nFloatStorage\n".to_vec(),
            text(&at.to_string()),
            text("cpu"),
            int(tensor.numel() as i64),
            b"tQK\0".to_vec(),
            ints(&tensor.size()),
            ints(&tensor.stride()),
            b"\x89tRs".to_vec(),
        ];
        pickle.extend(parts.concat());
        zip.start_file(format!("a/data/{at}"), stored).unwrap();
        memory::with_bytes(tensor, |bytes| zip.write_all(bytes)).unwrap();
    }
    pickle.extend(if torchscript { &b"b."[..] } else { b"." });
    zip.start_file("a/data.pkl", stored).unwrap();
    zip.write_all(&pickle).unwrap();
    if torchscript {
        zip.start_file("a/constants.pkl", stored).unwrap();
        zip.write_all(b").").unwrap();
    }
    zip.finish().unwrap();
}

#[test]
fn a_backbone_and_the_other_end_of_a_line_may_be_torch_s_files_under_any_name() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = tiny(true);
    for name in ["weights.pth", "pytorch_model.bin", "0a1b2c"] {
        let path = folder.path().join(name);
        save(&path, &backbone.tensors, false);
        let same = Backbone::read(&path).unwrap();
        assert_eq!((&same.digest, &same.config), (&backbone.digest, &backbone.config), "{name}");
        let line = Line::open(&backbone, &path).unwrap();
        assert!(line.moved().is_empty());
        assert_eq!(line.digest(), file_sha256(&path).unwrap());
    }
}

#[test]
fn openai_s_archives_have_quick_gelu_and_other_torchscript_has_the_usual() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.pt");
    let clip = tiny_clip(Activation::QuickGelu);
    let mut tower = clip.tensors.share();
    // The one name that tells; the others are canonical here.
    for leaf in ["weight", "bias"] {
        let norm = tower.remove(&format!("norm_pre.{leaf}")).unwrap();
        tower.insert(format!("visual.ln_pre.{leaf}"), norm);
    }
    save(&path, &tower, true);
    assert_eq!(Backbone::read(&path).unwrap().digest, clip.digest);
    save(&path, &tower, false);
    assert!(Backbone::read(&path).is_err(), "a checkpoint does not tell");
    save(&path, &tiny(false).tensors, true);
    assert_eq!(Backbone::read(&path).unwrap().digest, tiny(false).digest);
}
