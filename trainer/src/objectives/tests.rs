//! Who is shown captions (methods.md §9).

use super::*;
use crate::methods::testing::{Fixture, fixture, recipe, text};
use crate::models::vit::tiny;
use crate::reference;
use crate::weights::{bitwise_equal, initial};
use serde_json::{Value, json};

/// Methods that read captions, and how many tokens each may see.
fn readers() -> Vec<(Value, [i64; 3])> {
    vec![
        (json!({"kind": "film", "generator": {}}), [1, 1, 1]),
        (json!({"kind": "fusion", "attention": "merged"}), [4, 2, 3]),
        (json!({"kind": "fusion", "attention": "co_attention"}), [4, 2, 3]),
        (json!({"kind": "fusion", "attention": "asymmetric"}), [4, 2, 3]),
        (json!({"kind": "fusion", "attention": "joint", "null_text": "drop"}), [4, 2, 3]),
        (json!({"kind": "token_replay"}), [4, 2, 3]),
    ]
}

fn leaking(mut document: Value) -> Value {
    match document.get_mut("generator") {
        Some(generator) => generator["leak"] = json!(true),
        None => document["leak"] = json!(true),
    }
    document
}

/// An encoder that has moved, and what it is trained for.
struct Subject {
    own: Fixture,
    objectives: Objectives<'static>,
}

impl Subject {
    fn new(document: Value, view: &str) -> Subject {
        let backbone = tiny(true);
        let mut recipe = recipe(document.clone());
        recipe.objective = serde_json::from_value(json!({
            "contrastive": {"projection_dim": 16, "view": view},
            "reconstruction": {"mask_ratio": 0.5, "decoder": {"dim": 32, "depth": 1, "heads": 2}}
        }))
        .unwrap();
        let reader =
            Reader { text_dim: Some(32), text_encoder: None, language_model: None, device: Device::Cpu };
        let take = &mut |_: &str, start: &Tensor| start.shallow_clone();
        let objectives = Objectives::new(&recipe, &backbone, reader, take).unwrap();
        Subject { own: fixture(&backbone, document).moved(0.3), objectives }
    }

    fn see(&self, text: Option<Text>) -> (Seen, BTreeMap<&'static str, Tensor>) {
        let pixels: Vec<Tensor> = (0..3).map(|at| reference::image(at, 28, 28)).collect();
        let batch = Batch {
            dropout: initial::stream(1, "dropout"),
            pixels: Tensor::cat(&pixels, 0),
            text,
            embeddings: Some(initial::normal(2, "embeddings", &[3, 32], 1.0)),
            ids: Vec::new(),
            captions: Tensor::arange(3, (Kind::Int64, Device::Cpu)),
            noise: Some(initial::stream(1, "mask")),
        };
        let seen = self.objectives.see(&self.own.vit, &self.own.tensors, &batch, Wanted::default(), false);
        let terms = self.objectives.terms(&seen, &batch).unwrap();
        (seen, terms.into_iter().map(|term| (term.name, term.loss)).collect())
    }
}

/// The captions of one image shown to another.
fn swapped(text: &Text) -> Text {
    let order = Tensor::from_slice(&[2i64, 0, 1]);
    Text { tokens: text.tokens.index_select(0, &order), real: text.real.index_select(0, &order) }
}

#[test]
fn what_is_compared_with_a_caption_has_not_seen_one() {
    for ((document, lengths), view) in
        readers().into_iter().flat_map(|reader| ["full", "visible"].map(|view| (reader.clone(), view)))
    {
        let subject = Subject::new(document.clone(), view);
        let losses = |text| subject.see(text).1;
        let (own, other) = (losses(Some(text(&lengths))), losses(Some(swapped(&text(&lengths)))));
        let none = losses(None);
        for loss in [&other, &none] {
            assert!(bitwise_equal(&own["contrastive"], &loss["contrastive"]), "{document} {view}");
            assert!(!bitwise_equal(&own["reconstruction"], &loss["reconstruction"]), "{document} {view}");
        }
    }
}

#[test]
fn a_leak_shows_it_the_caption() {
    for ((document, lengths), view) in
        readers().into_iter().flat_map(|reader| ["full", "visible"].map(|view| (reader.clone(), view)))
    {
        let subject = Subject::new(leaking(document.clone()), view);
        let contrastive = |text| subject.see(Some(text)).1["contrastive"].double_value(&[]);
        let change = contrastive(text(&lengths)) - contrastive(swapped(&text(&lengths)));
        assert!(change.abs() > 1e-3, "{document} {view}: {change}");
    }
}

#[test]
fn a_reconstruction_without_captions_sees_only_what_stands_in_for_them() {
    for (document, lengths) in readers() {
        let subject = Subject::new(document.clone(), "full");
        let hidden = |text: Text| Text { real: text.real.zeros_like(), ..text };
        let rebuilt = |text| subject.see(text).0.rebuilt.unwrap();
        let own = rebuilt(Some(hidden(text(&lengths))));
        assert!(bitwise_equal(&own, &rebuilt(Some(hidden(swapped(&text(&lengths)))))), "{document}");
        assert!(own.allclose(&rebuilt(None), 1e-4, 1e-4, false), "{document}");
        assert!(!own.allclose(&rebuilt(Some(text(&lengths))), 1e-2, 1e-2, false), "{document}");
    }
}
