//! Scheduling decisions as tables. Devices are written `host.device`, runs are letters; times are seconds.

use super::*;

fn id(letter: char) -> Uuid {
    Uuid::from_u128(letter as u128)
}

fn name(run: Uuid) -> char {
    char::from_u32(run.as_u128() as u32).unwrap()
}

/// One worker for each number: with so many devices of 80 GB, all free, holding asset `w`.
fn cluster(sizes: &[usize]) -> Cluster {
    let host = |(at, size): (usize, &usize)| Host {
        worker: Uuid::from_u128(1000 + at as u128),
        labels: BTreeSet::from([format!("h{at}")]),
        assets: HashSet::from(["w".to_owned()]),
        devices: (0..*size)
            .map(|device| Device { name: format!("{at}.{device}"), memory: 80_000_000_000, held_by: None })
            .collect(),
        accepting: true,
    };
    let project = |letter, weight| Project {
        id: id(letter),
        name: letter.to_string(),
        weight,
        usage: 0.0,
        devices_max: None,
        user_devices_max: None,
    };
    Cluster {
        now: 0.0,
        hosts: sizes.iter().enumerate().map(host).collect(),
        running: Vec::new(),
        projects: vec![project('P', 1.0), project('Q', 1.0)],
    }
}

/// Occupies devices: `(run, devices, priority, started, ends)`.
fn busy(cluster: &mut Cluster, run: char, devices: &[&str], priority: i32, started: f64, ends: Option<f64>) {
    for device in cluster.hosts.iter_mut().flat_map(|host| &mut host.devices) {
        if devices.contains(&device.name.as_str()) {
            device.held_by = Some(id(run));
        }
    }
    let (project, user) = (id('P'), id('U'));
    cluster.running.push(Running { run: id(run), project, user, priority, started, ends, yielding: false });
}

/// A waiting run of project P that asks for so many devices on one worker.
fn waiting(letter: char, devices: usize) -> Waiting {
    Waiting {
        run: id(letter),
        project: id('P'),
        user: id('U'),
        priority: 0,
        position: letter as i64,
        nodes: 1,
        devices,
        memory: 0,
        labels: Vec::new(),
        assets: vec!["w".to_owned()],
        limit: None,
        warm: Vec::new(),
    }
}

/// `a→0.0,0.1 b→1.0` and who yields to whom: `x⇢a`.
fn decide(cluster: &mut Cluster, queue: &[Waiting]) -> String {
    let plan = plan(cluster, queue);
    let start = |start: &Start| {
        let devices: Vec<&str> =
            start.members.iter().flat_map(|member| &member.devices).map(String::as_str).collect();
        format!("{}→{}", name(start.run), devices.join(","))
    };
    let yields = plan.yields.iter().map(|it| format!("{}⇢{}", name(it.run), name(it.to)));
    plan.starts.iter().map(start).chain(yields).collect::<Vec<_>>().join(" ")
}

fn whys(cluster: &mut Cluster, queue: &[Waiting]) -> Vec<String> {
    plan(cluster, queue).whys.iter().map(|(run, why)| format!("{}: {why}", name(*run))).collect()
}

#[test]
fn priority_goes_first_then_the_place_in_the_queue() {
    let urgent = Waiting { priority: 5, ..waiting('c', 1) };
    assert_eq!(decide(&mut cluster(&[2]), &[waiting('b', 1), waiting('a', 1), urgent]), "c→0.0 a→0.1");
}

#[test]
fn a_run_goes_where_it_leaves_least() {
    assert_eq!(decide(&mut cluster(&[8, 2, 4]), &[waiting('a', 2)]), "a→1.0,1.1");
    assert_eq!(decide(&mut cluster(&[8, 2, 4]), &[waiting('a', 3)]), "a→2.0,2.1,2.2");
    let mut half = cluster(&[4, 4]);
    busy(&mut half, 'x', &["1.0", "1.1"], 0, 0.0, None);
    assert_eq!(decide(&mut half, &[waiting('a', 1)]), "a→1.2");
}

#[test]
fn a_run_goes_to_the_smallest_memory_that_suffices() {
    let mut mixed = cluster(&[3]);
    mixed.hosts[0].devices[0].memory = 24_000_000_000;
    mixed.hosts[0].devices[2].memory = 40_000_000_000;
    let large = Waiting { memory: 30_000_000_000, ..waiting('b', 1) };
    assert_eq!(decide(&mut mixed, &[waiting('a', 1), large]), "a→0.0 b→0.2");
}

#[test]
fn a_run_goes_back_to_where_its_work_is() {
    let warm = Waiting { warm: vec![Uuid::from_u128(1000)], ..waiting('a', 1) };
    assert_eq!(decide(&mut cluster(&[8, 1]), &[warm]), "a→0.0");
}

#[test]
fn a_gang_gets_all_its_workers_or_none() {
    let gang = Waiting { nodes: 2, ..waiting('a', 2) };
    assert_eq!(decide(&mut cluster(&[2, 4]), std::slice::from_ref(&gang)), "a→0.0,0.1,1.0,1.1");
    let mut busy_one = cluster(&[2, 2]);
    busy(&mut busy_one, 'x', &["1.1"], 0, 0.0, None);
    assert_eq!(decide(&mut busy_one, &[gang]), "");
    assert_eq!(busy_one.hosts[0].devices[0].held_by, None, "nothing is held while it waits");
}

#[test]
fn projects_share_by_weight_and_by_what_they_have_had() {
    let of = |letter, project| Waiting { project: id(project), ..waiting(letter, 1) };
    let queue = [of('a', 'P'), of('b', 'P'), of('c', 'P'), of('d', 'Q'), of('e', 'Q'), of('f', 'Q')];
    assert_eq!(decide(&mut cluster(&[4]), &queue), "a→0.0 d→0.1 b→0.2 e→0.3");
    let mut weighted = cluster(&[4]);
    weighted.projects[1].weight = 3.0;
    assert_eq!(decide(&mut weighted, &queue), "a→0.0 d→0.1 e→0.2 f→0.3");
    let mut used = cluster(&[4]);
    used.projects[0].usage = 10_000.0; // more than two pledges of an hour
    assert_eq!(decide(&mut used, &queue), "d→0.0 e→0.1 f→0.2 a→0.3");
}

#[test]
fn quotas_bind_projects_and_users_and_let_others_pass() {
    let mut bound = cluster(&[4]);
    bound.projects[0].devices_max = Some(1);
    let other = Waiting { project: id('Q'), ..waiting('c', 1) };
    let queue = [waiting('a', 1), waiting('b', 1), other.clone()];
    assert_eq!(decide(&mut bound.clone(), &queue), "a→0.0 c→0.1");
    assert_eq!(whys(&mut bound, &queue)[2], "b: its project `P` may hold 1 devices at once");
    let mut bound = cluster(&[4]);
    bound.projects[0].user_devices_max = Some(1);
    let second = Waiting { user: id('V'), ..waiting('b', 1) };
    assert_eq!(decide(&mut bound, &[waiting('a', 1), waiting('d', 1), second]), "a→0.0 b→0.1");
}

#[test]
fn what_comes_after_a_blocked_run_may_not_delay_it() {
    let mut full = cluster(&[2]);
    busy(&mut full, 'x', &["0.0"], 0, 0.0, Some(100.0));
    let long = waiting('b', 1);
    let short = Waiting { limit: Some(100.0), ..waiting('c', 1) };
    let too_long = Waiting { limit: Some(101.0), ..waiting('d', 1) };
    assert_eq!(decide(&mut full.clone(), &[waiting('a', 2), long.clone()]), "", "it might run for ever");
    assert_eq!(decide(&mut full.clone(), &[waiting('a', 2), too_long]), "");
    assert_eq!(decide(&mut full.clone(), &[waiting('a', 2), short]), "c→0.1", "it ends when the other does");
    let mut elsewhere = cluster(&[2, 1]);
    busy(&mut elsewhere, 'x', &["0.0"], 0, 0.0, None);
    assert_eq!(decide(&mut elsewhere, &[waiting('a', 2), long]), "b→1.0", "there it is in nobody's way");
}

#[test]
fn a_blocked_run_waits_where_it_can_begin_first() {
    let mut two = cluster(&[2, 2]);
    busy(&mut two, 'x', &["0.0"], 0, 0.0, Some(500.0));
    busy(&mut two, 'y', &["1.0"], 0, 0.0, Some(50.0));
    assert_eq!(decide(&mut two, &[waiting('a', 2), waiting('b', 1)]), "b→0.1");
}

#[test]
fn the_newest_of_the_lowest_priority_yields_and_no_more_than_needed() {
    let mut full = cluster(&[3]);
    busy(&mut full, 'x', &["0.0"], 1, 0.0, None);
    busy(&mut full, 'y', &["0.1"], 0, 10.0, None);
    busy(&mut full, 'z', &["0.2"], 0, 20.0, None);
    let urgent = |devices| Waiting { priority: 5, ..waiting('a', devices) };
    assert_eq!(decide(&mut full.clone(), &[urgent(1)]), "z⇢a");
    assert_eq!(
        decide(&mut full.clone(), &[urgent(2)]),
        "y⇢a z⇢a".split(' ').rev().collect::<Vec<_>>().join(" ")
    );
    assert_eq!(decide(&mut full.clone(), &[waiting('a', 1)]), "", "equals do not yield");
    let once = Waiting { priority: 1, ..waiting('a', 3) };
    assert_eq!(decide(&mut full, &[once]), "", "nobody yields where it would not help");
}

#[test]
fn only_those_yield_whose_devices_help() {
    let mut two = cluster(&[2, 2]);
    busy(&mut two, 'v', &["1.0"], 0, 40.0, None);
    busy(&mut two, 'x', &["0.0"], 0, 30.0, None);
    busy(&mut two, 'y', &["0.1"], 0, 20.0, None);
    busy(&mut two, 'z', &["1.1"], 3, 50.0, None);
    let urgent = Waiting { priority: 2, ..waiting('a', 2) };
    assert_eq!(decide(&mut two, &[urgent]), "x⇢a y⇢a", "v is the newest, and of no use beside z");
}

#[test]
fn whoever_was_asked_to_yield_is_waited_for() {
    let mut full = cluster(&[2]);
    busy(&mut full, 'x', &["0.0"], 0, 0.0, None);
    busy(&mut full, 'y', &["0.1"], 0, 10.0, None);
    full.running[0].yielding = true;
    let urgent = Waiting { priority: 5, ..waiting('a', 1) };
    assert_eq!(decide(&mut full.clone(), std::slice::from_ref(&urgent)), "");
    assert_eq!(whys(&mut full, &[urgent]), ["a: a run of lower priority was asked to yield to it"]);
}

#[test]
fn a_freed_device_goes_to_the_one_it_was_freed_for() {
    let mut freed = cluster(&[2]);
    busy(&mut freed, 'x', &["0.0"], 0, 0.0, None);
    freed.running[0].yielding = true;
    let urgent = Waiting { priority: 5, ..waiting('z', 2) };
    assert_eq!(decide(&mut freed, &[urgent, waiting('a', 1)]), "", "half of what it waits for is kept");
}

#[test]
fn why_a_run_waits_is_said_in_full() {
    let mut small = cluster(&[2, 2]);
    busy(&mut small, 'x', &["0.0", "0.1", "1.0", "1.1"], 0, 0.0, None);
    let queue = [
        waiting('a', 1),
        waiting('b', 1),
        waiting('c', 4),
        Waiting { memory: 90_000_000_000, ..waiting('d', 1) },
        Waiting { assets: vec!["w".into(), "v".into()], ..waiting('e', 1) },
        Waiting { labels: vec!["a100".into()], ..waiting('f', 1) },
        Waiting { nodes: 3, ..waiting('g', 1) },
    ];
    assert_eq!(
        whys(&mut small, &queue),
        [
            "a: next, when a device frees",
            "b: 1 ahead of it",
            "c: needs 4 devices on one worker, the largest has 2",
            "d: needs 1 device of 90 GB on one worker, the largest has 0",
            "e: no ready worker holds v",
            "f: no ready worker has the labels a100",
            "g: needs 3 workers of its kind at once, there are 2",
        ]
    );
    small.hosts.iter_mut().for_each(|host| host.accepting = false);
    assert_eq!(
        whys(&mut small, &queue[..1]),
        ["a: no worker is ready: start one with `causeway-trainer work`"]
    );
}

#[test]
fn the_decision_does_not_depend_on_how_the_queue_was_read() {
    let queue: Vec<Waiting> = "gacebdf"
        .chars()
        .enumerate()
        .map(|(at, letter)| Waiting {
            priority: (at % 3) as i32,
            project: id(if at % 2 == 0 { 'P' } else { 'Q' }),
            ..waiting(letter, 1 + at % 2)
        })
        .collect();
    let expected = decide(&mut cluster(&[3, 2]), &queue);
    for turn in 1..queue.len() {
        let mut turned = queue.clone();
        turned.rotate_left(turn);
        assert_eq!(decide(&mut cluster(&[3, 2]), &turned), expected);
    }
}
