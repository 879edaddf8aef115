//! The replay memory: M tokens that stand in for a caption's where there is none, at every evaluation. They are the
//! k-means prototypes of the training captions' token states: k-means++ (Arthur and Vassilvitskii 2007) chooses the
//! first ones, Lloyd's steps move each to the mean of the tokens nearest to it.

use crate::weights::initial;
use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

/// Most tokens that are looked at; of more, the seed chooses so many. 16 prototypes of 65,536 tokens are means of
/// thousands.
const TOKENS_MAX: usize = 65_536;
/// Most steps of Lloyd's; prototypes hardly move any more long before.
const STEPS_MAX: usize = 50;

/// `size` prototypes of the tokens of all captions, each of them [tokens, text].
///
/// # Shapes
/// → [size, text]
///
/// # Errors
/// Fewer distinct tokens than prototypes.
pub fn prototypes(captions: &[Tensor], size: u32, seed: u64) -> Result<Tensor> {
    ensure!(!captions.is_empty(), "there are no captions to make a replay memory of");
    let mut draws = initial::stream(seed, super::MEMORY);
    let all = Tensor::f_cat(captions, 0)?.to_kind(Kind::Float);
    let count = all.size()[0] as usize;
    let tokens = if count <= TOKENS_MAX {
        all
    } else {
        let mut places: Vec<i64> = (0..count as i64).collect();
        draws.shuffle(&mut places);
        all.index_select(0, &Tensor::from_slice(&places[..TOKENS_MAX]))
    }; // [tokens, text]

    let (mut chosen, mut nearest) = (Vec::new(), Vec::<f64>::new());
    while chosen.len() < size as usize {
        let next = if chosen.is_empty() {
            draws.below(tokens.size()[0] as u64) as usize
        } else {
            let total: f64 = nearest.iter().sum();
            ensure!(
                total > 0.0,
                "the captions hold {} distinct tokens and a replay memory of {size} was asked for; lower \
                 `method.memory`",
                chosen.len()
            );
            drawn(&nearest, draws.uniform() * total)
        };
        let prototype = tokens.get(next as i64); // [text]
        // As a sum of squares, so that equal tokens are at 0 exactly.
        let squares = (&tokens - &prototype).square().sum_dim_intlist([-1].as_slice(), false, Kind::Double);
        let distances = Vec::<f64>::try_from(squares)?;
        nearest = match nearest.is_empty() {
            true => distances,
            false => nearest.iter().zip(&distances).map(|(old, new)| old.min(*new)).collect(),
        };
        chosen.push(prototype);
    }
    Ok(lloyd(&tokens, Tensor::stack(&chosen, 0)))
}

/// The first place at which the running sum of the weights exceeds `target`; never one of weight 0.
fn drawn(weights: &[f64], target: f64) -> usize {
    let mut sum = 0.0;
    let mut last = 0;
    for (place, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        (sum, last) = (sum + weight, place);
        if sum > target {
            break;
        }
    }
    last
}

/// Moves each prototype to the mean of the tokens nearest to it until none changes sides. One that is nearest to none
/// stays.
///
/// # Shapes
/// [tokens, text], [size, text] → [size, text]
fn lloyd(tokens: &Tensor, mut prototypes: Tensor) -> Tensor {
    let (size, width) = (prototypes.size()[0], prototypes.size()[1]);
    let precise = tokens.to_kind(Kind::Double);
    let one = precise.ones_like().narrow(1, 0, 1); // [tokens, 1]
    let mut sides = None;
    for _ in 0..STEPS_MAX {
        // ‖x − p‖² without ‖x‖², which is the same for all p.
        let lengths = prototypes.square().sum_dim_intlist([-1].as_slice(), false, Kind::Float); // [size]
        let now = (lengths - tokens.matmul(&prototypes.transpose(0, 1)) * 2.0).argmin(1, false); // [tokens]
        if sides.as_ref().is_some_and(|before| now == *before) {
            break;
        }
        let zeros = |width: i64| Tensor::zeros([size, width], (Kind::Double, tokens.device()));
        let counts = zeros(1).index_add(0, &now, &one);
        let means = zeros(width).index_add(0, &now, &precise) / counts.clamp_min(1.0);
        prototypes = means.to_kind(Kind::Float).where_self(&counts.gt(0.0), &prototypes);
        sides = Some(now);
    }
    prototypes
}

#[cfg(test)]
mod tests;
