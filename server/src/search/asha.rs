//! Which trials go on: the two rules of asynchronous successive halving (Li et al. 2018, arXiv 1810.05934), as pure
//! functions of what has reached a rung, in the order in which it came. A trial is never judged against one that comes
//! later, and no decision is taken back. NaN is no number: it takes the last places and never goes on.

use causeway_protocol::Direction;
use std::{cmp::Ordering, collections::BTreeSet};

/// A trial at a rung.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Reached {
    /// Its number.
    pub trial: i32,
    /// Its objective there.
    pub value: f64,
}

/// What was found, and from what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Place among those that have reached the rung, from 1; of equal values the one that came first is better.
    pub place: usize,
    /// How many have.
    pub among: usize,
    /// How many of them may go on.
    pub quota: usize,
    /// Whether this one does.
    pub goes_on: bool,
}

/// Better values first, NaN last.
pub fn compare(left: f64, right: f64, direction: Direction) -> Ordering {
    match (left.is_nan(), right.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => {
            let ascending = left.partial_cmp(&right).unwrap_or(Ordering::Equal);
            match direction {
                Direction::Minimize => ascending,
                Direction::Maximize => ascending.reverse(),
            }
        }
    }
}

/// Indices from the best to the worst; the sort is stable, so a tie goes to the one that came first.
fn order(rung: &[Reached], direction: Direction) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rung.len()).collect();
    order.sort_by(|a, b| compare(rung[*a].value, rung[*b].value, direction));
    order
}

/// The stopping rule, for the one that came last: it goes on if it is in the best 1/eta of what has reached the rung so
/// far, itself included. One always may, so the first to come goes on.
pub fn stopping(rung: &[Reached], eta: usize, direction: Direction) -> Verdict {
    let among = rung.len();
    let quota = (among / eta.max(1)).max(1);
    let last = among.saturating_sub(1);
    let place = order(rung, direction).iter().position(|at| *at == last).unwrap_or(last) + 1;
    let number = rung.last().is_some_and(|reached| !reached.value.is_nan());
    Verdict { place, among, quota, goes_on: number && place <= quota }
}

/// The promotion rule: the best one that is in the best 1/eta of what has reached the rung and has not gone on yet. While
/// more may come the quota is rounded down; when a rung is closed one at least goes on, or a small search would never
/// reach its last rung.
pub fn promotion(
    rung: &[Reached],
    gone_on: &BTreeSet<i32>,
    eta: usize,
    closed: bool,
    direction: Direction,
) -> Option<(Reached, Verdict)> {
    let among = rung.len();
    let quota = (among / eta.max(1)).max(usize::from(closed));
    let best = order(rung, direction).into_iter().take(quota).enumerate();
    let mut free = best.filter(|(_, at)| !rung[*at].value.is_nan() && !gone_on.contains(&rung[*at].trial));
    free.next().map(|(place, at)| (rung[at], Verdict { place: place + 1, among, quota, goes_on: true }))
}

/// What all rungs hold.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Rungs {
    /// What has reached each rung, in order.
    pub reached: Vec<Vec<Reached>>,
    /// What has been promoted from each rung.
    pub gone_on: Vec<BTreeSet<i32>>,
}

/// A decision as it was recorded, as far as the rules are concerned.
#[derive(Clone, PartialEq, Debug)]
pub struct Recorded {
    /// `reach`, `go_on`, `stop`, `finish`, `promote`; others change no rung.
    pub action: String,
    /// The trial.
    pub trial: Option<i32>,
    /// The rung: reached, or for `promote` the one it goes on to.
    pub rung: Option<i32>,
    /// The value there; none stands for NaN.
    pub value: Option<f64>,
    /// The place that was found.
    pub place: Option<i32>,
    /// Among how many.
    pub among: Option<i32>,
    /// Whether the rung was closed.
    pub closed: bool,
}

impl Rungs {
    /// Empty rungs.
    pub fn new(stages: usize) -> Rungs {
        Rungs { reached: vec![Vec::new(); stages], gone_on: vec![BTreeSet::new(); stages] }
    }

    /// Notes what a recorded decision changes.
    pub fn note(&mut self, decision: &Recorded) {
        let (Some(trial), Some(rung)) = (decision.trial, decision.rung) else { return };
        let Ok(rung) = usize::try_from(rung) else { return };
        match decision.action.as_str() {
            "reach" | "go_on" | "stop" | "finish" => {
                let value = decision.value.unwrap_or(f64::NAN);
                if let Some(reached) = self.reached.get_mut(rung) {
                    reached.push(Reached { trial, value });
                }
            }
            "promote" => {
                if let Some(gone_on) = rung.checked_sub(1).and_then(|below| self.gone_on.get_mut(below)) {
                    gone_on.insert(trial);
                }
            }
            _ => {}
        }
    }

    /// Place of the one that came last to a rung.
    pub fn place(&self, rung: usize, direction: Direction) -> Option<Verdict> {
        let reached = self.reached.get(rung).filter(|reached| !reached.is_empty())?;
        Some(stopping(reached, 1, direction))
    }
}

/// Goes through a history and decides again, from the recorded values alone.
///
/// # Errors
/// The first decision that comes out otherwise.
pub fn replay(
    history: &[Recorded],
    stages: usize,
    eta: usize,
    direction: Direction,
) -> Result<Rungs, String> {
    let mut rungs = Rungs::new(stages);
    for (n, decision) in history.iter().enumerate() {
        let before = rungs.clone();
        rungs.note(decision);
        let rung = usize::try_from(decision.rung.unwrap_or(0)).unwrap_or(0);
        let again = match decision.action.as_str() {
            "go_on" | "stop" => Some(stopping(&rungs.reached[rung], eta, direction)),
            "reach" | "finish" => rungs.place(rung, direction),
            "promote" => {
                let below = rung.saturating_sub(1);
                let found = promotion(
                    &before.reached[below],
                    &before.gone_on[below],
                    eta,
                    decision.closed,
                    direction,
                );
                found.filter(|(reached, _)| Some(reached.trial) == decision.trial).map(|(_, verdict)| verdict)
            }
            _ => continue,
        };
        let same = again.is_some_and(|verdict| {
            let counted = |count: usize| i32::try_from(count).ok();
            let moved = match decision.action.as_str() {
                "go_on" => verdict.goes_on,
                "stop" => !verdict.goes_on,
                _ => true,
            };
            moved && counted(verdict.place) == decision.place && counted(verdict.among) == decision.among
        });
        if !same {
            return Err(format!("decision {n} was {decision:?}, and is {again:?} now"));
        }
    }
    Ok(rungs)
}

#[cfg(test)]
#[path = "asha_tests.rs"]
mod tests;
