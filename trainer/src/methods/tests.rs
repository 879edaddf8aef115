use super::testing::{WIDTHS, fixture, pixels, recipe};
use super::*;
use crate::models::vit::{Vit, tiny};
use crate::weights::bitwise_equal;
use serde_json::{Value, json};

/// Every method, in every form.
fn catalogue() -> Vec<Value> {
    vec![
        json!({"kind": "full"}),
        json!({"kind": "selective", "k": 1}),
        json!({"kind": "selective", "k": 1, "rule": "first"}),
        json!({"kind": "selective", "k": 2, "rule": "relative_gradient"}),
        json!({"kind": "block_expansion", "copies": 1}),
        json!({"kind": "block_expansion", "copies": 2}),
        json!({"kind": "adapter"}),
        json!({"kind": "adapter", "rank": 3, "learned_scale": false, "blocks": [1]}),
        json!({"kind": "adapter", "init": "houlsby"}),
        json!({"kind": "adapter", "form": "pre"}),
        json!({"kind": "adapter", "form": "intermediate"}),
        json!({"kind": "adapter", "form": "houlsby", "learned_scale": true}),
        json!({"kind": "adapter", "form": "pfeiffer"}),
        json!({"kind": "adapter", "form": "parallel", "init": "lora"}),
        json!({"kind": "lora"}),
        json!({"kind": "lora", "rank": 3, "alpha": 6.0, "targets": ["key", "proj", "fc1"], "blocks": [1]}),
        json!({"kind": "lora", "targets": ["query", "key", "value", "proj", "fc1", "fc2"]}),
        json!({"kind": "film"}),
        json!({"kind": "film", "blocks": [0]}),
    ]
}

#[test]
fn every_theta0_is_the_backbone_bit_for_bit() {
    for layer_scale in [false, true] {
        let backbone = tiny(layer_scale);
        let bare = Vit::bare(&backbone.config);
        let class_alone = bare.features(&backbone.tensors, &pixels(3));
        // Where the last block computes all tokens, its products have other shapes, and so other last bits.
        let all_tokens = bare.tokens(&backbone.tensors, &pixels(3), None, None).select(1, 0);
        assert!(all_tokens.allclose(&class_alone, 1e-5, 1e-5, false));
        for document in catalogue() {
            let fixture = fixture(&backbone, document.clone());
            let needs_all = tuner(&fixture.vit.method).needs_all_tokens();
            let bare = if needs_all { &all_tokens } else { &class_alone };
            let mut tensors = backbone.tensors.share();
            tensors.extend(fixture.added.theta0.share());
            assert!(bitwise_equal(&fixture.vit.features(&tensors, &pixels(3)), bare), "{document}");
        }
    }
}

#[test]
fn every_trained_tensor_changes_the_features_once_it_has_moved() {
    let backbone = tiny(true);
    for document in catalogue() {
        let moved = fixture(&backbone, document.clone()).moved(0.1);
        for (name, gradient) in moved.gradients(&pixels(3)) {
            let largest = gradient.map(|gradient| gradient.abs().max().double_value(&[]));
            assert!(largest.is_some_and(|largest| largest > 0.0), "{document} {name}: {largest:?}");
        }
    }
}

#[test]
fn only_full_and_selective_train_the_backbone() {
    let backbone = tiny(true);
    for document in catalogue() {
        let trained = trainable(&recipe(document.clone()), &backbone, WIDTHS).unwrap();
        assert!(!trained.is_empty(), "{document}");
        let of_backbone = trained.iter().any(|(name, _)| backbone.tensors.get(name).is_some());
        let may = ["full", "selective"].contains(&document["kind"].as_str().unwrap());
        assert_eq!(of_backbone, may, "{document}");
    }
}

#[test]
fn a_block_that_is_not_there_is_named() {
    let error = added(&recipe(json!({"kind": "film", "blocks": [1, 2]})), &tiny(true), WIDTHS).unwrap_err();
    assert!(error.to_string().contains("names block 2, the backbone has 2"), "{error}");
}
