//! What a launcher remembers, and what it makes of jobs and workers.

use super::*;
use crate::launch::{decide::Need, slurm::tests::slurm};
use serde_json::json;

/// A job on the node n1 that began so many seconds ago, if it has begun.
fn job(id: u64, slot: u32, state: JobState, elapsed: u64) -> Job {
    let node = if state == JobState::Pending { "" } else { "n1" };
    Job { id, slot, state, elapsed, node: node.to_owned(), reason: "None".to_owned() }
}

/// A worker that was heard of so many seconds ago.
fn worker(name: &str, state: &str, seconds: i64, assets: &[&str]) -> Worker {
    let assets: Vec<_> = assets.iter().map(|name| json!({"name": name})).collect();
    let seen_at = OffsetDateTime::now_utc() - time::Duration::seconds(seconds);
    let seen_at = seen_at.format(&time::format_description::well_known::Rfc3339).unwrap();
    let devices = json!([{"name": "cpu", "run_id": null}]);
    let worker =
        json!({"name": name, "state": state, "devices": devices, "assets": assets, "seen_at": seen_at});
    serde_json::from_value(worker).unwrap()
}

fn waiting(run: &str, why: &str) -> Waiting {
    Waiting {
        need: Need { run: run.to_owned(), devices: 1, nodes: 1, assets: Vec::new() },
        why: why.to_owned(),
    }
}

#[test]
fn a_pilot_is_what_slurm_and_the_server_say_of_it_together() {
    use JobState::{Ending, Pending, Running};
    let slurm = slurm(&["--max-pilots=9"]);
    let jobs = [
        job(1, 0, Pending, 0),
        job(2, 1, Running, 20),
        job(3, 2, Running, 500),
        job(4, 3, Running, 500),
        job(5, 4, Ending, 500),
    ];
    let workers = [
        worker("causeway-9f86d081-2.n1", "ready", 5, &["vit"]),
        worker("causeway-9f86d081-3.n1", "suspect", 4, &["vit", "birds"]),
        // What the pilot before job 2 was, a pilot of that slot on another node, and somebody else.
        worker("causeway-9f86d081-1.n1", "lost", 300, &[]),
        worker("causeway-9f86d081-1.n2", "ready", 8, &[]),
        worker("a desk", "ready", 1, &["words"]),
    ];
    let situation = situation(&slurm, &jobs, &[], &workers, None);
    let doing: Vec<Doing> = situation.pilots.iter().map(|pilot| pilot.doing).collect();
    assert_eq!(doing, [Doing::Waiting, Doing::Starting, Doing::Working, Doing::Leaving, Doing::Leaving]);
    let held: Vec<String> = situation.offer.assets.unwrap().into_iter().collect();
    assert_eq!(held, ["birds", "vit"], "the pilot that was heard of last is believed");
    assert_eq!((situation.offer.devices, situation.free.len(), situation.max_pilots), (1, 3, 9));
    assert_eq!(dead_nodes(&slurm, &jobs, &workers), ["n1"], "for the sake of job 4");
    assert_eq!(dead_nodes(&slurm, &jobs[..3], &workers), [""; 0]);
}

#[test]
fn a_pilot_that_dies_before_the_server_hears_of_it_makes_the_next_wait_longer_each_time() {
    let slurm = slurm(&[]);
    let now = Instant::now();
    let mut memory = Memory::default();
    let earlier = [worker("causeway-9f86d081-0.n1", "lost", 60, &[])];
    let pauses: Vec<u64> = [1, 2, 3]
        .map(|id| {
            assert!(memory.look_back(&slurm, &[job(id, 0, JobState::Pending, 0)], &earlier, now).is_empty());
            let said = memory.look_back(&slurm, &[], &earlier, now);
            assert!(said[0].contains(&format!("pilot {id} ended")), "{said:?}");
            assert!(said[0].contains("/scratch/cw/log/causeway-9f86d081-0.out"), "{said:?}");
            memory.not_before.unwrap().duration_since(now).as_secs()
        })
        .to_vec();
    assert_eq!(pauses, [15, 30, 60]);
    for _ in 0..20 {
        memory.failed(now);
    }
    assert_eq!(memory.not_before, Some(now + PAUSE.1));

    // One that arrives puts an end to it, and is missed by nobody when it has done its work.
    memory.look_back(&slurm, &[job(9, 0, JobState::Running, 30)], &earlier, now);
    let arrived = [worker("causeway-9f86d081-0.n1", "ready", 1, &[])];
    memory.look_back(&slurm, &[job(9, 0, JobState::Running, 31)], &arrived, now);
    assert_eq!((memory.failures, memory.not_before), (0, None));
    assert!(memory.look_back(&slurm, &[], &arrived, now).is_empty());
    assert_eq!(memory.not_before, None);
}

#[test]
fn a_run_that_a_free_worker_is_not_given_brings_no_more_pilots_until_its_reason_changes() {
    let now = Instant::now();
    let later = now + UNTAKEN;
    let mut memory = Memory::default();
    let queue = |why: &str| vec![waiting("a", why), waiting("b", "next")];
    let runs =
        |waiting: &[Waiting]| waiting.iter().map(|waiting| waiting.need.run.clone()).collect::<Vec<_>>();

    let (counted, said) = memory.without_untaken(queue("over quota"), now);
    assert_eq!((runs(&counted), said.len()), (vec!["a".to_owned(), "b".to_owned()], 0));
    memory.note_fits(&["a".to_owned()], &counted, now);
    assert_eq!(memory.without_untaken(queue("over quota"), now).0.len(), 2, "it may be given it yet");

    let (counted, said) = memory.without_untaken(queue("over quota"), later);
    assert_eq!(runs(&counted), ["b"]);
    assert!(said[0].contains("the run a") && said[0].contains("(over quota)"), "{said:?}");
    memory.note_fits(&[], &counted, later);
    assert_eq!(memory.without_untaken(queue("over quota"), later).0.len(), 1, "still");
    assert_eq!(memory.without_untaken(queue("next"), later).0.len(), 2);
}

#[test]
fn what_is_still_so_is_said_once() {
    let mut memory = Memory::default();
    memory.say(["x".to_owned()]);
    memory.say_also("y".to_owned());
    assert_eq!(memory.said.len(), 2);
    memory.say(["x".to_owned()]);
    assert_eq!(memory.said.iter().collect::<Vec<_>>(), ["x"]);
}
