use super::*;
use crate::models::golden;
use crate::reference::{assert_near, image, model, numbers};
use crate::weights::{Backbone, bitwise_equal, initial};

#[test]
fn features_are_those_of_hugging_face() {
    let backbone = Backbone::read(&model("vit-s14-imgfocus").join("model.safetensors")).unwrap();
    assert_eq!(backbone.tensors.values(), 22_056_192, "DINOv2-S without the mask token");
    assert_eq!(backbone.digest, backbone.tensors.digest().unwrap(), "its identity is its tensors'");
    let vit = Vit::bare(&backbone.config);
    for (seed, height, width) in [(41, 98, 98), (42, 70, 126)] {
        let pixels = backbone.config.normalise(&image(seed, height, width));
        let feature = tch::no_grad(|| vit.features(&backbone.tensors, &pixels));
        // Of length 50; other kernels and another order of sums differ by about 1e-5.
        let of = |what: &str| numbers(&format!("features.{height}x{width}.{what}"));
        assert_near(&feature.narrow(1, 0, 8), &of("first"), 1e-4);
        assert_near(&feature.norm(), &of("norm"), 1e-4);
    }
}

#[test]
fn the_position_table_is_untouched_at_its_own_grid_and_trainable_at_others() {
    let backbone = tiny(true);
    for rule in [Positions::HfSize, Positions::DinoScaleOffset, Positions::TimmAntialias] {
        let vit = Vit::bare(&backbone.config).with_positions(rule);
        let table = backbone.tensors["pos_embed"].copy().set_requires_grad(true);
        assert!(bitwise_equal(&vit.positions(&table, 4, 4), &table));
        let resized = vit.positions(&table, 2, 3);
        assert_eq!(resized.size(), [1, 7, 64]);
        let gradients = Tensor::run_backward(&[resized.sum(Kind::Float)], &[&table], false, false);
        // Bicubic weights sum to 1 for each of the seven positions and 64 channels.
        assert_near(&gradients[0].sum(Kind::Float), &[7.0 * 64.0], 1e-3);
    }
}

#[test]
fn the_three_rules_for_positions_differ() {
    let backbone = tiny(true);
    let table = &backbone.tensors["pos_embed"];
    let rules = [Positions::HfSize, Positions::DinoScaleOffset, Positions::TimmAntialias];
    let tables = rules.map(|rule| Vit::bare(&backbone.config).with_positions(rule).positions(table, 2, 3));
    for (one, two) in [(0, 1), (0, 2), (1, 2)] {
        let difference = (&tables[one] - &tables[two]).abs().max().double_value(&[]);
        assert!(difference > 1e-2, "{:?} and {:?}: {difference}", rules[one], rules[two]);
    }
}

#[test]
fn an_image_has_its_feature_wherever_it_is_in_the_batch() {
    for backbone in [tiny(true), tiny_clip(Activation::QuickGelu)] {
        let vit = Vit::bare(&backbone.config);
        let pixels = initial::normal(1, "pixels", &[4, 3, 28, 28], 1.0);
        let order = Tensor::from_slice(&[2i64, 0, 3, 1]);
        let permuted = vit.features(&backbone.tensors, &pixels.index_select(0, &order));
        let features = vit.features(&backbone.tensors, &pixels).index_select(0, &order);
        assert!(permuted.allclose(&features, 1e-5, 1e-5, false));
    }
}

#[test]
fn the_feature_is_the_first_of_all_tokens() {
    let pixels = initial::normal(1, "pixels", &[2, 3, 56, 42], 1.0);
    let backbone = tiny(true);
    let vit = Vit::bare(&backbone.config);
    let tokens = vit.tokens(&backbone.tensors, &pixels, None, None);
    assert_eq!(tokens.size(), [2, 13, 64]);
    // The last block of `features` multiplies fewer rows at once: sums in another order.
    assert!(tokens.select(1, 0).allclose(&vit.features(&backbone.tensors, &pixels), 1e-5, 1e-5, false));

    let clip = tiny_clip(Activation::QuickGelu);
    let vit = Vit::bare(&clip.config);
    let class = vit.tokens(&clip.tensors, &pixels, None, None).select(1, 0);
    let projected = class.matmul(&clip.tensors["proj.weight"].transpose(0, 1));
    assert!(projected.allclose(&vit.features(&clip.tensors, &pixels), 1e-5, 1e-5, false));
    assert_eq!(projected.size(), [2, 32]);
}

#[test]
fn all_patches_visible_in_their_order_is_the_whole_image() {
    let backbone = tiny(false);
    let vit = Vit::bare(&backbone.config);
    let pixels = initial::normal(1, "pixels", &[2, 3, 56, 56], 1.0);
    let all = Tensor::arange(16, (Kind::Int64, tch::Device::Cpu)).expand([2, 16], false);
    let tokens = vit.tokens(&backbone.tensors, &pixels, Some(&all), None);
    assert!(bitwise_equal(&tokens, &vit.tokens(&backbone.tensors, &pixels, None, None)));
}

#[test]
fn a_dropped_patch_has_no_influence_and_a_kept_one_its_own_position() {
    let backbone = tiny(false);
    let vit = Vit::bare(&backbone.config);
    let pixels = initial::normal(1, "pixels", &[1, 3, 56, 56], 1.0);
    let visible = Tensor::from_slice(&[5i64, 0, 10]).reshape([1, 3]);
    let tokens = vit.tokens(&backbone.tensors, &pixels, Some(&visible), None);
    assert_eq!(tokens.size(), [1, 4, 64]);
    // The last patch, row 3 and column 3, is not visible.
    let changed = pixels.copy();
    let _ = changed.narrow(2, 42, 14).narrow(3, 42, 14).fill_(3.0);
    assert!(bitwise_equal(&vit.tokens(&backbone.tensors, &changed, Some(&visible), None), &tokens));
    let order = Tensor::from_slice(&[0i64, 10, 5]).reshape([1, 3]);
    let reordered = vit.tokens(&backbone.tensors, &pixels, Some(&order), None);
    let back = reordered.index_select(1, &Tensor::from_slice(&[0i64, 3, 1, 2]));
    assert!(back.allclose(&tokens, 1e-5, 1e-5, false));
}

#[test]
fn half_precision_goes_through_in_its_own_dtype() {
    for backbone in [tiny(true), tiny_clip(Activation::QuickGelu)] {
        let pixels = initial::normal(1, "pixels", &[2, 3, 42, 42], 1.0);
        let exact = Vit::bare(&backbone.config).features(&backbone.tensors, &pixels);
        for kind in [Kind::BFloat16, Kind::Half] {
            let tensors: Tensors = backbone
                .tensors
                .iter()
                .map(|(name, tensor)| (name.to_owned(), tensor.to_kind(kind)))
                .collect();
            for rule in [Positions::HfSize, Positions::DinoScaleOffset, Positions::TimmAntialias] {
                let vit = Vit::bare(&backbone.config).with_positions(rule);
                let feature = vit.features(&tensors, &pixels.to_kind(kind));
                assert_eq!(feature.kind(), kind);
                assert_eq!(vit.tokens(&tensors, &pixels.to_kind(kind), None, None).kind(), kind);
                if rule == Positions::HfSize {
                    // Eight bits of mantissa over two blocks.
                    let error = (feature.to_kind(Kind::Float) - &exact).norm() / exact.norm();
                    assert!(error.double_value(&[]) < 0.03, "{kind:?}: {error:?}");
                }
            }
        }
    }
}

/// Panics unless the values begin and are as long as a golden's. Sums of some hundred f32 terms in another order.
fn assert_golden(values: &Tensor, path: &str) {
    let flat = values.flatten(0, -1);
    assert_near(&flat.narrow(0, 0, 6), &golden::numbers(&format!("{path}.first")), 1e-5);
    assert_near(&flat.norm(), &golden::numbers(&format!("{path}.norm")), 5e-5);
}

#[test]
fn features_and_tokens_are_timm_s_under_each_rule_for_positions() {
    let config = golden::encoder();
    let tensors = golden::weights(config.shapes());
    let vit = Vit::bare(&config);
    let (native, other) = (golden::pixels(1, 56, 56), golden::pixels(1, 42, 70));
    for (rule, name) in [
        (Positions::HfSize, "hf_size"),
        (Positions::DinoScaleOffset, "dino_scale_offset"),
        (Positions::TimmAntialias, "timm_antialias"),
    ] {
        let vit = vit.clone().with_positions(rule);
        assert_golden(&vit.features(&tensors, &native), "dino.native");
        assert_golden(&vit.features(&tensors, &other), &format!("dino.{name}"));
    }
    assert_golden(&vit.tokens(&tensors, &native, None, None).narrow(1, 5, 12), "dino.tokens");
}

#[test]
fn projected_features_are_open_clip_s_with_either_activation() {
    for activation in [Activation::Gelu, Activation::QuickGelu] {
        let clip = tiny_clip(activation).config;
        let tensors = golden::weights(clip.shapes());
        let feature = Vit::bare(&clip).features(&tensors, &golden::pixels(1, 56, 56));
        assert_golden(&feature, &format!("clip.{}", activation.as_str()));
    }
    // open_clip smooths the table where it shrinks it, as timm does.
    let clip = tiny_clip(Activation::Gelu).config;
    let tensors = golden::weights(clip.shapes());
    let vit = Vit::bare(&clip).with_positions(Positions::TimmAntialias);
    assert_golden(&vit.features(&tensors, &golden::pixels(1, 42, 70)), "clip.resized");
}
