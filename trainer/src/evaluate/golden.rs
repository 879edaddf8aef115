//! The golden case of the readouts, as `goldens/readouts.py` makes it too.

use super::knn::Question;
use crate::random::SplitMix64;
use tch::{Kind, Tensor};

/// The golden case of 300 × 16 features, 40 queries and 5 classes: class centres and SplitMix64 noise, seed 21.
pub struct Golden {
    /// [300, 16]
    pub bank: Tensor,
    pub bank_labels: Vec<u32>,
    /// [40, 16]
    pub queries: Tensor,
    pub query_labels: Vec<u32>,
}

impl Golden {
    pub fn new() -> Golden {
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

    pub fn question(&self) -> Question<'_> {
        Question {
            bank: &self.bank,
            bank_labels: &self.bank_labels,
            queries: Some(&self.queries),
            query_labels: &self.query_labels,
            classes: 5,
        }
    }
}
