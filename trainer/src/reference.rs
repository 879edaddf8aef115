//! Numbers of the reference implementations, made by `goldens/reference.py`, and the demo's models, which set-up puts
//! into `.deps/data`.

use crate::random::SplitMix64;
use serde_json::Value;
use std::path::PathBuf;
use tch::Tensor;

/// The numbers under a path such as `adamw.matrix`, flattened.
pub fn numbers(path: &str) -> Vec<f64> {
    numbers_in(include_str!("../goldens/reference.json"), path)
}

/// The numbers under a path in another file of them.
pub fn numbers_in(json: &str, path: &str) -> Vec<f64> {
    fn flatten(value: &Value, into: &mut Vec<f64>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| flatten(item, into)),
            other => into.push(other.as_f64().unwrap()),
        }
    }
    let all: Value = serde_json::from_str(json).unwrap();
    let mut numbers = Vec::new();
    flatten(path.split('.').fold(&all, |value, key| &value[key]), &mut numbers);
    numbers
}

/// The folder of one of the demo's models.
pub fn model(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.deps/data").join(name);
    assert!(folder.is_dir(), "{} is missing; set-up puts it there", folder.display());
    folder
}

/// The folder of one of the tokenizers' vocabularies.
pub fn vocabulary(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.deps/vocabularies").join(name);
    assert!(folder.is_dir(), "{} is missing; set-up puts it there", folder.display());
    folder
}

/// The image that `reference.py` makes from a seed: u8 [1, 3, height, width].
pub fn image(seed: u64, height: i64, width: i64) -> Tensor {
    let mut draws = SplitMix64::new(seed);
    let bytes: Vec<u8> = (0..3 * height * width).map(|_| (draws.next_u64() >> 56) as u8).collect();
    Tensor::from_slice(&bytes).reshape([1, 3, height, width])
}

/// Panics unless the values of a tensor are the expected ones up to `tolerance`.
pub fn assert_near(tensor: &Tensor, expected: &[f64], tolerance: f64) {
    let expected = Tensor::from_slice(expected);
    let difference =
        (tensor.flatten(0, -1).to_kind(tch::Kind::Double) - expected).abs().max().double_value(&[]);
    assert!(difference <= tolerance, "differs by {difference}");
}
