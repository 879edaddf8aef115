//! L-BFGS (Liu and Nocedal 1989) for multinomial logistic regression, in f64. Scores are linear in the weights, so a
//! line search needs no products with the features: the scores along a direction are Z + t·D, and an iteration costs
//! two products however long it searches. Along a line the objective is convex, which makes the search for the strong
//! Wolfe conditions a bisection of its slope, hastened by secants.

use anyhow::{Result, bail};
use std::collections::VecDeque;
use tch::{Kind, Tensor};

/// Pairs of steps and changes of the gradient that are kept.
const MEMORY: usize = 10;
/// No partial derivative of C·Σ loss + ½|W|² is larger at the end. The penalty curves it by at least one in every
/// direction, so the weights are then no farther from the best ones than that gradient is long.
const TOLERANCE: f64 = 1e-4;
/// Nor one of the mean loss, however small C is; and no smaller one is asked for, however large: f64 has no more to give.
const MOST: f64 = 1e-7;
const LEAST: f64 = 1e-10;
/// Most iterations. Separable classes with a C of 10⁶ need some thousand.
const ITERATIONS: usize = 10_000;
/// Wolfe's: of the slope at the start, how much the objective must fall, and how much slope may be left.
const DECREASE: f64 = 1e-4;
const CURVATURE: f64 = 0.9;
/// Most steps of one line search: a bisection ends far earlier.
const TRIES: usize = 60;

/// The objective divided by C times the images: the mean loss, and a penalty of ½·`penalty`·|W|².
struct Objective<'a> {
    features: &'a Tensor,
    /// i64 [images, 1]
    labels: Tensor,
    penalty: f64,
    /// One where a weight bears the penalty, zero for the intercepts. [dim + 1, 1]
    bears: Tensor,
}

/// The weights at which the objective is smallest, intercepts in the last row.
///
/// # Shapes
/// `features` f64 [images, dim + 1], ones in the last column; `labels` i64 [images]; `start` [dim + 1, classes]
/// → [dim + 1, classes]
///
/// # Errors
/// If it does not converge.
pub fn minimise(features: &Tensor, labels: &Tensor, c: f64, start: Tensor) -> Result<Tensor> {
    let (images, width) = features.size2()?;
    let bears = Tensor::ones([width, 1], (Kind::Double, features.device()));
    let _ = bears.get(width - 1).zero_();
    let objective =
        Objective { features, labels: labels.unsqueeze(1), penalty: 1.0 / (c * images as f64), bears };

    let tolerance = (TOLERANCE * objective.penalty).clamp(LEAST, MOST);
    let (mut weights, mut scores) = (start.copy(), features.matmul(&start));
    let mut gradient = objective.gradient(&weights, &scores);
    let mut memory = Memory::default();
    for _ in 0..ITERATIONS {
        if largest(&gradient) <= tolerance {
            return Ok(weights);
        }
        let mut direction = memory.direction(&gradient);
        if dot(&direction, &gradient) >= 0.0 {
            // Rounding has spoilt the memory.
            memory = Memory::default();
            direction = -&gradient;
        }
        let moved = features.matmul(&direction); // [images, classes]
        let Some(length) = objective.search((&weights, &scores), (&direction, &moved)) else {
            bail!(
                "the fit stopped at a gradient of {:.1e}, above {tolerance:.1e}: the features leave f64 no room; \
                 give a smaller C",
                largest(&gradient)
            );
        };
        let step = direction * length;
        weights += &step;
        scores += moved * length;
        let next = objective.gradient(&weights, &scores);
        memory.keep(step, &next - &gradient);
        gradient = next;
    }
    bail!(
        "the fit has not converged in {ITERATIONS} iterations: its gradient is {:.1e}, above {tolerance:.1e}; \
         give a smaller C",
        largest(&gradient)
    )
}

impl Objective<'_> {
    /// [dim + 1, classes]
    fn gradient(&self, weights: &Tensor, scores: &Tensor) -> Tensor {
        let images = scores.size()[0] as f64;
        let mut excess = scores.softmax(1, Kind::Double);
        let ones = Tensor::ones_like(&self.labels).to_kind(Kind::Double);
        let _ = excess.scatter_add_(1, &self.labels, &-ones); // p − y
        self.features.tr().matmul(&excess) / images + weights * &self.bears * self.penalty
    }

    /// How far to go: a length that fulfils the strong Wolfe conditions.
    fn search(
        &self,
        (weights, scores): (&Tensor, &Tensor),
        (direction, moved): (&Tensor, &Tensor),
    ) -> Option<f64> {
        let own = |scores: &Tensor| scores.gather(1, &self.labels, false); // [images, 1]
        let (own_scores, own_moved) = (own(scores), own(moved));
        let penalised = direction * &self.bears;
        let [flat, linear, square] =
            [dot(&(weights * &self.bears), weights), dot(&penalised, weights), dot(&penalised, direction)];
        // Value and slope at a length.
        let at = |length: f64| {
            let there = scores + moved * length;
            let loss = there.logsumexp([1], true) - (&own_scores + &own_moved * length);
            let expected = (there.softmax(1, Kind::Double) * moved).sum_dim_intlist(1, true, Kind::Double);
            let slope = (expected - &own_moved).mean(Kind::Double).double_value(&[]);
            let penalty = 0.5 * self.penalty * (flat + 2.0 * length * linear + length * length * square);
            let value = loss.mean(Kind::Double).double_value(&[]) + penalty;
            (value, slope + self.penalty * (linear + length * square))
        };
        let (value, slope) = at(0.0);
        // Left of `low.0` the objective falls, right of `high.0` it rises.
        let (mut low, mut high) = ((0.0, slope), None::<(f64, f64)>);
        let mut length = 1.0;
        for _ in 0..TRIES {
            let (here, slope_here) = at(length);
            let enough = slope_here <= 0.0 || here <= value + DECREASE * length * slope;
            if enough && slope_here.abs() <= -CURVATURE * slope {
                return Some(length);
            }
            match slope_here < 0.0 {
                true => low = (length, slope_here),
                false => high = Some((length, slope_here)),
            }
            length = match high {
                None => 4.0 * length,
                Some(high) => {
                    // Where the line through both slopes is level, though not at the very ends.
                    let share = low.1 / (low.1 - high.1);
                    low.0 + share.clamp(0.1, 0.9) * (high.0 - low.0)
                }
            };
        }
        None
    }
}

/// The last steps with the changes of the gradient over them.
#[derive(Default)]
struct Memory {
    pairs: VecDeque<(Tensor, Tensor, f64)>,
}

impl Memory {
    /// Keeps a step, unless the gradient shows no curvature along it.
    fn keep(&mut self, step: Tensor, change: Tensor) {
        let curvature = dot(&step, &change);
        if curvature > f64::EPSILON * dot(&change, &change) {
            self.pairs.truncate(MEMORY - 1);
            self.pairs.push_front((step, change, curvature));
        }
    }

    /// Downhill, by the two loops over the pairs.
    fn direction(&self, gradient: &Tensor) -> Tensor {
        let mut direction = -gradient;
        let mut shares = Vec::with_capacity(self.pairs.len());
        for (step, change, curvature) in &self.pairs {
            let share = dot(step, &direction) / curvature;
            direction -= change * share;
            shares.push(share);
        }
        if let Some((_, change, curvature)) = self.pairs.front() {
            direction *= *curvature / dot(change, change);
        }
        for ((step, change, curvature), share) in self.pairs.iter().zip(shares).rev() {
            direction += step * (share - dot(change, &direction) / curvature);
        }
        direction
    }
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    (a * b).sum(Kind::Double).double_value(&[])
}

fn largest(gradient: &Tensor) -> f64 {
    gradient.abs().max().double_value(&[])
}
