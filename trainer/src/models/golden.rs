//! Small encoders with the weights that `goldens/vision.py` gives to other libraries', and the numbers those compute.

use crate::models::vit::VitConfig;
use crate::weights::{Tensors, initial};
use serde_json::Value;
use tch::Tensor;

/// The numbers under a path such as `dino.native.first`.
pub fn numbers(path: &str) -> Vec<f64> {
    let all: Value = serde_json::from_str(include_str!("../../goldens/vision.json")).unwrap();
    match path.split('.').fold(&all, |value, key| &value[key]) {
        Value::Array(items) => items.iter().map(|item| item.as_f64().unwrap()).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

/// Values in ±`scale`/2 from the stream of that name, 24 bits each; one more for gains.
pub fn seeded(name: &str, shape: &[i64], scale: f32) -> Tensor {
    let mut draws = initial::stream(0, name);
    let gain = name.contains("norm") && name.ends_with("weight") || name.ends_with("gamma");
    let offset = if gain { 1.0 } else { 0.0 };
    let mut draw = || ((draws.next_u64() >> 40) as f32 / (1u32 << 24) as f32 - 0.5) * scale + offset;
    let values: Vec<f32> = (0..shape.iter().product::<i64>()).map(|_| draw()).collect();
    Tensor::from_slice(&values).reshape(shape)
}

/// The tensors of those names and shapes.
pub fn weights(shapes: impl IntoIterator<Item = (String, Vec<i64>)>) -> Tensors {
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let tensor = seeded(&name, &shape, 0.25);
        (name, tensor)
    });
    tensors.collect()
}

/// Normalised pixels: [batch, 3, height, width].
pub fn pixels(batch: i64, height: i64, width: i64) -> Tensor {
    seeded(&format!("pixels {height}x{width}"), &[batch, 3, height, width], 4.0)
}

/// The encoder of the DINO and CLIP cases: two blocks of two heads, 128 wide, 14 px patches, a table of 4 × 4.
pub fn encoder() -> VitConfig {
    VitConfig { dim: 128, depth: 2, heads: 2, mlp_dim: 256, patch: 14, grid: 4, ..VitConfig::default() }
}
