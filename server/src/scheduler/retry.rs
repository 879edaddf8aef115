//! The rule of retries: what the end of an attempt makes of its run. It tells a run's own failures from what happens around
//! it, and knows neither clock nor database, so that every case of it can be gone through (`tests/causeway/model`).

use causeway_protocol::{AttemptState, Outcome, RunState};

/// Ends in a row that were no fault of the run's, before it is given up: something about it kills its workers.
pub const SETBACKS_MAX: i32 = 10;

/// How an attempt ended, for the rule of retries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// Its own process: a crash, an error. Spends one of the run's attempts.
    Bug,
    /// Its worker went silent.
    LostWorker,
    /// Its worker shut down, or its host ran out of memory.
    Interrupted,
    /// It gave its devices back on request.
    Yielded,
    /// It was asked to yield and did not in time.
    NotYielded,
}

impl Cause {
    /// The word in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Bug => "bug",
            Cause::LostWorker => "lost_worker",
            Cause::Interrupted => "interrupted",
            Cause::Yielded => "yielded",
            Cause::NotYielded => "not_yielded",
        }
    }
}

/// What a worker's word about an end means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// For the attempt.
    pub attempt: AttemptState,
    /// Why it ended, where that is worth a word.
    pub cause: Option<Cause>,
    /// For the run.
    pub run: Then,
}

/// What becomes of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    /// It has ended.
    Ends(RunState),
    /// It is given back, and [`Standing::after`] says where to.
    GivenBack(Cause),
}

/// The verdict on an outcome.
pub fn verdict(outcome: Outcome, cancel_requested: bool) -> Verdict {
    let (attempt, cause, run) = match outcome {
        Outcome::Succeeded => (AttemptState::Succeeded, None, Then::Ends(RunState::Succeeded)),
        Outcome::HandedOver => (AttemptState::Succeeded, None, Then::GivenBack(Cause::Yielded)),
        Outcome::Failed => (AttemptState::Failed, Some(Cause::Bug), Then::Ends(RunState::Failed)),
        Outcome::Crashed => (AttemptState::Failed, Some(Cause::Bug), Then::GivenBack(Cause::Bug)),
        Outcome::Cancelled if cancel_requested => {
            (AttemptState::Cancelled, None, Then::Ends(RunState::Cancelled))
        }
        // Nobody asked for it.
        Outcome::Cancelled => (AttemptState::Cancelled, None, Then::GivenBack(Cause::Bug)),
        Outcome::Yielded => (AttemptState::Yielded, Some(Cause::Yielded), Then::GivenBack(Cause::Yielded)),
        Outcome::Interrupted => {
            (AttemptState::Lost, Some(Cause::Interrupted), Then::GivenBack(Cause::Interrupted))
        }
    };
    Verdict { attempt, cause, run }
}

/// What a run has spent, and what is asked of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Standing {
    /// Attempts, the present one among them.
    pub attempts: i32,
    /// Attempts that it may spend.
    pub max_attempts: i32,
    /// Ends in a row that were no fault of its own.
    pub setbacks: i32,
    /// Somebody wants it to end.
    pub cancel_requested: bool,
    /// Somebody wants it set aside.
    pub pausing: bool,
}

impl Standing {
    /// Counts what the end of the present attempt costs, and says what the run becomes. `reason` is that of the attempt;
    /// the answer's is that of the run.
    pub fn after(mut self, cause: Cause, reason: &str) -> (Standing, RunState, String) {
        match cause {
            Cause::Bug => {}
            Cause::Yielded | Cause::NotYielded => self.attempts -= 1,
            Cause::LostWorker | Cause::Interrupted => {
                self.attempts -= 1;
                self.setbacks += 1;
            }
        }
        let (state, why) = if self.cancel_requested {
            (RunState::Cancelled, "cancelled".to_owned())
        } else if cause == Cause::Bug && self.attempts >= self.max_attempts {
            (RunState::Failed, format!("{reason}; all {} attempts are used up", self.max_attempts))
        } else if self.setbacks >= SETBACKS_MAX {
            (RunState::Lost, format!("{reason}; {} times in a row without getting further", self.setbacks))
        } else if self.pausing {
            (RunState::Paused, String::new())
        } else {
            (RunState::Queued, String::new())
        };
        (self, state, why)
    }
}
