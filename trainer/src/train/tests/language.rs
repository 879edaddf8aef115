//! Trainings that take something from a frozen language model.

use super::*;
use crate::models::language::tiny as language;

/// Nine images with seven captions that a language model scores, trained on until `stop` is seen in the journal.
fn captioned_until(
    spec: &Spec,
    model: &LanguageModel,
    resume: Option<&Path>,
    stop: impl Fn(&Event) -> bool,
) -> Trained {
    let backbone = tiny(true);
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<Vec<i64>> =
        (0..7).map(|caption| (0..caption % 3 + 2).map(|at| 3 * caption + at).collect()).collect();
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
            embeddings: None,
            ids: &ids,
            texts: &[],
        },
        language_model: Some(model),
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

#[test]
fn a_linear_map_and_adapters_learn_from_captions_and_resume_with_the_same_bits() {
    let model = language::gpt2();
    let before = model.tensors().digest().unwrap();
    let of = |dropout: f64, training: Value| {
        let objective = json!({"caption": {"language_model": "m", "dropout": dropout}});
        spec_with(json!({"kind": "adapter", "rank": 4}), objective, looped(training))
    };
    let spec = of(0.2, json!({}));
    let undisturbed = captioned_until(&spec, &model, None, |_| false);
    let stopped =
        captioned_until(&spec, &model, None, |event| matches!(event, Event::Metrics { step: 10, .. }));
    let state = stopped.file("resume-0000000008.safetensors");
    let resumed = captioned_until(&spec, &model, Some(&state), |_| false);
    assert_eq!(undisturbed.result.as_ref().unwrap(), resumed.result.as_ref().unwrap());

    let undropped = captioned_until(&of(0.0, json!({})), &model, None, |_| false);
    assert_ne!(undisturbed.metric("loss")[0], undropped.metric("loss")[0], "values were dropped");
    let longer = json!({"steps": 60, "learning_rate": 1e-2, "head_learning_rate": 3e-2});
    let losses = captioned_until(&of(0.1, longer), &model, None, |_| false).metric("loss");
    let mean = |values: &[(u64, f64)]| values.iter().map(|(_, loss)| loss).sum::<f64>() / values.len() as f64;
    // Of the 5.8 nats, a random model of width 8 can be talked out of few.
    assert!(mean(&losses[40..]) < mean(&losses[..5]) - 0.2, "{losses:?}");
    assert_eq!(model.tensors().digest().unwrap(), before);
}

#[test]
fn the_adapters_behind_a_reprogramming_keep_their_bytes_while_it_is_alone() {
    let backbone = tiny(true);
    let document =
        json!({"kind": "cross_modal", "language_model": "m", "words": 12, "rank": 4, "alone_steps": 5});
    let spec = spec(document, json!({"steps": 8}));
    let recipe = Recipe::of(&spec).unwrap();
    let start = methods::added(&recipe, &backbone, given(&spec).widths).unwrap().start;
    let moved = |done: u64| -> Vec<String> {
        let stopped =
            run_until(&spec, None, |event| matches!(event, Event::Metrics { step, .. } if *step > done));
        let state = stopped.file(&format!("resume-{done:010}.safetensors"));
        let state = resume::read(&state, &backbone.digest, &recipe).unwrap().tensors;
        let changed = |name: &&str| {
            let value = state.get(&format!("value/encoder/{name}"));
            value.is_some_and(|value| !bitwise_equal(value, &start[name]))
        };
        start.names().filter(changed).map(str::to_owned).collect()
    };
    let alone = ["words.key.weight", "words.out.weight", "words.query.weight"];
    assert_eq!(moved(4), alone);
    let trained = run(&spec);
    let line = Line::open(&backbone, &trained.file(CHECKPOINT)).unwrap();
    assert_eq!(line.moved().len(), start.len() - 1, "all but the dictionary, in the end");
    let share = trained.metric("reprogrammed_share");
    assert!(share.len() == 1 && share[0].0 == 8 && share[0].1 > 0.0, "{share:?}");
    assert!(trained.metric("rms/words.table").is_empty(), "what is frozen is not told");
}
