//! The golden case, the tie rule, and what must not matter: chunks, scale, copies of the query.

use super::*;
use crate::random::SplitMix64;

/// The golden case of 300 × 16 features, 40 queries and 5 classes: class centres and SplitMix64 noise, seed 21.
struct Golden {
    bank: Tensor,
    bank_labels: Vec<u32>,
    queries: Tensor,
    query_labels: Vec<u32>,
}

impl Golden {
    fn new() -> Golden {
        const DIM: usize = 16;
        let mut random = SplitMix64::new(21);
        let mut labels = |n: usize| (0..n).map(|_| random.below(5) as u32).collect::<Vec<_>>();
        let (bank_labels, query_labels) = (labels(300), labels(40));
        let mut row = || (0..DIM).map(|_| random.uniform() - 0.5).collect::<Vec<_>>();
        let centres: Vec<Vec<f64>> = (0..5).map(|_| row()).collect();
        let mut features = |labels: &[u32]| {
            let mut one = |label: &u32| {
                let centre = &centres[*label as usize];
                centre.iter().zip(row()).map(|(c, noise)| c + 2.6 * noise).collect::<Vec<_>>()
            };
            let values: Vec<f64> = labels.iter().flat_map(&mut one).collect();
            Tensor::from_slice(&values).view([labels.len() as i64, DIM as i64]).to_kind(Kind::Float)
        };
        let (bank, queries) = (features(&bank_labels), features(&query_labels));
        Golden { bank, bank_labels, queries, query_labels }
    }

    fn question(&self) -> Question<'_> {
        Question {
            bank: &self.bank,
            bank_labels: &self.bank_labels,
            queries: Some(&self.queries),
            query_labels: &self.query_labels,
            classes: 5,
        }
    }
}

fn predictions(question: &Question, k: u32, chunks: (i64, i64)) -> String {
    let neighbours = nearest(question, &[k], chunks.0, chunks.1).unwrap();
    let first =
        |list: &Vec<Neighbour>| rank(list, question.bank_labels, question.classes, 0.07)[0].to_string();
    neighbours.iter().map(first).collect()
}

/// Predictions and numbers of right ones by k. Made with numpy in f64 from the same stream: cosine similarities, a
/// stable sort, votes exp(s / 0.07), the first of the largest. The smallest margin of a winning class is 0.0013 of
/// the votes, far above f32's rounding, so any error in voting shows.
const GOLDEN: [(u32, &str, u32); 5] = [
    (1, "4301333441041224003330124023432341002424", 20),
    (5, "4301333441043224032332124013432441002422", 22),
    (10, "4001333441043204002332124013431341002422", 22),
    (20, "4001313441043244002332124013432341002422", 23),
    (100, "4001313441043244002332124013432341002422", 23),
];

#[test]
fn every_prediction_of_the_golden_case_is_met() {
    let golden = Golden::new();
    assert_eq!(golden.bank_labels[..10], [3, 4, 0, 2, 1, 1, 0, 2, 4, 4], "the test's own input");
    assert!((normalise(&golden.bank).double_value(&[0, 0]) + 0.268_094_192_753_437_54).abs() < 1e-6);
    let ks: Vec<u32> = GOLDEN.iter().map(|(k, ..)| *k).collect();
    let scores = score(&golden.question(), &ks, 0.07).unwrap();
    for ((k, expected, correct), score) in GOLDEN.iter().zip(scores) {
        assert_eq!(predictions(&golden.question(), *k, (512, 16_384)), *expected, "k = {k}");
        assert_eq!(score.hits.count(), *correct, "k = {k}");
        assert_eq!(score.correct_top5, 40, "there are only five classes");
    }
}

#[test]
fn the_size_of_chunks_changes_no_prediction() {
    let golden = Golden::new();
    for chunks in [(1, 7), (3, 1), (40, 299), (7, 300)] {
        assert_eq!(predictions(&golden.question(), 20, chunks), GOLDEN[3].1, "{chunks:?}");
    }
}

/// Scores a bank against one query and gives the ranking of classes.
fn ranking(bank: &[[f32; 2]], labels: &[u32], query: [f32; 2], k: u32, temperature: f64) -> Vec<u32> {
    let values: Vec<f32> = bank.iter().flatten().copied().collect();
    let question = Question {
        bank: &Tensor::from_slice(&values).view([-1, 2]),
        bank_labels: labels,
        queries: Some(&Tensor::from_slice(&query).view([1, 2])),
        query_labels: &[0],
        classes: 4,
    };
    let neighbours = nearest(&question, &[k], 512, 2).unwrap();
    rank(&neighbours[0], labels, 4, temperature)
}

#[test]
fn ties_go_to_the_earlier_image_and_then_to_the_smaller_label() {
    let equal = [[2.0, 0.0]; 3];
    assert_eq!(
        ranking(&equal, &[3, 1, 2], [1.0, 0.0], 1, 0.07),
        [3, 0, 1, 2],
        "the first of equal neighbours"
    );
    assert_eq!(ranking(&equal, &[3, 1, 2], [1.0, 0.0], 2, 0.07), [1, 3, 0, 2], "equal scores by label");
    assert_eq!(
        ranking(&equal, &[3, 1, 2], [1.0, 0.0], 99, 0.07),
        [1, 2, 3, 0],
        "k beyond the bank is the bank"
    );
}

#[test]
fn temperature_weighs_near_against_many() {
    let bank = [[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]];
    assert_eq!(ranking(&bank, &[1, 2, 2], [1.0, 0.0], 3, 0.07)[0], 1, "one near image outvotes two far ones");
    assert_eq!(ranking(&bank, &[1, 2, 2], [1.0, 0.0], 3, 10.0)[0], 2, "with a high T the majority wins");
    assert_eq!(ranking(&bank, &[1, 2, 2], [1.0, 0.0], 3, 0.01)[0], 1, "exp(100) is still a number");
}

#[test]
fn leave_one_out_never_asks_an_image_about_itself() {
    let golden = Golden::new();
    let against_itself = Question { queries: None, query_labels: &golden.bank_labels, ..golden.question() };
    let alone = nearest(&against_itself, &[5], 512, 64).unwrap();
    assert!(alone.iter().enumerate().all(|(query, list)| list.iter().all(|n| n.place as usize != query)));
    // Asked as a query like any other, each image is its own nearest neighbour, and the others follow.
    let with_itself = Question { queries: Some(&golden.bank), ..against_itself };
    let both = nearest(&with_itself, &[6], 512, 64).unwrap();
    for (query, (alone, both)) in alone.iter().zip(&both).enumerate() {
        assert_eq!(both[0].place as usize, query);
        assert_eq!(alone[..], both[1..]);
    }
    assert_eq!(score(&with_itself, &[1], 0.07).unwrap()[0].hits.count(), 300);
    let all = nearest(&Question { queries: None, ..with_itself }, &[1000], 512, 64).unwrap();
    assert_eq!(all[0].len(), 299);
}

#[test]
fn the_scale_of_features_does_not_matter() {
    let golden = Golden::new();
    let scaled = Golden { bank: &golden.bank * 1024.0, queries: &golden.queries * 0.125, ..Golden::new() };
    assert_eq!(predictions(&scaled.question(), 20, (512, 16_384)), GOLDEN[3].1);
}

#[test]
fn features_that_are_no_numbers_are_an_error() {
    let golden = Golden::new();
    let broken = Golden { queries: &golden.queries * f64::NAN, ..golden };
    let error = score(&broken.question(), &[1], 0.07).unwrap_err().to_string();
    assert!(error.contains("image 0 of the bank is NaN"), "{error}");
}
