//! The probe is scikit-learn's, and what it is fitted to is what it says.

use super::*;
use crate::evaluate::golden::Golden;
use crate::reference::{assert_near, numbers_in};
use causeway_protocol::Hits;

const READOUTS: &str = include_str!("../../../goldens/readouts.json");

fn numbers(path: &str) -> Vec<f64> {
    numbers_in(READOUTS, path)
}

fn text(c: &str, what: &str) -> String {
    let all: serde_json::Value = serde_json::from_str(READOUTS).unwrap();
    all["probe"][c][what].as_str().unwrap().to_owned()
}

fn part(golden: &Golden) -> Part {
    Part { features: with_ones(&golden.bank, "image", "").unwrap(), labels: golden.bank_labels.clone() }
}

/// The class that stands first for each row of scores.
fn predictions(scores: &Tensor) -> String {
    let first = Vec::<i64>::try_from(scores.argmax(1, false)).unwrap();
    first.iter().map(i64::to_string).collect()
}

#[test]
fn the_fit_is_that_of_scikit_learn() {
    let golden = Golden::new();
    let queries = with_ones(&golden.queries, "query", "").unwrap();
    for (name, c) in [("c0_1", 0.1), ("c1", 1.0), ("c100", 100.0)] {
        let classifier = part(&golden).fit(c, 5, None).unwrap(); // [17, 5]
        let scores = queries.matmul(&classifier);
        let of = |what: &str| numbers(&format!("probe.{name}.{what}"));
        // Ours stops at partial derivatives of 1e-4, theirs far below: the weights differ by less than √85 times that.
        let largest = of("decision").iter().fold(0.0, |most: f64, score| most.max(score.abs()));
        let tolerance = 1e-4 * largest;
        assert_near(&scores.narrow(0, 0, 3), &of("decision"), tolerance);
        assert_near(&classifier.narrow(0, 0, 2).tr(), &of("coefficients"), tolerance);
        assert_near(&classifier.narrow(0, 16, 1), &of("intercepts"), tolerance);
        assert_eq!(predictions(&scores), text(name, "predictions"));
        let score = score(&golden.question(), &[c], "digest").unwrap();
        assert_eq!(f64::from(score.hits.count()), of("correct")[0]);
        assert_eq!(score.correct_top5, 40, "there are only five classes");
    }
}

#[test]
fn where_the_fit_begins_does_not_matter() {
    let golden = Golden::new();
    let part = part(&golden);
    let from_zero = part.fit(10.0, 5, None).unwrap();
    let elsewhere = part.fit(10.0, 5, Some(&part.fit(0.01, 5, None).unwrap())).unwrap();
    assert!(from_zero.allclose(&elsewhere, 1e-4, 1e-4, false));
    let gradient_free = part.fit(10.0, 5, Some(&from_zero)).unwrap();
    assert_eq!(gradient_free, from_zero, "at the end there is nothing left to do");
}

#[test]
fn classes_that_a_plane_divides_are_fitted_at_any_c() {
    // Two classes on either side of the diagonal: without the penalty the weights would grow for ever.
    let bank = Tensor::from_slice2(&[[1.0f32, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]);
    let queries = Tensor::from_slice2(&[[0.6f32, 0.4], [0.4, 0.6]]);
    let question = Question {
        bank: &bank,
        bank_labels: &[0, 0, 1, 1],
        queries: Some(&queries),
        query_labels: &[0, 1],
        classes: 2,
    };
    for c in [1e-6, 1.0, 1e6] {
        assert_eq!(
            score(&question, &[c], "digest").unwrap().hits,
            Hits::from_flags(&[true, true]),
            "C = {c}"
        );
    }
}

#[test]
fn every_fifth_has_its_share_of_every_class_and_the_digest_draws_it() {
    let labels: Vec<u32> = (0..103).map(|at| if at < 2 { at } else { 2 + at % 3 }).collect();
    let drawn = folds(&labels, 5, "a", Draw::Scored);
    for class in 2..5 {
        let counts = (0..FOLDS).map(|fold| {
            labels.iter().zip(&drawn).filter(|(label, of)| **label == class && **of == fold).count()
        });
        let counts: Vec<usize> = counts.collect();
        assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
    }
    assert_eq!(drawn, folds(&labels, 5, "a", Draw::Scored));
    assert_ne!(drawn, folds(&labels, 5, "b", Draw::Scored));
    assert_ne!(drawn, folds(&labels, 5, "a", Draw::Chosen));
    assert_eq!(drawn[..2], [4, 4], "an only image is fitted where a C is chosen on the first fifth");
}

#[test]
fn of_several_c_the_one_that_is_right_most_often_on_a_fifth_is_fitted_to_all() {
    let golden = Golden::new();
    let part = part(&golden);
    let folds = folds(&golden.bank_labels, 5, "digest", Draw::Chosen);
    let (others, own) = (part.part(&folds, |of| of != 0), part.part(&folds, |of| of == 0));
    assert_eq!(own.labels.len() + others.labels.len(), 300);
    let all = [1e-3, 0.1, 1.0, 100.0];
    let right = all.map(|c| {
        let scores = own.features.matmul(&others.fit(c, 5, None).unwrap());
        standings(&scores, &own.labels).iter().filter(|standing| **standing == 0).count()
    });
    let best = (0..all.len()).max_by_key(|at| (right[*at], all.len() - at)).unwrap();
    let chosen = score(&golden.question(), &all, "digest").unwrap();
    assert_eq!(chosen, score(&golden.question(), &[all[best]], "digest").unwrap(), "{right:?}");
    assert!(right.iter().any(|count| *count < right[best]), "the choice must matter here: {right:?}");
}

#[test]
fn a_bank_scored_against_itself_is_scored_by_who_has_not_seen_it() {
    let golden = Golden::new();
    let question = Question { queries: None, query_labels: &golden.bank_labels, ..golden.question() };
    let scored = score(&question, &[1.0], "digest").unwrap();
    let part = part(&golden);
    let folds = folds(&golden.bank_labels, 5, "digest", Draw::Scored);
    let mut right = vec![false; 300];
    for fold in 0..FOLDS {
        let classifier = part.part(&folds, |of| of != fold).fit(1.0, 5, None).unwrap();
        let all = standings(&part.features.matmul(&classifier), &golden.bank_labels);
        (0..300).filter(|at| folds[*at] == fold).for_each(|at| right[at] = all[at] == 0);
    }
    assert_eq!(scored.hits, Hits::from_flags(&right));
    // Fitted to all, 300 images of sixteen values are known better than that.
    let seen = standings(&part.features.matmul(&part.fit(1.0, 5, None).unwrap()), &golden.bank_labels);
    assert!(seen.iter().filter(|standing| **standing == 0).count() > scored.hits.count() as usize);
}

#[test]
fn what_cannot_be_fitted_is_named() {
    let golden = Golden::new();
    let broken = Golden { bank: &golden.bank * f64::INFINITY, ..Golden::new() };
    let error = score(&broken.question(), &[1.0], "digest").unwrap_err().to_string();
    assert!(error.starts_with("the features of image 0 of the bank hold"), "{error}");
    let bank = Tensor::from_slice2(&[[1.0f32, 0.0], [0.0, 1.0]]);
    let single = Question {
        bank: &bank,
        bank_labels: &[0, 1],
        queries: Some(&bank),
        query_labels: &[0, 1],
        classes: 2,
    };
    let error = score(&single, &[1.0, 2.0], "digest").unwrap_err().to_string();
    assert!(error.contains("give one C"), "{error}");
}
