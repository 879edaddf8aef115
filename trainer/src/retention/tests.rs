use super::*;
use crate::methods::{Given, Widths, testing};
use crate::models::vit::tiny;
use crate::order::Order;
use crate::reference;
use crate::train::{CHECKPOINT, Images, Pairs, TrainRun, train};
use crate::weights::interpolate::Line;
use crate::weights::{bitwise_equal, initial};
use anyhow::ensure;
use causeway_protocol::{Alpha, BlobRef, Event, Spec, parse_spec};
use serde_json::{Value, json};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// Images of 28 px whose pixels are drawn from these seeds.
fn images(seeds: Range<u64>) -> Tensor {
    let images: Vec<Tensor> = seeds.map(|seed| reference::image(seed, 28, 28).squeeze_dim(0)).collect();
    Tensor::stack(&images, 0)
}

fn kept() -> Kept {
    Kept {
        prototypes: Some(images(0..6)),
        fisher: Some(images(3..7)),
        rehearsal: Some(images(100..110)),
        replay: Some(images(200..210)),
    }
}

fn value(loss: &Tensor) -> f64 {
    loss.double_value(&[])
}

/// The backbone's tensors, each moved by noise.
fn moved(backbone: &Backbone, by: f64) -> Tensors {
    let noise = |(name, tensor): (&str, &Tensor)| {
        (name.to_owned(), tensor + initial::normal(5, name, &tensor.size(), by))
    };
    backbone.tensors.iter().map(noise).collect()
}

/// EWC's F of the bare backbone over some images.
fn fisher(backbone: &Backbone, over: &Tensor) -> Tensors {
    let bare = Bare::new(backbone, Kind::Float, Device::Cpu);
    let prototypes = prototypes::prototypes(&bare, &images(0..6), 4, Device::Cpu);
    let tensors = &backbone.tensors;
    ewc::fisher(&Vit::bare(&backbone.config), tensors, tensors, over, &prototypes).unwrap()
}

#[test]
fn l2_sp_is_the_squared_distance_and_its_gradient_twice_the_way() {
    let backbone = tiny(true);
    assert_eq!(value(&l2_sp::distance(&backbone.tensors, &backbone.tensors)), 0.0);
    let mut tensors = backbone.tensors.share();
    let away = (&tensors["norm.bias"] + 0.5).set_requires_grad(true);
    tensors.insert("norm.bias", away.shallow_clone());
    let distance = l2_sp::distance(&tensors, &backbone.tensors);
    // 64 values, each 0.5 away: a sum of squares, no mean. f32 rounding of the difference.
    assert!((value(&distance) - 16.0).abs() < 1e-4, "{}", value(&distance));
    let gradient = &Tensor::run_backward(&[distance * 0.01], &[&away], false, false)[0];
    let expected = (&away - &backbone.tensors["norm.bias"]).detach() * (2.0 * 0.01);
    assert!(gradient.allclose(&expected, 1e-6, 1e-9, false));
}

#[test]
fn fisher_information_is_never_negative_and_is_a_function_of_its_images() {
    let backbone = tiny(true);
    let one = fisher(&backbone, &images(3..7));
    let mut largest = 0f64;
    for (name, tensor) in one.iter() {
        assert!(tensor.min().double_value(&[]) >= 0.0, "{name}");
        assert_eq!(tensor.size(), backbone.tensors[name].size());
        largest = largest.max(tensor.max().double_value(&[]));
    }
    assert!(largest > 0.0);
    assert_eq!(one.digest().unwrap(), fisher(&backbone, &images(3..7)).digest().unwrap());
    assert_ne!(one.digest().unwrap(), fisher(&backbone, &images(4..8)).digest().unwrap());
}

#[test]
fn fisher_information_is_the_mean_of_squares_and_no_square_of_a_mean() {
    let backbone = tiny(true);
    let [both, first, second] = [3..5, 3..4, 4..5].map(|seeds| fisher(&backbone, &images(seeds)));
    for (name, tensor) in both.iter() {
        let mean = (&first[name] + &second[name]) / 2.0;
        assert!(tensor.allclose(&mean, 1e-5, 1e-12, false), "{name}");
    }
}

#[test]
fn ewc_with_one_importance_for_all_is_l2_sp_up_to_the_factor() {
    let backbone = tiny(true);
    let tensors = moved(&backbone, 0.1);
    let even: Tensors =
        backbone.tensors.iter().map(|(name, tensor)| (name.to_owned(), tensor.full_like(3.0))).collect();
    let ewc = value(&ewc::distance(&tensors, &backbone.tensors, &even));
    let l2_sp = value(&l2_sp::distance(&tensors, &backbone.tensors));
    assert!((ewc / (0.5 * 3.0 * l2_sp) - 1.0).abs() < 1e-5, "{ewc} {l2_sp}");
    assert_eq!(value(&ewc::distance(&backbone.tensors, &backbone.tensors, &even)), 0.0);
}

#[test]
fn distillation_is_the_mean_square_of_the_way_that_features_have_gone() {
    let before = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).reshape([2, 2]);
    assert_eq!(value(&feature_distillation::loss(&before, &before)), 0.0);
    let now = Tensor::from_slice(&[1f32, 4.0, 3.0, 4.0]).reshape([2, 2]);
    assert_eq!(value(&feature_distillation::loss(&now, &before)), 2.0, "one of two images by 2² = 4");
}

#[test]
fn lwf_is_nothing_at_the_start_and_a_divergence_after() {
    let prototypes = Tensor::eye(3, (Kind::Float, Device::Cpu));
    let before = Tensor::from_slice(&[1f32, 0.0, 0.0]).reshape([1, 3]);
    assert_eq!(value(&lwf::loss(&before, &before, &prototypes, 2.0)), 0.0);
    // A longer feature is the same feature: similarities are cosines.
    assert_eq!(value(&lwf::loss(&(&before * 2.0), &before, &prototypes, 2.0)), 0.0);
    let now = Tensor::from_slice(&[0f32, 1.0, 0.0]).reshape([1, 3]);
    // p0 = softmax(c, 0, 0), p = softmax(0, c, 0), c = 1 / (2 τ): their divergence is (p0₁ − p0₂) c.
    let c = 1.0 / (2.0 * prototypes::TAU);
    let expected = 4.0 * (c.exp() - 1.0) / (c.exp() + 2.0) * c;
    let found = value(&lwf::loss(&now, &before, &prototypes, 2.0));
    assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
}

#[test]
fn prototypes_are_unit_features_of_theta0_whatever_the_batch() {
    let backbone = tiny(true);
    let bare = Bare::new(&backbone, Kind::Float, Device::Cpu);
    let all = prototypes::prototypes(&bare, &images(0..6), 6, Device::Cpu);
    let lengths = all.norm_scalaropt_dim(2.0, [-1], false);
    reference::assert_near(&lengths, &[1.0; 6], 1e-6);
    let one = bare.config().normalise(&images(2..3));
    let own = Vit::bare(&backbone.config).features(&backbone.tensors, &one);
    let own = &own / own.norm();
    assert!(all.narrow(0, 2, 1).allclose(&own, 1e-5, 1e-6, false));
    let some = prototypes::prototypes(&bare, &images(0..6), 4, Device::Cpu);
    assert!(all.allclose(&some, 1e-5, 1e-6, false));
}

#[test]
fn a_buffer_shows_every_image_before_any_again() {
    let buffer: Buffer =
        serde_json::from_value(json!({"dataset": "d", "images": 10, "batch_size": 4})).unwrap();
    let pool = Pool::new(7, "rehearsal", &images(0..10), &buffer, Device::Cpu);
    let of = |pool: &Pool, place| Vec::<i64>::try_from(pool.chosen(place)).unwrap();
    let mut seen: Vec<i64> = (0..5).flat_map(|place| of(&pool, place)).collect();
    seen[..10].sort_unstable();
    assert_eq!(seen[..10], (0..10).collect::<Vec<_>>());
    let other = Pool::new(7, "replay", &images(0..10), &buffer, Device::Cpu);
    assert_ne!(of(&pool, 0), of(&other, 0), "each buffer has its own order");
}

/// A fine-tuning of the tiny backbone that is held by `retention`.
fn spec(method: Value, retention: Value, training: Value) -> Spec {
    let mut all = json!({
        "steps": 12, "batch_size": 5, "learning_rate": 3e-3, "warmup_steps": 2, "image_size": 28, "resume_every": 4
    });
    for (name, value) in training.as_object().unwrap() {
        all[name] = value.clone();
    }
    let mut objective = json!({"contrastive": {"projection_dim": 16}});
    if !retention["rehearsal"].is_null() {
        objective["reconstruction"] =
            json!({"mask_ratio": 0.5, "decoder": {"dim": 32, "depth": 1, "heads": 2}});
    }
    let mut document = json!({
        "experiment": "tests", "kind": "finetune", "seed": 11,
        "weights": {"theta0": {"asset": "tiny"}},
        "method": method,
        "captions": {"asset": "pairs", "text_encoder": "text"},
        "objective": objective,
        "training": all,
        "evaluation": {"datasets": [{"asset": "d", "role": "ood"}], "image_size": 28}
    });
    if !retention.is_null() {
        document["retention"] = retention;
    }
    parse_spec(document).unwrap()
}

struct Trained {
    folder: TempDir,
    events: Vec<Event>,
    result: Result<BlobRef>,
}

impl Trained {
    fn metric(&self, name: &str) -> Vec<(u64, f64)> {
        let values = self.events.iter().filter_map(|event| match event {
            Event::Metrics { step, values } => Some((*step, *values.get(name)?)),
            _ => None,
        });
        values.collect()
    }

    /// How far the encoder is from θ0 at the end.
    fn distance(&self) -> f64 {
        self.result.as_ref().unwrap();
        self.metric("distance").last().unwrap().1
    }
}

/// Nine images with seven distinct captions, trained on until the metrics of step `stop`.
fn run_until(spec: &Spec, resume: Option<&Path>, stop: Option<u64>) -> Trained {
    let folder = tempfile::tempdir().unwrap();
    let embeddings = initial::normal(2, "texts", &[7, 32], 1.0);
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
        backbone: &tiny(true),
        pairs: Pairs {
            count: 9,
            images: &open,
            captions: &[0, 1, 2, 3, 4, 5, 6, 1, 2],
            embeddings: Some(&embeddings),
            ids: &[],
            texts: &[],
        },
        language_model: None,
        text_encoder: None,
        given: &Given::default(),
        kept: &kept(),
        resume,
        folder: folder.path(),
        device: Device::Cpu,
        journal: &mut journal,
    });
    Trained { folder, events, result }
}

fn run(spec: &Spec) -> Trained {
    run_until(spec, None, None)
}

fn buffer(weight: f64) -> Value {
    json!({"dataset": "bank", "images": 10, "batch_size": 4, "weight": weight})
}

/// All terms at once.
fn everything() -> Value {
    json!({
        "l2_sp": {"weight": 0.01}, "feature_distillation": {"weight": 0.1},
        "ewc": {"weight": 10.0, "images": 4, "prototypes": 5}, "lwf": {"prototypes": 6},
        "rehearsal": buffer(0.5)
    })
}

#[test]
fn every_term_is_told_starts_at_nothing_and_is_part_of_the_sum() {
    let trained = run(&spec(json!({"kind": "full"}), everything(), json!({})));
    trained.result.as_ref().unwrap();
    let weights = [("l2_sp", 0.01), ("feature_distillation", 0.1), ("ewc", 10.0), ("lwf", 1.0)];
    for (name, _) in weights {
        let values = trained.metric(&format!("loss/{name}"));
        // The decoder is fresh: the encoder stands still in a tenth of the steps, where there is nothing to hold.
        // With a graph libtorch may take kernels that round otherwise: squares of 1e-6, and a divergence of
        // probabilities that sum to 1 ± 1e-7.
        assert!(values[0].0 == 2 && values[0].1.abs() < 1e-6, "{name} begins at θ0: {values:?}");
        let exact = ["l2_sp", "ewc"].contains(&name);
        assert!(!exact || values[0].1 == 0.0, "weights that stood still are equal");
        assert!(values[2..].iter().all(|(_, value)| *value > values[0].1), "{name}: {values:?}");
    }
    assert_eq!(trained.metric("loss/rehearsal").len(), 12, "its decoder learns from the first step on");
    let all = weights.into_iter().chain([("rehearsal", 0.5), ("contrastive", 1.0), ("reconstruction", 1.0)]);
    let sum: f64 =
        all.map(|(name, weight)| weight * trained.metric(&format!("loss/{name}")).last().unwrap().1).sum();
    let loss = trained.metric("loss").last().unwrap().1;
    assert!((sum / loss - 1.0).abs() < 1e-5, "{sum} {loss}");
}

#[test]
fn a_held_run_resumes_with_the_same_bits() {
    let replay = json!({"kind": "token_replay", "reading": "c", "buffer": buffer(1.0)});
    let tokens = json!({"feature_distillation": {"tokens": true}, "lwf": {"prototypes": 6}});
    let cases = [
        (json!({"kind": "full"}), everything(), json!({})),
        (json!({"kind": "adapter", "rank": 4}), everything(), json!({"accumulate": 2, "batch_size": 2})),
        (json!({"kind": "film"}), tokens, json!({"dtype": "bf16"})),
        (replay, json!(null), json!({})),
    ];
    for (method, retention, training) in cases {
        let spec = spec(method.clone(), retention, training);
        let undisturbed = run(&spec);
        let stopped = run_until(&spec, None, Some(10));
        assert!(stopped.result.is_err());
        let state = stopped.folder.path().join("resume-0000000008.safetensors");
        let resumed = run_until(&spec, Some(&state), None);
        assert_eq!(undisturbed.result.as_ref().unwrap(), resumed.result.as_ref().unwrap(), "{method}");
    }
}

#[test]
fn a_heavy_term_keeps_the_encoder_where_it_was() {
    let training = json!({"steps": 40, "warmup_steps": 0, "learning_rate": 1e-3, "schedule": "linear"});
    let distance =
        |retention: Value| run(&spec(json!({"kind": "full"}), retention, training.clone())).distance();
    let free = distance(json!(null));
    let light = distance(json!({"l2_sp": {"weight": 0.1}}));
    let heavy = distance(json!({"l2_sp": {"weight": 1e6}}));
    // AdamW's steps have the length of the rate whatever the gradient's, so it does not stand but sways around θ0.
    assert!(heavy < 0.3 * free && light < free, "{heavy} {light} {free}");
}

#[test]
fn heavy_terms_keep_the_features_that_they_compare() {
    let training = json!({"steps": 60, "learning_rate": 1e-3, "schedule": "linear"});
    let backbone = tiny(true);
    let bare = Bare::new(&backbone, Kind::Float, Device::Cpu);
    let prototypes = prototypes::prototypes(&bare, &images(0..6), 6, Device::Cpu);
    // How far the features have gone, and the assignments to prototypes.
    let moved = |retention: Value| {
        let trained = run(&spec(json!({"kind": "adapter", "rank": 4}), retention, training.clone()));
        let line = Line::open(&backbone, &trained.folder.path().join(CHECKPOINT)).unwrap();
        let pixels = line.config().normalise(&images(0..9));
        let [before, after] = [Alpha::ZERO, Alpha::ONE].map(|alpha| line.encoder(alpha).features(&pixels));
        let features = value(&feature_distillation::loss(&after, &before));
        (features, value(&lwf::loss(&after, &before, &prototypes, 2.0)))
    };
    let free = moved(json!(null));
    for tokens in [false, true] {
        let held = moved(json!({"feature_distillation": {"weight": 100.0, "tokens": tokens}}));
        assert!(held.0 < 0.5 * free.0, "tokens {tokens}: {held:?} of {free:?}");
    }
    let held = moved(json!({"lwf": {"weight": 1000.0, "prototypes": 6}}));
    assert!(held.1 < 0.5 * free.1, "{held:?} of {free:?}");
}

#[test]
fn a_frozen_encoder_is_distilled_to_nothing() {
    // The encoder stands for all steps but the last, in which it is where it began.
    let retention = json!({"feature_distillation": {"tokens": true}, "l2_sp": {}, "lwf": {"prototypes": 6}});
    let trained = run(&spec(json!({"kind": "full"}), retention, json!({"encoder_frozen_steps": 11})));
    for name in ["feature_distillation", "l2_sp", "lwf"] {
        let values = trained.metric(&format!("loss/{name}"));
        assert!(values.len() == 1 && values[0].0 == 12 && values[0].1.abs() < 1e-6, "{name}: {values:?}");
    }
}

#[test]
fn what_was_not_kept_is_named() {
    let spec = spec(json!({"kind": "full"}), json!({"lwf": {}}), json!({}));
    let backbone = tiny(true);
    let tensors = backbone.tensors.share();
    let vit = Vit::bare(&backbone.config);
    let beginning = Beginning { vit: &vit, tensors: &tensors, origin: &tensors, device: Device::Cpu };
    let recipe = Recipe::of(&spec).unwrap();
    let error = Retainer::new(&recipe, &backbone, &Kept::default(), &beginning).err().unwrap();
    assert!(error.to_string().contains("prototypes"), "{error}");
}

#[test]
fn replayed_tokens_are_theta0_s_and_differ_in_nothing_at_the_start() {
    let backbone = tiny(true);
    let buffer: Buffer = serde_json::from_value(buffer(1.0)).unwrap();
    let pool = Pool::new(7, "replay", &images(200..210), &buffer, Device::Cpu);
    let replay = Replay::new(pool, &Bare::new(&backbone, Kind::Float, Device::Cpu));
    let fixture = testing::fixture(&backbone, json!({"kind": "adapter", "rank": 4}));
    let loss = |tensors: &Tensors| {
        let seen = Seen {
            pixels: Tensor::zeros([1], (Kind::Float, Device::Cpu)),
            mask: None,
            rebuilt: None,
            visible: None,
            whole: None,
            feature: None,
            plain_tokens: None,
            plain_feature: None,
            by_all_tokens: false,
        };
        value(&replay.loss(&Now {
            vit: &fixture.vit,
            tensors,
            encoder: tensors,
            seen: &seen,
            autoencoder: None,
            place: 0,
            standing: false,
        }))
    };
    // The last of the cached batches is smaller, and products of other shapes may round otherwise.
    assert!(loss(&fixture.tensors) < 1e-9);
    let up = "blocks.1.adapter.up.bias";
    let mut moved = fixture.tensors.share();
    moved.insert(up, &fixture.tensors[up] + initial::normal(5, up, &[64], 0.5));
    assert!(loss(&moved) > 1e-3);
    let bare = Bare::new(&backbone, Kind::Float, Device::Cpu);
    let own = bare.tokens(&bare.config().normalise(&images(200..204)));
    assert!(bitwise_equal(&own, &bare.tokens(&bare.config().normalise(&images(200..204)))));
    assert_eq!(Widths::default().text, 0);
}
