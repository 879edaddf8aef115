//! Robustness of a checkpoint: whether it is better out of distribution than its accuracy in distribution explains.
//!
//! Effective robustness (Taori et al. 2020, arXiv 2007.00644, §2; WiSE-FT reports it):
//!
//! ρ(θ) = ood(θ) − β(id(θ)),   logit β(x) = a + b · logit x.
//!
//! β is what models do that nobody tried to make robust. Here those are the backbones themselves, and β is the least
//! squares line through theirs on logit axes; it needs three of them, measured under the same protocol on the same
//! datasets. With fewer there is no baseline, and what is shown instead has another name: Δood − Δid against the
//! checkpoint's own backbone, which takes one point of ID to be worth one point of OOD.

use serde::Serialize;
use utoipa::ToSchema;

/// Fewest backbones for a baseline.
const BACKBONES: usize = 3;

/// Accuracy out of distribution as backbones have it, by accuracy in distribution: a line on logit axes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Baseline {
    intercept: f64,
    slope: f64,
    /// Backbones it goes through.
    pub backbones: usize,
}

/// Which of the two a number is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RobustnessKind {
    /// Effective robustness: against the line through three or more backbones.
    Effective,
    /// Relative to the backbone: ΔOOD − ΔID.
    RelativeToBackbone,
}

impl RobustnessKind {
    /// As heads of columns say it.
    pub fn name(self) -> &'static str {
        match self {
            RobustnessKind::Effective => "effective robustness",
            RobustnessKind::RelativeToBackbone => "ΔOOD − ΔID",
        }
    }
}

impl Baseline {
    /// The line through backbones' (ID, OOD) accuracies, percent; none for fewer than three or where all have the
    /// same ID accuracy.
    pub fn fit(points: &[(f64, f64)]) -> Option<Baseline> {
        if points.len() < BACKBONES {
            return None;
        }
        let count = points.len() as f64;
        let logits: Vec<(f64, f64)> = points.iter().map(|(id, ood)| (logit(*id), logit(*ood))).collect();
        let mean = |of: fn(&(f64, f64)) -> f64| logits.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(|point| point.0), mean(|point| point.1));
        let spread: f64 = logits.iter().map(|point| (point.0 - x).powi(2)).sum();
        let slope = logits.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread;
        let line = Baseline { intercept: y - slope * x, slope, backbones: points.len() };
        (spread > 1e-9).then_some(line)
    }

    /// The accuracy out of distribution that goes with one in distribution, percent.
    pub fn ood(&self, id: f64) -> f64 {
        100.0 / (1.0 + (-self.intercept - self.slope * logit(id)).exp())
    }
}

/// Effective robustness, points, of (ID, OOD) accuracies in percent.
pub fn effective(baseline: &Baseline, (id, ood): (f64, f64)) -> f64 {
    ood - baseline.ood(id)
}

/// ΔOOD − ΔID, points, of (ID, OOD) accuracies in percent.
pub fn relative(before: (f64, f64), after: (f64, f64)) -> f64 {
    (after.1 - before.1) - (after.0 - before.0)
}

/// Of a percentage; none and all right are taken for 0.05 % from the end, where a logit would have no end.
fn logit(percent: f64) -> f64 {
    let share = (percent / 100.0).clamp(0.0005, 0.9995);
    (share / (1.0 - share)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_on_a_line_of_logits_have_no_effective_robustness_and_others_their_height_above_it() {
        // logit: 50 % is 0, 75 % is ln 3, 90 % is ln 9 = 2 ln 3. OOD one ln 3 lower: 25, 50, 75 %.
        let line = Baseline::fit(&[(50.0, 25.0), (75.0, 50.0), (90.0, 75.0)]).unwrap();
        assert_eq!(line.backbones, 3);
        assert!(effective(&line, (75.0, 50.0)).abs() < 1e-9);
        assert!((effective(&line, (75.0, 58.0)) - 8.0).abs() < 1e-9);
        // Further along the line: logit 3 ln 3 is 27/28, its OOD 9/10.
        assert!((effective(&line, (2700.0 / 28.0, 90.0))).abs() < 1e-9);
    }

    #[test]
    fn two_backbones_or_one_accuracy_are_no_baseline() {
        assert_eq!(Baseline::fit(&[(50.0, 25.0), (75.0, 50.0)]), None);
        assert_eq!(Baseline::fit(&[(50.0, 25.0), (50.0, 30.0), (50.0, 40.0)]), None);
    }

    #[test]
    fn relative_to_the_backbone_is_what_was_gained_outside_beyond_what_was_gained_inside() {
        assert_eq!(relative((70.0, 50.0), (69.0, 53.0)), 4.0);
        assert_eq!(relative((70.0, 50.0), (75.0, 53.0)), -2.0);
    }
}
