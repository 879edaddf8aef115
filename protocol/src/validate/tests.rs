use super::*;
use serde_json::json;

fn minimal() -> serde_json::Value {
    json!({
        "experiment": "e", "kind": "finetune",
        "weights": {"theta0": {"asset": "vit"}},
        "method": {"kind": "adapter"},
        "captions": {"asset": "pairs", "text_encoder": "minilm"},
        "objective": {"contrastive": {}},
        "training": {"steps": 10, "learning_rate": 1e-3},
        "evaluation": {"datasets": [{"asset": "d", "role": "ood"}]}
    })
}

fn fields(document: serde_json::Value) -> Vec<String> {
    parse_spec(document).unwrap_err().into_iter().map(|problem| problem.field).collect()
}

#[test]
fn a_minimal_spec_gets_every_default() {
    let spec = parse_spec(minimal()).unwrap();
    assert_eq!(spec.name, "adapter seed 0");
    assert_eq!(spec.max_attempts, 3);
    assert_eq!(spec.evaluation.alphas.len(), 11);
    assert_eq!(spec.evaluation.protocols()[3].id, "knn20-t0.07-direct224-cls-f32");
    assert_eq!(spec.assets(), ["vit", "pairs", "minilm", "d"]);
    let again = parse_spec(serde_json::to_value(&spec).unwrap()).unwrap();
    assert_eq!(again, spec, "a spec with its defaults filled in is itself");
}

#[test]
fn unknown_and_mistyped_fields_are_named() {
    let mut document = minimal();
    document["training"]["learning_rat"] = json!(1);
    assert_eq!(fields(document), ["training.learning_rat"]);
    let mut document = minimal();
    document["method"] = json!({"kind": "adapter", "rnk": 4});
    let problems = parse_spec(document).unwrap_err();
    assert!(problems[0].rule.contains("rnk"), "{problems:?}");
    let mut document = minimal();
    document["training"]["steps"] = json!("many");
    assert_eq!(fields(document), ["training.steps"]);
}

#[test]
fn every_broken_rule_is_reported_at_once() {
    let mut document = minimal();
    document["training"]["learning_rate"] = json!(-1.0);
    document["evaluation"]["k"] = json!([5, 1]);
    document["evaluation"]["alphas"] = json!([0.5, 0.1]);
    document["weights"]["theta0"] = json!({"blob": "xyz"});
    assert_eq!(
        fields(document),
        ["weights.theta0.blob", "training.learning_rate", "evaluation.alphas", "evaluation.k"]
    );
}

#[test]
fn the_image_in_a_border_stands_in_the_middle() {
    let with = |size: u32, inner: serde_json::Value| {
        let mut document = minimal();
        document["method"] = json!({"kind": "reprogram", "program": "border"});
        if !inner.is_null() {
            document["method"]["inner"] = inner;
        }
        document["training"]["image_size"] = json!(size);
        document["evaluation"]["image_size"] = json!(size);
        document
    };
    for (size, inner) in [(224, 196), (98, 86), (84, 74), (28, 24), (14, 12)] {
        let spec = parse_spec(with(size, json!(null))).unwrap();
        assert_eq!(serde_json::to_value(spec.method).unwrap()["inner"], inner, "of {size}");
    }
    assert_eq!(fields(with(98, json!(85))), ["method.inner"]);
    assert_eq!(fields(with(98, json!(98))), ["method.inner"]);
    parse_spec(with(98, json!(84))).unwrap();
}

#[test]
fn any_arithmetic_is_a_protocol_of_its_own_and_a_refinement_needs_a_beginning() {
    let with = |evaluation: serde_json::Value| {
        let mut document = minimal();
        document["evaluation"].as_object_mut().unwrap().extend(evaluation.as_object().unwrap().clone());
        document
    };
    for dtype in ["f32", "bf16", "f16"] {
        let spec = parse_spec(with(json!({"dtype": dtype}))).unwrap();
        assert!(spec.evaluation.protocols()[0].id.ends_with(dtype), "{dtype}");
    }
    assert_eq!(fields(with(json!({"dtype": "f64"}))), ["evaluation.dtype"]);
    assert_eq!(parse_spec(with(json!({"refine": 3}))).unwrap().evaluation.refine, 3);
    assert_eq!(fields(with(json!({"refine": 9}))), ["evaluation.refine"]);
    assert_eq!(fields(with(json!({"refine": 1, "alphas": [0.5, 1]}))), ["evaluation.refine"]);
    assert_eq!(fields(with(json!({"refine": 1, "alphas": [0]}))), ["evaluation.refine"]);
}

#[test]
fn an_evaluation_needs_both_ends_and_no_training() {
    let mut document = minimal();
    document["kind"] = json!("evaluate");
    assert_eq!(fields(document), ["weights.theta1", "method", "captions", "objective", "training"]);
}

#[test]
fn what_chooses_a_greedy_soup_does_not_judge_it() {
    let spec = |greedy_on: &str| {
        let soup = json!({"checkpoints": ["a".repeat(64), "b".repeat(64)], "greedy_on": greedy_on});
        json!({
            "experiment": "e", "kind": "evaluate",
            "weights": {"theta0": {"asset": "vit"}, "theta1": {"soup": soup}},
            "evaluation": {"datasets": [{"asset": "d", "role": "ood"}]}
        })
    };
    assert_eq!(fields(spec("d")), ["weights.theta1.soup.greedy_on"]);
    let spec = parse_spec(spec("other")).unwrap();
    assert_eq!(spec.assets(), ["vit", "other", "d"]);
    assert_eq!(spec.blobs(), ["a".repeat(64), "b".repeat(64)]);
}

#[test]
fn a_method_that_leaves_nothing_trained_where_evaluations_look_is_refused_with_the_reason() {
    for (method, field) in [
        (json!({"kind": "selective", "k": 0}), "method.k"),
        (json!({"kind": "block_expansion", "copies": 0}), "method.copies"),
        (json!({"kind": "lora", "targets": []}), "method.targets"),
        (json!({"kind": "adapter", "blocks": []}), "method.blocks"),
        (json!({"kind": "film", "generator": {"null_text": "drop"}}), "method.generator.null_text"),
        (json!({"kind": "fusion", "attention": "asymmetric", "null_text": "drop"}), "method.null_text"),
        (json!({"kind": "fusion", "attention": "co_attention", "null_text": "drop"}), "method.null_text"),
    ] {
        let mut document = minimal();
        document["method"] = method.clone();
        let problems = parse_spec(document).unwrap_err();
        let [problem] = problems.as_slice() else { panic!("{method}: {problems:?}") };
        assert_eq!(problem.field, field, "{method}");
        assert!(problem.rule.contains("nothing trained on the path that is evaluated"), "{problem}");
    }
    let mut document = minimal();
    document["method"] = json!({"kind": "fusion", "attention": "merged", "null_text": "drop"});
    assert!(parse_spec(document).is_ok(), "merged attention is over the image's own tokens too");
}

#[test]
fn what_belongs_to_another_method_or_term_is_refused() {
    let with = |path: &str, value: serde_json::Value| {
        let mut document = minimal();
        *document.pointer_mut(path).unwrap() = value;
        fields(document)
    };
    assert_eq!(with("/method", json!({"kind": "token_replay", "reading": "c"})), ["method.buffer"]);
    assert_eq!(
        with("/method", json!({"kind": "token_replay", "buffer": {"dataset": "d"}})),
        ["method.buffer"]
    );
    assert_eq!(with("/method", json!({"kind": "reprogram", "inner": 100})), ["method.inner"]);
    assert_eq!(with("/method", json!({"kind": "lora", "targets": ["query", "query"]})), ["method.targets"]);
    let mut document = minimal();
    document["retention"] = json!({"rehearsal": {"dataset": "d"}, "l2_sp": {"weight": -1.0}});
    assert_eq!(fields(document), ["retention.l2_sp.weight", "retention.rehearsal"]);
    let mut document = minimal();
    document["retention"] = json!({});
    assert_eq!(fields(document), ["retention"]);
    let mut document = minimal();
    document["method"] = json!({"kind": "fusion"});
    document["captions"]["train_text_encoder"] = json!(true);
    assert_eq!(fields(document), ["captions.train_text_encoder"]);
}

#[test]
fn readouts_beside_k_nn_have_rules_and_ids_of_their_own() {
    let with = |field: &str, value: serde_json::Value| {
        let mut document = minimal();
        document["evaluation"][field] = value;
        document
    };
    let digest = "ab".repeat(32);
    let mut document = with("linear_probe", json!({"c": [0.1, 1, 10]}));
    document["evaluation"]["zero_shot"] =
        json!({"text_encoder": "clip", "digest": digest, "templates": ["a {}", "the {}."]});
    let spec = parse_spec(document).unwrap();
    let ids: Vec<String> = spec.evaluation.protocols().into_iter().map(|protocol| protocol.id).collect();
    assert_eq!(ids.len(), 6);
    assert_eq!(ids[4], "linear-c0.1_1_10-fifths-direct224-cls-f32");
    assert!(
        ids[5].starts_with("zeroshot-clip-abababababab-") && ids[5].ends_with("-direct224-cls-f32"),
        "{}",
        ids[5]
    );
    assert_eq!(spec.assets(), ["vit", "pairs", "minilm", "d", "clip"]);

    assert_eq!(
        parse_spec(with("linear_probe", json!({}))).unwrap().evaluation.linear_probe.unwrap().c,
        [1.0]
    );
    for (c, field) in [
        (json!([]), "evaluation.linear_probe.c"),
        (json!([1, 1]), "evaluation.linear_probe.c"),
        (json!([0]), "evaluation.linear_probe.c[0]"),
        (json!([1, 1e9]), "evaluation.linear_probe.c[1]"),
        (json!((1..=17).collect::<Vec<u32>>()), "evaluation.linear_probe.c"),
    ] {
        assert_eq!(fields(with("linear_probe", json!({"c": c}))), [field]);
    }
    let zero_shot = |digest: &str, templates: serde_json::Value| {
        with("zero_shot", json!({"text_encoder": "clip", "digest": digest, "templates": templates}))
    };
    assert_eq!(fields(zero_shot("", json!(["a {}"]))), ["evaluation.zero_shot.digest"]);
    assert_eq!(fields(with("zero_shot", json!({"text_encoder": "clip"}))), ["evaluation.zero_shot.digest"]);
    for templates in [json!(["a photo"]), json!(["{} and {}"]), json!(["a {}\n"])] {
        assert_eq!(fields(zero_shot(&digest, templates)), ["evaluation.zero_shot.templates[0]"]);
    }
    assert_eq!(fields(zero_shot(&digest, json!(["a {}", "a {}"]))), ["evaluation.zero_shot.templates[1]"]);
    assert_eq!(fields(zero_shot(&digest, json!([]))), ["evaluation.zero_shot.templates"]);
}

#[test]
fn an_analysis_is_of_what_is_evaluated_and_bounded() {
    let with = |analysis: serde_json::Value| {
        let mut document = minimal();
        document["analysis"] = analysis;
        document
    };
    let dataset = minimal()["evaluation"]["datasets"][0]["asset"].clone();
    let spec = parse_spec(with(json!({"spectrum": {}, "similarity": {"dataset": dataset}}))).unwrap();
    let analysis = spec.analysis.unwrap();
    let [spectrum, similarity] = [analysis.spectrum.unwrap().alphas, analysis.similarity.unwrap().alphas]
        .map(|alphas| alphas.iter().map(|alpha| alpha.as_f64()).collect::<Vec<_>>());
    assert_eq!((spectrum, similarity), (vec![0.0, 1.0], vec![0.5, 1.0]));

    assert_eq!(fields(with(json!({}))), ["analysis"]);
    assert_eq!(fields(with(json!({"spectrum": {"alphas": []}}))), ["analysis.spectrum.alphas"]);
    assert_eq!(fields(with(json!({"spectrum": {"alphas": [1, 0]}}))), ["analysis.spectrum.alphas"]);
    assert_eq!(fields(with(json!({"spectrum": {"heads": 2}}))), ["analysis.spectrum.heads"]);
    let similarity = |more: serde_json::Value| {
        let mut similarity = json!({"dataset": dataset});
        similarity.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fields(with(json!({ "similarity": similarity })))
    };
    let other = parse_spec(with(json!({"similarity": {"dataset": "elsewhere"}}))).unwrap_err();
    assert_eq!(other[0].field, "analysis.similarity.dataset");
    assert!(other[0].rule.contains("must be one of evaluation.datasets"), "{}", other[0]);
    assert_eq!(similarity(json!({"images": 7})), ["analysis.similarity.images"]);
    assert_eq!(similarity(json!({"bank": 1})), ["analysis.similarity.bank"]);
    // 50 · (1 + 3 · 20) small images.
    assert_eq!(similarity(json!({"queries": 50, "neighbours": 20})), ["analysis.similarity.queries"]);
    let none = json!({"dataset": dataset, "queries": 0, "neighbours": 20});
    assert!(parse_spec(with(json!({ "similarity": none }))).is_ok());
}
