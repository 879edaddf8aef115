mod chosen_blocks;
mod every_method;
mod language;
mod real;

use super::*;
use crate::methods::{self, Widths};
use crate::models::vit::tiny;
use crate::reference;
use crate::weights::interpolate::Line;
use crate::weights::{bitwise_equal, initial};
use causeway_protocol::{Alpha, RunProgress, parse_spec};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A spec for the tiny backbone; `training` overrides what is given here.
fn spec(method: Value, training: Value) -> Spec {
    let mut all = json!({
        "steps": 12, "batch_size": 5, "learning_rate": 3e-3, "warmup_steps": 2,
        "image_size": 28, "resume_every": 4
    });
    for (name, value) in training.as_object().unwrap() {
        all[name] = value.clone();
    }
    spec_with(method, json!({"contrastive": {"projection_dim": 16}}), all)
}

pub(super) fn spec_with(method: Value, objective: Value, training: Value) -> Spec {
    let mut captions = json!({"asset": "pairs"});
    if !objective["contrastive"].is_null() {
        captions["text_encoder"] = json!("text");
    }
    let document = json!({
        "experiment": "tests", "kind": "finetune", "seed": 11,
        "weights": {"theta0": {"asset": "tiny"}},
        "method": method,
        "captions": captions,
        "objective": objective,
        "training": training,
        "evaluation": {"datasets": [{"asset": "d", "role": "ood"}], "image_size": 28}
    });
    parse_spec(document).unwrap()
}

/// Methods, one of each way in which they train.
fn methods() -> Vec<Value> {
    vec![
        json!({"kind": "full"}),
        json!({"kind": "selective", "k": 1}),
        json!({"kind": "selective", "k": 1, "rule": "first"}),
        json!({"kind": "selective", "k": 1, "rule": "relative_gradient", "batches": 2}),
        json!({"kind": "block_expansion", "copies": 1}),
        json!({"kind": "adapter", "rank": 4}),
        json!({"kind": "adapter", "rank": 4, "form": "houlsby"}),
        json!({"kind": "adapter", "rank": 4, "form": "parallel", "init": "lora"}),
        json!({"kind": "lora", "rank": 4}),
        json!({"kind": "film"}),
        json!({"kind": "ladder", "reduction": 4}),
        json!({"kind": "reprogram"}),
        json!({"kind": "reprogram", "program": "border"}),
        json!({"kind": "cross_modal", "language_model": "m", "words": 12, "rank": 4, "alone_steps": 6}),
    ]
}

/// What a spec's method is given from elsewhere.
fn given(spec: &Spec) -> Given {
    let mut given = Given { widths: Widths { word: 24, ..Widths::default() }, ..Given::default() };
    if let Some(causeway_protocol::Method::CrossModal(_)) = &spec.method {
        given.tensors.insert("words.table", initial::normal(3, "words.table", &[12, 24], 0.2));
    }
    given
}

/// Number of values that a method trains.
fn trained(recipe: &Recipe, backbone: &Backbone) -> u64 {
    let widths = Widths { word: 24, ..Widths::default() };
    methods::trainable(recipe, backbone, widths).unwrap().iter().map(|(_, values)| values).sum()
}

pub(super) struct Trained {
    pub(super) folder: TempDir,
    pub(super) events: Vec<Event>,
    pub(super) result: Result<BlobRef>,
}

impl Trained {
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn metric(&self, name: &str) -> Vec<(u64, f64)> {
        let values = self.events.iter().filter_map(|event| match event {
            Event::Metrics { step, values } => Some((*step, *values.get(name)?)),
            _ => None,
        });
        values.collect()
    }
}

/// The images of each step, made from their indices.
pub(super) fn images(order: Order, steps: Range<u64>) -> Result<Images> {
    let step = move |step| {
        let image = |index: &usize| reference::image(*index as u64, 28, 28).squeeze_dim(0);
        let images: Vec<Tensor> = order.batch(step).iter().map(image).collect();
        Ok((Tensor::stack(&images, 0), Duration::ZERO))
    };
    Ok(Box::new(steps.map(step)))
}

/// Nine images with seven distinct captions, trained on until `stop` is seen in the journal.
fn run_until(spec: &Spec, resume: Option<&Path>, stop: impl Fn(&Event) -> bool) -> Trained {
    let backbone = tiny(true);
    let folder = tempfile::tempdir().unwrap();
    let embeddings = initial::normal(2, "texts", &[7, 32], 1.0);
    let mut events = Vec::new();
    let mut journal = |event: Event| {
        let stopped = stop(&event);
        events.push(event);
        ensure!(!stopped, "stopped");
        Ok(())
    };
    let result = train(TrainRun {
        spec,
        backbone: &backbone,
        pairs: Pairs {
            count: 9,
            images: &images,
            captions: &[0, 1, 2, 3, 4, 5, 6, 1, 2],
            embeddings: spec.objective.as_ref().and_then(|o| o.contrastive.as_ref()).map(|_| &embeddings),
            ids: &[],
            texts: &[],
        },
        language_model: None,
        given: &given(spec),
        kept: &Kept::default(),
        text_encoder: None,
        resume,
        folder: folder.path(),
        device: Device::Cpu,
        journal: &mut journal,
    });
    Trained { folder, events, result }
}

fn run(spec: &Spec) -> Trained {
    run_until(spec, None, |_| false)
}

#[test]
fn the_journal_tells_the_story_in_order() {
    let spec = spec(json!({"kind": "film"}), json!({}));
    let trained = run(&spec);
    let steps: Vec<u64> = trained.metric("loss").iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, (1..=12).collect::<Vec<_>>());
    let distances: Vec<u64> = trained.metric("distance").iter().map(|(step, _)| *step).collect();
    assert_eq!(distances, [10, 12]);
    let states = trained.events.iter().filter_map(|event| match event {
        Event::ResumeState { step, blob } => Some((*step, blob.file.as_str())),
        _ => None,
    });
    assert_eq!(
        states.collect::<Vec<_>>(),
        [(4, "resume-0000000004.safetensors"), (8, "resume-0000000008.safetensors")]
    );
    let Some(Event::Checkpoint { step: 12, blob, backbone, method }) = trained.events.last() else {
        panic!("the last event is {:?}", trained.events.last());
    };
    assert_eq!((backbone, method.as_str()), (&tiny(true).digest, "film"));
    assert_eq!(blob, trained.result.as_ref().unwrap());
    let bytes = std::fs::read(trained.file(&blob.file)).unwrap();
    assert_eq!(blob.sha256, causeway_protocol::sha256_hex(&bytes));
    assert!(
        trained.events.iter().any(|event| matches!(event, Event::Progress(RunProgress { done: 12, .. })))
    );
}

#[test]
fn two_resume_states_are_kept_and_only_their_own_run_resumes_from_them() {
    let trained = run(&spec(json!({"kind": "film"}), json!({"resume_every": 2})));
    let mut files: Vec<_> = std::fs::read_dir(trained.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, [CHECKPOINT, "resume-0000000008.safetensors", "resume-0000000010.safetensors"]);

    let other = spec(json!({"kind": "film"}), json!({"resume_every": 2, "learning_rate": 1e-4}));
    let state = trained.file("resume-0000000010.safetensors");
    let error = format!("{:#}", run_until(&other, Some(&state), |_| false).result.unwrap_err());
    assert!(error.contains("it belongs to another spec"), "{error}");
    std::fs::write(&state, b"torn").unwrap();
    let same = spec(json!({"kind": "film"}), json!({"resume_every": 2}));
    let error = format!("{:#}", run_until(&same, Some(&state), |_| false).result.unwrap_err());
    assert!(error.contains("resume-0000000010.safetensors is not a sound safetensors file"), "{error}");
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_with_a_reason() {
    let diverging = spec(json!({"kind": "full"}), json!({"learning_rate": 1e30}));
    let trained = run(&diverging);
    let error = trained.result.as_ref().unwrap_err();
    assert!(error.is::<Diverged>(), "{error:#}");
    let text = error.to_string();
    assert!(text.contains(" became ") && text.ends_with("; lower training.learning_rate"), "{text}");
    assert!(!trained.file(CHECKPOINT).exists());
    let finite = trained.events.iter().all(|event| match event {
        Event::Metrics { values, .. } => values.values().all(|value| value.is_finite()),
        _ => true,
    });
    assert!(finite);
}

#[test]
fn what_does_not_fit_the_backbone_is_refused_by_field() {
    let error =
        format!("{:#}", run(&spec(json!({"kind": "film"}), json!({"image_size": 30}))).result.unwrap_err());
    assert!(error.contains("`training.image_size`") && error.contains("multiple of 14"), "{error}");
}

#[test]
fn another_seed_is_another_run() {
    let spec_a = spec(json!({"kind": "adapter", "rank": 4}), json!({}));
    let spec_b = Spec { seed: 12, ..spec_a.clone() };
    let (a, again, b) = (run(&spec_a), run(&spec_a), run(&spec_b));
    assert_eq!(a.result.as_ref().unwrap(), again.result.as_ref().unwrap());
    assert_ne!(a.result.unwrap().sha256, b.result.unwrap().sha256);
}

/// A small autoencoder's objective, with or without the contrastive one beside it.
pub(super) fn masked(contrastive: Option<&str>) -> Value {
    let decoder = json!({"dim": 32, "depth": 1, "heads": 2});
    let mut objective = json!({"reconstruction": {"mask_ratio": 0.5, "decoder": decoder}});
    if let Some(view) = contrastive {
        objective["contrastive"] = json!({"projection_dim": 16, "view": view});
    }
    objective
}

pub(super) fn looped(more: Value) -> Value {
    let mut all = json!({
        "steps": 12, "batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 2, "image_size": 28, "resume_every": 4
    });
    for (name, value) in more.as_object().unwrap() {
        all[name] = value.clone();
    }
    all
}

#[test]
fn whatever_a_loop_keeps_resumes_with_the_same_bits() {
    let kinds = [
        (masked(None), json!({})),
        (masked(Some("visible")), json!({"encoder_frozen_steps": 6})),
        (masked(Some("full")), json!({"accumulate": 2, "batch_size": 2})),
        (json!({"contrastive": {}}), json!({"ema": 0.9, "layer_decay": 0.7, "schedule": "linear"})),
        (json!({"contrastive": {}}), json!({"dtype": "bf16", "divergence": {"spike": 100.0}})),
        (json!({"contrastive": {}}), json!({"dtype": "f16"})),
    ];
    for (objective, training) in kinds {
        let spec = spec_with(json!({"kind": "full"}), objective.clone(), looped(training.clone()));
        let undisturbed = run(&spec);
        let stopped = run_until(&spec, None, |event| matches!(event, Event::Metrics { step: 10, .. }));
        let state = stopped.file("resume-0000000008.safetensors");
        let resumed = run_until(&spec, Some(&state), |_| false);
        let (expected, found) = (undisturbed.result.as_ref().unwrap(), resumed.result.as_ref().unwrap());
        assert_eq!(expected, found, "{objective} {training}");
    }
}

#[test]
fn each_term_is_told_and_their_weighted_sum_is_the_loss() {
    let mut objective = masked(Some("full"));
    objective["reconstruction"]["weight"] = json!(0.25);
    let trained = run(&spec_with(json!({"kind": "full"}), objective, looped(json!({}))));
    let (loss, terms) = (
        trained.metric("loss"),
        ["contrastive", "reconstruction"].map(|t| trained.metric(&format!("loss/{t}"))),
    );
    assert_eq!(loss.len(), 12);
    for (at, (step, loss)) in loss.iter().enumerate() {
        let sum = terms[0][at].1 + 0.25 * terms[1][at].1;
        assert!((sum - loss).abs() < 1e-5, "step {step}: {sum} and {loss}");
    }
}

#[test]
fn a_fresh_decoder_is_trained_before_the_encoder_moves() {
    let spec = spec_with(json!({"kind": "full"}), masked(None), looped(json!({"encoder_frozen_steps": 11})));
    let trained = run(&spec);
    assert_eq!(trained.metric("distance")[0], (10, 0.0));
    assert!(trained.metric("distance")[1].1 > 0.0);
    let losses = trained.metric("loss/reconstruction");
    assert!(losses.is_empty(), "a single term is the loss itself");
    let by_default = spec_with(json!({"kind": "full"}), masked(None), looped(json!({"steps": 110})));
    let steps = |spec: &Spec| {
        let backbone = tiny(true);
        let folder = tempfile::tempdir().unwrap();
        let run = TrainRun {
            spec,
            backbone: &backbone,
            pairs: Pairs { count: 9, images: &images, captions: &[], embeddings: None, ids: &[], texts: &[] },
            language_model: None,
            given: &Given::default(),
            kept: &Kept::default(),
            text_encoder: None,
            resume: None,
            folder: folder.path(),
            device: Device::Cpu,
            journal: &mut |_| Ok(()),
        };
        Learner::new(&run, &Recipe::of(spec).unwrap(), None).unwrap().0.encoder_frozen_steps
    };
    assert_eq!(steps(&by_default), 11, "a tenth");
    assert_eq!(steps(&spec), 11, "as given");
}

#[test]
fn what_reads_the_encoder_may_be_trained_before_it() {
    // LP-FT (arXiv 2202.10054) without a classifier: first the projections, then all.
    for method in [json!({"kind": "full"}), json!({"kind": "adapter", "rank": 4})] {
        let training = json!({"encoder_frozen_steps": 10, "head_learning_rate": 1e-2});
        let trained = run(&spec(method.clone(), training));
        let distances = trained.metric("distance");
        assert!(distances[0] == (10, 0.0) && distances[1].1 > 0.0, "{method}: {distances:?}");
        let temperatures = trained.metric("temperature");
        assert!(temperatures[0].1 != temperatures[9].1, "{method}: what reads it learns");
        let states = ["resume-0000000004.safetensors", "resume-0000000008.safetensors"];
        let states =
            states.map(|file| crate::weights::safetensors::read(&trained.file(file)).unwrap().tensors);
        for (name, value) in states[0].iter().filter(|(name, _)| name.starts_with("value/")) {
            let stood = bitwise_equal(value, &states[1][name]);
            assert_eq!(stood, name.starts_with("value/encoder/"), "{method} {name}");
        }
    }
}

#[test]
fn two_half_batches_give_the_gradient_of_the_whole_where_the_loss_is_a_mean() {
    // The reconstruction's masks are drawn batch by batch, so the images are compared through an equal mask of all.
    let whole =
        json!({"steps": 1, "batch_size": 4, "learning_rate": 1e-3, "image_size": 28, "clip_norm": 1e9});
    let norm = |training: Value| {
        let objective =
            json!({"reconstruction": {"mask_ratio": 0.99, "decoder": {"dim": 32, "depth": 1, "heads": 2}}});
        run(&spec_with(json!({"kind": "film"}), objective, training)).metric("loss")[0].1
    };
    let mut halves = whole.clone();
    (halves["batch_size"], halves["accumulate"]) = (json!(2), json!(2));
    // One of four patches stays: which one differs, the mean error of random tokens hardly.
    let (whole, halves) = (norm(whole), norm(halves));
    assert!((whole - halves).abs() < 0.1 * whole, "{whole} and {halves}");
}

#[test]
fn the_average_is_what_the_checkpoint_keeps() {
    let objective = json!({"contrastive": {"projection_dim": 16}});
    let of =
        |ema: Value| run(&spec_with(json!({"kind": "film"}), objective.clone(), looped(json!({"ema": ema}))));
    let (plain, last, slow) = (of(json!(null)), of(json!(0.0)), of(json!(0.999)));
    let end = |trained: &Trained| {
        Line::open(&tiny(true), &trained.file(CHECKPOINT)).unwrap().at(Alpha::ONE)["blocks.0.film1.beta"]
            .copy()
    };
    assert!(end(&plain).allclose(&end(&last), 1e-6, 1e-9, false), "with no memory it is the last weights");
    let (far, near) = (end(&plain).norm().double_value(&[]), end(&slow).norm().double_value(&[]));
    assert!(near < 0.05 * far, "{near} {far}");
}

#[test]
fn half_precisions_train_and_keep_f32_weights() {
    for dtype in ["bf16", "f16"] {
        let training =
            looped(json!({"dtype": dtype, "steps": 40, "learning_rate": 1e-2, "head_learning_rate": 1e-2}));
        let trained = run(&spec_with(json!({"kind": "adapter"}), json!({"contrastive": {}}), training));
        trained.result.as_ref().unwrap();
        let losses = trained.metric("loss");
        let mean =
            |values: &[(u64, f64)]| values.iter().map(|(_, loss)| loss).sum::<f64>() / values.len() as f64;
        assert!(mean(&losses[35..]) < 0.8 * mean(&losses[..5]), "{dtype}: {losses:?}");
        let line = Line::open(&tiny(true), &trained.file(CHECKPOINT)).unwrap();
        let up = &line.at(Alpha::ONE)["blocks.0.adapter.up.weight"];
        assert_eq!(up.kind(), tch::Kind::Float);
        let rounded = up.to_kind(tch::Kind::BFloat16).to_kind(tch::Kind::Float);
        assert!(!up.equal(&rounded), "the weights have more digits than the arithmetic");
        assert_eq!(trained.metric("loss_scale").len(), if dtype == "f16" { 40 } else { 0 });
    }
}

#[test]
fn a_diverged_training_goes_back_and_lowers_its_rates() {
    // A rate so high that nothing is a number after the first step; some thousandths of it do.
    let training = json!({
        "learning_rate": 1e8, "warmup_steps": 0, "schedule": "constant", "resume_every": 2,
        "divergence": {"rollbacks": 8, "lower": 0.001}
    });
    let spec = spec_with(json!({"kind": "full"}), json!({"contrastive": {}}), looped(training.clone()));
    let trained = run(&spec);
    let rollbacks: Vec<(u64, u32)> = trained
        .events
        .iter()
        .filter_map(|event| match event {
            Event::RolledBack { step, rollbacks, reason } => {
                assert!(reason.contains(" became "), "{reason}");
                Some((*step, *rollbacks))
            }
            _ => None,
        })
        .collect();
    assert!(!rollbacks.is_empty());
    trained.result.as_ref().unwrap();
    let rates = trained.metric("learning_rate");
    let last = rates.last().unwrap();
    let expected = 1e8 * 0.001f64.powi(rollbacks.last().unwrap().1 as i32);
    assert!((last.1 / expected - 1.0).abs() < 1e-12 && last.0 == 12, "{last:?} {rollbacks:?}");

    let mut patience = training;
    patience["divergence"]["rollbacks"] = json!(0);
    let spec = spec_with(json!({"kind": "full"}), json!({"contrastive": {}}), looped(patience));
    assert!(run(&spec).result.unwrap_err().is::<Diverged>());
}

#[test]
fn with_noise_for_images_a_trained_contrast_is_chance_again() {
    // The leak rule of methods.md §9: whatever the encoder learned, it was not given the captions.
    let spec = spec_with(
        json!({"kind": "full"}),
        json!({"contrastive": {"projection_dim": 16}}),
        looped(json!({"steps": 60, "learning_rate": 3e-3, "head_learning_rate": 1e-2, "batch_size": 7})),
    );
    let recipe = Recipe::of(&spec).unwrap();
    let backbone = tiny(true);
    let folder = tempfile::tempdir().unwrap();
    let embeddings = initial::normal(2, "texts", &[7, 32], 1.0);
    let trained = run(&spec);
    let losses = trained.metric("loss");
    let state = trained.file("resume-0000000056.safetensors");
    let run = TrainRun {
        spec: &spec,
        backbone: &backbone,
        pairs: Pairs {
            count: 9,
            images: &images,
            captions: &[0, 1, 2, 3, 4, 5, 6, 1, 2],
            embeddings: Some(&embeddings),
            ids: &[],
            texts: &[],
        },
        language_model: None,
        given: &Given::default(),
        kept: &Kept::default(),
        text_encoder: None,
        resume: None,
        folder: folder.path(),
        device: Device::Cpu,
        journal: &mut |_| Ok(()),
    };
    let (learner, _) = Learner::new(&run, &recipe, Some(&state)).unwrap();
    let noise: Vec<Tensor> = (0..7).map(|at| reference::image(900 + at, 28, 28)).collect();
    let batch = run.pairs.batches(&recipe, &order(&recipe, 9), 0, &Tensor::cat(&noise, 0));
    let (loss, _) = learner.gradients(&batch, 0).unwrap();
    assert!(losses.last().unwrap().1 < 0.3, "{losses:?}");
    // ln 7 = 1.95; a sharp temperature makes confident mistakes dearer than chance, never cheaper.
    assert!(loss.total > 1.6, "{}", loss.total);
}
