//! How many pilots there should be: from what waits, what is free and what is on its way, to which pilots to submit and
//! which to take back. No clock, no I/O: the same situation has the same decision, in whichever launcher.

use std::collections::{BTreeMap, BTreeSet};

/// Most pilots submitted in one pass; the next pass goes on.
const SUBMIT_MAX: usize = 32;

/// What a waiting run needs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Need {
    /// The run.
    pub run: String,
    /// Devices on each host.
    pub devices: u32,
    /// Hosts.
    pub nodes: u32,
    /// Names of assets.
    pub assets: Vec<String>,
}

/// Devices of a worker that have nothing to do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Free {
    /// How many.
    pub devices: u32,
    /// What the worker holds.
    pub assets: BTreeSet<String>,
}

/// A job in the batch system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pilot {
    /// The batch system's id: later jobs have higher ones.
    pub job: u64,
    /// Which of the pilots it is. There is at most one at work in each slot.
    pub slot: u32,
    /// What it is doing.
    pub doing: Doing,
}

/// What a pilot is doing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Doing {
    /// The server knows it as a ready worker.
    Working,
    /// It has begun, and the server has not heard of it yet.
    Starting,
    /// It waits in the batch system's queue.
    Waiting,
    /// It takes no more work: ending, silent or dead, though the batch system still has it.
    Leaving,
}

/// What a pilot would bring.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Devices.
    pub devices: u32,
    /// What it would hold; none as long as nobody knows.
    pub assets: Option<BTreeSet<String>>,
}

/// What one pass knows.
#[derive(Clone, Debug)]
pub struct Situation {
    /// The waiting runs in the order of dispatch.
    pub waiting: Vec<Need>,
    /// What ready workers have free, pilots and others.
    pub free: Vec<Free>,
    /// The pilots in the batch system.
    pub pilots: Vec<Pilot>,
    /// What a new pilot would bring.
    pub offer: Offer,
    /// Pilots at most.
    pub max_pilots: u32,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Decision {
    /// Slots to submit a pilot for.
    pub submit: Vec<u32>,
    /// Waiting jobs to take back.
    pub cancel: Vec<u64>,
    /// Runs that a worker with a free device could have been given.
    pub fits: Vec<String>,
    /// Runs that no pilot can ever satisfy, and why.
    pub never: Vec<(String, String)>,
}

/// Decides.
pub fn decide(situation: &Situation) -> Decision {
    let mut decision = Decision::default();
    let mut pilots = situation.pilots.clone();
    decision.cancel = doubles(&mut pilots);

    // What is on its way, the surest first, so that what is too much is what waits longest still.
    pilots.sort_by_key(|pilot| (pilot.doing, pilot.job));
    let coming: Vec<&Pilot> =
        pilots.iter().filter(|pilot| matches!(pilot.doing, Doing::Starting | Doing::Waiting)).collect();
    let mut free = situation.free.clone();
    let mut bins: Vec<u32> = Vec::new();
    for need in &situation.waiting {
        if let Some(why) = never(need, situation) {
            decision.never.push((need.run.clone(), why));
            continue;
        }
        let mut on_free = 0;
        for _ in 0..need.nodes {
            let fits = |slot: &&mut Free| {
                slot.devices >= need.devices && need.assets.iter().all(|asset| slot.assets.contains(asset))
            };
            if let Some(slot) = free.iter_mut().find(fits) {
                slot.devices -= need.devices;
                on_free += 1;
            } else if let Some(room) = bins.iter_mut().find(|room| **room >= need.devices) {
                *room -= need.devices;
            } else {
                bins.push(situation.offer.devices - need.devices);
            }
        }
        if on_free == need.nodes {
            decision.fits.push(need.run.clone());
        }
    }
    // Before anybody knows what a pilot holds, one goes ahead to find out.
    let wanted = if situation.offer.assets.is_none() { bins.len().min(1) } else { bins.len() };

    let room = (situation.max_pilots as usize).saturating_sub(pilots.len()).min(SUBMIT_MAX);
    let taken: BTreeSet<u32> = situation.pilots.iter().map(|pilot| pilot.slot).collect();
    let slots = (0..).filter(|slot| !taken.contains(slot));
    decision.submit = slots.take(wanted.saturating_sub(coming.len()).min(room)).collect();
    let surplus = coming.iter().skip(wanted).filter(|pilot| pilot.doing == Doing::Waiting);
    decision.cancel.extend(surplus.map(|pilot| pilot.job));
    decision
}

/// Takes the waiting jobs out of `pilots` whose slot has another: two launchers that looked at the same moment have
/// both submitted. The one that works stays, else the first.
fn doubles(pilots: &mut Vec<Pilot>) -> Vec<u64> {
    let mut first: BTreeMap<u32, (bool, u64)> = BTreeMap::new();
    for pilot in pilots.iter() {
        let rank = (pilot.doing == Doing::Waiting, pilot.job);
        first.entry(pilot.slot).and_modify(|best| *best = rank.min(*best)).or_insert(rank);
    }
    let double =
        |pilot: &Pilot| pilot.doing == Doing::Waiting && first.get(&pilot.slot) != Some(&(true, pilot.job));
    let jobs = pilots.iter().filter(|pilot| double(pilot)).map(|pilot| pilot.job).collect();
    pilots.retain(|pilot| !double(pilot));
    jobs
}

/// Why no pilot can ever satisfy a run.
fn never(need: &Need, situation: &Situation) -> Option<String> {
    let Offer { devices, assets } = &situation.offer;
    if need.devices > *devices {
        return Some(format!("it needs {} devices on one host, and a pilot has {devices}", need.devices));
    }
    if need.nodes > situation.max_pilots {
        return Some(format!("it needs {} hosts, and --max-pilots is {}", need.nodes, situation.max_pilots));
    }
    let held = assets.as_ref()?;
    let lacking: Vec<&str> =
        need.assets.iter().filter(|asset| !held.contains(*asset)).map(String::as_str).collect();
    (!lacking.is_empty())
        .then(|| format!("no pilot holds {}: put what is missing below a --data folder", lacking.join(", ")))
}

#[cfg(test)]
mod tests;
