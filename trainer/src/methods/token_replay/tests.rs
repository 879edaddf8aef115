use super::*;
use crate::methods::Text;
use crate::methods::testing::{Fixture, fixture, pixels, site, text};
use crate::models::vit::{Vit, VitConfig, tiny};
use crate::weights::{Tensors, bitwise_equal};
use serde_json::{Value, json};

fn spec(document: Value) -> TokenReplay {
    serde_json::from_value(document).unwrap()
}

fn moved(mut document: Value) -> Fixture {
    document["kind"] = json!("token_replay");
    fixture(&tiny(true), document).moved(0.5)
}

fn tokens(of: &Fixture, captions: Option<&Text>) -> Tensor {
    of.vit.tokens(&of.tensors, &pixels(3), None, captions)
}

#[test]
fn the_numbers_of_values_are_those_of_the_formulas() {
    let (config, none) = (VitConfig::default(), Tensors::new());
    let values = |document| {
        let tuner = tuner(&spec(document));
        let added = tuner.added(&site(&config, &none), 0).unwrap().start;
        let trained = added.iter().filter(|(name, _)| tuner.trains(name));
        (added.values(), trained.map(|(_, tensor)| tensor.numel() as u64).sum::<u64>())
    };
    let a = 768 * 32 + 12 * (4 * 768 * 8 + 1);
    assert_eq!(values(json!({})), (a + 16 * 32, a), "the memory stands still");
    let b = 12 * (8 * 2 * 768 + 8 + 768 * 8 + 768);
    assert_eq!(values(json!({"reading": "b"})), (b, b));
    let c = 165_984; // Adapter+ of rank 8 in a ViT-B
    assert_eq!(values(json!({"reading": "c"})), (c, c));
}

#[test]
fn the_same_tokens_are_replayed_at_every_block() {
    let own = moved(json!({}));
    let captions = text(&[3, 0]);
    let spec = spec(json!({}));
    let start = Start { config: &own.vit.config, tensors: &own.tensors, text: Some(&captions) };
    let mut pass = ReplayingCaptions::new(&spec, start);
    let (at, before) = (pass.replayed.tokens.data_ptr(), pass.replayed.tokens.copy());
    let mut x = initial::normal(3, "x", &[2, 5, 64], 1.0);
    for block in 0..2 {
        let y = pass.after_block(block, &x, x.shallow_clone());
        assert!(!y.allclose(&x, 1e-3, 1e-3, false));
        x = y;
        assert_eq!(pass.replayed.tokens.data_ptr(), at);
        assert!(bitwise_equal(&pass.replayed.tokens, &before));
    }
}

#[test]
fn the_memory_is_read_where_a_caption_is_missing_and_nowhere_else() {
    let mut own = moved(json!({}));
    let captions = text(&[3, 0, 4]);
    let (before, alone) = (tokens(&own, Some(&captions)), tokens(&own, None));
    own.tensors.insert(MEMORY, initial::normal(8, "another", &[16, 32], 1.0));
    let after = tokens(&own, Some(&captions));
    for image in 0..3 {
        assert_eq!(bitwise_equal(&before.get(image), &after.get(image)), image != 1, "{image}");
    }
    assert!(!alone.allclose(&tokens(&own, None), 1e-2, 1e-2, false));
    // Keys that may not be seen add zeros to sums, in another order.
    assert!(after.get(1).allclose(&tokens(&own, None).get(1), 1e-4, 1e-4, false));
}

#[test]
fn an_image_does_not_see_the_batch_s_other_captions() {
    let own = moved(json!({}));
    let captions = text(&[3, 0, 4]);
    let before = tokens(&own, Some(&captions));
    let other = Text { tokens: captions.tokens.copy(), ..captions };
    let _ = other.tokens.get(0).fill_(0.5);
    let after = tokens(&own, Some(&other));
    for image in 0..3 {
        assert_eq!(bitwise_equal(&before.get(image), &after.get(image)), image != 0, "{image}");
    }
    // In an evaluation there are none: an image alone and the same among others.
    let all = own.vit.features(&own.tensors, &pixels(3));
    let one = own.vit.features(&own.tensors, &pixels(3).narrow(0, 1, 1));
    assert!(all.narrow(0, 1, 1).allclose(&one, 1e-4, 1e-4, false));
}

#[test]
fn theta0_is_the_backbone_bit_for_bit_with_captions_too() {
    let backbone = tiny(true);
    let bare = Vit::bare(&backbone.config).tokens(&backbone.tensors, &pixels(3), None, None);
    for reading in ["a", "b"] {
        let own = fixture(&backbone, json!({"kind": "token_replay", "reading": reading}));
        assert!(bitwise_equal(&tokens(&own, Some(&text(&[3, 0, 4]))), &bare), "{reading}");
        assert!(bitwise_equal(&tokens(&own, None), &bare), "{reading}");
    }
}

#[test]
fn reading_b_adds_what_the_formula_says_of_the_image_s_own_beginnings() {
    let own = moved(json!({"reading": "b"}));
    let spec = spec(json!({"reading": "b"}));
    let beginnings = Beginnings(spec);
    let mut pass = beginnings.begin(Start { config: &own.vit.config, tensors: &own.tensors, text: None });
    let draw = |name| initial::normal(3, name, &[2, 5, 64], 1.0);
    let (entered, x) = (draw("x0"), draw("x"));
    let _ = pass.embedded(entered.shallow_clone());
    let after = pass.after_block(1, &x, x.shallow_clone());
    let at = |leaf: &str| &own.tensors[&format!("blocks.1.replay.{leaf}")];
    let down = at("down.weight");
    let hidden = x.matmul(&down.narrow(1, 0, 64).transpose(0, 1))
        + entered.matmul(&down.narrow(1, 64, 64).transpose(0, 1))
        + at("down.bias");
    let added = hidden.gelu("none").matmul(&at("up.weight").transpose(0, 1)) + at("up.bias");
    assert!(after.allclose(&(&x + added), 1e-4, 1e-4, false));
    // The last block may ask for the class token alone.
    let class = x.narrow(1, 0, 1);
    let alone = pass.after_block(1, &class, class.shallow_clone());
    assert!(alone.allclose(&after.narrow(1, 0, 1), 1e-4, 1e-4, false));
}

#[test]
fn reading_c_is_adapter_plus() {
    let backbone = tiny(true);
    let c = fixture(&backbone, json!({"kind": "token_replay", "reading": "c", "rank": 3})).moved(0.5);
    let adapter = fixture(&backbone, json!({"kind": "adapter", "rank": 3})).moved(0.5);
    assert!(bitwise_equal(&tokens(&c, None), &tokens(&adapter, None)));
}
