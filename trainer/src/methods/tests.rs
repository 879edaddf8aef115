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
        json!({"kind": "film", "generator": {}}),
        json!({"kind": "film", "generator": {"hidden": 5}, "blocks": [1]}),
        json!({"kind": "fusion"}),
        json!({"kind": "fusion", "null_text": "drop"}),
        json!({"kind": "fusion", "attention": "co_attention"}),
        json!({"kind": "fusion", "attention": "co_attention", "blocks": [0]}),
        json!({"kind": "fusion", "attention": "asymmetric"}),
        json!({"kind": "fusion", "attention": "joint"}),
        json!({"kind": "fusion", "attention": "joint", "rank": 3, "null_text": "drop", "blocks": [1]}),
        json!({"kind": "token_replay"}),
        json!({"kind": "token_replay", "memory": 3, "blocks": [1]}),
        json!({"kind": "token_replay", "reading": "b"}),
        json!({"kind": "token_replay", "reading": "c", "buffer": {"dataset": "d"}}),
        json!({"kind": "ladder", "reduction": 4}),
        json!({"kind": "reprogram"}),
        json!({"kind": "reprogram", "program": "border", "inner": 20}),
        json!({"kind": "cross_modal", "language_model": "m", "words": 12, "sparsity": 3, "rank": 4}),
    ]
}

#[test]
fn every_theta0_is_the_backbone_bit_for_bit() {
    for layer_scale in [false, true] {
        let backbone = tiny(layer_scale);
        let vit = Vit::bare(&backbone.config);
        let alone = vit.features(&backbone.tensors, &pixels(3));
        // The same numbers in a larger product may be summed in another order.
        let tokens = vit.tokens(&backbone.tensors, &pixels(3), None, None);
        let among = vit.feature_of(&backbone.tensors, &tokens);
        for document in catalogue() {
            // The exception, whose start is the backbone on another image: reprogram/tests.rs says which.
            if document["program"] == "border" {
                continue;
            }
            let fixture = fixture(&backbone, document.clone());
            let bare = if tuner(&fixture.vit.method).needs_all_tokens() { &among } else { &alone };
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
fn the_feature_is_the_class_token_among_all_tokens() {
    let backbone = tiny(true);
    for document in catalogue() {
        let moved = fixture(&backbone, document.clone()).moved(0.1);
        let alone = moved.vit.features(&moved.tensors, &pixels(2));
        let tokens = moved.vit.tokens(&moved.tensors, &pixels(2), None, None);
        let among = moved.vit.feature_of(&moved.tensors, &tokens);
        assert!(alone.allclose(&among, 1e-4, 1e-4, false), "{document}");
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

#[test]
fn the_blocks_that_a_method_leaves_alone_may_be_computed_beforehand() {
    let backbone = tiny(true);
    for document in catalogue() {
        let moved = fixture(&backbone, document.clone()).moved(0.1);
        let kind = &moved.vit.method;
        // What a method trains in the backbone itself is the line's affair.
        if matches!(kind, Method::Full {} | Method::Selective(_)) {
            continue;
        }
        let Some(blocks) = tuner(kind).untouched_blocks(&backbone.config) else { continue };
        let stem = moved.vit.stem(&backbone.tensors, &pixels(3), blocks);
        let features = moved.vit.features_from(&moved.tensors, &stem);
        assert!(bitwise_equal(&features, &moved.vit.features(&moved.tensors, &pixels(3))), "{document}");
    }
}
