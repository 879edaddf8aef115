//! Trainings of methods that read captions, and of token replay's second reading, which is trained beside them.

use super::tests::{Trained, images, looped, masked, spec_with};
use super::*;
use crate::methods::token_replay::{MEMORY, memory};
use crate::methods::{self, Widths};
use crate::models::vit::tiny;
use crate::reference;
use crate::weights::interpolate::Line;
use crate::weights::{Tensors, bitwise_equal};
use causeway_protocol::{Alpha, CaptionForm, Method, Reading};
use serde_json::{Value, json};

/// For each of nine images the number of its caption.
const CAPTIONS: [usize; 9] = [0, 1, 2, 3, 4, 5, 6, 1, 2];

fn methods() -> [Value; 7] {
    [
        json!({"kind": "film", "generator": {"hidden": 8}}),
        json!({"kind": "fusion"}),
        json!({"kind": "fusion", "attention": "co_attention"}),
        json!({"kind": "fusion", "attention": "asymmetric"}),
        json!({"kind": "fusion", "attention": "joint", "null_text": "drop"}),
        json!({"kind": "token_replay", "memory": 3}),
        json!({"kind": "token_replay", "reading": "b"}),
    ]
}

/// A spec with a reconstruction beside the contrastive loss.
fn both(method: Value, training: Value) -> Spec {
    spec_with(method, masked(Some("full")), looped(training))
}

/// What a spec's method is given.
struct World {
    embeddings: Tensor,
    texts: Vec<Tensor>,
    given: Given,
    kept: Kept,
}

impl World {
    fn of(method: &Method) -> World {
        let embeddings = initial::normal(2, "texts", &[7, 32], 1.0);
        let tokens = |at: i64| initial::normal(2, &format!("tokens of {at}"), &[2 + at % 3, 32], 1.0);
        let texts: Vec<Tensor> = match method.reads().map(|reads| reads.form) {
            None => Vec::new(),
            Some(CaptionForm::Embedding) => {
                (&embeddings / embeddings.norm_scalaropt_dim(2.0, [-1], true)).split(1, 0)
            }
            Some(CaptionForm::Tokens) => (0..7).map(tokens).collect(),
        };
        let mut given = Given { widths: Widths { text: 32, word: 0 }, ..Given::default() };
        if matches!(method, Method::TokenReplay(own) if own.reading == Reading::A) {
            given.tensors.insert(MEMORY, memory::prototypes(&texts, 3, 11).unwrap());
        }
        World { embeddings, texts, given, kept: Kept::default() }
    }

    fn run<'a>(
        &'a self,
        spec: &'a Spec,
        backbone: &'a Backbone,
        folder: &'a Path,
        resume: Option<&'a Path>,
        journal: &'a mut dyn FnMut(Event) -> Result<()>,
    ) -> TrainRun<'a> {
        TrainRun {
            spec,
            backbone,
            pairs: Pairs {
                count: 9,
                images: &images,
                captions: &CAPTIONS,
                embeddings: Some(&self.embeddings),
                ids: &[],
                texts: &self.texts,
            },
            language_model: None,
            given: &self.given,
            kept: &self.kept,
            text_encoder: None,
            resume,
            folder,
            device: Device::Cpu,
            journal,
        }
    }
}

/// Trains until `stop` is seen in the journal.
fn run_until(spec: &Spec, resume: Option<&Path>, stop: impl Fn(&Event) -> bool) -> Trained {
    let (backbone, folder) = (tiny(true), tempfile::tempdir().unwrap());
    let world = World::of(spec.method.as_ref().unwrap());
    let mut events = Vec::new();
    let mut journal = |event: Event| {
        let stopped = stop(&event);
        events.push(event);
        ensure!(!stopped, "stopped");
        Ok(())
    };
    let result = train(world.run(spec, &backbone, folder.path(), resume, &mut journal));
    Trained { folder, events, result }
}

fn run(spec: &Spec) -> Trained {
    run_until(spec, None, |_| false)
}

fn mean(values: &[(u64, f64)]) -> f64 {
    values.iter().map(|(_, value)| value).sum::<f64>() / values.len() as f64
}

#[test]
fn a_resumed_run_ends_with_the_bits_of_an_undisturbed_one() {
    for method in methods() {
        let spec = both(method.clone(), json!({}));
        let undisturbed = run(&spec);
        let stopped = run_until(&spec, None, |event| matches!(event, Event::Metrics { step: 10, .. }));
        let state = stopped.file("resume-0000000008.safetensors");
        let resumed = run_until(&spec, Some(&state), |_| false);
        assert_eq!(undisturbed.result.as_ref().unwrap(), resumed.result.as_ref().unwrap(), "{method}");
        let later: Vec<_> = undisturbed.metric("loss").into_iter().filter(|(step, _)| *step > 8).collect();
        assert_eq!(resumed.metric("loss"), later, "{method}");
    }
}

#[test]
fn what_is_trained_moves_and_all_else_keeps_its_bytes() {
    let backbone = tiny(true);
    for method in methods() {
        let spec = both(method, json!({}));
        let (trained, tuner) = (run(&spec), methods::tuner(spec.method.as_ref().unwrap()));
        let line = Line::open(&backbone, &trained.file(CHECKPOINT)).unwrap();
        let (start, end) = (line.at(Alpha::ZERO), line.at(Alpha::ONE));
        for (name, tensor) in end.iter() {
            let moved = line.moved().iter().any(|moved| moved == name);
            assert_eq!(moved, tuner.trains(name), "{name}");
            assert_eq!(bitwise_equal(tensor, &start[name]), !moved, "{name}");
            if let Some(before) = backbone.tensors.get(name) {
                assert!(bitwise_equal(tensor, before), "{name}");
            }
        }
        let given = World::of(spec.method.as_ref().unwrap()).given.tensors;
        for (name, value) in given.iter() {
            assert!(bitwise_equal(&end[name], value), "{name}: the checkpoint brings it along");
        }
    }
}

#[test]
fn the_optimiser_holds_what_the_method_trains_and_the_heads() {
    let (backbone, folder) = (tiny(true), tempfile::tempdir().unwrap());
    for method in methods() {
        let spec = spec_with(method, json!({"contrastive": {"projection_dim": 16}}), looped(json!({})));
        let (recipe, world) = (Recipe::of(&spec).unwrap(), World::of(spec.method.as_ref().unwrap()));
        let mut silent = |_| Ok(());
        let run = world.run(&spec, &backbone, folder.path(), None, &mut silent);
        let (learner, _) = Learner::new(&run, &recipe, None).unwrap();
        let trainable = methods::trainable(&recipe, &backbone, world.given.widths).unwrap();
        let heads = 16 * 64 + 16 * 32 + 1;
        let own: u64 = trainable.iter().map(|(_, values)| values).sum();
        assert_eq!(learner.optimiser.values(), own + heads);
        for (name, tensor) in learner.tensors.iter() {
            assert_eq!(tensor.requires_grad(), methods::tuner(&recipe.method).trains(name), "{name}");
        }
    }
}

#[test]
fn both_losses_fall() {
    for method in methods() {
        let training =
            json!({"steps": 80, "batch_size": 5, "learning_rate": 1e-2, "head_learning_rate": 1e-2});
        let trained = run(&both(method.clone(), training));
        let fall = |term: &str| {
            let losses = trained.metric(&format!("loss/{term}"));
            mean(&losses[71..]) / mean(&losses[..9])
        };
        let (contrastive, reconstruction) = (fall("contrastive"), fall("reconstruction"));
        assert!(contrastive < 0.5, "{method}: {contrastive}");
        // The images are noise: a decoder can learn their mean, and seven of them by heart.
        assert!(reconstruction < 0.95, "{method}: {reconstruction}");
    }
}

#[test]
fn a_contrastive_loss_alone_reaches_every_tensor_that_is_trained() {
    // No term shows a caption; what stands in for it is trained, and the projection stays in the graph.
    for method in methods() {
        let spec =
            spec_with(method.clone(), json!({"contrastive": {"projection_dim": 16}}), looped(json!({})));
        run(&spec).result.unwrap_or_else(|error| panic!("{method}: {error:#}"));
    }
}

#[test]
fn half_precision_trains() {
    for method in methods() {
        let trained = run(&both(method.clone(), json!({"dtype": "bf16", "steps": 4})));
        trained.result.as_ref().unwrap_or_else(|error| panic!("{method}: {error:#}"));
        let end = Line::open(&tiny(true), &trained.file(CHECKPOINT)).unwrap().at(Alpha::ONE);
        assert!(end.iter().all(|(_, tensor)| tensor.kind() == tch::Kind::Float), "{method}");
    }
}

#[test]
fn the_dropout_decides_whose_captions_are_shown() {
    let shown = |dropout: f64, step: u64| -> Vec<bool> {
        let method = json!({"kind": "fusion", "caption_dropout": dropout});
        let spec = both(method, json!({"batch_size": 4, "accumulate": 2}));
        let (recipe, world) = (Recipe::of(&spec).unwrap(), World::of(spec.method.as_ref().unwrap()));
        let (backbone, mut silent) = (tiny(true), |_| Ok(()));
        let run = world.run(&spec, &backbone, Path::new(""), None, &mut silent);
        let pixels = Tensor::zeros([8, 3, 28, 28], (tch::Kind::Uint8, Device::Cpu));
        let batches = run.pairs.batches(&recipe, &order(&recipe, 9), step, &pixels);
        let rows = batches.into_iter().flat_map(|batch| {
            let shown = batch.text.unwrap().real.any_dim(1, false);
            (0..4).map(move |at| shown.int64_value(&[at]) == 1)
        });
        rows.collect()
    };
    assert_eq!(shown(0.0, 3), [true; 8]);
    assert_eq!(shown(1.0, 3), [false; 8]);
    assert_eq!(shown(0.5, 3), shown(0.5, 3));
    let all: Vec<bool> = (0..200).flat_map(|step| shown(0.3, step)).collect();
    let share = all.iter().filter(|shown| !**shown).count() as f64 / all.len() as f64;
    // 1600 draws: a standard deviation of 0.011.
    assert!((share - 0.3).abs() < 0.04, "{share}");
}

#[test]
fn a_memory_that_was_not_made_is_told() {
    let spec = both(json!({"kind": "token_replay", "memory": 3}), json!({}));
    let (backbone, folder, mut silent) = (tiny(true), tempfile::tempdir().unwrap(), |_| Ok(()));
    let mut world = World::of(spec.method.as_ref().unwrap());
    world.given.tensors = Tensors::new();
    let error = train(world.run(&spec, &backbone, folder.path(), None, &mut silent)).unwrap_err();
    assert!(error.to_string().contains("nothing gives replay.memory its values"), "{error:#}");
}

/// The contrastive loss of the trained encoder on noise in the place of its images; 7 captions, so chance is
/// ln 7 = 1.95. And its loss on the images at the end of the training.
fn with_noise_for_images(method: Value) -> (f64, f64) {
    let training = json!({
        "steps": 80, "resume_every": 76, "batch_size": 7, "learning_rate": 1e-2, "head_learning_rate": 1e-2
    });
    let spec = both(method, training);
    let (recipe, world) = (Recipe::of(&spec).unwrap(), World::of(spec.method.as_ref().unwrap()));
    let trained = run(&spec);
    let state = trained.file("resume-0000000076.safetensors");
    let (backbone, mut silent) = (tiny(true), |_| Ok(()));
    let run = world.run(&spec, &backbone, trained.folder.path(), None, &mut silent);
    let (learner, _) = Learner::new(&run, &recipe, Some(&state)).unwrap();
    let noise: Vec<Tensor> = (0..7).map(|at| reference::image(900 + at, 28, 28)).collect();
    let batches = run.pairs.batches(&recipe, &order(&recipe, 9), 0, &Tensor::cat(&noise, 0));
    let (losses, _) = learner.gradients(&batches, 76).unwrap();
    (losses.terms["contrastive"], mean(&trained.metric("loss/contrastive")[75..]))
}

#[test]
fn with_noise_for_images_a_trained_contrast_is_chance_again() {
    for method in &methods()[..6] {
        let (noise, images) = with_noise_for_images(method.clone());
        assert!(images < 0.6, "{method}: {images}");
        // A sharp temperature makes confident mistakes dearer than chance, never cheaper.
        assert!(noise > 1.6, "{method}: {noise}");
    }
}

/// Images that nobody can tell anything from: noise, anew at every step.
fn noise(order: Order, steps: Range<u64>) -> Result<Images> {
    let size = order.batch as u64;
    let step = move |step: u64| {
        let images: Vec<Tensor> =
            (0..size).map(|at| reference::image(1000 + step * size + at, 28, 28)).collect();
        Ok((Tensor::cat(&images, 0), Duration::ZERO))
    };
    Ok(Box::new(steps.map(step)))
}

#[test]
fn with_a_leak_the_captions_alone_solve_the_contrast() {
    // The test that the rule matters: nothing can be learned from these images, and with `leak` the loss falls.
    let last = |method: &Value| {
        let training =
            json!({"steps": 120, "batch_size": 7, "learning_rate": 1e-2, "head_learning_rate": 1e-2});
        let spec = both(method.clone(), training);
        let (backbone, folder) = (tiny(true), tempfile::tempdir().unwrap());
        let world = World::of(spec.method.as_ref().unwrap());
        let mut losses = Vec::new();
        let mut journal = |event: Event| {
            if let Event::Metrics { step, values } = event {
                losses.push((step, values["loss/contrastive"]));
            }
            Ok(())
        };
        let mut run = world.run(&spec, &backbone, folder.path(), None, &mut journal);
        run.pairs.images = &noise;
        train(run).unwrap();
        mean(&losses[110..])
    };
    for (method, own) in [
        (json!({"kind": "film", "generator": {"hidden": 32, "caption_dropout": 0.0}}), "generator"),
        (json!({"kind": "fusion", "caption_dropout": 0.0}), ""),
        (json!({"kind": "token_replay", "memory": 3, "caption_dropout": 0.0}), ""),
    ] {
        let mut leaking = method.clone();
        match own {
            "" => leaking["leak"] = json!(true),
            own => leaking[own]["leak"] = json!(true),
        }
        let (blind, leaked) = (last(&method), last(&leaking));
        // Chance is ln 7 = 1.95, less where a batch has equal captions, which are no negatives.
        assert!(blind > 1.6, "{method}: {blind}");
        assert!(leaked < 0.5 * blind, "{leaking}: {leaked} and {blind}");
    }
}
