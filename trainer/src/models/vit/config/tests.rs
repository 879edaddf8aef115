use super::*;
use crate::models::vit::{tiny, tiny_clip};
use crate::reference::assert_near;
use crate::weights::Backbone;

#[test]
fn published_encoders_have_their_number_of_values() {
    let values = |config: VitConfig| -> i64 {
        config.shapes().values().map(|shape| shape.iter().product::<i64>()).sum()
    };
    assert_eq!(values(VitConfig::default()), 85_798_656);
    let clip = VitConfig { pre_norm: true, patch_bias: false, projection: Some(512), ..VitConfig::default() };
    // OpenAI's ViT-B/16: model.visual's parameters.
    assert_eq!(values(clip), 86_192_640);
}

#[test]
fn metadata_of_earlier_checkpoints_still_mean_the_same() {
    let earlier = r#"{"dim":64,"depth":2,"mlp_dim":128,"patch":14,"grid":4,"layer_scale":true}"#;
    let config = tiny(true).config;
    assert_eq!(serde_json::from_str::<VitConfig>(earlier).unwrap(), config);
    assert_eq!(serde_json::to_string(&config).unwrap(), earlier, "and are still written so");
    let clip = tiny_clip(Activation::QuickGelu).config;
    let text = serde_json::to_string(&clip).unwrap();
    assert_eq!(serde_json::from_str::<VitConfig>(&text).unwrap(), clip, "{text}");
    assert_eq!((clip.heads, clip.eps, clip.projection), (2, 1e-5, Some(32)));
}

#[test]
fn the_identity_of_clip_weights_depends_on_the_activation_and_that_of_others_on_the_tensors_alone() {
    for layer_scale in [false, true] {
        let backbone = tiny(layer_scale);
        assert_eq!(backbone.config.beyond_shapes(), "");
        assert_eq!(backbone.digest, backbone.tensors.digest().unwrap());
    }
    let (gelu, quick) = (tiny_clip(Activation::Gelu), tiny_clip(Activation::QuickGelu));
    assert_eq!(gelu.tensors.digest().unwrap(), quick.tensors.digest().unwrap());
    assert_ne!(gelu.digest, quick.digest);
    assert_eq!(quick.config.beyond_shapes(), "eps=1e-5;activation=quick_gelu;pixels=clip;");
    let two = Known { heads: Some(2), ..Known::default() };
    let other = Backbone::with(tiny(true).tensors, two).unwrap();
    assert_eq!(other.config.beyond_shapes(), "heads=2;");
    assert_ne!(other.digest, tiny(true).digest);
}

#[test]
fn clip_weights_without_a_known_activation_are_refused() {
    let tensors = tiny_clip(Activation::Gelu).tensors;
    let error = format!("{:#}", Backbone::new(tensors).unwrap_err());
    assert!(error.contains("the shapes do not show which") && error.contains("--activation"), "{error}");
}

#[test]
fn the_number_of_heads_follows_the_width_where_it_is_a_rule() {
    assert_eq!([384, 768, 1024, 1280].map(usual_heads), [Some(6), Some(12), Some(16), Some(16)]);
    assert_eq!(usual_heads(100), None);
}

#[test]
fn an_image_that_cannot_be_cut_into_patches_is_refused() {
    let config = tiny(false).config;
    assert!(config.check_image_size(98).is_ok());
    let error = config.check_image_size(100).unwrap_err().to_string();
    assert!(error.contains("take a multiple of 14"), "{error}");
}

#[test]
fn bytes_become_what_torchvision_makes_of_them() {
    let pixels = Tensor::from_slice(&[0u8, 128, 255]).reshape([1, 3, 1, 1]);
    // (v / 255 − mean) / deviation by hand.
    assert_near(&VitConfig::default().normalise(&pixels), &[-2.117_904, 0.205_182, 2.640_000], 1e-5);
    let clip = VitConfig { pixels: PixelStatistics::Clip, ..VitConfig::default() };
    assert_near(&clip.normalise(&pixels), &[-1.792_263, 0.168_897, 2.145_897], 1e-5);
}
