use super::*;
use crate::models::vit::tiny;
use crate::reference;
use crate::weights::interpolate::Line;
use crate::weights::{bitwise_equal, initial};
use causeway_protocol::{Alpha, parse_spec};
use serde_json::{Value, json};
use std::path::PathBuf;
use tempfile::TempDir;

/// A spec for the tiny backbone; `training` overrides what is given here.
fn spec(method: Value, training: Value) -> Spec {
    let mut all = json!({
        "steps": 12, "batch_size": 5, "learning_rate": 3e-3, "warmup_steps": 2,
        "image_size": 28, "flip": true, "resume_every": 4
    });
    for (name, value) in training.as_object().unwrap() {
        all[name] = value.clone();
    }
    let document = json!({
        "experiment": "tests", "kind": "finetune", "seed": 11,
        "weights": {"theta0": {"asset": "tiny"}},
        "method": method,
        "captions": {"asset": "pairs", "text_encoder": "text"},
        "objective": {"contrastive": {"projection_dim": 16}},
        "training": all,
        "evaluation": {"datasets": [{"asset": "d", "role": "ood"}], "image_size": 28}
    });
    parse_spec(document).unwrap()
}

/// Every method with its words.
fn methods() -> [Value; 3] {
    [json!({"kind": "full"}), json!({"kind": "adapter", "rank": 4}), json!({"kind": "film"})]
}

struct Trained {
    folder: TempDir,
    events: Vec<Event>,
    result: Result<BlobRef>,
}

impl Trained {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn metric(&self, name: &str) -> Vec<(u64, f64)> {
        let values = self.events.iter().filter_map(|event| match event {
            Event::Metrics { step, values } => Some((*step, *values.get(name)?)),
            _ => None,
        });
        values.collect()
    }
}

/// Nine images with seven distinct captions, trained on until `stop` is seen in the journal.
fn run_until(spec: &Spec, resume: Option<&Path>, stop: impl Fn(&Event) -> bool) -> Trained {
    let backbone = tiny(true);
    let folder = tempfile::tempdir().unwrap();
    let image = |index: usize| Ok(reference::image(index as u64, 28, 28).squeeze_dim(0));
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
        pairs: Pairs { image: &image, captions: &[0, 1, 2, 3, 4, 5, 6, 1, 2], embeddings: &embeddings },
        resume,
        folder: folder.path(),
        journal: &mut journal,
    });
    Trained { folder, events, result }
}

fn run(spec: &Spec) -> Trained {
    run_until(spec, None, |_| false)
}

#[test]
fn a_resumed_run_ends_with_the_bits_of_an_undisturbed_one() {
    for method in methods() {
        let spec = spec(method, json!({}));
        let undisturbed = run(&spec);
        let stopped = run_until(&spec, None, |event| matches!(event, Event::Metrics { step: 10, .. }));
        assert!(stopped.result.is_err());
        let state = stopped.file("resume-0000000008.safetensors");
        let resumed = run_until(&spec, Some(&state), |_| false);

        let (expected, blob) = (undisturbed.result.as_ref().unwrap(), resumed.result.as_ref().unwrap());
        assert_eq!(expected, blob, "one checkpoint, byte for byte");
        for name in ["loss", "learning_rate", "gradient_norm", "temperature", "distance"] {
            let (all, later) = (undisturbed.metric(name), resumed.metric(name));
            let expected: Vec<_> = all.into_iter().filter(|(step, _)| *step > 8).collect();
            assert_eq!(later, expected, "{name}");
        }
    }
}

#[test]
fn frozen_tensors_keep_their_bytes_and_trained_ones_move() {
    let backbone = tiny(true);
    for method in methods() {
        let spec = spec(method, json!({}));
        let trained = run(&spec);
        let line = Line::open(&backbone, &trained.file(CHECKPOINT)).unwrap();
        let end = line.at(Alpha::ONE);
        let method = spec.method.as_ref().unwrap();
        for (name, tensor) in end.iter() {
            let moved = line.moved().iter().any(|moved| moved == name);
            assert_eq!(moved, methods::trains(method, name), "{name}");
            if !moved {
                assert!(bitwise_equal(tensor, &backbone.tensors[name]), "{name}");
            }
        }
        assert_eq!(tiny(true).digest, backbone.digest);
    }
}

#[test]
fn the_optimiser_holds_what_the_method_trains_and_the_heads() {
    let backbone = tiny(true);
    let embeddings = initial::normal(2, "texts", &[7, 32], 1.0);
    for method in methods() {
        let spec = spec(method, json!({}));
        let recipe = Recipe::of(&spec).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let run = TrainRun {
            spec: &spec,
            backbone: &backbone,
            pairs: Pairs { image: &|_| unreachable!(), captions: &[0, 1], embeddings: &embeddings },
            resume: None,
            folder: folder.path(),
            journal: &mut |_| Ok(()),
        };
        let (learner, _) = Learner::new(&run, &recipe).unwrap();
        let heads = 16 * 64 + 16 * 32 + 1;
        assert_eq!(learner.optimiser.values(), methods::trainable_values(&recipe.method, &backbone) + heads);
        for (name, tensor) in learner.tensors.iter() {
            assert_eq!(tensor.requires_grad(), methods::trains(&recipe.method, name), "{name}");
        }
        assert_eq!(learner.distance(), 0.0);
    }
}

#[test]
fn the_loss_falls() {
    for method in methods() {
        let training = json!({"steps": 60, "learning_rate": 1e-2, "head_learning_rate": 1e-2, "flip": false});
        let losses = run(&spec(method.clone(), training)).metric("loss");
        let mean =
            |values: &[(u64, f64)]| values.iter().map(|(_, loss)| loss).sum::<f64>() / values.len() as f64;
        let (first, last) = (mean(&losses[..9]), mean(&losses[51..]));
        assert!(last < 0.5 * first, "{method}: {first} to {last}");
    }
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
    assert_eq!(blob.sha256, crate::weights::digest::sha256_hex(&bytes));
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
