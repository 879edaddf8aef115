//! Every readout behind the one door gives what it gives alone, for each protocol that is asked and no other.

use super::*;
use crate::data::dataset::Source;
use crate::evaluate::golden::Golden;
use crate::evaluate::zero_shot::tests::{asked, data, image_tower};
use crate::models::language::tiny;
use causeway_protocol::{Preprocess, parse_spec};
use std::path::PathBuf;

/// A dataset with those labels; its images are never opened.
fn measured(bank: &[u32], queries: Option<&[u32]>) -> Measured {
    let images = |labels: &[u32]| {
        let image = |label: &u32| Labelled {
            source: Source::File { path: PathBuf::from("none"), sha256: None },
            label: *label,
        };
        labels.iter().map(image).collect::<Vec<_>>()
    };
    let dataset = Dataset {
        asset: "a".into(),
        title: "A".into(),
        licence: "none".into(),
        source: "a test".into(),
        classes: ["cat", "dog", "cat_a", "coat", "dog_a"].map(str::to_owned).to_vec(),
        bank: images(bank),
        query: queries.map(images),
    };
    Measured { dataset, digest: "d1".into(), fingerprints: Vec::new() }
}

fn evaluation(more: serde_json::Value) -> Evaluation {
    let mut evaluation = serde_json::json!({"datasets": [{"asset": "a", "role": "ood"}], "k": [1, 5, 400]});
    for (name, value) in more.as_object().into_iter().flatten() {
        evaluation[name] = value.clone();
    }
    let spec = serde_json::json!({
        "experiment": "e", "kind": "evaluate", "weights": {"theta0": {"asset": "x"}, "theta1": {"asset": "y"}},
        "evaluation": evaluation
    });
    let evaluation = parse_spec(spec).unwrap().evaluation;
    assert_eq!(evaluation.preprocess, Preprocess::Direct);
    evaluation
}

#[test]
fn all_readouts_come_through_one_door_in_the_order_that_is_asked() {
    let golden = Golden::new();
    let datasets = [measured(&golden.bank_labels, Some(&golden.query_labels))];
    let evaluation = evaluation(serde_json::json!({"linear_probe": {"c": [1.0]}}));
    let readouts =
        Readouts::prepare(&evaluation, &datasets, &Library::default(), &VitConfig::default()).unwrap();
    let features = Tensor::cat(&[&golden.bank, &golden.queries], 0);
    let all = readouts.score(0, &features, &[0, 1, 2, 3]).unwrap();
    let hits: Vec<u32> = all.iter().map(|scored| scored.hits.count()).collect();
    // The first two and the last are golden numbers.
    assert_eq!((hits[0], hits[1], hits[3]), (20, 22, 30));
    for scored in &all {
        assert_eq!(scored.correct_per_class.iter().sum::<u32>(), scored.hits.count());
        assert_eq!(scored.correct_per_class, datasets[0].dataset.per_class(&scored.hits));
        assert_eq!(scored.correct_top5, 40);
    }
    let some = readouts.score(0, &features, &[3, 1]).unwrap();
    assert_eq!(some, [all[3].clone(), all[1].clone()]);
    assert_eq!(knn(&datasets[0].dataset, &features, &[1, 5, 400], 0.07).unwrap(), all[..3]);
    let error = readouts.score(0, &golden.bank, &[0]).unwrap_err().to_string();
    assert_eq!(error, "300 features for the 340 images of A");
}

#[test]
fn zero_shot_needs_no_bank_and_takes_the_names_of_the_dataset() {
    let (folder, digest) = data("clip-text");
    let library = Library::find(&[folder.path().to_owned()]);
    let more = serde_json::json!({"zero_shot": asked(&digest)});
    let evaluation = evaluation(more);
    assert_eq!(evaluation.protocols().len(), 4);
    let datasets = [measured(&[0, 1, 2, 3, 4], Some(&[3, 2, 3, 1, 3])), measured(&[3, 2, 3, 1, 3], None)];
    let readouts = Readouts::prepare(&evaluation, &datasets, &library, &image_tower()).unwrap();
    let images = tiny::values(11, "images", &[5, 6], 0.5);
    let split = readouts.score(0, &Tensor::cat(&[&images * -1.0, images.shallow_clone()], 0), &[3]).unwrap();
    let text = crate::evaluate::zero_shot::text_encoder(&asked(&digest), &library, &image_tower()).unwrap();
    let classes =
        crate::evaluate::zero_shot::class_embeddings(&text, &asked(&digest), &datasets[0].dataset.classes)
            .unwrap();
    let expected = crate::evaluate::zero_shot::score(&images, &[3, 2, 3, 1, 3], &classes).unwrap();
    assert_eq!(split[0].hits, expected.hits);
    let whole = readouts.score(1, &images, &[3]).unwrap();
    assert_eq!(whole[0].hits, split[0].hits, "scored against itself, every image of the bank is a query");
    assert!(Readouts::check(&evaluation, &library, &image_tower()).is_ok());
    let error = format!("{:#}", Readouts::check(&evaluation, &library, &VitConfig::default()).unwrap_err());
    assert!(error.starts_with("`evaluation.zero_shot`: "), "{error}");
}
