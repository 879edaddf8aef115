//! A server, its workers and the line between them, as small as they can be and still go wrong in every way. The database's
//! transactions are one step each; between any two steps anything may die, and any request may be lost, come late or come
//! twice. What moves a run is the product's own: `RunState::may_become`, `verdict`, `Standing::after`, `Place::of`.

use causeway_protocol::{Outcome, RunState};
use causeway_server::scheduler::retry::Standing;

/// Workers, with a device each.
pub const WORKERS: usize = 2;
/// Lines in the journal of a whole attempt.
pub const LINES: u8 = 2;
/// Attempts that a run may spend.
pub const ATTEMPTS: i32 = 2;
/// A lease's age at which it has run out; at half of it its worker is suspect.
pub const RUN_OUT: u8 = 2;

/// All of it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State<const RUNS: usize> {
    /// Rows of the database.
    pub runs: [Run; RUNS],
    /// The leases' devices in the database: which run, by which assignment.
    pub devices: [Option<(u8, u8)>; WORKERS],
    /// The workers themselves.
    pub workers: [Worker; WORKERS],
    /// Requests on their way, in no order.
    pub line: Vec<Request>,
    /// The scheduler has read the queue, and decided, and writes next.
    pub planned: Option<(usize, usize)>,
    /// Whether the server runs.
    pub server: bool,
    /// Whether its next pass is its first.
    pub fresh: bool,
    /// Misfortunes left.
    pub left: u8,
    /// What a step found out to be wrong.
    pub wrong: Option<&'static str>,
}

/// A run's row, its lease's, and what only the model knows.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Run {
    pub state: RunState,
    pub epoch: u8,
    pub standing: Standing,
    /// Asked to give its device back.
    pub yielding: bool,
    pub lease: Option<Lease>,
    /// Model: assignments so far.
    pub assigned: u8,
    /// Model: ends that were its own fault.
    pub bugs: i32,
    /// Model: times that its journal was begun.
    pub journals: u8,
}

/// A lease's row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Lease {
    pub worker: u8,
    pub epoch: u8,
    pub delivered: bool,
    pub shipped: u8,
    /// Half periods since it was renewed, on the database's clock.
    pub age: u8,
    /// Model: the same, as far as the server was there to hear.
    pub unheard: u8,
    /// Model: which assignment it is.
    pub assignment: u8,
    /// Model: whose lines were taken.
    pub journal: Option<u8>,
}

/// An agent and its training process.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Worker {
    pub agent: bool,
    pub held: Option<Held>,
}

/// An attempt's folder on a worker.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Held {
    pub run: u8,
    pub epoch: u8,
    /// Lines written.
    pub written: u8,
    /// Lines that the agent knows to be taken.
    pub shipped: u8,
    /// How the process ended.
    pub ended: Option<End>,
    /// Model.
    pub assignment: u8,
    /// Model.
    pub journal: u8,
}

/// `Outcome`, as far as the model has it; it can be hashed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum End {
    Succeeded,
    Failed,
    Crashed,
    Cancelled,
    Yielded,
    Interrupted,
}

impl End {
    pub fn outcome(self) -> Outcome {
        match self {
            End::Succeeded => Outcome::Succeeded,
            End::Failed => Outcome::Failed,
            End::Crashed => Outcome::Crashed,
            End::Cancelled => Outcome::Cancelled,
            End::Yielded => Outcome::Yielded,
            End::Interrupted => Outcome::Interrupted,
        }
    }
}

/// Under which lease a request is made: run and epoch as the product has them, the rest for the model.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Fence {
    pub run: u8,
    pub epoch: u8,
    pub assignment: u8,
    pub journal: u8,
}

impl Held {
    pub fn fence(&self) -> Fence {
        Fence { run: self.run, epoch: self.epoch, assignment: self.assignment, journal: self.journal }
    }
}

/// What a worker asks of the server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Request {
    Lease { worker: u8 },
    Heartbeat { worker: u8, fence: Fence },
    Ship { worker: u8, fence: Fence, first: u8, last: u8 },
    Finish { worker: u8, fence: Fence, end: End },
}

impl Request {
    /// Who asks.
    pub fn worker(self) -> u8 {
        match self {
            Request::Lease { worker }
            | Request::Heartbeat { worker, .. }
            | Request::Ship { worker, .. }
            | Request::Finish { worker, .. } => worker,
        }
    }
}

/// A step's name.
#[derive(Clone, Copy)]
pub struct Deed {
    pub what: &'static str,
    /// Of which run or worker.
    pub of: usize,
    pub request: Option<Request>,
}

impl std::fmt::Debug for Deed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.request {
            None => write!(f, "{} {}", self.what, self.of),
            Some(request) => write!(f, "{} {request:?}", self.what),
        }
    }
}

/// Steps from a state, gathered one by one.
pub struct Steps<'a, const RUNS: usize> {
    pub from: &'a State<RUNS>,
    /// Requests on their way at one time, at most.
    pub room: usize,
    pub list: Vec<(Deed, State<RUNS>)>,
}

impl<const RUNS: usize> Steps<'_, RUNS> {
    /// A step that is always possible.
    pub fn add(&mut self, what: &'static str, of: usize, change: impl FnOnce(&mut State<RUNS>)) {
        let mut next = self.from.clone();
        change(&mut next);
        self.list.push((Deed { what, of, request: None }, next));
    }

    /// A step that is about a request.
    pub fn about(&mut self, what: &'static str, request: Request, change: impl FnOnce(&mut State<RUNS>)) {
        self.add(what, 0, change);
        if let Some((deed, _)) = self.list.last_mut() {
            deed.request = Some(request);
        }
    }

    /// A step that uses a misfortune up.
    pub fn misfortune(&mut self, what: &'static str, of: usize, change: impl FnOnce(&mut State<RUNS>)) {
        if self.from.left > 0 {
            self.add(what, of, |next| {
                next.left -= 1;
                change(next);
            });
        }
    }
}

impl<const RUNS: usize> State<RUNS> {
    /// Runs in the queue, workers idle, and so many misfortunes to come. `setbacks` have come before.
    pub fn start(misfortunes: u8, setbacks: i32) -> Self {
        let standing = Standing {
            attempts: 0,
            max_attempts: ATTEMPTS,
            setbacks,
            cancel_requested: false,
            pausing: false,
        };
        let run = Run {
            state: RunState::Queued,
            epoch: 0,
            standing,
            yielding: false,
            lease: None,
            assigned: 0,
            bugs: 0,
            journals: 0,
        };
        State {
            runs: std::array::from_fn(|_| run.clone()),
            devices: [None; WORKERS],
            workers: std::array::from_fn(|_| Worker { agent: true, held: None }),
            line: Vec::new(),
            planned: None,
            server: true,
            fresh: true,
            left: misfortunes,
            wrong: None,
        }
    }

    /// Whether a worker does what it should for a lease, or will when it has asked for it: then only misfortune can make it
    /// run out.
    pub fn is_well(&self, run: usize, lease: &Lease) -> bool {
        let worker = &self.workers[lease.worker as usize];
        let holds = worker
            .held
            .is_some_and(|held| usize::from(held.run) == run && held.assignment == lease.assignment);
        self.server && worker.agent && (holds || lease.shipped == 0)
    }
}
