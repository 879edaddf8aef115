//! Who yields to a run of higher priority: the lowest priority first, and of those the newest, which loses least; no more
//! than are needed, and nobody where it would not help.

use super::fit::{self, Place};
use super::plan::{Cluster, Device, Host, Running, Waiting};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
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
    let asked = cluster.running.iter().filter(|running| running.yielding);
    let mut lower: Vec<&Running> = cluster
        .running
        .iter()
        .filter(|running| running.priority < waiting.priority && !running.yielding)
        .collect();
    lower.sort_by(|a, b| {
        let lowest = a.priority.cmp(&b.priority);
        lowest.then_with(|| b.started.total_cmp(&a.started)).then_with(|| Reverse(a.run).cmp(&Reverse(b.run)))
    });
    let at_once = asked.clone().map(|running| (running.run, 0));
    let turns: HashMap<Uuid, usize> =
        at_once.chain(lower.iter().zip(1..).map(|(running, turn)| (running.run, turn))).collect();
    let rooms = rooms(cluster, waiting, taken, &turns);
    // The fewest from the front that make room …
    let mut enough: Vec<usize> =
        rooms.iter().filter_map(|room| room.get(waiting.devices - 1).copied()).collect();
    enough.sort_unstable();
    match enough.get(waiting.nodes - 1) {
        None => Victims::default(),
        Some(0) => Victims { asked: asked.count(), fresh: Vec::new() },
        Some(enough) => {
            let needed = needed(&rooms, waiting, *enough);
            Victims { asked: 0, fresh: needed.into_iter().map(|turn| lower[turn - 1].run).collect() }
        }
    }
}

/// For each worker that could take a member: the turns at which its devices are free, in order. 0 is now, or as soon as
/// those have yielded who were asked; n, once n of the lower ones have.
fn rooms(
    cluster: &Cluster,
    waiting: &Waiting,
    taken: &HashSet<Place>,
    turns: &HashMap<Uuid, usize>,
) -> Vec<Vec<usize>> {
    let hosts = cluster.hosts.iter().enumerate().filter(|(_, host)| fit::eligible(host, waiting));
    let room = |(at, host): (usize, &Host)| {
        let devices = host.devices.iter().enumerate();
        let suits =
            devices.filter(|(device, it)| it.memory >= waiting.memory && !taken.contains(&(at, *device)));
        let turn = |(_, device): (usize, &Device)| match device.held_by {
            None => Some(0),
            Some(run) => turns.get(&run).copied(),
        };
        let mut room: Vec<usize> = suits.filter_map(turn).collect();
        room.sort_unstable();
        room
    };
    hosts.map(room).collect()
}

/// … and of those, from the one that would lose most, whoever is not needed goes on.
fn needed(rooms: &[Vec<usize>], waiting: &Waiting, enough: usize) -> Vec<usize> {
    let mut free: Vec<usize> =
        rooms.iter().map(|room| room.partition_point(|turn| *turn <= enough)).collect();
    let mut fitting = free.iter().filter(|free| **free >= waiting.devices).count();
    let mut held: BTreeMap<usize, BTreeMap<usize, usize>> = BTreeMap::new();
    for (at, room) in rooms.iter().enumerate() {
        for turn in room.iter().filter(|turn| (1..=enough).contains(*turn)) {
            *held.entry(*turn).or_default().entry(at).or_default() += 1;
        }
    }
    let mut needed = Vec::new();
    for (turn, devices) in held.into_iter().rev() {
        let lost = devices
            .iter()
            .filter(|(at, count)| free[**at] >= waiting.devices && free[**at] - **count < waiting.devices)
            .count();
        if fitting - lost < waiting.nodes {
            needed.push(turn);
            continue;
        }
        fitting -= lost;
        for (at, count) in devices {
            free[at] -= count;
        }
    }
    needed.reverse();
    needed
}
