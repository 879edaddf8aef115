use super::*;
use crate::methods::testing::{self, Fixture, fixture, pixels, text};
use crate::methods::{Text, Widths};
use crate::models::vit::{Vit, VitConfig, tiny};
use crate::weights::{Tensors, bitwise_equal, initial};
use serde_json::json;

#[test]
fn a_vit_s_has_24_sites_and_18_432_values() {
    let config = VitConfig { dim: 384, layer_scale: true, ..VitConfig::default() };
    let added = Modulation(Film::default()).added(&testing::site(&config, &Tensors::new()), 0).unwrap().start;
    assert_eq!(added.names().filter(|name| name.ends_with("beta")).count(), 24);
    assert_eq!(added.values(), 18_432);
}

#[test]
fn folding_into_the_norm_is_the_same_as_modulating_its_output() {
    let backbone = tiny(false);
    let at = |leaf: &str| &backbone.tensors[&format!("blocks.1.norm2.{leaf}")];
    let mut tensors = Tensors::new();
    for leaf in ["delta_gamma", "beta"] {
        tensors.insert(name(1, Norm::Second, leaf), initial::normal(4, leaf, &[64], 0.5));
    }
    let x = initial::normal(4, "x", &[2, 5, 64], 1.0);
    let layer_norm =
        |weight: &Tensor, bias: &Tensor| x.layer_norm([64], Some(weight), Some(bias), 1e-6, false);
    let film = Modulation(Film::default());
    let mut pass = film.begin(Start { config: &backbone.config, tensors: &tensors, text: None });
    let (weight, bias) = pass.norm(1, Norm::Second, at("weight"), at("bias"));
    let modulated = (&tensors["blocks.1.film2.delta_gamma"] + 1.0) * layer_norm(at("weight"), at("bias"))
        + &tensors["blocks.1.film2.beta"];
    assert!(layer_norm(&weight, &bias).allclose(&modulated, 1e-5, 1e-5, false));
    assert!(!modulated.allclose(&layer_norm(at("weight"), at("bias")), 1e-2, 1e-2, false));
}

/// A generated FiLM that has moved.
fn generated() -> Fixture {
    fixture(&tiny(true), json!({"kind": "film", "generator": {"hidden": 9}})).moved(0.2)
}

#[test]
fn a_generator_has_the_values_of_its_formula() {
    let config = VitConfig::default();
    let own = Modulation(serde_json::from_value(json!({"generator": {}})).unwrap());
    let none = Tensors::new();
    let site = Site { widths: Widths { text: 512, word: 0 }, ..testing::site(&config, &none) };
    let added = own.added(&site, 0).unwrap().start;
    let of = |wanted: &dyn Fn(&str) -> bool| -> u64 {
        added.iter().filter(|(name, _)| wanted(name)).map(|(_, tensor)| tensor.numel() as u64).sum()
    };
    // Twelve sites and a hidden layer of 64 that they share (methods.md §6); both LayerNorms have one, and there is the
    // null text.
    assert_eq!(of(&|name| name.contains("film1") || name.contains("hidden")), 1_230_912);
    assert_eq!(of(&|_| true), 1_230_912 + 12 * (64 * 1536 + 1536) + 512);
    let error = own.added(&Site { widths: Widths::default(), ..site }, 0).unwrap_err();
    assert!(error.to_string().contains("no text encoder"), "{error}");
}

#[test]
fn a_generator_of_zeros_is_the_backbone_bit_for_bit_with_captions_too() {
    let backbone = tiny(true);
    let own = fixture(&backbone, json!({"kind": "film", "generator": {}}));
    let bare = Vit::bare(&backbone.config).tokens(&backbone.tensors, &pixels(2), None, None);
    for captions in [None, Some(text(&[1, 0]))] {
        let tokens = own.vit.tokens(&own.tensors, &pixels(2), None, captions.as_ref());
        assert!(bitwise_equal(&tokens, &bare));
    }
}

#[test]
fn a_missing_caption_is_what_is_folded_in_at_an_evaluation() {
    let own = generated();
    let of = |text: Option<&Text>| own.vit.tokens(&own.tensors, &pixels(2), None, text);
    let (folded, given) = (of(None), of(Some(&text(&[1, 0]))));
    assert!(folded.get(1).allclose(&given.get(1), 1e-4, 1e-4, false));
    assert!(!folded.get(0).allclose(&given.get(0), 1e-2, 1e-2, false));
}

#[test]
fn another_caption_changes_its_own_image_alone() {
    let own = generated();
    let of = |text: &Text| own.vit.tokens(&own.tensors, &pixels(3), None, Some(text));
    let captions = text(&[1, 1, 0]);
    let before = of(&captions);
    let other = Text { tokens: captions.tokens.copy(), ..captions };
    let _ = other.tokens.narrow(0, 1, 2).g_mul_scalar_(-1.0);
    let after = of(&other);
    for image in 0..3 {
        // The third caption is missing: what stands in its place is not read.
        assert_eq!(bitwise_equal(&after.get(image), &before.get(image)), image != 1, "{image}");
    }
}

#[test]
fn the_null_text_has_a_gradient_whatever_is_shown() {
    for lengths in [[1, 1], [0, 1], [0, 0]] {
        let mut own = generated();
        let null = own.tensors[NULL].copy().set_requires_grad(true);
        own.tensors.insert(NULL, null.shallow_clone());
        let captions = text(&lengths);
        let captions = Text { tokens: initial::normal(1, "c", &[2, 1, 32], 1.0), real: captions.real };
        let tokens = own.vit.tokens(&own.tensors, &pixels(2), None, Some(&captions));
        tokens.square().sum(Kind::Float).backward();
        let largest = null.grad().abs().max().double_value(&[]);
        assert_eq!(largest > 0.0, lengths.contains(&0), "{lengths:?}: {largest}");
    }
}

#[test]
fn a_line_of_generators_is_no_line_of_modulations() {
    // β(α) of a generator whose layers both move has a term in α².
    let (config, mut start) = (tiny(true).config, generated().tensors);
    let end = generated().moved(0.5).tensors;
    let beta = |tensors: &Tensors| {
        let own = Modulation(serde_json::from_value(json!({"generator": {"hidden": 9}})).unwrap());
        let mut pass = own.begin(Start { config: &config, tensors, text: None });
        let zero = Tensor::zeros([64], (Kind::Float, Device::Cpu));
        pass.norm(0, Norm::First, &zero, &zero).1
    };
    let ends = (beta(&start) + beta(&end)) * 0.5;
    for (name, tensor) in end.iter().filter(|(name, _)| name.contains("film")) {
        let middle = (&start[name] + tensor) * 0.5;
        start.insert(name, middle);
    }
    assert!(!beta(&start).allclose(&ends, 1e-2, 1e-2, false));
}
