//! Which images are nearest to a few queries: cosine similarity of features, as k-NN votes by it, ties to the image that
//! stands first in the bank.

use crate::data::dataset::Dataset;
use crate::random::SplitMix64;
use anyhow::{Context, Result, ensure};
use tch::{Kind, Tensor};

/// Which random choice a stream is for.
const IMAGES: u64 = 1;
const QUERIES: u64 = 2;
const BANK: u64 = 3;

/// A neighbour: its place among the images that were searched, and its similarity.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Near {
    /// Row of the searched features.
    pub row: usize,
    /// Cosine.
    pub similarity: f32,
}

/// The nearest `k` of the bank for each query, most similar first. `itself` is the row of the bank that is the query.
///
/// # Shapes
/// `queries` [queries, dim], `bank` [bank, dim], f32
///
/// # Errors
/// Features that are not finite.
pub fn nearest(
    queries: &Tensor,
    bank: &Tensor,
    itself: &[Option<usize>],
    k: usize,
) -> Result<Vec<Vec<Near>>> {
    let similarities = normalise(queries).matmul(&normalise(bank).tr()); // [queries, bank]
    let one = |(query, itself): (usize, &Option<usize>)| {
        let row = Vec::<f32>::try_from(similarities.get(query as i64).contiguous())?;
        ensure!(row.iter().all(|value| value.is_finite()), "the features of query {query} are not finite");
        let others = row.into_iter().enumerate().filter(|(at, _)| Some(*at) != *itself);
        let mut all: Vec<Near> = others.map(|(row, similarity)| Near { row, similarity }).collect();
        // Stable, so that of equal ones the first in the bank stays first.
        all.sort_by(|a, b| b.similarity.total_cmp(&a.similarity));
        all.truncate(k);
        Ok(all)
    };
    itself.iter().enumerate().map(one).collect()
}

/// x / max(|x|, 1e-12)
fn normalise(features: &Tensor) -> Tensor {
    let features = features.to_kind(Kind::Float);
    let length = features.norm_scalaropt_dim(2.0, [1], true).clamp_min(1e-12); // [images, 1]
    features / length
}

/// Places of `count` scored images, ascending, the same for every run with this seed.
pub fn chosen_images(dataset: &Dataset, count: usize, seed: u64) -> Vec<usize> {
    chosen(dataset.queries().len(), count, &[seed, IMAGES])
}

/// Places of `count` images of the bank, ascending; all of them where there are no more.
pub fn chosen_bank(dataset: &Dataset, count: Option<u32>, seed: u64) -> Vec<usize> {
    let all = dataset.bank.len();
    chosen(all, count.map_or(all, |count| count as usize), &[seed, BANK])
}

fn chosen(all: usize, count: usize, parts: &[u64]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..all).collect();
    if count < all {
        SplitMix64::from_parts(parts).shuffle(&mut places);
        places.truncate(count);
        places.sort_unstable();
    }
    places
}

/// Places of the scored images that are shown with their neighbours: drawn in random order, one of each class before a
/// second of any.
pub fn chosen_queries(dataset: &Dataset, count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..dataset.queries().len()).collect();
    SplitMix64::from_parts(&[seed, QUERIES]).shuffle(&mut order);
    let mut seen = vec![0_usize; dataset.classes.len()];
    let mut rounds: Vec<(usize, usize)> = Vec::with_capacity(order.len());
    for place in order {
        let seen = &mut seen[dataset.queries()[place].label as usize];
        rounds.push((*seen, place));
        *seen += 1;
    }
    // Stable, so that the order within a round stays the drawn one.
    rounds.sort_by_key(|(round, _)| *round);
    rounds.into_iter().take(count).map(|(_, place)| place).collect()
}

/// Of each query the row that it has itself in the searched bank; none where queries and bank are different images.
pub fn themselves(dataset: &Dataset, queries: &[usize], bank: &[usize]) -> Vec<Option<usize>> {
    let leave_one_out = dataset.query.is_none();
    queries.iter().map(|query| bank.binary_search(query).ok().filter(|_| leave_one_out)).collect()
}

/// How many neighbours a query can have.
///
/// # Errors
/// None at all.
pub fn most(dataset: &Dataset, bank: &[usize], asked: u32) -> Result<usize> {
    let others = bank.len().saturating_sub(usize::from(dataset.query.is_none()));
    (others > 0).then_some((asked as usize).min(others)).context("there are no neighbours to show")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::{Labelled, Source};

    fn dataset(labels: &[u32], query: Option<&[u32]>) -> Dataset {
        let images = |labels: &[u32]| {
            let source = Source::Grey { bytes: vec![0; 4].into(), begin: 0, width: 2, height: 2 };
            labels.iter().map(|label| Labelled { source: source.clone(), label: *label }).collect::<Vec<_>>()
        };
        Dataset {
            asset: "a".into(),
            title: "A".into(),
            licence: "CC0-1.0".into(),
            source: "here".into(),
            classes: (0..3).map(|label| label.to_string()).collect(),
            bank: images(labels),
            query: query.map(images),
        }
    }

    #[test]
    fn the_nearest_come_first_and_equal_ones_in_the_order_of_the_bank() {
        let bank = Tensor::from_slice(&[1f32, 0.0, 0.0, 2.0, 3.0, 0.0, 1.0, 1.0]).reshape([4, 2]);
        let queries = Tensor::from_slice(&[5f32, 0.0, 0.0, 1.0]).reshape([2, 2]);
        let found = nearest(&queries, &bank, &[None, Some(1)], 3).unwrap();
        let rows = |list: &[Near]| list.iter().map(|near| near.row).collect::<Vec<_>>();
        assert_eq!(rows(&found[0]), [0, 2, 3]);
        assert_eq!(rows(&found[1]), [3, 0, 2], "not itself");
        assert!((f64::from(found[0][2].similarity) - 0.5_f64.sqrt()).abs() < 1e-6);
        assert!(nearest(&(queries * f64::NAN), &bank, &[None, None], 1).is_err());
    }

    #[test]
    fn queries_are_of_different_classes_as_far_as_those_go() {
        let labels = [0, 0, 0, 0, 0, 0, 1, 1, 2, 2];
        let found = chosen_queries(&dataset(&labels, None), 5, 4);
        let classes: Vec<u32> = found.iter().map(|place| labels[*place]).collect();
        let [first, second] = [&classes[..3], &classes[3..]].map(|part| {
            let mut part = part.to_vec();
            part.sort_unstable();
            part.dedup();
            part.len()
        });
        assert_eq!((first, second), (3, 2));
        assert_eq!(found, chosen_queries(&dataset(&labels, None), 5, 4), "the seed decides");
        assert!((5..9).any(|seed| chosen_queries(&dataset(&labels, None), 5, seed) != found));
    }

    #[test]
    fn a_query_is_never_its_own_neighbour() {
        let one = dataset(&[0, 1, 2, 0], None);
        let bank = chosen_bank(&one, Some(3), 1);
        let queries: Vec<usize> = (0..4).collect();
        let own = themselves(&one, &queries, &bank);
        assert_eq!(own.iter().flatten().count(), 3);
        assert!(queries.iter().zip(&own).all(|(query, row)| row.is_none_or(|row| bank[row] == *query)));
        let two = dataset(&[0, 1, 2, 0], Some(&[0, 1]));
        assert_eq!(themselves(&two, &[0, 1], &[0, 1, 2, 3]), [None, None]);
        assert_eq!((most(&one, &bank, 5).unwrap(), most(&two, &bank, 5).unwrap()), (2, 3));
        assert_eq!(chosen_images(&two, 9, 0), [0, 1], "all of them");
    }
}
