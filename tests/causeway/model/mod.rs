//! Runs, leases and workers as a model, every state of which is looked at: two workers, one run or two, a few requests on the
//! line and a few misfortunes. The rules are the product's; broken one at a time, each must be missed.

mod cluster;
mod explore;
mod server;
mod worker;

use causeway_protocol::RunState;
use cluster::{Deed, RUN_OUT, State, Steps, WORKERS};
use explore::{Counterexample, Explored, Model, explore};
use server::Rules;

/// A cluster of so many runs.
struct Cluster<const RUNS: usize> {
    rules: Rules,
    /// Requests on their way at one time, at most.
    room: usize,
    misfortunes: u8,
    setbacks: i32,
}

impl<const R: usize> Model for Cluster<R> {
    type State = State<R>;
    type Action = Deed;

    fn start(&self) -> State<R> {
        State::start(self.misfortunes, self.setbacks)
    }

    fn steps(&self, state: &State<R>) -> Vec<(Deed, State<R>)> {
        let mut steps = Steps { from: state, room: self.room, list: Vec::new() };
        if state.server {
            self.rules.passes(&mut steps);
        }
        for worker in 0..WORKERS {
            worker::works(&mut steps, worker);
            worker::suffers(&mut steps, worker);
        }
        self.carry(&mut steps);
        happenings(&mut steps);
        if state.server {
            self.people(&mut steps);
        }
        steps.list
    }

    fn wrong(&self, before: &State<R>, after: &State<R>) -> Option<&'static str> {
        for (before, after) in before.runs.iter().zip(&after.runs) {
            if before.state.is_terminal() && after.state != before.state {
                return Some("a run that had ended has another state");
            }
            if after.lease.is_some() != (after.state == RunState::Running) {
                return Some("a lease without a running run, or a running run without one");
            }
            let spent = after.standing.attempts;
            let idle = matches!(after.state, RunState::Queued | RunState::Paused);
            if (idle && spent != after.bugs) || (after.lease.is_some() && spent != after.bugs + 1) {
                return Some("an attempt was spent that was no fault of the run's, or one was not counted");
            }
            if after.standing.cancel_requested && idle {
                return Some("a cancelled run goes on");
            }
        }
        after.wrong
    }

    fn ended(&self, state: &State<R>) -> bool {
        state.runs.iter().all(|run| run.state.is_terminal())
    }
}

impl<const R: usize> Cluster<R> {
    /// A request arrives, and perhaps again later; its answer arrives or not; or it never arrives.
    fn carry(&self, steps: &mut Steps<'_, R>) {
        for (at, request) in steps.from.line.iter().copied().enumerate() {
            for (what, stays, answered) in [
                ("answered:", false, true),
                ("answer lost:", false, false),
                ("answered, and on its way once more:", true, true),
            ] {
                if !steps.from.server {
                    continue;
                }
                steps.about(what, request, |next| {
                    if !stays {
                        next.line.remove(at);
                    }
                    let answer = self.rules.answer(next, request);
                    if answered {
                        worker::hear(next, request, answer);
                    }
                });
            }
            steps.about("lost:", request, |next| {
                next.line.remove(at);
            });
        }
    }

    /// What people do to runs.
    fn people(&self, steps: &mut Steps<'_, R>) {
        for (at, run) in steps.from.runs.iter().enumerate() {
            let put = |next: &mut State<R>, state| {
                if !self.rules.change(next, at, state) {
                    next.wrong = Some("people cannot do what they may");
                }
            };
            match run.state {
                RunState::Queued => {
                    steps.misfortune("cancelled: run", at, |next| put(next, RunState::Cancelled));
                    steps.misfortune("paused: run", at, |next| put(next, RunState::Paused));
                }
                RunState::Paused => {
                    steps.misfortune("cancelled: run", at, |next| put(next, RunState::Cancelled));
                    steps.add("resumed: run", at, |next| put(next, RunState::Queued));
                }
                RunState::Running => {
                    let (cancelled, pausing) = (run.standing.cancel_requested, run.standing.pausing);
                    if !cancelled {
                        let cancel = |next: &mut State<R>| next.runs[at].standing.cancel_requested = true;
                        steps.misfortune("to be cancelled: run", at, cancel);
                    }
                    if pausing {
                        steps.add("resumed: run", at, |next| next.runs[at].standing.pausing = false);
                    } else {
                        steps.misfortune("to be paused: run", at, |next| {
                            (next.runs[at].standing.pausing, next.runs[at].yielding) = (true, true);
                        });
                    }
                    if !run.yielding {
                        steps.misfortune("to give way: run", at, |next| next.runs[at].yielding = true);
                    }
                }
                _ => {}
            }
        }
    }
}

/// What happens to the server, and time.
fn happenings<const R: usize>(steps: &mut Steps<'_, R>) {
    if steps.from.server {
        steps.misfortune("killed: server", 0, |next| {
            (next.server, next.planned) = (false, None);
            next.runs.iter_mut().filter_map(|run| run.lease.as_mut()).for_each(|lease| lease.unheard = 0);
        });
    } else {
        steps.add("started: server", 0, |next| (next.server, next.fresh) = (true, true));
    }
    for (at, run) in steps.from.runs.iter().enumerate() {
        let Some(lease) = run.lease.filter(|lease| lease.age < RUN_OUT) else { continue };
        let passes = |next: &mut State<R>| {
            let there = next.server && !next.fresh;
            if let Some(lease) = &mut next.runs[at].lease {
                lease.age += 1;
                lease.unheard = (lease.unheard + u8::from(there)).min(RUN_OUT);
            }
        };
        // Of a worker that does its duty, only misfortune keeps the heartbeats away for so long.
        if lease.age + 1 == RUN_OUT && steps.from.is_well(at, &lease) {
            steps.misfortune("half a lease passes, run", at, passes);
        } else {
            steps.add("half a lease passes, run", at, passes);
        }
    }
}

fn holds<const R: usize>(room: usize, misfortunes: u8, setbacks: i32) {
    let begin = std::time::Instant::now();
    let cluster = Cluster::<R> { rules: Rules::default(), room, misfortunes, setbacks };
    match explore(&cluster) {
        Ok(Explored { states, steps }) => {
            let seconds = begin.elapsed().as_secs_f64();
            println!(
                "{R} runs, {room} requests, {misfortunes} misfortunes: {states} states, {steps} steps, {seconds:.1} s"
            );
        }
        Err(Counterexample { what, way, states }) => {
            panic!("{what}, found among {states} states:\n  {}", way.join("\n  "))
        }
    }
}

#[test]
fn one_run_ends_once_whatever_happens_to_two_workers_and_the_server() {
    holds::<1>(1, 2, 0);
}

#[test]
fn requests_overtake_each_other_and_nothing_comes_of_it() {
    holds::<1>(2, 1, 0);
}

#[test]
fn two_runs_do_not_get_into_each_others_way() {
    holds::<2>(1, 1, 0);
}

#[test]
fn a_run_that_kills_its_workers_is_given_up() {
    holds::<1>(1, 1, causeway_server::scheduler::retry::SETBACKS_MAX - 1);
}

/// A rule of the product's, broken.
type Breach = fn(&mut Rules);

#[test]
fn every_rule_is_missed_when_it_is_broken() {
    let breaches: [(&str, Breach, &str); 9] = [
        ("writes are not fenced", |rules| rules.fence = false, "a stale worker"),
        ("the epoch stays", |rules| rules.epoch_grows = false, "a stale worker"),
        ("devices stay taken", |rules| rules.device_freed = false, "no run can end"),
        ("an end is not the end", |rules| rules.may_become = |_, _| true, "had ended"),
        ("no fresh period", |rules| rules.fresh_period = false, "nobody could have renewed"),
        ("lines are taken as they come", |rules| rules.lines_once = false, "taken twice"),
        ("a lost folder is not noticed", |rules| rules.journal_kept = false, "two journals"),
        ("a lost worker spends an attempt", |rules| rules.loss_is_free = false, "no fault of the run's"),
        ("a cancel is forgotten", |rules| rules.cancel_counts = false, "a cancelled run goes on"),
    ];
    for (name, breach, expected) in breaches {
        let mut rules = Rules::default();
        breach(&mut rules);
        let cluster = Cluster::<1> { rules, room: 1, misfortunes: 2, setbacks: 0 };
        let found = explore(&cluster).expect_err(name);
        println!(
            "{name}: {}, found among {} states after {} steps",
            found.what,
            found.states,
            found.way.len()
        );
        assert!(found.what.contains(expected), "{name}: {}\n  {}", found.what, found.way.join("\n  "));
    }
}
