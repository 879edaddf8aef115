//! Where a run fits: on workers that have what it asks for, all of them at once or none, on the worker that it leaves
//! least of, and there on the devices that are no larger than need be.

use super::plan::{Cluster, Host, Waiting};
use causeway_protocol::COMMANDS_LABEL;
use std::collections::HashSet;
use uuid::Uuid;

/// A device: number of the host, number of the device on it.
pub type Place = (usize, usize);

/// One worker of a run.
#[derive(Clone, PartialEq, Debug)]
pub struct Member {
    /// The worker.
    pub worker: Uuid,
    /// Its devices, by name.
    pub devices: Vec<String>,
}

/// Whether a worker could take a member of a run if all its devices were free.
pub fn eligible(host: &Host, waiting: &Waiting) -> bool {
    host.accepting
        && waiting.labels.iter().all(|label| host.labels.contains(label))
        && waiting.assets.iter().all(|asset| host.assets.contains(asset))
}

/// The free devices of workers that take new work.
pub fn free(cluster: &Cluster) -> impl Iterator<Item = Place> {
    let accepting = cluster.hosts.iter().enumerate().filter(|(_, host)| host.accepting);
    accepting.flat_map(|(at, host)| {
        let devices = host.devices.iter().enumerate();
        devices.filter(|(_, device)| device.held_by.is_none()).map(move |(device, _)| (at, device))
    })
}

/// Workers and devices for a run among `usable` ones: warm workers first, then those on which least is left over.
pub fn fit(cluster: &Cluster, waiting: &Waiting, usable: &HashSet<Place>) -> Option<Vec<Member>> {
    if usable.len() < waiting.size() {
        return None;
    }
    let mut hosts: Vec<(bool, usize, usize, Vec<usize>)> = Vec::new();
    for (at, host) in cluster.hosts.iter().enumerate() {
        let mut devices: Vec<usize> = (0..host.devices.len())
            .filter(|device| {
                usable.contains(&(at, *device)) && host.devices[*device].memory >= waiting.memory
            })
            .collect();
        if devices.len() < waiting.devices || !eligible(host, waiting) {
            continue;
        }
        let left = devices.len() - waiting.devices;
        devices.sort_by_key(|device| (host.devices[*device].memory, *device));
        devices.truncate(waiting.devices);
        devices.sort_unstable();
        hosts.push((!waiting.warm.contains(&host.worker), left, at, devices));
    }
    if hosts.len() < waiting.nodes {
        return None;
    }
    hosts.sort_by_key(|(cold, left, at, _)| (*cold, *left, *at));
    hosts.truncate(waiting.nodes);
    hosts.sort_by_key(|(.., at, _)| *at); // ranks go by the order of the workers
    let member = |(_, _, at, devices): (bool, usize, usize, Vec<usize>)| Member {
        worker: cluster.hosts[at].worker,
        devices: devices.into_iter().map(|device| cluster.hosts[at].devices[device].name.clone()).collect(),
    };
    Some(hosts.into_iter().map(member).collect())
}

/// What no worker has that a run asks for, even were all devices free; none if it can run.
pub fn lack(cluster: &Cluster, waiting: &Waiting) -> Option<String> {
    let accepting: Vec<&Host> = cluster.hosts.iter().filter(|host| host.accepting).collect();
    if accepting.is_empty() {
        return Some("no worker is ready: start one with `causeway-trainer work`".to_owned());
    }
    let labelled: Vec<&Host> = accepting
        .into_iter()
        .filter(|host| waiting.labels.iter().all(|label| host.labels.contains(label)))
        .collect();
    if labelled.is_empty() {
        return Some(match waiting.labels.iter().any(|label| label == COMMANDS_LABEL) {
            true => format!(
                "no ready worker has the labels {}; a worker started with --allow-commands has `{COMMANDS_LABEL}`",
                waiting.labels.join(", ")
            ),
            false => format!("no ready worker has the labels {}", waiting.labels.join(", ")),
        });
    }
    let missing = |host: &Host| -> Vec<&str> {
        waiting.assets.iter().map(String::as_str).filter(|asset| !host.assets.contains(*asset)).collect()
    };
    let fewest = labelled.iter().map(|host| missing(host)).min_by_key(Vec::len).unwrap_or_default();
    if !fewest.is_empty() {
        return Some(format!("no ready worker holds {}", fewest.join(", ")));
    }
    let holding: Vec<&Host> = labelled.into_iter().filter(|host| missing(host).is_empty()).collect();
    let large = |host: &Host| host.devices.iter().filter(|device| device.memory >= waiting.memory).count();
    let largest = holding.iter().map(|host| large(host)).max().unwrap_or(0);
    if largest < waiting.devices {
        let memory = match waiting.memory {
            0 => String::new(),
            bytes => format!(" of {:.0} GB", bytes as f64 / 1e9),
        };
        let need = waiting.devices;
        let devices = if need == 1 { "device" } else { "devices" };
        return Some(format!("needs {need} {devices}{memory} on one worker, the largest has {largest}"));
    }
    let enough = holding.iter().filter(|host| large(host) >= waiting.devices).count();
    (enough < waiting.nodes)
        .then(|| format!("needs {} workers of its kind at once, there are {enough}", waiting.nodes))
}
