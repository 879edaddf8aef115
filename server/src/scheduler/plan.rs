//! Which waiting run goes where: a function of what is known of the cluster, without clock, database or chance, so that
//! every rule can be put into a table and tested.
//!
//! Waiting runs are looked at in one total order ([`super::order`]). Each takes devices if it fits now; the first few
//! that do not fit keep places for themselves, and what comes after may only take what does not delay them (EASY
//! backfill: Lifka 1995, "The ANL/IBM SP Scheduling System"). A blocked run of higher priority asks others to yield.

use super::fit::{self, Member};
use super::order;
use super::preempt;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use uuid::Uuid;

/// Blocked runs that keep places for themselves; those behind them wait without.
const HEADS: usize = 4;

/// A device of a host.
#[derive(Clone, PartialEq, Debug)]
pub struct Device {
    /// Name, for example `cuda:1`.
    pub name: String,
    /// Memory, bytes; 0 where the worker does not know it.
    pub memory: i64,
    /// The run that works on it.
    pub held_by: Option<Uuid>,
}

/// A worker that is heard of.
#[derive(Clone, PartialEq, Debug)]
pub struct Host {
    /// Its id.
    pub worker: Uuid,
    /// What runs may ask for by name.
    pub labels: BTreeSet<String>,
    /// The assets it holds.
    pub assets: HashSet<String>,
    /// Its devices.
    pub devices: Vec<Device>,
    /// Whether it takes new work: heard of lately, and not draining.
    pub accepting: bool,
}

/// A waiting run that is ready.
#[derive(Clone, PartialEq, Debug)]
pub struct Waiting {
    /// The run.
    pub run: Uuid,
    /// Its project.
    pub project: Uuid,
    /// Who submitted it.
    pub user: Uuid,
    /// Higher goes first.
    pub priority: i32,
    /// Place in its project's line.
    pub position: i64,
    /// Workers it runs on at once, all or none.
    pub nodes: usize,
    /// Devices on each of them.
    pub devices: usize,
    /// Memory that each device must have, bytes.
    pub memory: i64,
    /// Labels that the workers must have.
    pub labels: Vec<String>,
    /// Assets that the workers must hold.
    pub assets: Vec<String>,
    /// Seconds after which it is stopped, if it says so.
    pub limit: Option<f64>,
    /// Workers on which it has left something that it can use again.
    pub warm: Vec<Uuid>,
}

impl Waiting {
    /// Devices in all.
    pub fn size(&self) -> usize {
        self.nodes * self.devices
    }

    /// What it asks of the cluster.
    fn wants(&self) -> (usize, usize, i64, &[String], &[String]) {
        (self.nodes, self.devices, self.memory, &self.labels, &self.assets)
    }
}

/// A run at work.
#[derive(Clone, PartialEq, Debug)]
pub struct Running {
    /// The run.
    pub run: Uuid,
    /// Its project.
    pub project: Uuid,
    /// Who submitted it.
    pub user: Uuid,
    /// Its priority.
    pub priority: i32,
    /// When its attempt began, seconds.
    pub started: f64,
    /// When it ends at the latest, seconds; none if it did not say.
    pub ends: Option<f64>,
    /// Whether it has been asked to yield.
    pub yielding: bool,
}

/// What a project may take, and has taken.
#[derive(Clone, PartialEq, Debug)]
pub struct Project {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Its share of the cluster, in proportion to the others'.
    pub weight: f64,
    /// Device-seconds it has used, decayed.
    pub usage: f64,
    /// Most devices it may hold at once.
    pub devices_max: Option<usize>,
    /// Most devices that one of its users may hold at once.
    pub user_devices_max: Option<usize>,
}

/// Everything the decision rests on.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Cluster {
    /// Now, seconds.
    pub now: f64,
    /// The workers, in the order of their ids.
    pub hosts: Vec<Host>,
    /// What they do.
    pub running: Vec<Running>,
    /// The projects with waiting or running runs.
    pub projects: Vec<Project>,
}

/// A run gets its devices.
#[derive(Clone, PartialEq, Debug)]
pub struct Start {
    /// The run.
    pub run: Uuid,
    /// Its workers by rank.
    pub members: Vec<Member>,
}

/// A run is asked to save its state and give its devices back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Yield {
    /// The run that yields.
    pub run: Uuid,
    /// The run it yields to.
    pub to: Uuid,
}

/// Why a run goes on waiting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why {
    /// It begins now.
    Starting,
    /// It is the next to begin; so many places are kept for it.
    Next,
    /// So many runs go before it.
    Behind(usize),
    /// Runs have been asked to yield to it.
    Preempting(usize),
    /// Its project, or its user, holds all the devices it may.
    Quota(String),
    /// No worker that is there could ever take it, and what it lacks.
    Impossible(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Starting => write!(f, "begins now"),
            Why::Next => write!(f, "next, when a device frees"),
            Why::Behind(count) => write!(f, "{count} ahead of it"),
            Why::Preempting(1) => write!(f, "a run of lower priority was asked to yield to it"),
            Why::Preempting(count) => write!(f, "{count} runs of lower priority were asked to yield to it"),
            Why::Quota(rule) => write!(f, "{rule}"),
            Why::Impossible(lack) => write!(f, "{lack}"),
        }
    }
}

/// What is to be done now.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// Runs that begin.
    pub starts: Vec<Start>,
    /// Runs that are asked to yield.
    pub yields: Vec<Yield>,
    /// For each waiting run, in the order in which they were looked at, why it waits.
    pub whys: Vec<(Uuid, Why)>,
}

/// Devices that are kept for a blocked run until `until`, when it can begin at the latest; never known if infinite.
struct Kept {
    devices: HashSet<(usize, usize)>,
    until: f64,
}

/// Decides. `queue` in any order; the cluster is left as it will be.
pub fn plan(cluster: &mut Cluster, queue: &[Waiting]) -> Plan {
    let mut plan = Plan::default();
    let mut held = Holdings::of(cluster);
    let mut kept: Vec<Kept> = Vec::new();
    let mut ahead = 0;
    let mut lacks: HashMap<_, Option<String>> = HashMap::new(); // many runs ask for the same
    let mut order = order::Order::new(&cluster.projects, queue, &held.projects);
    while let Some(waiting) = order.next() {
        let why = match held.refusal(&cluster.projects, waiting) {
            Some(rule) => Why::Quota(rule),
            None => {
                let usable = usable(cluster, &kept, waiting);
                match fit::fit(cluster, waiting, &usable) {
                    Some(members) => {
                        take(cluster, waiting, &members);
                        held.add(waiting.project, waiting.user, waiting.size());
                        order.started(waiting);
                        plan.starts.push(Start { run: waiting.run, members });
                        Why::Starting
                    }
                    None => {
                        let lack =
                            lacks.entry(waiting.wants()).or_insert_with(|| fit::lack(cluster, waiting));
                        match lack {
                            Some(lack) => Why::Impossible(lack.clone()),
                            None => {
                                ahead += 1;
                                block(cluster, &mut plan, &mut kept, waiting, ahead)
                            }
                        }
                    }
                }
            }
        };
        plan.whys.push((waiting.run, why));
    }
    plan
}

/// A run that could run but not now: it keeps a place, and has others yield if it may.
fn block(
    cluster: &mut Cluster,
    plan: &mut Plan,
    kept: &mut Vec<Kept>,
    waiting: &Waiting,
    ahead: usize,
) -> Why {
    if kept.len() >= HEADS {
        return Why::Behind(ahead - 1);
    }
    let taken: HashSet<(usize, usize)> = kept.iter().flat_map(|kept| kept.devices.iter().copied()).collect();
    let victims = preempt::victims(cluster, waiting, &taken);
    for victim in &victims.fresh {
        plan.yields.push(Yield { run: *victim, to: waiting.run });
        for running in cluster.running.iter_mut().filter(|running| running.run == *victim) {
            running.yielding = true;
        }
    }
    kept.extend(keep(cluster, waiting, &taken));
    match victims.all() {
        0 if ahead == 1 => Why::Next,
        0 => Why::Behind(ahead - 1),
        count => Why::Preempting(count),
    }
}

/// Where a run may look: free devices that are not kept for another, or that it gives back in time.
fn usable(cluster: &Cluster, kept: &[Kept], waiting: &Waiting) -> HashSet<(usize, usize)> {
    let in_time =
        |until: f64| waiting.limit.is_some_and(|limit| until.is_finite() && cluster.now + limit <= until);
    fit::free(cluster)
        .filter(|place| kept.iter().all(|kept| !kept.devices.contains(place) || in_time(kept.until)))
        .collect()
}

/// The places that a blocked run waits for: on the workers where it can begin first, by what the runs there say of
/// their ends; where nobody says, where most of its devices are free already.
fn keep(cluster: &Cluster, waiting: &Waiting, taken: &HashSet<(usize, usize)>) -> Option<Kept> {
    let ends: HashMap<Uuid, f64> = cluster
        .running
        .iter()
        .map(|running| {
            (running.run, if running.yielding { cluster.now } else { running.ends.unwrap_or(f64::INFINITY) })
        })
        .collect();
    let mut hosts: Vec<Candidate> = Vec::new();
    for (at, host) in cluster.hosts.iter().enumerate() {
        if !fit::eligible(host, waiting) {
            continue;
        }
        let suits =
            |(device, it): &(usize, &Device)| it.memory >= waiting.memory && !taken.contains(&(at, *device));
        let mut places: Vec<(f64, usize)> = host
            .devices
            .iter()
            .enumerate()
            .filter(suits)
            .map(|(device, it)| {
                let ends = |run| ends.get(&run).copied().unwrap_or(f64::INFINITY);
                (it.held_by.map_or(cluster.now, ends), device)
            })
            .collect();
        if places.len() < waiting.devices {
            continue;
        }
        places.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        places.truncate(waiting.devices);
        hosts.push(Candidate {
            begins: places.last().map_or(cluster.now, |place| place.0),
            busy: places.iter().filter(|place| place.0 > cluster.now).count(),
            places: places.into_iter().map(|(_, device)| (at, device)).collect(),
        });
    }
    // Stable: of equal ones the first worker.
    hosts.sort_by(|a, b| a.begins.total_cmp(&b.begins).then(a.busy.cmp(&b.busy)));
    if hosts.len() < waiting.nodes {
        return None; // its places are kept for others; it waits behind them
    }
    hosts.truncate(waiting.nodes);
    let until = hosts.iter().map(|host| host.begins).fold(cluster.now, f64::max);
    Some(Kept { devices: hosts.into_iter().flat_map(|host| host.places).collect(), until })
}

/// A worker that a blocked run could wait for: when all the places are free, and how many of them are not free yet.
struct Candidate {
    begins: f64,
    busy: usize,
    places: Vec<(usize, usize)>,
}

fn take(cluster: &mut Cluster, waiting: &Waiting, members: &[Member]) {
    for member in members {
        for host in cluster.hosts.iter_mut().filter(|host| host.worker == member.worker) {
            for device in host.devices.iter_mut().filter(|device| member.devices.contains(&device.name)) {
                device.held_by = Some(waiting.run);
            }
        }
    }
    cluster.running.push(Running {
        run: waiting.run,
        project: waiting.project,
        user: waiting.user,
        priority: waiting.priority,
        started: cluster.now,
        ends: waiting.limit.map(|limit| cluster.now + limit),
        yielding: false,
    });
}

/// How many devices projects and users hold.
struct Holdings {
    projects: HashMap<Uuid, usize>,
    users: HashMap<(Uuid, Uuid), usize>,
}

impl Holdings {
    fn of(cluster: &Cluster) -> Holdings {
        let mut held = Holdings { projects: HashMap::new(), users: HashMap::new() };
        let whose: HashMap<Uuid, (Uuid, Uuid)> =
            cluster.running.iter().map(|running| (running.run, (running.project, running.user))).collect();
        for run in cluster.hosts.iter().flat_map(|host| &host.devices).filter_map(|device| device.held_by) {
            if let Some((project, user)) = whose.get(&run) {
                held.add(*project, *user, 1);
            }
        }
        held
    }

    fn add(&mut self, project: Uuid, user: Uuid, devices: usize) {
        *self.projects.entry(project).or_default() += devices;
        *self.users.entry((project, user)).or_default() += devices;
    }

    /// The quota that a run would break.
    fn refusal(&self, projects: &[Project], waiting: &Waiting) -> Option<String> {
        let project = projects.iter().find(|project| project.id == waiting.project)?;
        let over = |held: Option<&usize>, most: Option<usize>| {
            most.is_some_and(|most| held.copied().unwrap_or(0) + waiting.size() > most)
        };
        let name = &project.name;
        if over(self.projects.get(&project.id), project.devices_max) {
            let most = project.devices_max.unwrap_or_default();
            return Some(format!("its project `{name}` may hold {most} devices at once"));
        }
        if over(self.users.get(&(project.id, waiting.user)), project.user_devices_max) {
            let most = project.user_devices_max.unwrap_or_default();
            return Some(format!("who submitted it may hold {most} devices at once in project `{name}`"));
        }
        None
    }
}

#[cfg(test)]
mod tests;
