//! Ends bit for bit, sharing, two products, blocks computed once, arithmetic narrower than f32.

use super::*;
use crate::methods::{Widths, testing};
use crate::models::vit::{Activation, tiny, tiny_clip};
use crate::weights::{initial, safetensors};
use serde_json::json;
use std::collections::BTreeMap;

fn alpha(value: f64) -> Alpha {
    Alpha::from_f64(value).unwrap()
}

/// A line on which every second tensor moved, and the fine-tuned end.
fn full_line() -> (Backbone, Line) {
    let backbone = tiny(true);
    let moved = backbone.tensors.iter().step_by(2);
    let theta1 = moved
        .map(|(name, tensor)| (name.to_owned(), tensor + initial::normal(5, name, &tensor.size(), 0.05)));
    let line = Line::new(
        &backbone,
        Method::Full {},
        Added::default(),
        (theta1.collect(), Tensors::new()),
        String::new(),
    )
    .unwrap();
    (backbone, line)
}

#[test]
fn the_ends_are_the_ends_bit_for_bit() {
    let (backbone, line) = full_line();
    assert_eq!(line.at(Alpha::ZERO).digest().unwrap(), backbone.digest);
    assert_eq!(line.at(Alpha::ONE).digest().unwrap(), line.theta1.digest().unwrap());
    assert_ne!(line.theta1.digest().unwrap(), backbone.digest);
    let pixels = initial::normal(1, "pixels", &[2, 3, 28, 28], 1.0);
    let bare = Vit::bare(&backbone.config).features(&backbone.tensors, &pixels);
    assert!(bitwise_equal(&line.encoder(Alpha::ZERO).features(&pixels), &bare));
}

#[test]
fn tensors_equal_at_both_ends_are_never_recomputed() {
    let (backbone, line) = full_line();
    assert_eq!(line.moved().len(), backbone.tensors.len().div_ceil(2));
    let tensors = line.at(alpha(0.1));
    for (name, tensor) in tensors.iter() {
        let shared = tensor.data_ptr() == backbone.tensors[name].data_ptr();
        assert_eq!(shared, !line.moved().iter().any(|moved| moved == name), "{name}");
    }
    // What the rule is for: between equal ends, computing changes bits.
    let equal = initial::normal(1, "equal", &[1000], 1.0);
    assert!(!bitwise_equal(&mix(&equal, &equal, alpha(0.1)), &equal));
}

#[test]
fn between_the_ends_two_products_are_added() {
    let (a, b) = (initial::normal(1, "a", &[500], 1.0), initial::normal(1, "b", &[500], 1.0));
    let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor).unwrap();
    for tenth in [0.1, 0.2, 0.3, 0.7, 0.9] {
        let (stay, go) = ((1.0 - tenth) as f32, tenth as f32);
        let expected: Vec<f32> = values(&a).iter().zip(values(&b)).map(|(a, b)| stay * a + go * b).collect();
        assert_eq!(values(&mix(&a, &b, alpha(tenth))), expected, "α = {tenth}");
    }
    let mean = mix(&a, &b, alpha(0.5));
    assert!(mean.allclose(&((&a + &b) / 2.0), 0.0, 1e-7, false));
    // Row by row, so splitting query, key and value changes nothing.
    let split: Vec<Tensor> =
        a.chunk(2, 0).iter().zip(b.chunk(2, 0)).map(|(a, b)| mix(a, &b, alpha(0.3))).collect();
    assert!(bitwise_equal(&Tensor::cat(&split, 0), &mix(&a, &b, alpha(0.3))));
}

#[test]
fn an_adapter_begins_as_the_identity_and_grows_along_the_line() {
    let backbone = tiny(true);
    let recipe = testing::recipe(json!({"kind": "adapter", "rank": 4, "init": "houlsby"}));
    let added = || methods::added(&recipe, &backbone, Widths::default()).unwrap();
    let ends = (added().start, added().theta0);
    let line = Line::new(&backbone, recipe.method.clone(), added(), ends, String::new()).unwrap();
    assert_eq!(line.moved(), ["blocks.0.adapter.up.weight", "blocks.1.adapter.up.weight"]);
    let pixels = initial::normal(1, "pixels", &[2, 3, 28, 28], 1.0);
    let bare = line.encoder(Alpha::ZERO).features(&pixels);
    // With the method's modules in it, θ0 gives the same bits.
    let at_zero = Encoder { vit: line.vit.clone(), tensors: line.at(Alpha::ZERO) };
    assert!(bitwise_equal(&at_zero.features(&pixels), &bare));
    let distances: Vec<f64> = [0.25, 0.5, 1.0]
        .map(|value| (line.encoder(alpha(value)).features(&pixels) - &bare).norm().double_value(&[]))
        .to_vec();
    assert!(
        0.0 < distances[0] && distances[0] < distances[1] && distances[1] < distances[2],
        "{distances:?}"
    );
}

#[test]
fn blocks_before_the_first_that_moved_are_computed_once_and_give_the_same_bits() {
    let backbone = tiny(true);
    let pixels = initial::normal(1, "pixels", &[2, 3, 28, 28], 1.0);
    let line = |moved: &[&str]| {
        let theta1 = moved.iter().map(|name| ((*name).to_owned(), &backbone.tensors[name] + 0.1));
        let ends = (theta1.collect(), Tensors::new());
        Line::new(&backbone, Method::Full {}, Added::default(), ends, String::new()).unwrap()
    };
    for (moved, shared) in [
        (vec!["norm.weight"], Some(2)),
        (vec!["blocks.1.mlp.fc2.bias", "norm.weight"], Some(1)),
        (vec!["blocks.0.ls1.gamma", "blocks.1.mlp.fc2.bias"], Some(0)),
        (vec!["blocks.1.mlp.fc2.bias", "cls_token"], None),
    ] {
        let line = line(&moved);
        assert_eq!(line.shared_blocks(), shared, "{moved:?}");
        let stem = line.stem(&pixels);
        for value in [0.0, 0.3, 1.0] {
            let encoder = line.encoder(alpha(value));
            let features = encoder.features_with(stem.as_ref(), &pixels);
            assert!(bitwise_equal(&features, &encoder.features(&pixels)), "{moved:?} {value}");
        }
    }
}

#[test]
fn a_full_set_of_weights_is_an_end_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("theta1.safetensors");
    let (backbone, line) = full_line();
    let prefixed: Tensors =
        line.theta1.iter().map(|(name, tensor)| (format!("module.{name}"), tensor.shallow_clone())).collect();
    let blob = safetensors::write(&path, &prefixed, &BTreeMap::new()).unwrap();
    let opened = Line::open(&backbone, &path).unwrap();
    assert_eq!(opened.digest(), blob.sha256);
    assert_eq!(opened.moved(), line.moved());
    assert_eq!(opened.at(alpha(0.3)).digest().unwrap(), line.at(alpha(0.3)).digest().unwrap());

    let error = Line::open(&tiny(false), &path).unwrap_err().to_string();
    assert!(error.contains("layer_scale: true"), "{error}");
}

#[test]
fn both_ends_are_under_one_rule_for_positions_and_one_activation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("theta1.safetensors");
    let backbone = tiny_clip(Activation::QuickGelu);
    let theta1 = backbone.tensors.iter().map(|(name, tensor)| (name.to_owned(), tensor * 1.25));
    safetensors::write(&path, &theta1.collect(), &BTreeMap::new()).unwrap();
    let line = Line::open(&backbone, &path).unwrap();
    assert_eq!(line.config().activation, Activation::QuickGelu, "θ0's, for the file does not tell");
    let pixels = initial::normal(1, "pixels", &[1, 3, 28, 42], 1.0);
    let usual = [Alpha::ZERO, Alpha::ONE].map(|alpha| line.encoder(alpha).features(&pixels));
    let line = line.with_positions(Positions::TimmAntialias);
    for (alpha, usual) in [Alpha::ZERO, Alpha::ONE].into_iter().zip(usual) {
        assert!(!bitwise_equal(&line.encoder(alpha).features(&pixels), &usual));
    }
}

#[test]
fn another_arithmetic_rounds_each_interpolated_tensor_once_and_shares_the_others() {
    let (backbone, line) = full_line();
    let single: Vec<Tensors> = [0.0, 0.3, 1.0].map(|value| line.at(alpha(value))).into();
    let line = line.with_dtype(Dtype::Bf16);
    let ends = [line.at(Alpha::ZERO), line.at(Alpha::ONE)];
    for (value, single) in [0.0, 0.3, 1.0].into_iter().zip(&single) {
        let encoder = line.encoder(alpha(value));
        for (name, tensor) in encoder.tensors.iter() {
            assert!(bitwise_equal(tensor, &single[name].to_kind(Kind::BFloat16)), "{name} at {value}");
            let still = !line.moved().iter().any(|moved| moved == name);
            let shared = ends.iter().all(|end| end[name].data_ptr() == tensor.data_ptr());
            assert!(shared || !still, "{name} at {value}");
        }
    }
    let moved: usize = line.moved().iter().map(|name| backbone.tensors[name].numel()).sum();
    assert_eq!(line.bytes_moved(), 2 * moved);
    // The rounding of θ_α, not the mean of rounded ends.
    let of_rounded = |name: &str| mix(&ends[0][name], &ends[1][name], alpha(0.3));
    let third = line.at(alpha(0.3));
    assert!(line.moved().iter().any(|name| !bitwise_equal(&third[name], &of_rounded(name))));
    // And back: nothing was lost that f32 needs.
    let back = line.with_dtype(Dtype::F32).at(alpha(0.3));
    let moved =
        back.iter().filter(|(name, _)| backbone.tensors[name].data_ptr() != single[1][name].data_ptr());
    for (name, tensor) in moved {
        assert!(bitwise_equal(tensor, &single[1][name]), "{name}");
    }
}

#[test]
fn a_device_keeps_equal_ends_one_tensor() {
    let (_, line) = full_line();
    let moved = line.moved().to_vec();
    let line = line.each(Kind::Float, |_, tensor| tensor.copy());
    let (zero, one) = (line.at(Alpha::ZERO), line.at(Alpha::ONE));
    for (name, tensor) in zero.iter() {
        let still = !moved.iter().any(|moved| moved == name);
        assert_eq!(one[name].data_ptr() == tensor.data_ptr(), still, "{name}");
        assert_eq!(line.bare[name].data_ptr(), tensor.data_ptr(), "{name}");
    }
}
