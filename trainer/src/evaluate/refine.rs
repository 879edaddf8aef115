//! Where a sweep looks again. After the α that were asked, each round halves the steps on either side of the best α so
//! far: two new α, or one at an end of the line. The best is what gains most on the goal's datasets and costs the guarded
//! ones at most a point, by the mean accuracy of twenty neighbours, as in the figures ([`causeway_protocol::best_change`]).
//! It looks at half of each dataset's queries ([`causeway_protocol::selection_half`]), so that the other half can say what
//! the choice is worth.

use causeway_protocol::{
    Alpha, Change, Evaluation, Hits, KEEP_POINTS, Role, best_change, goal_and_guard, selection_half,
};
use std::collections::BTreeMap;

/// What is known of the α so far.
pub struct Refinement {
    datasets: Vec<Half>,
    goal: Role,
    guard: Option<Role>,
    /// For each α the percentage of each dataset, as far as it is known.
    measured: BTreeMap<Alpha, Vec<Option<f64>>>,
}

/// The queries of a dataset that an α may be chosen on.
struct Half {
    role: Role,
    marked: Vec<bool>,
}

impl Refinement {
    /// Begins with nothing measured. `datasets` are digest and number of queries of the evaluation's, in its order.
    pub fn new<'a>(
        evaluation: &Evaluation,
        datasets: impl IntoIterator<Item = (&'a str, usize)>,
    ) -> Refinement {
        let roles = evaluation.datasets.iter().map(|dataset| dataset.role);
        let (goal, guard) = goal_and_guard(roles.clone());
        let half = |(role, (digest, queries))| Half { role, marked: selection_half(digest, queries) };
        let datasets = roles.zip(datasets).map(half).collect();
        Refinement { datasets, goal, guard, measured: BTreeMap::new() }
    }

    /// Whether a dataset has a say in what is best.
    pub fn asks(&self, dataset: usize) -> bool {
        self.datasets.get(dataset).is_some_and(|half| self.has_a_say(half.role))
    }

    fn has_a_say(&self, role: Role) -> bool {
        role == self.goal || Some(role) == self.guard
    }

    /// Takes in which queries are right at an α.
    pub fn measured(&mut self, dataset: usize, alpha: Alpha, hits: &Hits) {
        if let Some(half) = self.datasets.get(dataset) {
            let right = hits.count_among(&half.marked);
            self.counted(dataset, alpha, right);
        }
    }

    /// Takes in how many of the marked queries are right at an α.
    pub fn counted(&mut self, dataset: usize, alpha: Alpha, right: u32) {
        let count = self.datasets.len();
        let Some(half) = self.datasets.get(dataset) else { return };
        let marked = half.marked.iter().filter(|marked| **marked).count();
        let percent = 100.0 * f64::from(right) / marked.max(1) as f64;
        self.measured.entry(alpha).or_insert_with(|| vec![None; count])[dataset] = Some(percent);
    }

    /// The best α so far; none while α = 0 has not been measured.
    pub fn best(&self) -> Option<Alpha> {
        let base = self.measured.get(&Alpha::ZERO)?;
        let changes: Vec<(Alpha, Change)> = self
            .measured
            .iter()
            .filter_map(|(alpha, percents)| {
                let change = |role| Some(self.mean(role, percents)? - self.mean(role, base)?);
                let guard = match self.guard {
                    Some(role) => Some(change(role)?),
                    None => None,
                };
                Some((*alpha, Change { goal: change(self.goal)?, guard }))
            })
            .collect();
        let best = best_change(KEEP_POINTS, changes.iter().map(|(_, change)| *change))?;
        changes.get(best).map(|(alpha, _)| *alpha)
    }

    /// The α of the next round, ascending: between the best and its neighbours. Empty where four decimals do not tell
    /// more apart.
    pub fn next(&self) -> Vec<Alpha> {
        let Some(best) = self.best() else { return Vec::new() };
        let below = self.measured.range(..best).next_back().map(|(alpha, _)| *alpha);
        let above = self.measured.range(best..).nth(1).map(|(alpha, _)| *alpha);
        let between = |other: Alpha| {
            let middle = (other.ten_thousandths() + best.ten_thousandths()) / 2;
            Alpha::from_ten_thousandths(middle).filter(|middle| *middle != other && *middle != best)
        };
        [below, above].into_iter().flatten().filter_map(between).collect()
    }

    fn mean(&self, role: Role, percents: &[Option<f64>]) -> Option<f64> {
        let of_role = self.datasets.iter().zip(percents).filter(|(half, _)| half.role == role);
        let values: Option<Vec<f64>> = of_role.map(|(_, percent)| *percent).collect();
        let values = values.filter(|values| !values.is_empty())?;
        Some(values.iter().sum::<f64>() / values.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn alpha(value: f64) -> Alpha {
        Alpha::from_f64(value).unwrap()
    }

    /// Two datasets to gain on, one to keep, one that has no say; 200 queries each, so a point is one query.
    fn refinement() -> Refinement {
        let dataset = |(asset, role)| json!({"asset": asset, "role": role});
        let datasets: Vec<_> =
            [("a", "ood"), ("b", "id"), ("c", "ood"), ("d", "target")].map(dataset).to_vec();
        let evaluation: Evaluation = serde_json::from_value(json!({"datasets": datasets})).unwrap();
        Refinement::new(&evaluation, ["a", "b", "c", "d"].map(|digest| (digest, 200)))
    }

    fn with(points: &[(f64, [u32; 3])]) -> Refinement {
        let mut refinement = refinement();
        for (value, [a, b, c]) in points {
            refinement.counted(0, alpha(*value), *a);
            refinement.counted(1, alpha(*value), *b);
            refinement.counted(2, alpha(*value), *c);
        }
        refinement
    }

    #[test]
    fn the_steps_beside_the_best_are_halved() {
        let line = [(0.0, [50, 80, 50]), (0.5, [60, 79, 56]), (1.0, [90, 70, 90])];
        let mut refinement = with(&line);
        // α = 1 gains most and costs ten points.
        assert_eq!(refinement.best(), Some(alpha(0.5)));
        assert_eq!(refinement.next(), [alpha(0.25), alpha(0.75)]);
        for (value, counts) in [(0.25, [55, 80, 52]), (0.75, [70, 79, 60])] {
            (0..3).for_each(|at| refinement.counted(at, alpha(value), counts[at]));
        }
        assert_eq!(refinement.next(), [alpha(0.625), alpha(0.875)]);
    }

    #[test]
    fn an_end_of_the_line_has_one_side_and_four_decimals_are_the_end() {
        let gains = with(&[(0.0, [50, 80, 50]), (0.5, [52, 80, 52]), (1.0, [60, 80, 60])]);
        assert_eq!(gains.next(), [alpha(0.75)]);
        let loses = with(&[(0.0, [50, 80, 50]), (0.5, [40, 80, 40])]);
        assert_eq!(loses.next(), [alpha(0.25)]);
        let fine = with(&[(0.0, [50, 80, 50]), (0.0001, [60, 80, 60]), (0.0002, [50, 80, 50])]);
        assert!(fine.next().is_empty());
    }

    #[test]
    fn an_alpha_that_some_dataset_lacks_is_not_judged() {
        let mut refinement = with(&[(0.0, [50, 80, 50]), (1.0, [51, 80, 51])]);
        refinement.counted(0, alpha(0.5), 100);
        assert_eq!(refinement.best(), Some(Alpha::ONE));
        assert_eq!(refinement.next(), [alpha(0.75)], "though what is between is known by halves");
        assert!(refinement.asks(0) && refinement.asks(1) && !refinement.asks(3) && !refinement.asks(4));
        assert!(self::refinement().next().is_empty());
    }

    #[test]
    fn half_of_the_queries_decide() {
        let mut refinement = refinement();
        let half = selection_half("a", 200);
        let only = |chosen: bool| Hits::from_flags(&half.iter().map(|at| *at == chosen).collect::<Vec<_>>());
        refinement.measured(0, Alpha::ZERO, &only(true));
        refinement.measured(0, Alpha::ONE, &only(false));
        assert_eq!(refinement.measured[&Alpha::ZERO][0], Some(100.0));
        assert_eq!(refinement.measured[&Alpha::ONE][0], Some(0.0));
    }
}
