//! The best α of a line: one for all panels, chosen among measured α. It is chosen on the numbers that are shown,
//! and every caption says so.

use super::alpha::Panel;
use causeway_protocol::{Change, Role, best_change, goal_and_guard};
use serde::Serialize;

/// What is maximised and what is guarded.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct BestRule {
    /// The role whose mean accuracy is maximised.
    pub goal: &'static str,
    /// The role whose mean accuracy may fall by at most `keep`; none if the experiment has only one role.
    pub guard: Option<&'static str>,
    /// Points that the guarded mean may fall.
    pub keep: f64,
}

/// The best α of a line and what it brings.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Best {
    /// α; 0 if no measured α qualifies.
    pub alpha: f64,
    /// Change of the goal's mean against the backbone, points.
    pub goal_delta: f64,
    /// Change of the guarded mean against the backbone, points.
    pub guard_delta: Option<f64>,
}

impl BestRule {
    /// The rule of an experiment whose datasets have these roles.
    pub fn for_roles(roles: impl Iterator<Item = Role>, keep: f64) -> BestRule {
        let (goal, guard) = goal_and_guard(roles);
        BestRule { goal: goal.as_str(), guard: guard.map(Role::as_str), keep }
    }
}

/// Applies the rule to one line; none until some α above 0 is measured on every dataset that the rule looks at.
pub fn best_alpha(rule: &BestRule, panels: &[Panel], line: usize) -> Option<Best> {
    let first = panels.iter().find(|panel| panel.role == rule.goal)?;
    let mut measured: Vec<Best> = Vec::new();
    for place in &first.lines.get(line)?.points {
        let Some(goal_delta) = mean_delta(panels, rule.goal, line, place.alpha) else { continue };
        let guard_delta = match rule.guard {
            Some(guard) => match mean_delta(panels, guard, line, place.alpha) {
                Some(delta) => Some(delta),
                None => continue,
            },
            None => None,
        };
        measured.push(Best { alpha: place.alpha, goal_delta, guard_delta });
    }
    let changes = measured.iter().map(|best| Change { goal: best.goal_delta, guard: best.guard_delta });
    let best = best_change(rule.keep, changes)?;
    measured.iter().any(|best| best.alpha > 0.0).then(|| measured[best])
}

/// Mean over a role's datasets of the change against the backbone; none if one of them lacks this α.
pub fn mean_delta(panels: &[Panel], role: &str, line: usize, alpha: f64) -> Option<f64> {
    let deltas: Option<Vec<f64>> = panels
        .iter()
        .filter(|panel| panel.role == role)
        .map(|panel| panel.lines.get(line)?.points.iter().find(|p| p.alpha == alpha)?.delta)
        .collect();
    super::stats::mean(&deltas?)
}
