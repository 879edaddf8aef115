use super::*;
use serde_json::{Value, json};

/// A method of every kind and form.
fn methods() -> Vec<Value> {
    vec![
        json!({"kind": "full"}),
        json!({"kind": "selective", "k": 3}),
        json!({"kind": "selective", "k": 1, "rule": "first"}),
        json!({"kind": "selective", "k": 2, "rule": "relative_gradient", "chosen": [3, 7]}),
        json!({"kind": "block_expansion", "copies": 1}),
        json!({"kind": "adapter"}),
        json!({"kind": "adapter", "form": "pre"}),
        json!({"kind": "adapter", "form": "intermediate"}),
        json!({"kind": "adapter", "form": "houlsby"}),
        json!({"kind": "adapter", "form": "pfeiffer"}),
        json!({"kind": "adapter", "form": "parallel"}),
        json!({"kind": "lora", "targets": ["query", "key", "value", "proj", "fc1", "fc2"]}),
        json!({"kind": "film"}),
        json!({"kind": "film", "generator": {}}),
        json!({"kind": "film", "generator": {"null_text": "drop"}}),
        json!({"kind": "fusion"}),
        json!({"kind": "fusion", "attention": "co_attention"}),
        json!({"kind": "fusion", "attention": "asymmetric"}),
        json!({"kind": "fusion", "attention": "joint", "null_text": "drop"}),
        json!({"kind": "token_replay"}),
        json!({"kind": "token_replay", "reading": "b"}),
        json!({"kind": "token_replay", "reading": "c", "buffer": {"dataset": "d"}}),
        json!({"kind": "ladder"}),
        json!({"kind": "reprogram"}),
        json!({"kind": "reprogram", "program": "border"}),
        json!({"kind": "cross_modal", "language_model": "m"}),
    ]
}

fn described(document: &Value) -> Description {
    serde_json::from_value::<Method>(document.clone()).unwrap().description()
}

#[test]
fn every_method_has_a_title_one_sentence_and_an_equation() {
    for document in methods() {
        let Description { title, sentence, equation } = described(&document);
        assert!(!title.is_empty() && !equation.is_empty(), "{document}");
        assert!(sentence.ends_with('.') && sentence.matches(". ").count() == 0, "{sentence}");
    }
}

#[test]
fn every_word_of_a_method_is_described() {
    let mut words: Vec<String> =
        methods().iter().map(|document| document["kind"].as_str().unwrap().to_owned()).collect();
    words.dedup();
    let known =
        "full selective block_expansion adapter lora film fusion token_replay ladder reprogram cross_modal";
    assert_eq!(words.join(" "), known);
}

#[test]
fn a_sentence_has_the_numbers_of_its_spec() {
    let chosen = described(&methods()[3]);
    assert_eq!(
        chosen.sentence,
        "The 2 blocks with the largest relative gradient (here 3, 7) are trained as they are; the rest stands still."
    );
    let parallel = described(&json!({"kind": "adapter", "form": "parallel", "rank": 64}));
    assert_eq!(parallel.equation, "x ← x̂ + MLP(LN x̂) + A(x̂),  A(x) = 0.1 · Up(ReLU(Down x))");
    let lora = described(&json!({"kind": "lora", "rank": 4, "alpha": 8}));
    assert_eq!(lora.equation, "W x + (8 / 4) B A x,  B = 0 at the start");
}

#[test]
fn every_retention_term_is_described() {
    let all: Retention = serde_json::from_value(json!({
        "l2_sp": {}, "feature_distillation": {"tokens": true}, "ewc": {}, "lwf": {}, "rehearsal": {"dataset": "d"}
    }))
    .unwrap();
    let described = all.descriptions();
    assert_eq!(described.len(), 5);
    assert_eq!(described[0].equation, "0.01 · Σ (θ − θ0)²");
    assert!(described.iter().all(|term| term.sentence.ends_with('.')));
    assert!(Retention::default().descriptions().is_empty());
}
