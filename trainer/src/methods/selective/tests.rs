use super::*;
use crate::methods::testing::{method, recipe, site};
use crate::methods::{Widths, added, trainable, tuner};
use crate::models::vit::tiny;
use serde_json::{Value, json};

/// The blocks that a spec trains of twelve.
fn of_twelve(document: Value) -> Vec<u32> {
    let Method::Selective(own) = chosen_by_depth(&method(document), 12).unwrap() else { panic!("selective") };
    own.chosen.unwrap()
}

#[test]
fn last_is_nearest_the_output_and_first_nearest_the_input() {
    assert_eq!(of_twelve(json!({"kind": "selective", "k": 3})), [9, 10, 11]);
    assert_eq!(of_twelve(json!({"kind": "selective", "k": 3, "rule": "first"})), [0, 1, 2]);
    assert_eq!(of_twelve(json!({"kind": "selective", "k": 12})), (0..12).collect::<Vec<_>>());
    // What has been chosen stays.
    let document = json!({"kind": "selective", "k": 2, "rule": "relative_gradient", "chosen": [4, 7]});
    assert_eq!(of_twelve(document), [4, 7]);
}

#[test]
fn the_largest_are_chosen_and_of_equals_the_lower() {
    assert_eq!(largest(&[0.1, 0.4, 0.2, 0.3], 2), [1, 3]);
    assert_eq!(largest(&[0.4, 0.1, 0.4, 0.4], 2), [0, 2]);
    assert_eq!(largest(&[0.2, 0.2], 2), [0, 1]);
}

#[test]
fn more_blocks_than_there_are_is_an_error_with_both_numbers() {
    for rule in ["last", "first", "relative_gradient"] {
        let recipe = recipe(json!({"kind": "selective", "k": 3, "rule": rule}));
        let error = trainable(&recipe, &tiny(true), Widths::default()).unwrap_err().to_string();
        assert_eq!(error, "`method.k` is 3, the backbone has 2 blocks", "{rule}");
    }
}

#[test]
fn blocks_that_are_not_chosen_or_do_not_fit_are_refused() {
    let backbone = tiny(true);
    let error =
        |document: Value| added(&recipe(document), &backbone, Widths::default()).unwrap_err().to_string();
    assert!(error(json!({"kind": "selective", "k": 1})).contains("not chosen yet"));
    let beyond = error(json!({"kind": "selective", "k": 1, "chosen": [2]}));
    assert_eq!(beyond, "`method.chosen` is [2]: it must be 1 of the 2 blocks");
}

#[test]
fn a_block_s_name_is_not_the_beginning_of_another_s() {
    let own = tuner(&method(json!({"kind": "selective", "k": 1, "chosen": [1]})));
    assert!(own.trains("blocks.1.attn.qkv.weight") && own.trains("blocks.1.ls2.gamma"));
    for name in
        ["blocks.11.attn.qkv.weight", "blocks.0.norm1.weight", "norm.weight", "pos_embed", "cls_token"]
    {
        assert!(!own.trains(name), "{name}");
    }
}

#[test]
fn of_all_blocks_every_tensor_of_a_block_is_trained_and_nothing_around_them() {
    let backbone = tiny(true);
    let trained =
        trainable(&recipe(json!({"kind": "selective", "k": 2})), &backbone, Widths::default()).unwrap();
    let mut left: Vec<&str> = backbone.tensors.names().collect();
    left.retain(|name| trained.iter().all(|(trained, _)| trained != name));
    assert_eq!(
        left,
        [
            "cls_token",
            "norm.bias",
            "norm.weight",
            "patch_embed.proj.bias",
            "patch_embed.proj.weight",
            "pos_embed"
        ]
    );
}

#[test]
fn before_the_gradients_have_chosen_k_blocks_are_counted() {
    let count = |document| -> u64 {
        let trained = trainable(&recipe(document), &tiny(true), Widths::default()).unwrap();
        trained.iter().map(|(_, values)| values).sum()
    };
    let one = count(json!({"kind": "selective", "k": 1, "rule": "relative_gradient"}));
    assert_eq!(one, count(json!({"kind": "selective", "k": 1, "rule": "last"})));
    // Attention, MLP, two LayerNorms and two LayerScales of width 64 with an MLP of 128.
    assert_eq!(one, (64 * 192 + 192) + (64 * 64 + 64) + (64 * 128 + 128) + (128 * 64 + 64) + 4 * 64 + 2 * 64);
    assert_eq!(2 * one, count(json!({"kind": "selective", "k": 2, "rule": "relative_gradient"})));
}

#[test]
fn nothing_is_added() {
    let backbone = tiny(true);
    let own = Selected(Selective { rule: Selection::Last, k: 1, batches: 4, chosen: Some(vec![1]) });
    let added = own.added(&site(&backbone.config, &backbone.tensors), 0).unwrap();
    assert!(added.start.is_empty() && added.theta0.is_empty());
}
