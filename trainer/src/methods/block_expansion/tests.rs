use super::*;
use crate::methods::testing::{fixture, method, pixels, recipe, site};
use crate::methods::{Widths, added};
use crate::models::vit::{Vit, VitConfig, tiny};
use crate::weights::{Tensors, bitwise_equal};
use serde_json::json;
use tch::Kind;

/// The blocks behind which there are copies.
fn places(copies: u32, depth: i64) -> Vec<i64> {
    let config = VitConfig { depth, ..VitConfig::default() };
    let own = Copies(BlockExpansion { copies });
    (0..depth).filter(|block| own.follows(*block, &config)).collect()
}

#[test]
fn a_copy_comes_behind_the_last_block_of_each_group() {
    assert_eq!(places(3, 12), [3, 7, 11]);
    assert_eq!(places(4, 12), [2, 5, 8, 11]);
    assert_eq!(places(1, 12), [11]);
    assert_eq!(places(2, 2), [0, 1]);
}

#[test]
fn groups_that_would_not_be_equal_are_refused() {
    let error =
        added(&recipe(json!({"kind": "block_expansion", "copies": 3})), &tiny(true), Widths::default())
            .unwrap_err();
    assert!(
        error.to_string().contains("`method.copies` is 3") && error.to_string().contains("2 blocks"),
        "{error}"
    );
}

#[test]
fn a_copy_is_its_block_but_for_the_end_of_each_branch() {
    let backbone = tiny(true);
    let own = Copies(BlockExpansion { copies: 1 });
    let added = own.added(&site(&backbone.config, &backbone.tensors), 0).unwrap();
    let block = backbone.tensors.iter().filter(|(name, _)| name.starts_with("blocks.1."));
    assert_eq!(added.start.len(), block.count());
    for (name, tensor) in added.start.iter() {
        let leaf = name.strip_prefix("blocks.1.copy.").unwrap();
        if leaf.starts_with("attn.proj.") || leaf.starts_with("mlp.fc2.") {
            assert_eq!(tensor.abs().sum(Kind::Float).double_value(&[]), 0.0, "{name}");
        } else {
            let original = &backbone.tensors[&format!("blocks.1.{leaf}")];
            assert!(bitwise_equal(tensor, original), "{name}");
            assert_ne!(tensor.data_ptr(), original.data_ptr(), "{name}");
        }
        assert!(bitwise_equal(tensor, &added.theta0[name]), "{name}");
    }
}

#[test]
fn at_the_start_only_the_ends_of_the_branches_have_a_gradient() {
    let fixture = fixture(&tiny(true), json!({"kind": "block_expansion", "copies": 2}));
    for (name, gradient) in fixture.gradients(&pixels(2)) {
        let largest = gradient.unwrap().abs().max().double_value(&[]);
        let ends_branch = name.contains(".attn.proj.") || name.contains(".mlp.fc2.");
        assert_eq!(largest > 0.0, ends_branch, "{name}: {largest}");
    }
}

/// A deeper backbone whose blocks are those of the first and the copies, in order.
fn unrolled(config: &VitConfig, tensors: &Tensors, places: &[i64]) -> (VitConfig, Tensors) {
    let mut deep = Tensors::new();
    let mut put = |from: &str, to: Option<i64>| {
        for (name, tensor) in tensors.iter() {
            let Some(leaf) = name.strip_prefix(from).filter(|leaf| !leaf.starts_with("copy.")) else {
                continue;
            };
            let name = to.map_or(name.to_owned(), |block| format!("blocks.{block}.{leaf}"));
            deep.insert(name, tensor.shallow_clone());
        }
    };
    put("", None);
    let mut depth = 0;
    for block in 0..config.depth {
        put(&format!("blocks.{block}."), Some(depth));
        depth += 1;
        if places.contains(&block) {
            put(&format!("blocks.{block}.copy."), Some(depth));
            depth += 1;
        }
    }
    (VitConfig { depth, ..config.clone() }, deep)
}

#[test]
fn it_is_a_deeper_encoder_with_the_copies_as_blocks() {
    for (copies, places) in [(1, &[1][..]), (2, &[0, 1])] {
        let backbone = tiny(true);
        let moved = fixture(&backbone, json!({"kind": "block_expansion", "copies": copies})).moved(0.1);
        let (config, tensors) = unrolled(&backbone.config, &moved.tensors, places);
        assert_eq!(config.depth, 2 + i64::from(copies));
        let deep = Vit::bare(&config).features(&tensors, &pixels(3));
        let expanded = moved.vit.features(&moved.tensors, &pixels(3));
        // The deep one computes only the class token in its last block: other shapes, other order of summation.
        assert!(expanded.allclose(&deep, 1e-5, 1e-5, false), "{copies}");
        let bare = Vit::bare(&backbone.config).features(&backbone.tensors, &pixels(3));
        assert!(!expanded.allclose(&bare, 1e-2, 1e-2, false), "{copies}");
    }
}

#[test]
fn the_copies_alone_are_trained() {
    let document = json!({"kind": "block_expansion", "copies": 2});
    let tuner = crate::methods::tuner(&method(document.clone()));
    let fixture = fixture(&tiny(true), document);
    for name in fixture.tensors.names() {
        assert_eq!(tuner.trains(name), fixture.added.start.get(name).is_some(), "{name}");
    }
}
