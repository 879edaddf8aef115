//! The blocks that selective-k trains.

use super::*;
use crate::methods::selective::block_of;
use crate::models::vit::Vit;
use crate::objectives::contrastive::Heads;
use causeway_protocol::{Method, Selective};
use std::collections::BTreeSet;

const CAPTIONS: [i64; 9] = [0, 1, 2, 3, 4, 5, 6, 1, 2];

fn selective(k: u32, rule: &str, training: Value) -> Spec {
    spec(json!({"kind": "selective", "k": k, "rule": rule, "batches": 3}), training)
}

/// The relative gradients that a run told, block by block.
fn told(trained: &Trained) -> Vec<f64> {
    let of = |block: i64| trained.metric(&format!("relative_gradient/block_{block:02}"));
    let values: Vec<(u64, f64)> = (0..2).flat_map(of).collect();
    assert!(values.iter().all(|(step, _)| *step == 1), "{values:?}");
    values.into_iter().map(|(_, value)| value).collect()
}

fn chosen(trained: &Trained) -> Vec<u32> {
    let line = Line::open(&tiny(true), &trained.file(CHECKPOINT)).unwrap();
    let Method::Selective(Selective { chosen: Some(chosen), .. }) = line.method().clone() else {
        panic!("{:?}", line.method())
    };
    chosen
}

#[test]
fn exactly_k_blocks_change_and_nothing_else() {
    for (k, rule, expected) in [
        (1, "last", Some(vec![1])),
        (1, "first", Some(vec![0])),
        (2, "last", Some(vec![0, 1])),
        (1, "relative_gradient", None),
        (2, "relative_gradient", Some(vec![0, 1])),
    ] {
        let trained = run(&selective(k, rule, json!({})));
        let line = Line::open(&tiny(true), &trained.file(CHECKPOINT)).unwrap();
        let changed: BTreeSet<Option<u32>> = line.moved().iter().map(|name| block_of(name)).collect();
        let changed: Vec<u32> = changed.into_iter().map(|block| block.expect("a block's tensor")).collect();
        assert_eq!(changed.len(), k as usize, "{rule}");
        assert_eq!(changed, chosen(&trained), "{rule}");
        assert!(expected.is_none_or(|expected| expected == changed), "{rule} {changed:?}");
        assert_eq!(told(&trained).len(), if rule == "relative_gradient" { 2 } else { 0 });
    }
}

/// ‖gradient‖ / ‖weights‖ of both blocks, averaged over the batches of so many pairs that come first: nothing of the
/// training loop but the order of the pairs.
fn by_hand(spec: &Spec, batches: u64, pairs_each: usize) -> Vec<f64> {
    let backbone = tiny(true);
    let recipe = Recipe::of(spec).unwrap();
    let contrastive = recipe.objective.contrastive.as_ref().unwrap();
    let heads = Heads::new(64, 32, contrastive, spec.seed).unwrap();
    let embeddings = initial::normal(2, "texts", &[7, 32], 1.0);
    let order = Order { seed: spec.seed, pairs: 9, batch: pairs_each };
    let mut means = vec![0.0; 2];
    for step in 0..batches {
        let indices = order.batch(step);
        let pixels: Vec<Tensor> = indices.iter().map(|at| reference::image(*at as u64, 28, 28)).collect();
        let captions: Vec<i64> = indices.iter().map(|at| CAPTIONS[*at]).collect();
        let captions = Tensor::from_slice(&captions);
        let leaf = |(name, tensor): (&str, &Tensor)| (name.to_owned(), tensor.copy().set_requires_grad(true));
        let tensors: crate::weights::Tensors = backbone.tensors.iter().map(leaf).collect();
        let pixels = backbone.config.normalise(&Tensor::cat(&pixels, 0));
        let features = Vit::bare(&backbone.config).features(&tensors, &pixels);
        heads.loss(&features, &embeddings.index_select(0, &captions), &captions).backward();
        for (block, mean) in means.iter_mut().enumerate() {
            let own = tensors.iter().filter(|(name, _)| name.starts_with(&format!("blocks.{block}.")));
            let square = |tensor: &Tensor| tensor.square().sum(tch::Kind::Double).double_value(&[]);
            let (gradient, weights) =
                own.fold((0.0, 0.0), |(g, w), (_, tensor)| (g + square(&tensor.grad()), w + square(tensor)));
            *mean += (gradient / weights).sqrt() / batches as f64;
        }
    }
    means
}

#[test]
fn the_choice_is_by_the_gradients_computed_by_hand() {
    // Three batches are a batch and a half of what a step takes at once.
    for training in [json!({}), json!({"accumulate": 2})] {
        let spec = selective(1, "relative_gradient", training);
        let trained = run(&spec);
        let (told, expected) = (told(&trained), by_hand(&spec, 3, 5));
        for (told, expected) in told.iter().zip(&expected) {
            // Sums of f32 squares in another order.
            assert!((told / expected - 1.0).abs() < 1e-4, "{told} instead of {expected}");
        }
        let larger = u32::from(expected[1] > expected[0]);
        assert_eq!(chosen(&trained), [larger], "{expected:?}");
    }
}

#[test]
fn the_choice_is_the_same_again_and_a_resumed_run_keeps_it() {
    let spec = selective(1, "relative_gradient", json!({}));
    let (one, again) = (run(&spec), run(&spec));
    assert_eq!(told(&one), told(&again));
    assert_eq!(one.result.as_ref().unwrap(), again.result.as_ref().unwrap());

    let stopped = run_until(&spec, None, |event| matches!(event, Event::Metrics { step: 6, .. }));
    let state = stopped.file("resume-0000000004.safetensors");
    let resumed = run_until(&spec, Some(&state), |_| false);
    assert_eq!(resumed.result.as_ref().unwrap(), one.result.as_ref().unwrap());
    assert_eq!(told(&resumed), [0.0; 0], "nothing is told twice");
}

#[test]
fn what_a_loop_does_besides_has_no_part_in_the_choice() {
    let plain = told(&run(&selective(1, "relative_gradient", json!({}))));
    for training in [json!({"ema": 0.9}), json!({"encoder_frozen_steps": 3}), json!({"dtype": "f16"})] {
        assert_eq!(told(&run(&selective(1, "relative_gradient", training.clone()))), plain, "{training}");
    }
}

#[test]
fn more_blocks_than_the_backbone_has_are_refused() {
    let error = run(&selective(3, "relative_gradient", json!({}))).result.unwrap_err().to_string();
    assert_eq!(error, "`method.k` is 3, the backbone has 2 blocks");
}
