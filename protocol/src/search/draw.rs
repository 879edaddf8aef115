//! The points of a search. A grid's follow from the space; a drawn one follows from the search's seed and the trial's
//! number, so that a search may be extended without a point of before changing, and two servers draw the same.

use super::{Axis, Search, SearchPoint, Strategy};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::HashSet;

/// How often a point that an earlier trial had is drawn again before it is taken all the same.
const AGAIN_MAX: u32 = 10_000;

impl Axis {
    /// Number of values; none for a stretch of real numbers.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Axis::Choice(values) => Some(values.len() as u64),
            Axis::Integer((from, to)) => Some(to.abs_diff(*from).saturating_add(1)),
            Axis::Uniform(_) | Axis::LogUniform(_) => None,
        }
    }

    /// The value at a place of a finite axis.
    fn at(&self, index: u64) -> Value {
        match self {
            Axis::Choice(values) => {
                usize::try_from(index).ok().and_then(|at| values.get(at)).cloned().unwrap_or_default()
            }
            Axis::Integer((from, _)) => from.saturating_add_unsigned(index).into(),
            Axis::Uniform((from, _)) | Axis::LogUniform((from, _)) => (*from).into(),
        }
    }

    /// The value for 64 random bits. Real numbers have six significant digits: what is run can be read and typed.
    fn drawn(&self, bits: u64) -> Value {
        // 53 bits make a number from 0 up to but not including 1.
        let share = (bits >> 11) as f64 / (1u64 << 53) as f64;
        match self {
            Axis::Choice(_) | Axis::Integer(_) => {
                let size = u128::from(self.size().unwrap_or(1));
                self.at(((u128::from(bits) * size) >> 64) as u64)
            }
            Axis::Uniform((from, to)) => six_digits(from + share * (to - from)).clamp(*from, *to).into(),
            Axis::LogUniform((from, to)) => {
                six_digits((from.ln() + share * (to.ln() - from.ln())).exp()).clamp(*from, *to).into()
            }
        }
    }
}

fn six_digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

impl Search {
    /// Number of different points; none if a real number is among what is varied, or if it exceeds 64 bits.
    pub(super) fn size(&self) -> Option<u64> {
        self.space.values().try_fold(1u64, |product, axis| product.checked_mul(axis.size()?))
    }

    /// The points of all trials, in order. Those of a longer search begin with those of a shorter one.
    pub fn points(&self) -> Vec<SearchPoint> {
        match &self.strategy {
            Strategy::Grid {} => (0..self.size().unwrap_or(0)).map(|index| self.grid_point(index)).collect(),
            Strategy::Random { trials } | Strategy::Asha { trials, .. } => self.drawn_points(*trials),
        }
    }

    fn grid_point(&self, mut index: u64) -> SearchPoint {
        let axes: Vec<_> = self.space.iter().collect();
        let values = axes.into_iter().rev().map(|(path, axis)| {
            let size = axis.size().unwrap_or(1).max(1);
            let value = axis.at(index % size);
            index /= size;
            (path.clone(), value)
        });
        values.collect()
    }

    /// A trial that would repeat an earlier one is drawn again: a few choices would else be tried twice.
    fn drawn_points(&self, trials: u32) -> Vec<SearchPoint> {
        let mut seen: HashSet<String> = HashSet::new();
        let mut points = Vec::new();
        for trial in 1..=trials {
            let mut point = self.draw(trial, 0);
            for again in 1..=AGAIN_MAX {
                if !seen.contains(&key(&point)) {
                    break;
                }
                point = self.draw(trial, again);
            }
            seen.insert(key(&point));
            points.push(point);
        }
        points
    }

    fn draw(&self, trial: u32, again: u32) -> SearchPoint {
        let values = self.space.iter().map(|(path, axis)| {
            let digest = Sha256::digest(format!("{}/{trial}/{again}/{path}", self.seed));
            let bits = digest[..8].iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
            (path.clone(), axis.drawn(bits))
        });
        values.collect()
    }
}

fn key(point: &SearchPoint) -> String {
    serde_json::to_string(point).unwrap_or_default()
}
