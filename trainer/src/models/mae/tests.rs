use super::*;
use crate::models::golden;
use crate::models::vit::{Vit, tiny};
use crate::reference::assert_near;
use crate::weights::{Backbone, bitwise_equal};

fn noise(batch: i64, patches: i64) -> Tensor {
    let mut draws = initial::stream(3, "noise");
    let values: Vec<f64> = (0..batch * patches).map(|_| draws.uniform()).collect();
    Tensor::from_slice(&values).reshape([batch, patches])
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(&tensor.flatten(0, -1).to_kind(Kind::Double)).unwrap()
}

#[test]
fn the_patches_with_the_least_noise_are_kept() {
    let noise = Tensor::from_slice(&[0.9f32, 0.1, 0.5, 0.3]).reshape([1, 4]);
    let mask = random_masking(&noise, 2);
    assert_eq!(values(&mask.visible), [1., 3.]);
    assert_eq!(values(&mask.restore), [3., 0., 2., 1.], "patch 0 comes last, patch 1 first");
    assert_eq!(values(&mask.removed), [1., 0., 1., 0.]);
    let tied = random_masking(&Tensor::zeros([1, 3], (Kind::Float, Device::Cpu)), 1);
    assert_eq!(values(&tied.visible), [0.]);
}

#[test]
fn three_quarters_are_removed_and_restore_is_a_permutation() {
    let mask = random_masking(&noise(3, 196), 49);
    assert_eq!(mask.visible.size(), [3, 49]);
    assert_eq!(values(&mask.removed.sum_dim_intlist(1, false, Kind::Float)), [147.; 3]);
    let sorted = mask.restore.sort(1, false).0;
    assert!(sorted.equal(&Tensor::arange(196, (Kind::Int64, Device::Cpu)).expand([3, 196], false)));
    // What is visible is not removed.
    assert_eq!(values(&mask.removed.gather(1, &mask.visible, false).sum(Kind::Float)), [0.]);
}

#[test]
fn a_patch_is_read_by_row_column_and_channel_last() {
    let pixels = Tensor::arange(2 * 3 * 4 * 6, (Kind::Float, Device::Cpu)).reshape([2, 3, 4, 6]);
    let patches = patchify(&pixels, 2);
    assert_eq!(patches.size(), [2, 6, 12]);
    // The second patch of the first row: columns 2 and 3 of rows 0 and 1; channels are 24 apart.
    let second = patches.select(0, 0).select(0, 1);
    assert_eq!(values(&second), [2., 26., 50., 3., 27., 51., 8., 32., 56., 9., 33., 57.]);
    assert!(bitwise_equal(&unpatchify(&patches, 2, 2, 3), &pixels));
}

#[test]
fn normalised_targets_have_mean_0_and_variance_1_and_a_patch_of_one_colour_is_0() {
    let pixels = initial::normal(1, "pixels", &[2, 3, 8, 8], 3.0) + 2.0;
    let target = target(&pixels, 4, true);
    assert_near(&target.mean_dim(-1, false, Kind::Float), &[0.0; 8], 1e-5);
    assert_near(&target.var_dim(-1, true, false), &[1.0; 8], 1e-5);
    let plain = super::target(&Tensor::full([1, 3, 4, 4], 0.5, (Kind::Float, Device::Cpu)), 4, true);
    assert_eq!(values(&plain), [0.; 48]);
}

#[test]
fn the_loss_sees_removed_patches_only() {
    let mask = random_masking(&noise(2, 9), 3);
    let target = initial::normal(1, "target", &[2, 9, 12], 1.0);
    let prediction = initial::normal(1, "prediction", &[2, 9, 12], 1.0).set_requires_grad(true);
    let before = loss(&prediction, &target, &mask);
    let gradient = &Tensor::run_backward(&[&before], &[&prediction], false, false)[0];
    let kept = mask.removed.ones_like() - &mask.removed;
    assert_eq!((gradient.abs() * kept.unsqueeze(-1)).max().double_value(&[]), 0.0);
    let moved = |where_: &Tensor| prediction.detach() + where_.unsqueeze(-1) * 0.5;
    assert!(bitwise_equal(&loss(&moved(&kept), &target, &mask), &before.detach()));
    assert!(!bitwise_equal(&loss(&moved(&mask.removed), &target, &mask), &before.detach()));
    // 12 removed patches in all, each off by 0.5 in all of its values.
    let off = &target + 0.5;
    assert_near(&loss(&off, &target, &mask), &[0.25], 1e-6);
}

#[test]
fn the_position_table_is_mae_s() {
    let table = positions(768, 14).squeeze_dim(0);
    assert_eq!(table.size(), [197, 768]);
    let near = |row: i64, channel: i64, expected: &[f64]| {
        // f64 rounded to f32 once.
        assert_near(&table.select(0, row).narrow(0, channel, expected.len() as i64), expected, 1e-7);
    };
    near(0, 0, &[0.0; 4]);
    near(1, 0, &[0.0; 4]);
    let sines = [0.841_470_984_8, 0.815_250_649_7, 0.788_593_040_9, 0.761_720_408_5];
    near(2, 0, &sines); // x = 1, y = 0
    near(2, 384, &[0.0; 4]);
    near(15, 0, &[0.0; 4]); // x = 0, y = 1
    near(15, 384, &sines);
    near(15, 192, &[1.0; 4]);
    near(196, 764, &[0.999_998_759_7, 0.999_998_873_2, 0.999_998_976_3, 0.999_999_069_9]);
    assert_near(&table.sum(Kind::Double), &[69_594.493_859_168_78], 1e-3);
}

#[test]
fn the_published_decoder_has_its_number_of_values() {
    let config = DecoderConfig::new(&VitConfig::default(), 512, 8, 16).unwrap();
    let values: i64 = config.shapes().values().map(|shape| shape.iter().product::<i64>()).sum();
    assert_eq!(values, 26_109_184);
}

#[test]
fn a_fresh_autoencoder_starts_as_mae_s_and_its_loss_goes_to_every_trained_tensor() {
    let config =
        VitConfig { dim: 64, depth: 1, heads: 1, mlp_dim: 128, patch: 4, grid: 4, ..VitConfig::default() };
    let encoder = Backbone::new(fresh_encoder(&config, 7)).unwrap();
    assert_eq!(encoder.config, config);
    let decoder = DecoderConfig::new(&config, 32, 2, 16).unwrap();
    let start = decoder.fresh(7);
    assert_eq!(DecoderConfig::infer(&config, &start, None).unwrap(), decoder);
    assert_eq!(start.digest().unwrap(), decoder.fresh(7).digest().unwrap());
    assert_ne!(start.digest().unwrap(), decoder.fresh(8).digest().unwrap());

    let patch = &encoder.tensors["patch_embed.proj.weight"];
    let bound = (6.0f64 / (64.0 + 48.0)).sqrt();
    let largest = patch.abs().max().double_value(&[]);
    assert!(0.99 * bound < largest && largest <= bound, "uniform up to {bound}: {largest}");
    assert_eq!(encoder.tensors["pos_embed"], positions(64, 4));
    assert_eq!(values(&encoder.tensors["norm.weight"]), [1.0; 64]);
    assert_eq!(values(&encoder.tensors["blocks.0.attn.qkv.bias"]), [0.0; 192]);

    let all: Tensors = encoder
        .tensors
        .iter()
        .chain(start.iter())
        .map(|(name, tensor)| (name.to_owned(), tensor.copy().set_requires_grad(!FIXED.contains(&name))))
        .collect();
    let pixels = initial::normal(1, "pixels", &[2, 3, 16, 16], 1.0);
    let mask = random_masking(&noise(2, 16), 4);
    let tokens = Vit::bare(&config).tokens(&all, &pixels, Some(&mask.visible), None);
    assert_eq!(tokens.size(), [2, 5, 64]);
    let prediction = decoder.decode(&all, &tokens, &mask);
    assert_eq!(prediction.size(), [2, 16, 48]);
    let loss = loss(&prediction, &target(&pixels, 4, true), &mask);
    assert!(loss.double_value(&[]) > 0.9, "targets have variance 1 and nothing is learned yet");
    let trained: Vec<(&str, &Tensor)> = all.iter().filter(|(_, tensor)| tensor.requires_grad()).collect();
    let inputs: Vec<&Tensor> = trained.iter().map(|(_, tensor)| *tensor).collect();
    for ((name, _), gradient) in trained.iter().zip(Tensor::run_backward(&[loss], &inputs, false, false)) {
        assert!(gradient.abs().max().double_value(&[]) > 0.0, "{name}");
    }
}

#[test]
fn a_decoder_that_does_not_fit_is_an_error_that_lists_what_is_wrong() {
    let encoder = tiny(false).config;
    let mut tensors = DecoderConfig::new(&encoder, 32, 2, 16).unwrap().fresh(0);
    tensors.remove("decoder_norm.bias");
    tensors.insert("decoder_blocks.1.attn.rel_pos", Tensor::from(0f32));
    let error = DecoderConfig::infer(&encoder, &tensors, None).unwrap_err().to_string();
    assert!(
        error.contains("decoder_norm.bias is missing") && error.contains("rel_pos is unknown"),
        "{error}"
    );
    assert!(
        DecoderConfig::new(&encoder, 32, 2, 5).unwrap_err().to_string().contains("5 heads do not divide")
    );
    let config = DecoderConfig::new(&encoder, 32, 2, 16).unwrap();
    assert!(config.check_image_size(56).is_ok() && config.check_image_size(112).is_err());
}

#[test]
fn loss_and_gradient_are_those_of_hugging_face() {
    let config =
        VitConfig { dim: 64, depth: 2, heads: 1, mlp_dim: 128, patch: 8, grid: 4, ..VitConfig::default() };
    let decoder = DecoderConfig::new(&config, 32, 2, 16).unwrap();
    let tensors = golden::weights(config.shapes().into_iter().chain(decoder.shapes()));
    let pixels = golden::pixels(2, 32, 32);
    let mask = random_masking(&golden::seeded("noise", &[2, 16], 0.25), 4);
    let tokens = Vit::bare(&config).tokens(&tensors, &pixels, Some(&mask.visible), None);
    let prediction = decoder.decode(&tensors, &tokens, &mask).set_requires_grad(true);
    for (case, norm_pix) in [("pixels", false), ("normalised", true)] {
        let of = |what: &str| golden::numbers(&format!("mae.{case}.{what}"));
        let loss = loss(&prediction, &target(&pixels, 8, norm_pix), &mask);
        let gradient = &Tensor::run_backward(&[&loss], &[&prediction], false, false)[0];
        // Sums of some hundred f32 terms in another order; gradients are smaller by 2 / (24 · 192).
        assert_near(&loss, &of("loss"), 1e-5);
        assert_near(&prediction.flatten(0, -1).narrow(0, 0, 6), &of("prediction.first"), 1e-5);
        assert_near(&prediction.norm(), &of("prediction.norm"), 1e-4);
        let removed = of("first_removed")[0] as i64;
        assert_eq!(mask.removed.double_value(&[0, removed]), 1.0);
        assert_near(&gradient.select(0, 0).select(0, removed).narrow(0, 0, 6), &of("gradient.first"), 1e-8);
        assert_near(&gradient.norm(), &of("gradient.norm"), 1e-7);
    }

    let pixels = golden::pixels(2, 24, 40);
    let mask = random_masking(&golden::seeded("noise 15", &[2, 15], 0.25), 3);
    let tokens = Vit::bare(&config).tokens(&tensors, &pixels, Some(&mask.visible), None);
    let of = |what: &str| golden::numbers(&format!("mae.resized.{what}"));
    assert_near(&tokens.flatten(0, -1).narrow(0, 0, 6), &of("first"), 1e-5);
    assert_near(&tokens.norm(), &of("norm"), 1e-4);
}
