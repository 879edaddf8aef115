//! What holds for the training of every method.

use super::*;

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
        let tuner = methods::tuner(line.method());
        for (name, tensor) in end.iter() {
            let moved = line.moved().iter().any(|moved| moved == name);
            assert_eq!(moved, tuner.trains(name), "{} {name}", spec.name);
            if !moved {
                let start = line.at(Alpha::ZERO);
                assert!(bitwise_equal(tensor, backbone.tensors.get(name).unwrap_or(&start[name])), "{name}");
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
        let folder = tempfile::tempdir().unwrap();
        let run = TrainRun {
            spec: &spec,
            backbone: &backbone,
            pairs: Pairs {
                count: 2,
                images: &images,
                captions: &[0, 1],
                embeddings: Some(&embeddings),
                ids: &[],
                texts: &[],
            },
            language_model: None,
            given: &given(&spec),
            kept: &Kept::default(),
            text_encoder: None,
            resume: None,
            folder: folder.path(),
            device: Device::Cpu,
            journal: &mut |_| Ok(()),
        };
        let recipe = selection::choose(&run, Recipe::of(&spec).unwrap()).unwrap().recipe;
        let (learner, _) = Learner::new(&run, &recipe, None).unwrap();
        let heads = 16 * 64 + 16 * 32 + 1;
        assert_eq!(learner.optimiser.values(), trained(&recipe, &backbone) + heads);
        for (name, tensor) in learner.tensors.iter() {
            assert_eq!(tensor.requires_grad(), methods::tuner(&recipe.method).trains(name), "{name}");
        }
        assert_eq!(learner.norms()["distance"], 0.0);
    }
}

#[test]
fn the_loss_falls() {
    for method in methods() {
        let training = json!({"steps": 60, "learning_rate": 1e-2, "head_learning_rate": 1e-2});
        let losses = run(&spec(method.clone(), training)).metric("loss");
        let mean =
            |values: &[(u64, f64)]| values.iter().map(|(_, loss)| loss).sum::<f64>() / values.len() as f64;
        let (first, last) = (mean(&losses[..9]), mean(&losses[51..]));
        assert!(last < 0.5 * first, "{method}: {first} to {last}");
    }
}
