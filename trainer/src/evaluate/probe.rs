//! The linear probe: multinomial logistic regression on L2-normalised features, as scikit-learn's
//! `LogisticRegression` states it. With W the weights, b the intercepts and p = softmax(xW + b),
//!
//! ```text
//! minimise  C · Σᵢ −ln p(yᵢ | xᵢ) + ½ |W|²        the intercepts bear no penalty
//! ```
//!
//! The bank is fitted to convergence, so the numbers belong to the problem and not to an optimiser's settings. Of
//! several C the one counts that is right most often on a fifth of the bank when fitted to the other four, the smaller of
//! equal ones; then the whole bank is fitted. A bank that is scored against itself is scored in fifths, each by a
//! classifier that has seen only the other four: there a C is chosen anew, within those four.

use super::knn::Question;
use super::rows::Rows;
use super::standing::{Score, standings};
use crate::random::SplitMix64;
use anyhow::{Context, Result, ensure};
use lbfgs::minimise;
use tch::{Device, Kind, Tensor};

mod lbfgs;

/// Parts of a bank.
const FOLDS: usize = 5;

/// What a draw is for: draws of one dataset that must not be the same.
#[derive(Clone, Copy)]
enum Draw {
    /// The fifths of a bank that is scored against itself.
    Scored = 1,
    /// The fifth on which a C is chosen.
    Chosen = 2,
}

/// Scores the probe. `dataset` is the dataset's digest, which alone decides every draw.
///
/// # Errors
/// Features that are not finite or not as many as the labels; a C at which the fit does not converge.
pub fn score(question: &Question, c: &[f64], dataset: &str) -> Result<Score> {
    question.check()?;
    let bank = Part {
        features: with_ones(question.bank, "image", "of the bank")?,
        labels: question.bank_labels.to_vec(),
    };
    if let Some(queries) = question.queries {
        let classifier = bank.best(c, question.classes, dataset)?;
        let scores = with_ones(queries, "query", "")?.matmul(&classifier);
        return Ok(Score::of(standings(&scores, question.query_labels)));
    }
    let folds = folds(&bank.labels, question.classes, dataset, Draw::Scored);
    let mut places = vec![0; bank.labels.len()];
    for (fold, which) in ORDINALS.iter().enumerate() {
        let (others, own) = (bank.part(&folds, |of| of != fold), bank.part(&folds, |of| of == fold));
        if own.labels.is_empty() {
            continue;
        }
        let classifier = others
            .best(c, question.classes, dataset)
            .with_context(|| format!("fitting four fifths of the bank, the {which} left out"))?;
        let found = standings(&own.features.matmul(&classifier), &own.labels);
        let queries = folds.iter().enumerate().filter(|(_, of)| **of == fold).map(|(query, _)| query);
        queries.zip(found).for_each(|(query, standing)| places[query] = standing);
    }
    Ok(Score::of(places))
}

/// For messages.
const ORDINALS: [&str; FOLDS] = ["first", "second", "third", "fourth", "fifth"];

/// Images that are fitted or scored together.
struct Part {
    /// Unit rows with a one behind each. f64 [images, dim + 1]
    features: Tensor,
    labels: Vec<u32>,
}

impl Part {
    /// The images whose fold is wanted.
    fn part(&self, folds: &[usize], wanted: impl Fn(usize) -> bool) -> Part {
        let chosen: Vec<usize> = (0..folds.len()).filter(|at| wanted(folds[*at])).collect();
        let places: Vec<i64> = chosen.iter().map(|at| *at as i64).collect();
        let features = self.features.index_select(0, &Tensor::from_slice(&places));
        Part { features, labels: chosen.iter().map(|at| self.labels[*at]).collect() }
    }

    /// The classifier of the best C, fitted to all. f64 [dim + 1, classes]
    fn best(&self, c: &[f64], classes: usize, dataset: &str) -> Result<Tensor> {
        let mut best = *c.first().context("a linear probe needs a C")?;
        if c.len() > 1 {
            let folds = folds(&self.labels, classes, dataset, Draw::Chosen);
            let (others, own) = (self.part(&folds, |of| of != 0), self.part(&folds, |of| of == 0));
            ensure!(
                !own.labels.is_empty(),
                "no class of the bank has two images, so no C can be chosen on some of them; give one C"
            );
            let (mut most, mut start) = (None, None);
            // The C ascend: each begins where the last one ended, which changes the way and not the end.
            for c in c {
                let classifier = others.fit(*c, classes, start.as_ref())?;
                let right = standings(&own.features.matmul(&classifier), &own.labels);
                let right = right.iter().filter(|standing| **standing == 0).count();
                if most.is_none_or(|most| right > most) {
                    (most, best) = (Some(right), *c);
                }
                start = Some(classifier);
            }
        }
        self.fit(best, classes, None)
    }

    fn fit(&self, c: f64, classes: usize, start: Option<&Tensor>) -> Result<Tensor> {
        let zeros = || Tensor::zeros([self.features.size()[1], classes as i64], (Kind::Double, Device::Cpu));
        let start = start.map_or_else(zeros, Tensor::shallow_clone);
        let labels: Vec<i64> = self.labels.iter().map(|label| i64::from(*label)).collect();
        tch::no_grad(|| minimise(&self.features, &Tensor::from_slice(&labels), c, start))
            .with_context(|| format!("the linear probe with C = {c}"))
    }
}

/// To which fifth each image belongs: those of a class are shuffled and dealt out in turn, so that every fifth has its
/// share of every class. A class of fewer images than fifths is dealt to the first ones, and a single image to the last,
/// so that it is fitted where a C is chosen on the first.
fn folds(labels: &[u32], classes: usize, dataset: &str, draw: Draw) -> Vec<usize> {
    let mut of_class = vec![Vec::new(); classes];
    labels.iter().enumerate().for_each(|(at, label)| of_class[*label as usize].push(at));
    let mut folds = vec![0; labels.len()];
    let digest = causeway_protocol::sha256_hex(dataset.as_bytes());
    let seed = u64::from_str_radix(&digest[..16], 16).unwrap_or_default();
    for (class, mut places) in of_class.into_iter().enumerate() {
        SplitMix64::from_parts(&[seed, draw as u64, class as u64]).shuffle(&mut places);
        let first = if places.len() == 1 { FOLDS - 1 } else { 0 };
        places.iter().enumerate().for_each(|(turn, at)| folds[*at] = (first + turn) % FOLDS);
    }
    folds
}

/// Rows of length one with a one behind each, for the intercepts. f64 [images, dim + 1]
fn with_ones(features: &Tensor, what: &str, whose: &str) -> Result<Tensor> {
    let features = Rows::of(features, what, whose, tch::get_num_threads().max(1) as usize)?.in_f64();
    let ones = Tensor::ones([features.size()[0], 1], (Kind::Double, Device::Cpu));
    Ok(Tensor::cat(&[features, ones], 1))
}

#[cfg(test)]
mod tests;
