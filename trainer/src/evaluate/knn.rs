//! DINO's weighted k-NN (eval_knn.py; methods.md §12): features are L2-normalised, the k most similar of the bank vote
//! for their class with exp(similarity / T). What its code leaves to chance is decided here: neighbours by
//! (similarity descending, place ascending), classes by (score descending, label ascending).
//!
//! A similarity is the f32 nearest to the product of two f32 rows summed in f64 (`rows.rs`), so it is the same on every
//! machine, whatever the chunks, the threads and the instructions. Few are ever computed: a cheap product with a proven
//! bound of its error (`search.rs`) rules the others out.

use super::rows::Rows;
use super::standing::Score;
use anyhow::{Result, ensure};
use search::{Search, Way};
use tch::Tensor;

mod bf16;
mod search;

/// What is scored against what.
pub struct Question<'a> {
    /// Features of the bank, `[bank, dim]`, f32.
    pub bank: &'a Tensor,
    /// Label of each bank image.
    pub bank_labels: &'a [u32],
    /// Features of the queries, `[queries, dim]`, f32; none to score the bank against itself, each image left out.
    pub queries: Option<&'a Tensor>,
    /// Label of each query.
    pub query_labels: &'a [u32],
    /// Number of classes.
    pub classes: usize,
}

/// A neighbour: its place in the bank and how similar it is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Neighbour {
    /// Place in the bank.
    pub place: u32,
    /// Cosine.
    pub similarity: f32,
}

/// Scores every k from one search. A k larger than the bank is the bank.
///
/// # Errors
/// Features that are not finite, or that are not as many as the labels.
pub fn score(question: &Question, ks: &[u32], temperature: f64) -> Result<Vec<Score>> {
    question.check()?;
    let most = ks.iter().max().map_or(0, |k| *k as usize);
    let lists = neighbours(question.bank, question.queries, most)?;
    let mut ascending: Vec<usize> = (0..ks.len()).collect();
    ascending.sort_by_key(|at| ks[*at]);
    let mut standings = vec![Vec::with_capacity(lists.len()); ks.len()];
    let mut votes = Votes::new(question.classes);
    for (list, label) in lists.iter().zip(question.query_labels) {
        let mut counted = 0;
        for at in &ascending {
            let k = list.len().min(ks[*at] as usize);
            for neighbour in &list[counted..k] {
                votes.add(question.bank_labels[neighbour.place as usize], neighbour.similarity, temperature);
            }
            counted = k;
            standings[*at].push(votes.standing(*label));
        }
        votes.clear();
    }
    Ok(standings.into_iter().map(Score::of).collect())
}

/// The `k` nearest of the bank to each query, the nearest first; of a bank scored against itself each image's, itself
/// left out.
///
/// # Shapes
/// `bank` [bank, dim], `queries` [queries, dim]
///
/// # Errors
/// Features that are not finite, or a bank without a neighbour to ask.
pub fn neighbours(bank: &Tensor, queries: Option<&Tensor>, k: usize) -> Result<Vec<Vec<Neighbour>>> {
    nearest(bank, queries, k, &Way::best())
}

fn nearest(bank: &Tensor, queries: Option<&Tensor>, k: usize, way: &Way) -> Result<Vec<Vec<Neighbour>>> {
    let bank = Rows::of(bank, "image", "of the bank", way.threads)?;
    let queries = queries.map(|queries| Rows::of(queries, "query", "", way.threads)).transpose()?;
    let most = bank.len() - usize::from(queries.is_none()).min(bank.len());
    ensure!(k.min(most) > 0, "there are no neighbours to ask");
    let leave_one_out = queries.is_none();
    let queries = queries.as_ref().unwrap_or(&bank);
    ensure!(
        queries.dim() == bank.dim(),
        "the bank's features are {} wide, the queries' {}",
        bank.dim(),
        queries.dim()
    );
    Search { bank: &bank, queries, leave_one_out, k: k.min(most) }.run(way)
}

impl Question<'_> {
    /// Whether there are as many labels as features, all of them classes.
    ///
    /// # Errors
    /// If not.
    pub fn check(&self) -> Result<()> {
        let bank = self.bank.size()[0] as usize;
        let queries = self.queries.map_or(bank, |queries| queries.size()[0] as usize);
        ensure!(
            bank == self.bank_labels.len() && queries == self.query_labels.len(),
            "{bank} + {queries} features for {} + {} labels",
            self.bank_labels.len(),
            self.query_labels.len()
        );
        let largest =
            self.bank_labels.iter().chain(self.query_labels).max().map_or(0, |label| *label as usize);
        ensure!(largest < self.classes, "an image has the label {largest} of {} classes", self.classes);
        Ok(())
    }
}

/// The votes of one query's neighbours. Those of f32 similarities are summed in f64, in which exp(1 / T) is finite for
/// every T that a spec may ask for, and exp(−1 / T) is more than nothing.
struct Votes {
    /// Of each class; 0 without a vote.
    scores: Vec<f64>,
    /// The classes that have one.
    voted: Vec<u32>,
}

impl Votes {
    fn new(classes: usize) -> Votes {
        Votes { scores: vec![0.0; classes], voted: Vec::new() }
    }

    fn add(&mut self, class: u32, similarity: f32, temperature: f64) {
        let score = &mut self.scores[class as usize];
        if *score == 0.0 {
            self.voted.push(class);
        }
        *score += (f64::from(similarity) / temperature).exp();
    }

    /// How many classes stand before `label`. Those without a vote stand behind all others, by label.
    fn standing(&self, label: u32) -> usize {
        let own = self.scores[label as usize];
        let before = |class: &&u32| {
            let score = self.scores[**class as usize];
            score > own || (score == own && **class < label)
        };
        let voted = self.voted.iter().filter(before).count();
        match own {
            0.0 => voted + label as usize - self.voted.iter().filter(|class| **class < label).count(),
            _ => voted,
        }
    }

    fn clear(&mut self) {
        for class in self.voted.drain(..) {
            self.scores[class as usize] = 0.0;
        }
    }
}

#[cfg(test)]
mod tests;
