//! The golden case, the tie rule, and what must not matter: chunks, scale, copies of the query.

use super::*;
use crate::evaluate::golden::Golden;
use crate::random::SplitMix64;

/// One way of every kind: by libtorch's products, and by the processor's own where it has them.
fn ways() -> Vec<Way> {
    let mut ways = vec![Way { bf16: false, ..Way::best() }];
    if Way::best().bf16 {
        ways.push(Way::best());
    }
    ways
}

/// The classes of a query's neighbours in order.
fn ranking_of(list: &[Neighbour], labels: &[u32], classes: usize, temperature: f64) -> Vec<u32> {
    let mut votes = Votes::new(classes);
    for neighbour in list {
        votes.add(labels[neighbour.place as usize], neighbour.similarity, temperature);
    }
    let mut ranking = vec![u32::MAX; classes];
    (0..classes as u32).for_each(|class| ranking[votes.standing(class)] = class);
    ranking
}

fn predictions(question: &Question, k: usize, way: &Way) -> String {
    let lists = nearest(question.bank, question.queries, k, way).unwrap();
    lists
        .iter()
        .map(|list| ranking_of(list, question.bank_labels, question.classes, 0.07)[0].to_string())
        .collect()
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
    let unit = Rows::of(&golden.bank, "image", "", 1).unwrap();
    assert!((f64::from(unit.row(0)[0]) + 0.268_094_192_753_437_54).abs() < 1e-7);
    let ks: Vec<u32> = GOLDEN.iter().map(|(k, ..)| *k).collect();
    let scores = score(&golden.question(), &ks, 0.07).unwrap();
    for ((k, expected, correct), score) in GOLDEN.iter().zip(scores) {
        for way in ways() {
            assert_eq!(predictions(&golden.question(), *k as usize, &way), *expected, "k = {k}, {way:?}");
        }
        assert_eq!(score.hits.count(), *correct, "k = {k}");
        assert_eq!(score.correct_top5, 40, "there are only five classes");
    }
}

#[test]
fn the_order_in_which_k_are_asked_does_not_matter() {
    let golden = Golden::new();
    let ascending = score(&golden.question(), &[1, 5, 20, 1000], 0.07).unwrap();
    let mixed = score(&golden.question(), &[20, 1, 1000, 5], 0.07).unwrap();
    assert_eq!(mixed, [2, 0, 3, 1].map(|at: usize| ascending[at].clone()));
    assert_eq!(
        score(&golden.question(), &[300], 0.07).unwrap()[0],
        ascending[3],
        "a k beyond the bank is the bank"
    );
}

/// Noise around one centre, the more alike the smaller `spread`, with every seventh row the copy of an earlier one.
fn noise(seed: u64, rows: usize, dim: usize, spread: f64) -> Tensor {
    let mut random = SplitMix64::new(seed);
    let mut values: Vec<Vec<f32>> = Vec::new();
    for row in 0..rows {
        let copied = (row % 7 == 6).then(|| values[row / 2].clone());
        let mut value = || (0.3 + spread * (random.uniform() - 0.5)) as f32;
        let fresh = (0..dim).map(|_| value()).collect();
        values.push(copied.unwrap_or(fresh));
    }
    Tensor::from_slice(&values.concat()).view([rows as i64, dim as i64])
}

/// The definition: every pair, in f64, sorted.
fn by_hand(bank: &Tensor, queries: Option<&Tensor>, k: usize) -> Vec<Vec<Neighbour>> {
    let bank = Rows::of(bank, "image", "", 1).unwrap();
    let others = queries.map(|queries| Rows::of(queries, "query", "", 1).unwrap());
    let rows = others.as_ref().unwrap_or(&bank);
    let list = |query: usize| {
        let places = (0..bank.len()).filter(|place| queries.is_some() || *place != query);
        let mut list: Vec<Neighbour> = places
            .map(|place| {
                let pairs = rows.row(query).iter().zip(bank.row(place));
                let sum: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                Neighbour { place: place as u32, similarity: sum as f32 }
            })
            .collect();
        list.sort_by(|a, b| b.similarity.partial_cmp(&a.similarity).unwrap().then(a.place.cmp(&b.place)));
        list.truncate(k);
        list
    };
    (0..rows.len()).map(list).collect()
}

#[test]
fn the_nearest_are_those_of_the_definition_however_alike_the_rows_are() {
    // Widths that fill no register, banks that fill no panel, rows from far apart to all but equal and wholly equal.
    for (dim, spread) in [(1, 1.0), (7, 2.0), (33, 0.5), (64, 0.01), (65, 1e-5), (16, 0.0)] {
        let (bank, queries) = (noise(3, 331, dim, spread), noise(4, 29, dim, spread));
        for k in [1, 5, 100, 331] {
            let expected = by_hand(&bank, Some(&queries), k);
            for way in ways() {
                let found = nearest(&bank, Some(&queries), k, &way).unwrap();
                let places = |lists: &[Vec<Neighbour>]| -> Vec<Vec<u32>> {
                    lists.iter().map(|list| list.iter().map(|n| n.place).collect()).collect()
                };
                assert_eq!(places(&found), places(&expected), "width {dim}, spread {spread}, k {k}, {way:?}");
            }
        }
        let expected = by_hand(&bank, None, 9);
        for way in ways() {
            let found = nearest(&bank, None, 9, &way).unwrap();
            let same = |a: &Neighbour, b: &Neighbour| a.place == b.place;
            let equal = found.iter().flatten().zip(expected.iter().flatten()).all(|(a, b)| same(a, b));
            assert!(equal, "width {dim}, spread {spread}, {way:?}");
        }
    }
}

#[test]
fn threads_blocks_and_instructions_change_no_bit() {
    let (bank, queries) = (noise(5, 700, 48, 1.0), noise(6, 101, 48, 1.0));
    let expected = nearest(&bank, Some(&queries), 20, &Way { threads: 1, block: 12, bf16: false }).unwrap();
    for way in ways() {
        for (threads, block) in [(1, 1), (2, 240), (3, 13), (7, 24)] {
            let way = Way { threads, block, ..way };
            assert_eq!(nearest(&bank, Some(&queries), 20, &way).unwrap(), expected, "{way:?}");
        }
    }
}

/// Scores a bank against one query and gives the ranking of classes.
fn ranking(bank: &[[f32; 2]], labels: &[u32], query: [f32; 2], k: usize, temperature: f64) -> Vec<u32> {
    let values: Vec<f32> = bank.iter().flatten().copied().collect();
    let bank = Tensor::from_slice(&values).view([-1, 2]);
    let lists = neighbours(&bank, Some(&Tensor::from_slice(&query).view([1, 2])), k).unwrap();
    ranking_of(&lists[0], labels, 4, temperature)
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
fn one_neighbour_gives_its_own_label_and_an_endless_temperature_the_majority() {
    let golden = Golden::new();
    let lists = neighbours(&golden.bank, Some(&golden.queries), 30).unwrap();
    for list in &lists {
        let label = |n: &Neighbour| golden.bank_labels[n.place as usize];
        assert_eq!(ranking_of(&list[..1], &golden.bank_labels, 5, 0.07)[0], label(&list[0]));
        let mut counts = [0; 5];
        list.iter().for_each(|n| counts[label(n) as usize] += 1);
        let most = counts.iter().max().unwrap();
        // At T = 10⁹ the votes of 30 neighbours differ by less than one vote's 10⁻⁷, so counts decide unless they tie.
        let winner = ranking_of(list, &golden.bank_labels, 5, 1e9)[0];
        assert_eq!(counts[winner as usize], *most);
    }
}

#[test]
fn a_class_without_a_vote_stands_behind_all_that_have_one() {
    let mut votes = Votes::new(8);
    votes.add(6, -1.0, 0.01);
    votes.add(3, -0.5, 0.01);
    let standings: Vec<usize> = (0..8).map(|class| votes.standing(class)).collect();
    assert_eq!(standings, [2, 3, 4, 0, 5, 6, 1, 7]);
    votes.clear();
    assert_eq!(votes.standing(4), 4);
}

#[test]
fn the_order_of_the_bank_does_not_matter() {
    let golden = Golden::new();
    let mut order: Vec<i64> = (0..300).collect();
    SplitMix64::new(9).shuffle(&mut order);
    let bank = golden.bank.index_select(0, &Tensor::from_slice(&order));
    let bank_labels = order.iter().map(|place| golden.bank_labels[*place as usize]).collect();
    let shuffled = Golden { bank, bank_labels, ..Golden::new() };
    // No two of the golden case's similarities are equal, so no tie depends on the order.
    for (k, expected, _) in GOLDEN {
        assert_eq!(predictions(&shuffled.question(), k as usize, &Way::best()), expected, "k = {k}");
    }
}

#[test]
fn leave_one_out_never_asks_an_image_about_itself() {
    let golden = Golden::new();
    let against_itself = Question { queries: None, query_labels: &golden.bank_labels, ..golden.question() };
    let alone = neighbours(&golden.bank, None, 5).unwrap();
    assert!(alone.iter().enumerate().all(|(query, list)| list.iter().all(|n| n.place as usize != query)));
    // Asked as a query like any other, each image is its own nearest neighbour, and the others follow.
    let with_itself = Question { queries: Some(&golden.bank), ..against_itself };
    let both = neighbours(&golden.bank, Some(&golden.bank), 6).unwrap();
    for (query, (alone, both)) in alone.iter().zip(&both).enumerate() {
        assert_eq!(both[0].place as usize, query);
        assert_eq!(alone[..], both[1..]);
    }
    assert_eq!(score(&with_itself, &[1], 0.07).unwrap()[0].hits.count(), 300);
    let all = neighbours(&golden.bank, None, 1000).unwrap();
    assert_eq!(all[0].len(), 299);
}

#[test]
fn the_scale_of_features_does_not_matter() {
    let golden = Golden::new();
    let scaled = Golden { bank: &golden.bank * 1024.0, queries: &golden.queries * 0.125, ..Golden::new() };
    assert_eq!(predictions(&scaled.question(), 20, &Way::best()), GOLDEN[3].1);
}

#[test]
fn features_that_are_no_numbers_are_an_error() {
    let golden = Golden::new();
    let broken = Golden { queries: &golden.queries * f64::NAN, ..golden };
    let error = score(&broken.question(), &[1], 0.07).unwrap_err().to_string();
    assert!(error.starts_with("the features of query 0 hold NaN"), "{error}");
    let whole = Golden::new();
    let short = Question { query_labels: &[0], ..whole.question() };
    let error = score(&short, &[1], 0.07).unwrap_err().to_string();
    assert_eq!(error, "300 + 40 features for 300 + 1 labels");
}
