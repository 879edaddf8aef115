use super::*;
use crate::methods::testing::{fixture, pixels, site};
use crate::models::vit::{Vit, VitConfig, tiny};
use crate::weights::{Tensors, bitwise_equal};
use serde_json::{Value, json};

const ALL: [&str; 6] = ["query", "key", "value", "proj", "fc1", "fc2"];

fn lora(document: Value) -> Lora {
    serde_json::from_value(document).unwrap()
}

#[test]
fn the_numbers_of_values_are_those_of_two_thin_matrices() {
    let (config, none) = (VitConfig::default(), Tensors::new());
    let values = |document| Updates(lora(document)).added(&site(&config, &none), 0).unwrap().start.values();
    // ViT-B: query and value of 12 blocks, each 8 · (768 + 768).
    assert_eq!(values(json!({})), 12 * 2 * 8 * 1536);
    assert_eq!(values(json!({"rank": 4, "targets": ["fc1", "fc2"], "blocks": [3]})), 2 * 4 * (768 + 3072));
}

#[test]
fn at_the_start_b_has_a_gradient_and_a_has_none() {
    let backbone = tiny(true);
    for (name, gradient) in fixture(&backbone, json!({"kind": "lora", "targets": ALL})).gradients(&pixels(2))
    {
        let largest = gradient.unwrap().abs().max().double_value(&[]);
        assert_eq!(largest > 0.0, name.ends_with(".b"), "{name}: {largest}");
    }
}

#[test]
fn a_is_spread_evenly_within_the_root_of_its_inputs() {
    let config = VitConfig::default();
    let spec = lora(json!({"targets": ["fc2"], "blocks": [0], "rank": 16}));
    let added = Updates(spec).added(&site(&config, &Tensors::new()), 0).unwrap();
    let a = &added.start["blocks.0.lora.fc2.a"];
    assert_eq!(a.size(), [16, 3072]);
    let bound = 3072f64.powf(-0.5);
    let largest = a.abs().max().double_value(&[]);
    assert!(largest <= bound && largest > 0.999 * bound, "{largest} of {bound}");
    assert!(bitwise_equal(a, &added.theta0["blocks.0.lora.fc2.a"]));
}

/// The backbone with s·B·A added to its weights.
fn merged(lora: &Lora, config: &VitConfig, tensors: &Tensors) -> Tensors {
    let mut merged = tensors.share();
    for block in blocks(lora.blocks.as_deref(), config).unwrap() {
        for (at, target) in ALL.into_iter().enumerate() {
            let of = |leaf: &str| tensors.get(&format!("blocks.{block}.lora.{target}.{leaf}"));
            let (Some(a), Some(b)) = (of("a"), of("b")) else { continue };
            let (layer, first) = match target {
                "query" | "key" | "value" => ("attn.qkv", at as i64 * config.dim),
                "proj" => ("attn.proj", 0),
                "fc1" => ("mlp.fc1", 0),
                _ => ("mlp.fc2", 0),
            };
            let name = format!("blocks.{block}.{layer}.weight");
            let weight = merged[&name].copy();
            let rows = weight.narrow(0, first, b.size()[0]);
            let update = b.matmul(a) * factor(lora);
            rows.shallow_clone().copy_(&(&rows + update));
            merged.insert(name, weight);
        }
    }
    merged
}

#[test]
fn merged_into_the_weights_it_is_the_same_encoder() {
    for (layer_scale, targets) in [
        (true, &ALL[..]),
        (false, &["query", "value"]),
        (true, &["key"]),
        (true, &["value", "query"]),
        (true, &["query", "key", "value"]),
        (true, &["proj", "fc2"]),
    ] {
        let backbone = tiny(layer_scale);
        let document = json!({"kind": "lora", "rank": 4, "alpha": 6.0, "targets": targets});
        let moved = fixture(&backbone, document).moved(0.1);
        let lora = lora(json!({"rank": 4, "alpha": 6.0, "targets": targets}));
        assert_eq!(factor(&lora), 1.5);
        let merged = merged(&lora, &backbone.config, &moved.tensors);
        let bare = Vit::bare(&backbone.config);
        let before = bare.features(&backbone.tensors, &pixels(3));
        // Once as features, of which the last block computes only the class token, and once with all tokens.
        for (updated, fused) in [
            (moved.vit.features(&moved.tensors, &pixels(3)), bare.features(&merged, &pixels(3))),
            (
                moved.vit.tokens(&moved.tensors, &pixels(3), None, None),
                bare.tokens(&merged, &pixels(3), None, None),
            ),
        ] {
            // Two orders of summation in f32, over two blocks.
            assert!(updated.allclose(&fused, 1e-4, 1e-4, false), "{targets:?}");
        }
        let updated = moved.vit.features(&moved.tensors, &pixels(3));
        assert!(!updated.allclose(&before, 1e-2, 1e-2, false), "{targets:?}");
    }
}

#[test]
fn the_pair_of_products_is_the_papers_equation_by_hand() {
    // Two inputs, rank 1: A x = 3·1 + 4·2 = 11, B = (2, −1), alpha = 3.
    let config = VitConfig { dim: 2, ..VitConfig::default() };
    let own = Updates(lora(json!({"rank": 1, "alpha": 3.0, "targets": ["value"]})));
    let mut tensors = Tensors::new();
    tensors.insert("blocks.0.lora.value.a", Tensor::from_slice(&[3f32, 4.0]).reshape([1, 2]));
    tensors.insert("blocks.0.lora.value.b", Tensor::from_slice(&[2f32, -1.0]).reshape([2, 1]));
    let mut pass = own.begin(Start { config: &config, tensors: &tensors, text: None });
    let x = Tensor::from_slice(&[1f32, 2.0]).reshape([1, 1, 2]);
    let mut linear = |layer: &str, rows: Range<i64>| {
        let y = Tensor::ones([1, 1, rows.end - rows.start], (Kind::Float, Device::Cpu));
        Vec::<f32>::try_from(pass.linear(0, layer, rows, &x, y).flatten(0, -1)).unwrap()
    };
    assert_eq!(linear("attn.qkv", 0..6), [1.0, 1.0, 1.0, 1.0, 67.0, -32.0]);
    assert_eq!(linear("attn.qkv", 2..6), [1.0, 1.0, 67.0, -32.0]);
    assert_eq!(linear("attn.qkv", 0..2), [1.0, 1.0]);
    assert_eq!(linear("attn.proj", 0..2), [1.0, 1.0]);
}

#[test]
fn only_the_named_blocks_are_updated() {
    let backbone = tiny(true);
    let moved = fixture(&backbone, json!({"kind": "lora", "targets": ALL, "blocks": [1]})).moved(0.1);
    assert!(moved.added.start.names().all(|name| name.starts_with("blocks.1.lora.")));
    let start = Start { config: &backbone.config, tensors: &moved.tensors, text: None };
    let own = Updates(lora(json!({"targets": ALL, "blocks": [1]})));
    let x = Tensor::ones([1, 2, 64], (Kind::Float, Device::Cpu));
    let y = own.begin(start).linear(0, "attn.proj", 0..64, &x, x.shallow_clone());
    assert!(bitwise_equal(&y, &x));
}
