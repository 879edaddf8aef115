use super::*;
use crate::methods::Text;
use crate::methods::testing::{self, Fixture, fixture, pixels, site, text};
use crate::models::vit::{Vit, VitConfig, tiny};
use crate::weights::{Tensors, bitwise_equal};
use causeway_protocol::Method;
use serde_json::{Value, json};
use tch::{Device, Kind};

const FORMS: [&str; 4] = ["merged", "co_attention", "asymmetric", "joint"];

fn spec(attention: &str) -> Value {
    json!({"kind": "fusion", "attention": attention})
}

/// Every form, with every null text that it may have.
fn specs() -> Vec<Value> {
    let drop = |form: &str| json!({"kind": "fusion", "attention": form, "null_text": "drop"});
    FORMS.map(spec).into_iter().chain(["merged", "joint"].map(drop)).collect()
}

fn moved(document: Value) -> Fixture {
    fixture(&tiny(true), document).moved(0.5)
}

/// The state of the first block after its fusion, and the captions' tokens.
fn after_first_block(fixture: &Fixture, x: &Tensor, text: Option<&Text>) -> (Tensor, Tensor) {
    let Method::Fusion(own) = &fixture.vit.method else { panic!("{:?}", fixture.vit.method) };
    let start = Start { config: &fixture.vit.config, tensors: &fixture.tensors, text };
    let mut pass = Fusing::new(own, start);
    (pass.after_block(0, x, x.shallow_clone()), pass.captions.tokens)
}

fn state() -> Tensor {
    initial::normal(3, "state", &[2, 5, 64], 1.0)
}

fn near(a: &Tensor, b: &Tensor) -> bool {
    a.allclose(b, 1e-5, 1e-5, false)
}

#[test]
fn the_numbers_of_values_are_those_of_the_formulas() {
    let (config, none) = (VitConfig::default(), Tensors::new());
    let values = |document: Value| {
        let Method::Fusion(own) = testing::method(document) else { unreachable!() };
        Fused(own).added(&site(&config, &none), 0).unwrap().start.values()
    };
    let (text, own, null) = (768 * 32, 4 * 768 * 8 + 1, 32);
    assert_eq!(values(spec("merged")), text + null + 12 * own);
    assert_eq!(values(spec("asymmetric")), text + null + 12 * own);
    assert_eq!(
        values(spec("co_attention")),
        text + null + 23 * own,
        "the last block's captions are not read"
    );
    assert_eq!(values(spec("joint")), text + null + 12 * (2 * 768 * 8 + 3 * 64 + 1));
    let one = json!({"kind": "fusion", "attention": "co_attention", "null_text": "drop", "blocks": [3]});
    assert_eq!(values(one), text + own);
}

#[test]
fn with_closed_gates_a_captioned_image_is_the_backbone_s_bit_for_bit() {
    let bare = Vit::bare(&tiny(true).config).tokens(&tiny(true).tensors, &pixels(3), None, None);
    for document in specs() {
        let mut own = moved(document.clone());
        let gates: Vec<String> =
            own.tensors.names().filter(|name| name.ends_with("gate")).map(str::to_owned).collect();
        gates.iter().for_each(|gate| drop(own.tensors.insert(gate.as_str(), Tensor::from(0f32))));
        let tokens = own.vit.tokens(&own.tensors, &pixels(3), None, Some(&text(&[4, 0, 2])));
        assert!(bitwise_equal(&tokens, &bare), "{document}");
    }
}

#[test]
fn merged_with_no_text_to_see_is_self_attention() {
    let own = moved(json!({"kind": "fusion", "null_text": "drop"}));
    let (x, missing) = (state(), text(&[0, 0]));
    let attention = Attention { tensors: &own.tensors, place: place(0) };
    let itself = attention.gated(&x, attention.of(&x, &Keys { tokens: x.shallow_clone(), open: None }));
    assert!(near(&after_first_block(&own, &x, Some(&missing)).0, &itself));
    assert!(near(&after_first_block(&own, &x, None).0, &itself));
    assert!(!near(&after_first_block(&own, &x, Some(&text(&[2, 2]))).0, &itself));
}

#[test]
fn in_co_attention_an_image_token_changes_no_other() {
    for form in ["co_attention", "asymmetric"] {
        let own = moved(spec(form));
        let (x, captions) = (state(), text(&[3, 2]));
        let other = x.copy();
        let _ = other.get(1).get(2).g_add_scalar_(1.0);
        let (before, after) = (
            after_first_block(&own, &x, Some(&captions)).0,
            after_first_block(&own, &other, Some(&captions)).0,
        );
        let change = (after - before).abs().amax([-1].as_slice(), false); // [batch, tokens]
        assert!(change.get(1).get(2).double_value(&[]) > 0.1, "{form}");
        let _ = change.get(1).get(2).fill_(0.0);
        assert!(change.max().double_value(&[]) < 1e-5, "{form}: {change}");
    }
}

#[test]
fn asymmetric_leaves_the_captions_bit_for_bit_and_the_others_do_not() {
    for form in FORMS {
        let own = moved(spec(form));
        let captions = text(&[3, 2]);
        let keys = Keys::captions(Some(&captions), Some(&own.tensors[NULL]), &own.tensors[TEXT]);
        let (_, after) = after_first_block(&own, &state(), Some(&captions));
        assert_eq!(bitwise_equal(&after, &keys.tokens), form == "asymmetric", "{form}");
    }
}

#[test]
fn the_order_of_caption_tokens_says_nothing() {
    for document in specs() {
        let own = moved(document.clone());
        let captions = text(&[4, 2]);
        let order = Tensor::from_slice(&[2i64, 0, 3, 1]);
        let shuffled = Text {
            tokens: captions.tokens.index_select(1, &order),
            real: captions.real.index_select(1, &order),
        };
        let of = |text| own.vit.tokens(&own.tensors, &pixels(2), None, Some(text));
        assert!(of(&captions).allclose(&of(&shuffled), 1e-4, 1e-4, false), "{document}");
    }
}

#[test]
fn merged_rows_sum_to_1_over_image_and_caption() {
    let own = moved(spec("merged"));
    let captions = text(&[4, 2]);
    let keys = Keys::captions(Some(&captions), Some(&own.tensors[NULL]), &own.tensors[TEXT]);
    let both = keys.behind(&state());
    let attention = Attention { tensors: &own.tensors, place: place(0) };
    let tokens = attend::normed(&both.tokens);
    let (query, key) = (attention.linear("query", &tokens), attention.linear("key", &tokens));
    let rows = attend::weights(&query, &key, both.open.as_ref());
    assert_eq!(rows.size(), [2, 10, 10], "5 image tokens, 4 of the caption, the null text");
    let sums = rows.sum_dim_intlist([-1].as_slice(), false, Kind::Float);
    assert!(near(&sums, &Tensor::ones([2, 10], (Kind::Float, Device::Cpu))));
    let of_closed = rows.masked_select(&both.open.unwrap().logical_not().unsqueeze(1));
    assert!(of_closed.numel() > 0 && of_closed.max().double_value(&[]) == 0.0);
}

#[test]
fn another_caption_changes_its_own_image_alone() {
    for document in specs() {
        let own = moved(document.clone());
        let of = |text: &Text| own.vit.tokens(&own.tensors, &pixels(3), None, Some(text));
        let captions = text(&[4, 3, 0]);
        let before = of(&captions);
        let other = Text { tokens: captions.tokens.copy(), ..captions };
        let _ = other.tokens.get(1).narrow(0, 0, 3).g_add_scalar_(1.0).cumsum_(0, Kind::Float);
        let after = of(&other);
        for image in 0..3 {
            assert_eq!(
                bitwise_equal(&after.get(image), &before.get(image)),
                image != 1,
                "{document} {image}"
            );
        }
    }
}

#[test]
fn what_fills_up_a_short_caption_is_not_read() {
    for document in specs() {
        let own = moved(document.clone());
        let of = |text: &Text| own.vit.tokens(&own.tensors, &pixels(2), None, Some(text));
        let captions = text(&[4, 2]);
        let filled = Text { tokens: captions.tokens.copy(), real: captions.real.shallow_clone() };
        let _ = filled.tokens.get(1).narrow(0, 2, 2).fill_(9.0);
        assert!(bitwise_equal(&of(&captions), &of(&filled)), "{document}");
    }
}

#[test]
fn a_missing_caption_is_what_an_evaluation_sees() {
    for document in specs() {
        let own = moved(document.clone());
        let of = |text: Option<&Text>| own.vit.tokens(&own.tensors, &pixels(2), None, text);
        let (without, missing) = (of(None), of(Some(&text(&[3, 0]))));
        assert!(missing.isfinite().all().int64_value(&[]) == 1);
        // Keys that may not be seen add zeros to sums, in another order.
        assert!(missing.get(1).allclose(&without.get(1), 1e-4, 1e-4, false), "{document}");
        assert!(!missing.get(0).allclose(&without.get(0), 1e-2, 1e-2, false), "{document}");
    }
}

#[test]
fn without_captions_an_asymmetric_fusion_adds_one_vector_everywhere() {
    let change = |form| {
        let (own, x) = (moved(spec(form)), state());
        let change = after_first_block(&own, &x, None).0 - x;
        let spread = &change - change.get(0).get(0);
        (change.abs().max().double_value(&[]), spread.abs().max().double_value(&[]))
    };
    let (size, spread) = change("asymmetric");
    assert!(size > 0.1 && spread < 1e-5, "{size} {spread}");
    let (size, spread) = change("merged");
    assert!(size > 0.1 && spread > 0.1, "{size} {spread}");
}

#[test]
fn a_joint_adapter_attends_inside_its_bottleneck() {
    // With one token and no text to see, attention is the token itself: x + tanh(g)·Up V GELU(Down LN x).
    let own = moved(json!({"kind": "fusion", "attention": "joint", "null_text": "drop", "rank": 3}));
    let x = state().narrow(1, 0, 1);
    let of = |leaf: &str| &own.tensors[&format!("blocks.0.fusion.{leaf}")];
    let linear = |x: &Tensor, leaf: &str| x.matmul(&of(&format!("{leaf}.weight")).transpose(0, 1));
    let (mean, variance) = (x.mean_dim(-1, true, Kind::Float), x.var_dim(-1, false, true));
    let hidden = linear(&((&x - mean) / (variance + 1e-6).sqrt()), "down").gelu("none");
    let expected = &x + linear(&linear(&hidden, "value"), "up") * of("gate").tanh();
    assert!(near(&after_first_block(&own, &x, None).0, &expected));
}

#[test]
fn it_acts_in_the_blocks_that_are_named() {
    let own = moved(json!({"kind": "fusion", "blocks": [1]}));
    assert!(bitwise_equal(&after_first_block(&own, &state(), None).0, &state()));
}
