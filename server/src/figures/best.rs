//! The best α of a line: one for all panels, chosen among measured α. An accuracy is flattered by the choice that it
//! was the reason for, so the choice is made on one half of each dataset's queries, always the same one
//! (`causeway_protocol::selection_half`), and what it brings is read off the other half, beside α = 0.5 and α = 1 on
//! that same half. Where a dataset has too few queries, or its points do not say which ones were right, all queries do
//! both, and every caption says "best on test".

use super::alpha::Panel;
use super::input::Queries;
use causeway_protocol::{Role, best_change, goal_and_guard};
use serde::Serialize;
use utoipa::ToSchema;

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
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Best {
    /// α; 0 if no measured α qualifies.
    pub alpha: f64,
    /// What it was chosen on.
    pub chosen: Chosen,
    /// Change of the goal's mean against the backbone, points, on the queries that decided.
    pub decided_by: f64,
    /// What it brings on the queries that are left.
    pub brings: Change,
    /// What α = 0.5 and α = 1 bring on the same queries, where they are measured.
    pub beside: Vec<Change>,
}

/// What an α changes against the backbone.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Change {
    /// α.
    pub alpha: f64,
    /// Change of the goal's mean, points.
    pub goal: f64,
    /// Change of the guarded mean, points.
    pub guard: Option<f64>,
}

/// What an α was chosen on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Chosen {
    /// A seeded half of the queries; what it brings is measured on the other half.
    Half,
    /// The queries that it is reported on: best on test.
    Test,
}

impl Chosen {
    /// Queries that decide.
    pub fn decides(self) -> Queries {
        match self {
            Chosen::Half => Queries::ChosenOn,
            Chosen::Test => Queries::All,
        }
    }

    /// Queries that the result is read off.
    pub fn reports(self) -> Queries {
        match self {
            Chosen::Half => Queries::ReportedOn,
            Chosen::Test => Queries::All,
        }
    }
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
    let looked_at = |panel: &&Panel| panel.role == rule.goal || Some(panel.role) == rule.guard;
    let halved = panels.iter().filter(looked_at).all(|panel| {
        panel.lines.get(line).is_some_and(|line| line.points.iter().all(|place| place.halves.is_some()))
    });
    let chosen = if halved { Chosen::Half } else { Chosen::Test };
    let first = panels.iter().find(|panel| panel.role == rule.goal)?;
    let alphas = first.lines.get(line)?.points.iter().map(|place| place.alpha);
    let measured: Vec<Change> =
        alphas.filter_map(|alpha| change(rule, panels, line, alpha, chosen.decides())).collect();
    if !measured.iter().any(|change| change.alpha > 0.0) {
        return None;
    }
    let changes =
        measured.iter().map(|change| causeway_protocol::Change { goal: change.goal, guard: change.guard });
    let best = measured[best_change(rule.keep, changes)?];
    let reported = |alpha: f64| change(rule, panels, line, alpha, chosen.reports());
    Some(Best {
        alpha: best.alpha,
        chosen,
        decided_by: best.goal,
        brings: reported(best.alpha)?,
        beside: [0.5, 1.0].into_iter().filter_map(reported).collect(),
    })
}

/// What a line does at α to the two means of the rule; none if a dataset lacks this α.
fn change(rule: &BestRule, panels: &[Panel], line: usize, alpha: f64, on: Queries) -> Option<Change> {
    let goal = mean_delta(panels, rule.goal, line, alpha, on)?;
    let guard = match rule.guard {
        Some(guard) => Some(mean_delta(panels, guard, line, alpha, on)?),
        None => None,
    };
    Some(Change { alpha, goal, guard })
}

/// Mean over a role's datasets of the change against the backbone; none if one of them lacks this α.
pub fn mean_delta(panels: &[Panel], role: &str, line: usize, alpha: f64, on: Queries) -> Option<f64> {
    let deltas: Option<Vec<f64>> = panels
        .iter()
        .filter(|panel| panel.role == role)
        .map(|panel| {
            let place = panel.lines.get(line)?.points.iter().find(|place| place.alpha == alpha)?;
            match on {
                Queries::All => place.delta,
                Queries::ChosenOn => place.halves.map(|halves| halves.0),
                Queries::ReportedOn => place.halves.map(|halves| halves.1),
            }
        })
        .collect();
    super::stats::mean(&deltas?)
}

#[cfg(test)]
mod tests {
    use super::super::alpha::{PanelLine, Place};
    use super::*;

    /// A panel with one line of (α, change on the half that decides, change on the other, change on all).
    fn panel(role: Role, places: &[(f64, f64, f64, f64)], halved: bool) -> Panel {
        let points = places.iter().map(|(alpha, chosen, reported, all)| Place {
            alpha: *alpha,
            delta: Some(*all),
            halves: halved.then_some((*chosen, *reported)),
            ..Place::default()
        });
        let line = PanelLine { points: points.collect(), ..PanelLine::default() };
        Panel { role: role.as_str(), lines: vec![line], ..Panel::default() }
    }

    const OOD: [(f64, f64, f64, f64); 4] =
        [(0.0, 0.0, 0.0, 0.0), (0.5, 2.0, 1.0, 1.5), (0.7, 3.0, 1.2, 2.1), (1.0, 2.5, 3.0, 2.75)];

    fn rule(guard: bool) -> BestRule {
        let roles: &[Role] = if guard { &[Role::Ood, Role::Id] } else { &[Role::Ood] };
        BestRule::for_roles(roles.iter().copied(), 1.0)
    }

    #[test]
    fn the_half_that_decides_is_not_the_half_that_is_reported() {
        // On the first half 0.7 is best by half a point; on the other half α = 1 would have been.
        let best = best_alpha(&rule(false), &[panel(Role::Ood, &OOD, true)], 0).unwrap();
        assert_eq!((best.alpha, best.chosen, best.decided_by), (0.7, Chosen::Half, 3.0));
        assert_eq!(best.brings, Change { alpha: 0.7, goal: 1.2, guard: None });
        let beside: Vec<(f64, f64)> = best.beside.iter().map(|change| (change.alpha, change.goal)).collect();
        assert_eq!(beside, [(0.5, 1.0), (1.0, 3.0)]);
    }

    #[test]
    fn without_halves_everywhere_it_is_best_on_test() {
        let guard =
            [(0.0, 0.0, 0.0, 0.0), (0.5, 0.0, 0.0, 0.0), (0.7, 0.0, 0.0, -0.5), (1.0, 0.0, 0.0, -4.0)];
        let panels = [panel(Role::Ood, &OOD, true), panel(Role::Id, &guard, false)];
        let best = best_alpha(&rule(true), &panels, 0).unwrap();
        // α = 1 gains most on all queries but costs 4 points.
        assert_eq!((best.alpha, best.chosen), (0.7, Chosen::Test));
        assert_eq!(best.brings, Change { alpha: 0.7, goal: 2.1, guard: Some(-0.5) });
    }

    #[test]
    fn an_alpha_that_a_dataset_lacks_is_not_chosen() {
        let panels = [panel(Role::Ood, &OOD, true), panel(Role::Ood, &OOD[..2], true)];
        assert_eq!(best_alpha(&rule(false), &panels, 0).unwrap().alpha, 0.5);
        let nothing = [panel(Role::Ood, &OOD[..1], true)];
        assert_eq!(best_alpha(&rule(false), &nothing, 0), None);
    }
}
