//! Which α of a line is best: what is to be gained, what must not be lost, and which of two α then wins. Figures mark it,
//! and a sweep with `refine` measures more α around it.

use crate::Role;

/// A gain smaller than this is no reason for a larger α, points.
const TIE: f64 = 0.05;
/// Points that the guarded mean may fall, unless told otherwise.
pub const KEEP_POINTS: f64 = 1.0;

/// What an α changes against the backbone, points.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Change {
    /// Of the goal's mean.
    pub goal: f64,
    /// Of the guarded mean, where something is guarded.
    pub guard: Option<f64>,
}

/// The role whose mean accuracy is maximised, and the one that is guarded. Out of distribution is what is to be gained;
/// in distribution what must not be lost, or the target where no dataset is near the pretraining data.
pub fn goal_and_guard(roles: impl IntoIterator<Item = Role>) -> (Role, Option<Role>) {
    let roles: Vec<Role> = roles.into_iter().collect();
    let has = |role: Role| roles.contains(&role);
    match (has(Role::Id), has(Role::Target), has(Role::Ood)) {
        (true, _, true) => (Role::Ood, Some(Role::Id)),
        (false, true, true) => (Role::Ood, Some(Role::Target)),
        (false, false, _) => (Role::Ood, None),
        (true, true, false) => (Role::Target, Some(Role::Id)),
        (true, false, false) => (Role::Id, None),
        (false, true, false) => (Role::Target, None),
    }
}

/// The place of the best among changes by ascending α: the largest gain that costs the guarded mean at most `keep`
/// points. None where every α costs more.
pub fn best_change(keep: f64, changes: impl IntoIterator<Item = Change>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (at, change) in changes.into_iter().enumerate() {
        let allowed = change.guard.is_none_or(|delta| delta >= -keep - 1e-9);
        if allowed && best.is_none_or(|(_, goal)| change.goal > goal + TIE) {
            best = Some((at, change.goal));
        }
    }
    best.map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_distribution_is_the_goal_and_what_is_nearest_to_the_pretraining_is_guarded() {
        use Role::{Id, Ood, Target};
        assert_eq!(goal_and_guard([Id, Target, Ood]), (Ood, Some(Id)));
        assert_eq!(goal_and_guard([Target, Ood]), (Ood, Some(Target)));
        assert_eq!(goal_and_guard([Ood]), (Ood, None));
        assert_eq!(goal_and_guard([Id, Target]), (Target, Some(Id)));
        assert_eq!(goal_and_guard([Target]), (Target, None));
    }

    #[test]
    fn the_largest_gain_within_what_may_be_lost_wins_and_a_tie_goes_to_the_smaller_alpha() {
        let change = |goal, guard| Change { goal, guard };
        let line = [change(0.0, Some(0.0)), change(3.0, Some(-1.0)), change(9.0, Some(-1.1))];
        assert_eq!(best_change(KEEP_POINTS, line), Some(1));
        assert_eq!(best_change(2.0, line), Some(2));
        assert_eq!(best_change(1.0, [change(0.0, None), change(0.05, None), change(0.06, None)]), Some(2));
        assert_eq!(best_change(1.0, [change(5.0, Some(-2.0))]), None);
    }
}
