//! Who yields to a run of higher priority: the lowest priority first, and of those the newest, which loses least; no more
//! than are needed, and nobody where it would not help.

use super::fit::{self, Place};
use super::plan::{Cluster, Running, Waiting};
use std::cmp::Reverse;
use std::collections::HashSet;
use uuid::Uuid;

/// The runs that yield to a blocked one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Victims {
    /// Runs that were asked already, whose devices the blocked run will get.
    pub asked: usize,
    /// Runs to be asked.
    pub fresh: Vec<Uuid>,
}

impl Victims {
    /// How many yield.
    pub fn all(&self) -> usize {
        self.asked + self.fresh.len()
    }
}

/// Chooses. `taken` are places kept for others.
pub fn victims(cluster: &Cluster, waiting: &Waiting, taken: &HashSet<Place>) -> Victims {
    let fits = |yielding: &HashSet<Uuid>| {
        let mut usable: HashSet<Place> = fit::free(cluster).collect();
        for (at, host) in cluster.hosts.iter().enumerate().filter(|(_, host)| host.accepting) {
            for (device, it) in host.devices.iter().enumerate() {
                if it.held_by.is_some_and(|run| yielding.contains(&run)) {
                    usable.insert((at, device));
                }
            }
        }
        usable.retain(|place| !taken.contains(place));
        fit::fit(cluster, waiting, &usable).is_some()
    };
    let asked: HashSet<Uuid> =
        cluster.running.iter().filter(|running| running.yielding).map(|running| running.run).collect();
    if !asked.is_empty() && fits(&asked) {
        return Victims { asked: asked.len(), fresh: Vec::new() };
    }
    let mut lower: Vec<&Running> = cluster
        .running
        .iter()
        .filter(|running| running.priority < waiting.priority && !running.yielding)
        .collect();
    lower.sort_by(|a, b| {
        let lowest = a.priority.cmp(&b.priority);
        lowest.then_with(|| b.started.total_cmp(&a.started)).then_with(|| Reverse(a.run).cmp(&Reverse(b.run)))
    });
    let first = |count: usize| -> HashSet<Uuid> {
        asked.iter().copied().chain(lower[..count].iter().map(|it| it.run)).collect()
    };
    if lower.is_empty() || !fits(&first(lower.len())) {
        return Victims::default();
    }
    // The fewest from the front that make room …
    let (mut too_few, mut enough) = (0, lower.len());
    while enough - too_few > 1 {
        let middle = usize::midpoint(too_few, enough);
        if fits(&first(middle)) { enough = middle } else { too_few = middle }
    }
    // … and of those, from the one that would lose most, whoever is not needed goes on.
    let mut yielding = first(enough);
    for running in lower[..enough].iter().rev() {
        yielding.remove(&running.run);
        if !fits(&yielding) {
            yielding.insert(running.run);
        }
    }
    let fresh = lower.iter().map(|it| it.run).filter(|run| yielding.contains(run)).collect();
    Victims { asked: 0, fresh }
}
