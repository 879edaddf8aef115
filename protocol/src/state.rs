//! The states of runs, attempts and workers, and which may follow which. The server changes a run's state in
//! one function, and that function asks `RunState::may_become`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a run is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Waits for a device.
    Queued,
    /// An attempt holds, or is about to pick up, its lease.
    Running,
    /// Set aside by hand; it keeps what it has done and goes on when told to.
    Paused,
    /// Ended well. Terminal.
    Succeeded,
    /// Ended with a reason that another attempt would meet again, or no attempts are left. Terminal.
    Failed,
    /// Somebody stopped it. Terminal.
    Cancelled,
    /// Its workers disappeared and no attempts are left. Terminal.
    Lost,
}

impl RunState {
    /// Every value, in declaration order.
    pub const ALL: &'static [RunState] = &[
        RunState::Queued,
        RunState::Running,
        RunState::Paused,
        RunState::Succeeded,
        RunState::Failed,
        RunState::Cancelled,
        RunState::Lost,
    ];

    /// The word used in SQL, JSON and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            RunState::Queued => "queued",
            RunState::Running => "running",
            RunState::Paused => "paused",
            RunState::Succeeded => "succeeded",
            RunState::Failed => "failed",
            RunState::Cancelled => "cancelled",
            RunState::Lost => "lost",
        }
    }
}

impl std::fmt::Display for RunState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for RunState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = RunState::ALL.iter().find(|value| value.as_str() == text);
        found.copied().ok_or_else(|| format!("`{text}` is not one of the values of RunState"))
    }
}

/// Where one try at a run is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    /// Given to a worker that has not picked it up yet.
    Assigned,
    /// A worker holds its lease.
    Running,
    /// Ended well.
    Succeeded,
    /// Its process ended with an error.
    Failed,
    /// Stopped on request.
    Cancelled,
    /// Its lease ran out, or what is around it ended it.
    Lost,
    /// It saved its state and gave its devices back.
    Yielded,
}

impl AttemptState {
    /// Every value, in declaration order.
    pub const ALL: &'static [AttemptState] = &[
        AttemptState::Assigned,
        AttemptState::Running,
        AttemptState::Succeeded,
        AttemptState::Failed,
        AttemptState::Cancelled,
        AttemptState::Lost,
        AttemptState::Yielded,
    ];

    /// The word used in SQL, JSON and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            AttemptState::Assigned => "assigned",
            AttemptState::Running => "running",
            AttemptState::Succeeded => "succeeded",
            AttemptState::Failed => "failed",
            AttemptState::Cancelled => "cancelled",
            AttemptState::Lost => "lost",
            AttemptState::Yielded => "yielded",
        }
    }
}

impl std::fmt::Display for AttemptState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for AttemptState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = AttemptState::ALL.iter().find(|value| value.as_str() == text);
        found.copied().ok_or_else(|| format!("`{text}` is not one of the values of AttemptState"))
    }
}

/// What the server thinks of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Heard of within a lease period.
    Ready,
    /// Finishing what it has; it takes no new work.
    Draining,
    /// Silent for longer than a heartbeat; its leases still hold.
    Suspect,
    /// Silent for so long that its leases ran out. It may come back.
    Lost,
}

impl WorkerState {
    /// Every value, in declaration order.
    pub const ALL: &'static [WorkerState] =
        &[WorkerState::Ready, WorkerState::Draining, WorkerState::Suspect, WorkerState::Lost];

    /// The word used in SQL, JSON and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            WorkerState::Ready => "ready",
            WorkerState::Draining => "draining",
            WorkerState::Suspect => "suspect",
            WorkerState::Lost => "lost",
        }
    }
}

impl std::fmt::Display for WorkerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for WorkerState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = WorkerState::ALL.iter().find(|value| value.as_str() == text);
        found.copied().ok_or_else(|| format!("`{text}` is not one of the values of WorkerState"))
    }
}

/// The part of a run that an attempt works on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Fine-tuning, up to the checkpoint.
    Train,
    /// The α sweep of a checkpoint.
    Evaluate,
}

impl Phase {
    /// Every value, in declaration order.
    pub const ALL: &'static [Phase] = &[Phase::Train, Phase::Evaluate];

    /// The word used in SQL, JSON and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Train => "train",
            Phase::Evaluate => "evaluate",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Phase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Phase::ALL.iter().find(|value| value.as_str() == text);
        found.copied().ok_or_else(|| format!("`{text}` is not one of the values of Phase"))
    }
}

impl RunState {
    /// A terminal state never changes.
    pub fn is_terminal(self) -> bool {
        matches!(self, RunState::Succeeded | RunState::Failed | RunState::Cancelled | RunState::Lost)
    }

    /// The transition table: a run is queued, runs, may go back to the queue for another attempt, may be set aside, and
    /// ends once.
    pub fn may_become(self, next: RunState) -> bool {
        use RunState::{Cancelled, Failed, Lost, Paused, Queued, Running, Succeeded};
        match self {
            Queued => matches!(next, Running | Paused | Cancelled),
            Paused => matches!(next, Queued | Cancelled),
            Running => matches!(next, Queued | Paused | Succeeded | Failed | Cancelled | Lost),
            Succeeded | Failed | Cancelled | Lost => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_table_holds_exactly_these_moves() {
        let mut moves = Vec::new();
        for from in RunState::ALL {
            for to in RunState::ALL {
                if from.may_become(*to) {
                    moves.push(format!("{from}>{to}"));
                }
            }
        }
        assert_eq!(
            moves.join(" "),
            "queued>running queued>paused queued>cancelled running>queued running>paused running>succeeded \
             running>failed running>cancelled running>lost paused>queued paused>cancelled"
        );
    }

    #[test]
    fn words_come_back_as_the_states_they_name() {
        for state in RunState::ALL {
            assert_eq!(state.as_str().parse::<RunState>().unwrap(), *state);
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        assert!("finished".parse::<RunState>().is_err());
    }
}
