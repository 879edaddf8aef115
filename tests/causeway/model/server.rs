//! The server's side of the model: passes of the scheduler, and answers to workers. `Rules` holds what may be broken on
//! purpose.

use super::cluster::{End, Fence, Held, LINES, Lease, RUN_OUT, Request, State, Steps, WORKERS};
use causeway_protocol::{Place, RunState};
use causeway_server::scheduler::retry::{Cause, Then, verdict};

/// The rules that keep two workers apart. The product's are `Rules::default()`; a test breaks one at a time.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The table of transitions.
    pub may_become: fn(RunState, RunState) -> bool,
    /// A write compares its epoch with the lease's.
    pub fence: bool,
    /// Every assignment has an epoch of its own.
    pub epoch_grows: bool,
    /// The end of a lease frees its device.
    pub device_freed: bool,
    /// After a start of the server, leases get a fresh period before any is taken back.
    pub fresh_period: bool,
    /// A line that was taken is skipped when it comes again.
    pub lines_once: bool,
    /// A lease under which lines have come is not granted again to an agent that does not know it.
    pub journal_kept: bool,
    /// A lost worker spends none of the run's attempts.
    pub loss_is_free: bool,
    /// A run cancelled while it is given back ends.
    pub cancel_counts: bool,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            may_become: RunState::may_become,
            fence: true,
            epoch_grows: true,
            device_freed: true,
            fresh_period: true,
            lines_once: true,
            journal_kept: true,
            loss_is_free: true,
            cancel_counts: true,
        }
    }
}

/// What the server answers, as far as the agent acts on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Grant(Held),
    Nothing,
    Continue { shipped: u8 },
    Stop,
    Yield,
    Finished,
    Stale,
}

impl Rules {
    /// `change_state`: false if the table forbids it, and nothing has changed then.
    pub fn change<const R: usize>(&self, state: &mut State<R>, run: usize, next: RunState) -> bool {
        let row = &mut state.runs[run];
        let allowed = (self.may_become)(row.state, next);
        if allowed {
            row.state = next;
        }
        allowed
    }

    /// The end of a lease, in every way but its worker's word: `end_attempt` and `give_back`.
    fn give_back<const R: usize>(&self, state: &mut State<R>, run: usize, cause: Cause) {
        self.end_lease(state, run);
        let row = &mut state.runs[run];
        let mut asked = row.standing;
        asked.cancel_requested &= self.cancel_counts;
        let (mut after, next, _) = asked.after(cause, "");
        if !self.loss_is_free && cause == Cause::LostWorker {
            after.attempts += 1;
        }
        (after.cancel_requested, after.pausing) = (row.standing.cancel_requested, false);
        (row.standing, row.yielding) = (after, false);
        row.bugs += i32::from(cause == Cause::Bug);
        if !self.change(state, run, next) {
            state.wrong = Some("a run with a lease could not be given back");
        }
    }

    fn end_lease<const R: usize>(&self, state: &mut State<R>, run: usize) {
        if let Some(lease) = state.runs[run].lease.take()
            && self.device_freed
        {
            state.devices[lease.worker as usize] = None;
        }
    }

    /// Every step of a pass. The first after a start does nothing but extend.
    pub fn passes<const R: usize>(&self, steps: &mut Steps<'_, R>) {
        let state = steps.from;
        if state.fresh {
            return steps.add("a first pass, server", 0, |next| {
                next.fresh = false;
                let leases = next.runs.iter_mut().filter_map(|run| run.lease.as_mut());
                leases.filter(|_| self.fresh_period).for_each(|lease| lease.age = 0);
            });
        }
        for (run, row) in state.runs.iter().enumerate() {
            if let Some(lease) = row.lease.filter(|lease| lease.age >= RUN_OUT) {
                steps.add("taken back: the lease of run", run, |next| {
                    if lease.unheard < RUN_OUT {
                        next.wrong = Some("a lease ran out although nobody could have renewed it");
                    }
                    let cause = if lease.delivered { Cause::LostWorker } else { Cause::Yielded };
                    self.give_back(next, run, cause);
                });
            }
            if row.lease.is_some() && row.yielding {
                steps.misfortune("not yielded in time: run", run, |next| {
                    self.give_back(next, run, Cause::NotYielded);
                });
            }
            // A worker that is silent for half a lease gets no new work.
            let free = (0..WORKERS).filter(|at| state.devices[*at].is_none() && state.workers[*at].agent);
            for worker in free.filter(|_| row.state == RunState::Queued && state.planned.is_none()) {
                let what = ["for worker 0: run", "for worker 1: run"][worker];
                steps.add(what, run, |next| next.planned = Some((run, worker)));
            }
        }
        if let Some((run, worker)) = state.planned {
            steps.add("assigned: run", run, |next| {
                next.planned = None;
                self.assign(next, run, worker);
            });
        }
    }

    fn assign<const R: usize>(&self, state: &mut State<R>, run: usize, worker: usize) {
        // Somebody may have cancelled it since the queue was read: then the pass fails.
        if state.devices[worker].is_some() || !self.change(state, run, RunState::Running) {
            return;
        }
        let row = &mut state.runs[run];
        row.epoch += u8::from(self.epoch_grows || row.epoch == 0);
        row.standing.attempts += 1;
        row.assigned += 1;
        row.lease = Some(Lease {
            worker: worker as u8,
            epoch: row.epoch,
            delivered: false,
            shipped: 0,
            age: 0,
            unheard: 0,
            assignment: row.assigned,
            journal: None,
        });
        state.devices[worker] = Some((run as u8, row.assigned));
    }

    /// The lease that a request may write under.
    fn fenced<'a, const R: usize>(&self, state: &'a mut State<R>, fence: &Fence) -> Option<&'a mut Lease> {
        let lease = state.runs[fence.run as usize].lease.as_mut();
        lease.filter(|lease| lease.epoch == fence.epoch || !self.fence)
    }

    /// Answers a request: one transaction.
    pub fn answer<const R: usize>(&self, state: &mut State<R>, request: Request) -> Answer {
        match request {
            Request::Lease { worker } => self.grant(state, worker),
            Request::Heartbeat { fence, .. } => {
                let Some(lease) = self.fenced(state, &fence) else { return Answer::Stale };
                (lease.age, lease.unheard) = (0, 0);
                let shipped = lease.shipped;
                let row = &state.runs[fence.run as usize];
                match (row.standing.cancel_requested, row.yielding) {
                    (true, _) => Answer::Stop,
                    (false, true) => Answer::Yield,
                    (false, false) => Answer::Continue { shipped },
                }
            }
            Request::Ship { fence, first, last, .. } => self.ship(state, &fence, first, last),
            Request::Finish { fence, end, .. } => self.finish(state, &fence, end),
        }
    }

    fn grant<const R: usize>(&self, state: &mut State<R>, worker: u8) -> Answer {
        for (run, row) in state.runs.iter_mut().enumerate() {
            let again =
                |lease: &&mut Lease| lease.worker == worker && (lease.shipped == 0 || !self.journal_kept);
            let Some(lease) = row.lease.as_mut().filter(again) else { continue };
            (lease.delivered, lease.age, lease.unheard) = (true, 0, 0);
            return Answer::Grant(Held {
                run: run as u8,
                epoch: lease.epoch,
                written: 0,
                shipped: 0,
                ended: None,
                assignment: lease.assignment,
                journal: row.journals + 1,
            });
        }
        Answer::Nothing
    }

    fn ship<const R: usize>(&self, state: &mut State<R>, fence: &Fence, first: u8, last: u8) -> Answer {
        let lines_once = self.lines_once;
        let Some(lease) = self.fenced(state, fence) else { return Answer::Stale };
        let mut wrong = (lease.assignment != fence.assignment).then_some("a stale worker's lines were taken");
        for line in first..=last {
            match Place::of(line.into(), lease.shipped.into()) {
                Place::Known if lines_once => {}
                Place::Known => wrong = wrong.or(Some("a line was taken twice")),
                Place::Next => {
                    if lease.journal.is_some_and(|journal| journal != fence.journal) {
                        wrong = wrong.or(Some("lines of two journals were taken as one attempt's"));
                    }
                    (lease.shipped, lease.journal) = (line, Some(fence.journal));
                }
                Place::Gap => wrong = wrong.or(Some("a line was left out")),
            }
        }
        let shipped = lease.shipped;
        state.wrong = state.wrong.or(wrong);
        Answer::Continue { shipped }
    }

    fn finish<const R: usize>(&self, state: &mut State<R>, fence: &Fence, end: End) -> Answer {
        let Some(lease) = self.fenced(state, fence) else { return Answer::Stale };
        let stale = lease.assignment != fence.assignment;
        // A run that reports success without everything has not succeeded.
        let end = if end == End::Succeeded && lease.shipped < LINES { End::Crashed } else { end };
        if stale {
            state.wrong = Some("a stale worker ended a run");
        }
        let row = &state.runs[fence.run as usize];
        match verdict(end.outcome(), row.standing.cancel_requested).run {
            Then::GivenBack(cause) => self.give_back(state, fence.run.into(), cause),
            Then::Ends(next) => {
                self.end_lease(state, fence.run.into());
                state.runs[fence.run as usize].bugs += i32::from(next == RunState::Failed);
                if !self.change(state, fence.run.into(), next) {
                    state.wrong = Some("a run with a lease could not end");
                }
            }
        }
        Answer::Finished
    }
}
