use super::*;
use crate::data::asset::Format;
use crate::methods::Given;
use crate::models::language::tiny;
use crate::models::vit::{self, Activation};
use crate::objectives::contrastive::{Heads, symmetric};
use crate::order::Order;
use crate::reference;
use crate::retention::Kept;
use crate::train::{Images, Pairs, TrainRun, train};
use crate::weights::{Backbone, bitwise_equal, initial, safetensors};
use anyhow::ensure;
use causeway_protocol::{BlobRef, Event, Spec, parse_spec};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;
use tch::{Device, Kind};
use tempfile::TempDir;

const CAPTIONS: [&str; 5] = ["a cat", "", "a dog & a cat", "a dog", "a cat a dog a cat"];

/// CLIP's tiny text tower, whose embeddings are 6 wide.
fn clip() -> TextEncoder {
    let folder = tempfile::tempdir().unwrap();
    let tensors = tiny::weights(7, &tiny::clip_shapes());
    safetensors::write(&folder.path().join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let config = json!({"hidden_act": "gelu", "num_attention_heads": 2});
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    tiny::write_clip_tokenizer(folder.path());
    TextEncoder::open(folder.path(), Format::ClipText).unwrap()
}

fn untrained() -> Untrained {
    Untrained::new(clip(), &CAPTIONS).unwrap()
}

#[test]
fn before_it_has_moved_it_embeds_as_the_frozen_one() {
    let untrained = untrained();
    assert_eq!((untrained.dim(), untrained.captions()), (6, 5));
    let tower = untrained.train(&mut |_, start| start.copy().set_requires_grad(true));
    let frozen = clip().embed(&CAPTIONS).unwrap();
    let all = tower.embed(&Tensor::from_slice(&[0i64, 1, 2, 3, 4])).unwrap();
    // With a gradient another library multiplies (`models::affine`).
    assert!(all.allclose(&frozen, 1e-5, 1e-6, false));
    let still = untrained.train(&mut |_, start| start.copy());
    assert!(bitwise_equal(&still.embed(&Tensor::from_slice(&[0i64, 1, 2, 3, 4])).unwrap(), &frozen));
    let some = tower.embed(&Tensor::from_slice(&[4i64, 0, 4])).unwrap();
    let expected = frozen.index_select(0, &Tensor::from_slice(&[4i64, 0, 4]));
    // Groups of other sizes may round otherwise.
    assert!(some.allclose(&expected, 1e-5, 1e-6, false));
    assert!(tower.embed(&Tensor::from_slice(&[5i64])).is_err());
}

#[test]
fn the_gradient_reaches_every_tensor_of_the_tower() {
    let untrained = untrained();
    let mut leaves = Vec::new();
    let tower = untrained.train(&mut |name, start| {
        let leaf = start.copy().set_requires_grad(true);
        leaves.push((name.to_owned(), leaf.shallow_clone()));
        leaf
    });
    assert!(leaves.iter().all(|(name, _)| name.starts_with(NAMES)));
    let embedded = tower.embed(&Tensor::from_slice(&[0i64, 2, 4])).unwrap();
    let weights = initial::normal(3, "weights", &[3, 6], 1.0);
    (embedded * weights).sum(Kind::Float).backward();
    for (name, leaf) in leaves {
        let gradient = leaf.grad();
        // A bias on keys shifts all scores of a query alike, so nothing depends on it; the joint bias has q and v too.
        assert!(gradient.defined() && gradient.abs().max().double_value(&[]) > 0.0, "{name}");
    }
}

#[test]
fn without_projections_the_loss_is_clip_s_on_the_embeddings() {
    let (untrained, places) = (untrained(), Tensor::from_slice(&[0i64, 2, 4]));
    let tower = untrained.train(&mut |_, start| start.copy().set_requires_grad(true));
    let spec = serde_json::from_value(json!({"projections": false})).unwrap();
    let heads = Heads::new(6, 6, &spec, 1).unwrap();
    let images = initial::normal(1, "images", &[3, 6], 1.0);
    let embedded = tower.embed(&places).unwrap();
    let loss = heads.loss(&images, &embedded, &places);
    let unit = &images / images.norm_scalaropt_dim(2.0, [-1], true);
    let frozen = clip().embed(&[CAPTIONS[0], CAPTIONS[2], CAPTIONS[4]]).unwrap();
    let expected = symmetric(&unit, &frozen, &Tensor::from((1.0 / 0.07) as f32), &places);
    assert!(loss.allclose(&expected, 1e-5, 1e-6, false));
}

struct Trained {
    folder: TempDir,
    events: Vec<Event>,
    result: Result<BlobRef>,
}

/// A CLIP whose image features are as wide as the tiny text tower's.
fn backbone(projection: i64) -> Backbone {
    let mut backbone = vit::tiny_clip(Activation::Gelu);
    let mut tensors = backbone.tensors.share();
    let width = backbone.config.dim;
    tensors.insert("proj.weight", initial::normal(4, "proj", &[projection, width], 0.1));
    let known = crate::models::vit::Known {
        activation: Some(Activation::Gelu),
        heads: Some(backbone.config.heads),
        ..Default::default()
    };
    backbone = Backbone::with(tensors, known).unwrap();
    backbone
}

fn spec(method: Value, contrastive: Value, training: Value) -> Spec {
    let mut all = json!({
        "steps": 10, "batch_size": 4, "learning_rate": 1e-3, "image_size": 28, "resume_every": 4
    });
    for (name, value) in training.as_object().unwrap() {
        all[name] = value.clone();
    }
    let document = json!({
        "experiment": "tests", "kind": "finetune", "seed": 11,
        "weights": {"theta0": {"asset": "tiny"}},
        "method": method,
        "captions": {"asset": "pairs", "text_encoder": "clip", "train_text_encoder": true},
        "objective": {"contrastive": contrastive},
        "training": all,
        "evaluation": {"datasets": [{"asset": "d", "role": "ood"}], "image_size": 28}
    });
    parse_spec(document).unwrap()
}

/// Seven images of five captions, trained on until the metrics of step `stop`.
fn run_until(spec: &Spec, projection: i64, resume: Option<&Path>, stop: Option<u64>) -> Trained {
    let folder = tempfile::tempdir().unwrap();
    let mut events = Vec::new();
    let mut journal = |event: Event| {
        let stopped = matches!(event, Event::Metrics { step, .. } if Some(step) == stop);
        events.push(event);
        ensure!(!stopped, "stopped");
        Ok(())
    };
    let open = |order: Order, steps: Range<u64>| -> Result<Images> {
        let step = move |step| {
            let image = |index: &usize| reference::image(*index as u64, 28, 28).squeeze_dim(0);
            let images: Vec<Tensor> = order.batch(step).iter().map(image).collect();
            Ok((Tensor::stack(&images, 0), Duration::ZERO))
        };
        Ok(Box::new(steps.map(step)))
    };
    let result = train(TrainRun {
        spec,
        backbone: &backbone(projection),
        pairs: Pairs {
            count: 7,
            images: &open,
            captions: &[0, 1, 2, 3, 4, 0, 2],
            embeddings: None,
            ids: &[],
            texts: &[],
        },
        language_model: None,
        text_encoder: Some(&untrained()),
        given: &Given::default(),
        kept: &Kept::default(),
        resume,
        folder: folder.path(),
        device: Device::Cpu,
        journal: &mut journal,
    });
    Trained { folder, events, result }
}

/// The values in the state after 8 steps.
fn state(trained: &Trained) -> Tensors {
    safetensors::read(&trained.folder.path().join("resume-0000000008.safetensors")).unwrap().tensors
}

#[test]
fn both_encoders_move_and_the_checkpoint_holds_one_of_them() {
    let trained =
        run_until(&spec(json!({"kind": "full"}), json!({"projections": false}), json!({})), 6, None, None);
    let checkpoint = trained.result.as_ref().unwrap();
    let state = state(&trained);
    for (name, start) in clip().tensors().iter() {
        let value = &state[&format!("value/{NAMES}{name}")];
        assert!(!bitwise_equal(value, start), "{name} stands still");
    }
    assert!(state.names().all(|name| !name.contains("heads/image")), "there are no projections");
    let distance = trained.events.iter().rev().find_map(|event| match event {
        Event::Metrics { values, .. } => values.get("distance").copied(),
        _ => None,
    });
    assert!(distance.unwrap() > 0.0);
    let file = safetensors::read(&trained.folder.path().join(&checkpoint.file)).unwrap();
    assert!(file.tensors.names().all(|name| !name.contains(NAMES)));
}

#[test]
fn flyp_resumes_with_the_same_bits() {
    for (method, contrastive, projection) in [
        (json!({"kind": "full"}), json!({"projections": false}), 6),
        (json!({"kind": "adapter", "rank": 4}), json!({"projection_dim": 8}), 32),
    ] {
        let spec = spec(method.clone(), contrastive, json!({"encoder_frozen_steps": 5}));
        let undisturbed = run_until(&spec, projection, None, None);
        let stopped = run_until(&spec, projection, None, Some(9));
        let path = stopped.folder.path().join("resume-0000000008.safetensors");
        let resumed = run_until(&spec, projection, Some(&path), None);
        assert_eq!(undisturbed.result.as_ref().unwrap(), resumed.result.as_ref().unwrap(), "{method}");
    }
}

#[test]
fn the_text_encoder_has_the_encoder_s_rate() {
    // The first step of AdamW has the length of the rate, for each value with a gradient.
    let training = json!({
        "learning_rate": 1e-4, "head_learning_rate": 1e-2, "weight_decay": 0.0, "resume_every": 1, "steps": 2,
        "schedule": "constant"
    });
    let trained =
        run_until(&spec(json!({"kind": "full"}), json!({"projection_dim": 8}), training), 32, None, None);
    let state =
        safetensors::read(&trained.folder.path().join("resume-0000000001.safetensors")).unwrap().tensors;
    let step = |name: &str, start: &Tensor| (&state[name] - start).abs().max().double_value(&[]);
    let name = "text_projection";
    let moved = step(&format!("value/{NAMES}{name}"), &clip().tensors()[name]);
    assert!((moved / 1e-4 - 1.0).abs() < 0.05, "{moved}");
}

#[test]
fn widths_that_differ_are_refused_without_projections() {
    let trained =
        run_until(&spec(json!({"kind": "full"}), json!({"projections": false}), json!({})), 32, None, None);
    let error = format!("{:#}", trained.result.unwrap_err());
    assert!(error.contains("width 32") && error.contains("width 6"), "{error}");
}
