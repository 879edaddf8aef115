//! Situations and what follows from them.

use super::*;

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn need(run: &str, devices: u32) -> Need {
    Need { run: run.to_owned(), devices, nodes: 1, assets: vec!["vit".to_owned()] }
}

fn pilot(job: u64, slot: u32, doing: Doing) -> Pilot {
    Pilot { job, slot, doing }
}

/// So many runs of one device each wait; a pilot brings two devices and holds what they need; at most eight pilots.
fn situation(waiting: usize, pilots: &[Pilot]) -> Situation {
    Situation {
        waiting: (0..waiting).map(|run| need(&format!("run {run}"), 1)).collect(),
        free: Vec::new(),
        pilots: pilots.to_vec(),
        offer: Offer { devices: 2, assets: Some(names(&["vit", "shapes"])) },
        max_pilots: 8,
    }
}

/// Runs that wait, pilots there are, slots submitted, jobs taken back.
type Row<'a> = (usize, &'a [Pilot], &'a [u32], &'a [u64]);

#[test]
fn pilots_come_for_what_waits_within_the_limit_and_no_more() {
    use Doing::{Leaving, Starting, Waiting, Working};
    let table: &[Row] = &[
        (0, &[], &[], &[]),
        (1, &[], &[0], &[]),
        (2, &[], &[0], &[]), // two devices in one pilot
        (5, &[], &[0, 1, 2], &[]),
        (100, &[], &[0, 1, 2, 3, 4, 5, 6, 7], &[]),
        // What is on its way counts, what works is taken, what leaves only takes up room.
        (4, &[pilot(1, 0, Waiting)], &[1], &[]),
        (4, &[pilot(1, 0, Starting), pilot(2, 1, Waiting)], &[], &[]),
        (4, &[pilot(1, 0, Working), pilot(2, 1, Working)], &[2, 3], &[]),
        (4, &[pilot(1, 0, Leaving), pilot(2, 2, Leaving)], &[1, 3], &[]),
        (100, &[pilot(1, 0, Leaving), pilot(2, 7, Working)], &[1, 2, 3, 4, 5, 6], &[]),
        // Too much is taken back, the newest first, and never what has begun.
        (0, &[pilot(1, 0, Starting), pilot(2, 1, Waiting), pilot(3, 2, Working)], &[], &[2]),
        (3, &[pilot(5, 3, Waiting), pilot(4, 2, Waiting), pilot(3, 0, Starting)], &[], &[5]),
        (2, &[pilot(5, 3, Waiting), pilot(4, 2, Waiting)], &[], &[5]),
        // A lowered limit ends nobody; it only lets nobody in.
        (100, &(0..9).map(|n| pilot(n, n as u32, Working)).collect::<Vec<_>>(), &[], &[]),
    ];
    for (waiting, pilots, submit, cancel) in table {
        let decision = decide(&situation(*waiting, pilots));
        assert_eq!(
            (&decision.submit[..], &decision.cancel[..]),
            (*submit, *cancel),
            "{waiting} and {pilots:?}"
        );
        assert_eq!(decision.never, []);
    }
}

#[test]
fn a_second_pass_over_what_the_first_submitted_submits_nothing() {
    let mut now = situation(5, &[]);
    for (job, slot) in decide(&now).submit.into_iter().enumerate() {
        now.pilots.push(pilot(job as u64 + 1, slot, Doing::Waiting));
    }
    assert_eq!(now.pilots.len(), 3);
    assert_eq!(decide(&now), Decision::default());
}

#[test]
fn of_two_pilots_in_a_slot_the_one_at_work_stays_else_the_first() {
    use Doing::{Starting, Waiting, Working};
    let both = situation(
        4,
        &[pilot(1, 0, Waiting), pilot(2, 1, Waiting), pilot(3, 0, Waiting), pilot(4, 1, Waiting)],
    );
    assert_eq!(decide(&both), Decision { cancel: vec![3, 4], ..Decision::default() });
    let one_works = situation(4, &[pilot(7, 0, Waiting), pilot(9, 0, Working)]);
    assert_eq!(decide(&one_works), Decision { submit: vec![1, 2], cancel: vec![7], ..Decision::default() });
    let begun = situation(4, &[pilot(7, 0, Starting), pilot(9, 0, Starting)]);
    assert_eq!(decide(&begun).cancel, [0; 0], "what has begun is left alone");
}

#[test]
fn a_run_that_a_free_worker_can_have_needs_no_pilot() {
    let mut now = situation(3, &[]);
    now.free =
        vec![Free { devices: 1, assets: names(&["vit"]) }, Free { devices: 4, assets: names(&["another"]) }];
    let decision = decide(&now);
    assert_eq!((decision.submit, decision.fits), (vec![0], vec!["run 0".to_owned()]));
}

#[test]
fn devices_of_one_run_are_on_one_host_and_a_gang_has_a_host_for_each_node() {
    let mut now = situation(0, &[]);
    now.waiting = vec![need("a", 1), need("b", 2), need("c", 1)];
    assert_eq!(decide(&now).submit, [0, 1], "a and c share a pilot");
    now.waiting = vec![Need { nodes: 3, ..need("gang", 2) }];
    assert_eq!(decide(&now).submit, [0, 1, 2]);
    now.free = vec![Free { devices: 2, assets: names(&["vit"]) }];
    let decision = decide(&now);
    assert_eq!(decision.submit, [0, 1], "one of its hosts is there");
    assert_eq!(decision.fits, [""; 0], "and two are not");
}

#[test]
fn what_no_pilot_can_satisfy_submits_nothing_and_says_why() {
    let mut now = situation(0, &[]);
    now.waiting = vec![
        need("wide", 3),
        Need { nodes: 9, ..need("many", 1) },
        Need { assets: vec!["vit".into(), "birds".into(), "words".into()], ..need("lacking", 1) },
    ];
    let decision = decide(&now);
    assert_eq!((decision.submit, decision.cancel), (vec![], vec![]));
    let told: Vec<String> = decision.never.iter().map(|(run, why)| format!("{run}: {why}")).collect();
    assert_eq!(
        told,
        [
            "wide: it needs 3 devices on one host, and a pilot has 2",
            "many: it needs 9 hosts, and --max-pilots is 8",
            "lacking: no pilot holds birds, words: put what is missing below a --data folder",
        ]
    );
}

#[test]
fn before_anyone_knows_what_pilots_hold_one_goes_to_find_out() {
    let mut now = situation(100, &[]);
    now.offer.assets = None;
    assert_eq!(decide(&now).submit, [0]);
    now.pilots = vec![pilot(1, 0, Doing::Waiting)];
    assert_eq!(decide(&now), Decision::default());
}

#[test]
fn one_pass_submits_a_bounded_number() {
    let mut now = situation(1000, &[]);
    now.max_pilots = 1000;
    assert_eq!(decide(&now).submit.len(), SUBMIT_MAX);
}
