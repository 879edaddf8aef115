//! When a training has diverged, and what is left of its patience.

use causeway_protocol::Divergence;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Losses that a new one is compared with.
const WINDOW: usize = 20;

/// Watches loss and gradient. Its state is part of the resume state: a resumed training judges as an undisturbed one.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Watch {
    /// The last losses, as bits: JSON keeps those exactly.
    recent: VecDeque<u32>,
    /// Rollbacks so far.
    pub rollbacks: u32,
}

/// The training went wrong. Another attempt would come to the same end.
#[derive(Clone, PartialEq, Debug)]
pub struct Diverged {
    what: String,
    step: u64,
}

impl std::error::Error for Diverged {}

impl std::fmt::Display for Diverged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at step {}; lower training.learning_rate", self.what, self.step)
    }
}

impl Diverged {
    /// A value that is no number.
    pub fn not_finite(what: &str, value: f64, done: u64) -> Diverged {
        Diverged { what: format!("{what} became {value}"), step: done }
    }
}

impl Watch {
    /// Looks at the loss and the gradient norm of the step that makes `done` steps.
    ///
    /// # Errors
    /// [`Diverged`], with what was wrong.
    pub fn check(&mut self, rules: &Divergence, loss: f64, norm: f64, done: u64) -> Result<(), Diverged> {
        let diverged = |what: String| Err(Diverged { what, step: done });
        for (what, value) in [("loss", loss), ("gradient norm", norm)] {
            if !value.is_finite() {
                return Err(Diverged::not_finite(what, value, done));
            }
        }
        if let Some(limit) = rules.gradient_norm.filter(|limit| norm > *limit) {
            return diverged(format!("the gradient norm was {norm:.4}, above the limit of {limit},"));
        }
        if let (Some(spike), Some(median)) = (rules.spike, self.median())
            && loss > spike * median
        {
            return diverged(format!(
                "the loss was {loss:.4}, more than {spike} times {median:.4}, the median of the last {WINDOW},"
            ));
        }
        self.recent.push_back((loss as f32).to_bits());
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
        Ok(())
    }

    /// What the rates are multiplied by after the rollbacks so far.
    pub fn rate_factor(&self, rules: &Divergence) -> f64 {
        rules.lower.powi(self.rollbacks as i32)
    }

    /// Median of the last losses; none before the window is full.
    fn median(&self) -> Option<f64> {
        let mut losses: Vec<f32> = self.recent.iter().map(|bits| f32::from_bits(*bits)).collect();
        losses.sort_by(f32::total_cmp);
        (losses.len() == WINDOW).then(|| f64::from(losses[WINDOW / 2]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_measured_against_the_median_of_a_full_window() {
        let rules = Divergence { spike: Some(3.0), ..Divergence::default() };
        let mut watch = Watch::default();
        watch.check(&rules, 100.0, 1.0, 1).unwrap();
        for done in 2..=20 {
            watch.check(&rules, 2.0, 1.0, done).unwrap();
        }
        watch.check(&rules, 5.9, 1.0, 21).unwrap();
        let diverged = watch.check(&rules, 6.1, 1.0, 22).unwrap_err().to_string();
        assert!(diverged.contains("6.1000") && diverged.contains("step 22"), "{diverged}");
        let again: Watch = serde_json::from_str(&serde_json::to_string(&watch).unwrap()).unwrap();
        assert_eq!(again, watch);
    }

    #[test]
    fn what_is_no_number_always_counts_and_a_large_gradient_if_asked() {
        let mut watch = Watch::default();
        let none = Divergence::default();
        assert!(
            watch
                .check(&none, f64::NAN, 1.0, 1)
                .unwrap_err()
                .to_string()
                .contains("loss became NaN at step 1")
        );
        assert!(watch.check(&none, 1.0, f64::INFINITY, 1).is_err());
        watch.check(&none, 1e30, 1e30, 1).unwrap();
        let limited = Divergence { gradient_norm: Some(10.0), ..none };
        assert!(watch.check(&limited, 1.0, 10.5, 2).unwrap_err().to_string().contains("10.5000"));
    }

    #[test]
    fn each_rollback_lowers_the_rates() {
        let rules = Divergence { lower: 0.5, rollbacks: 3, ..Divergence::default() };
        assert_eq!(Watch { rollbacks: 2, ..Watch::default() }.rate_factor(&rules), 0.25);
    }
}
