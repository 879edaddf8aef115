//! Every method on what it is for: a pretrained ViT-S, photo-like stamps and their captions.

use super::*;
use crate::attempt::material::{self, Material};
use crate::data::asset::Library;
use crate::models::vit::Vit;
use std::path::Path;

/// Pairs of a step: ln 8 = 2.08 is chance.
const BATCH: i64 = 8;

/// A spec of ten short steps on 32 stamps at 56 px.
fn real(method: Value, learning_rate: f64) -> Spec {
    let reads =
        serde_json::from_value::<causeway_protocol::Method>(method.clone()).unwrap().reads().is_some();
    let decoder = json!({"dim": 64, "depth": 1, "heads": 2});
    let objective = match reads {
        true => {
            json!({"contrastive": {"projection_dim": 64}, "reconstruction": {"weight": 0.1, "decoder": decoder}})
        }
        false => json!({"contrastive": {"projection_dim": 64}}),
    };
    parse_spec(json!({
        "experiment": "tests", "kind": "finetune", "seed": 3,
        "weights": {"theta0": {"asset": "vit-s14-imgfocus"}},
        "method": method,
        "captions": {"asset": "tux-captions", "text_encoder": "minilm-l6", "limit": 32},
        "objective": objective,
        "training": {
            "steps": 10, "batch_size": BATCH, "learning_rate": learning_rate, "head_learning_rate": 1e-2,
            "schedule": "constant", "image_size": 56, "resume_every": 5, "encoder_frozen_steps": 0
        },
        "evaluation": {"datasets": [{"asset": "digits-200", "role": "ood"}], "image_size": 56}
    }))
    .unwrap()
}

struct World {
    spec: Spec,
    backbone: Backbone,
    material: Material,
}

impl World {
    fn new(spec: Spec) -> World {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/data");
        let library = Library::find(&[data]);
        let widths = material::widths(&spec, &library).unwrap();
        let material = Material::read(&spec, &library, &[], widths, (Device::Cpu, 1)).unwrap();
        let backbone =
            Backbone::read(&reference::model("vit-s14-imgfocus").join("model.safetensors")).unwrap();
        World { spec, backbone, material }
    }

    fn run<'a>(
        &'a self,
        folder: &'a Path,
        resume: Option<&'a Path>,
        journal: &'a mut dyn FnMut(Event) -> Result<()>,
    ) -> TrainRun<'a> {
        TrainRun {
            spec: &self.spec,
            backbone: &self.backbone,
            pairs: self.material.pairs(),
            language_model: None,
            given: &self.material.given,
            kept: &self.material.kept,
            text_encoder: None,
            resume,
            folder,
            device: Device::Cpu,
            journal,
        }
    }

    /// Trains until the journal has told of step `stop`, or to the end.
    fn trained(&self, resume: Option<&Path>, stop: u64) -> Trained {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Vec::new();
        let mut journal = |event: Event| {
            let stopped = matches!(event, Event::Metrics { step, .. } if step == stop);
            events.push(event);
            ensure!(!stopped, "stopped");
            Ok(())
        };
        let result = train(self.run(folder.path(), resume, &mut journal));
        Trained { folder, events, result }
    }
}

/// The loss falls; exactly the intended tensors move; α = 0 is the bare backbone; a stopped run goes on with the same
/// bits; and with noise for images the contrast is chance again, so nothing came in beside them.
fn check(method: Value, learning_rate: f64) {
    let world = World::new(real(method.clone(), learning_rate));
    let trained = world.trained(None, u64::MAX);
    let losses: Vec<f64> = trained.metric("loss").iter().map(|(_, loss)| *loss).collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    assert!(mean(&losses[6..]) < mean(&losses[..4]), "{method}: {losses:?}");

    let line = Line::open(&world.backbone, &trained.file(CHECKPOINT)).unwrap();
    let (end, tuner) = (line.at(Alpha::ONE), methods::tuner(line.method()));
    for name in end.names() {
        let moved = line.moved().iter().any(|moved| moved == name);
        assert_eq!(moved, tuner.trains(name), "{method}: {name}");
    }
    let pixels = world.backbone.config.normalise(&reference::image(5, 56, 56));
    let bare = Vit::bare(&world.backbone.config);
    let bare = tch::no_grad(|| bare.features(&world.backbone.tensors, &pixels));
    assert!(bitwise_equal(&line.encoder(Alpha::ZERO).features(&pixels), &bare), "{method}");
    assert!(!bitwise_equal(&line.encoder(Alpha::ONE).features(&pixels), &bare), "{method}");

    let stopped = world.trained(None, 7);
    assert!(stopped.result.is_err());
    let state = stopped.file("resume-0000000005.safetensors");
    let resumed = world.trained(Some(&state), u64::MAX);
    assert_eq!(resumed.result.unwrap(), trained.result.unwrap(), "{method}");

    let (folder, mut silent) = (tempfile::tempdir().unwrap(), |_| Ok(()));
    let run = world.run(folder.path(), None, &mut silent);
    let mut recipe = Recipe::of(&world.spec).unwrap();
    recipe.method = line.method().clone();
    let (learner, _) = Learner::new(&run, &recipe, Some(&state)).unwrap();
    let noise: Vec<Tensor> = (0..BATCH).map(|at| reference::image(900 + at as u64, 56, 56)).collect();
    let order = order(&recipe, run.pairs.count);
    let batches = run.pairs.batches(&recipe, &order, 0, &Tensor::cat(&noise, 0));
    let contrastive = learner.gradients(&batches, 5).unwrap().0.terms["contrastive"];
    // Confident mistakes are dearer than chance, never cheaper.
    assert!(contrastive > 0.85 * (BATCH as f64).ln(), "{method}: {contrastive}");
}

#[test]
fn the_backbone_s_own_tensors_learn_from_real_pairs() {
    check(json!({"kind": "full"}), 1e-4);
    check(json!({"kind": "selective", "k": 3}), 1e-4);
    check(json!({"kind": "selective", "k": 3, "rule": "relative_gradient", "batches": 2}), 1e-4);
    check(json!({"kind": "block_expansion", "copies": 2}), 1e-4);
}

#[test]
fn adapters_learn_from_real_pairs() {
    check(json!({"kind": "adapter"}), 3e-3);
    check(json!({"kind": "adapter", "form": "houlsby"}), 3e-3);
    check(json!({"kind": "adapter", "form": "pfeiffer"}), 3e-3);
    check(json!({"kind": "adapter", "form": "parallel"}), 3e-3);
}

#[test]
fn low_rank_updates_scales_and_ladders_learn_from_real_pairs() {
    check(json!({"kind": "lora"}), 3e-3);
    check(json!({"kind": "film"}), 1e-2);
    check(json!({"kind": "ladder"}), 1e-2);
    check(json!({"kind": "token_replay", "reading": "b"}), 3e-3);
}

#[test]
fn methods_that_read_captions_learn_from_real_pairs() {
    check(json!({"kind": "film", "generator": {}}), 3e-3);
    check(json!({"kind": "fusion"}), 3e-3);
    check(json!({"kind": "fusion", "attention": "joint"}), 3e-3);
    check(json!({"kind": "fusion", "attention": "co_attention"}), 3e-3);
    check(json!({"kind": "token_replay"}), 3e-3);
}

#[test]
fn programs_and_words_learn_from_real_pairs() {
    check(json!({"kind": "reprogram"}), 3e-2);
    check(json!({"kind": "reprogram", "program": "border"}), 3e-2);
    let words =
        json!({"kind": "cross_modal", "language_model": "smollm2-135m", "words": 256, "alone_steps": 3});
    check(words, 3e-3);
}
