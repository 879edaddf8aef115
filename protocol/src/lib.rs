//! What Causeway's server and trainer say to each other: the spec of a run, the states it goes through, the
//! lease a worker holds, and the journal a training process writes. Types and their validation only: no I/O,
//! no async, no tensors, so that both sides can depend on it and neither drags in the other's world.

mod alpha;
mod evaluation;
mod journal;
mod lease;
mod spec;
mod state;
mod validate;

pub use alpha::Alpha;
pub use evaluation::{Dtype, EvaluatedDataset, Evaluation, Feature, Positions, Preprocess, Protocol, Role};
pub use journal::{BlobRef, Environment, Event, Hits, JournalLine, LogLine, NumericsStamp, PointRecord};
pub use journal::{RunProgress, Stream, hex};
pub use lease::{
    AssetSummary, EventBatch, EventsAccepted, FinishLease, HeartbeatAnswer, HeartbeatRequest, KnownPoint,
    LeaseGrant, LeaseRequest, Order, Outcome, RegisterWorker, RenewedLease, ResumeFrom,
};
pub use spec::{
    AdapterInit, Architecture, Captioning, Captions, Contrastive, Decoder, Divergence, Kind, Method,
    Objective, Reconstruction, Schedule, Spec, Training, View, WeightSource, Weights,
};
pub use state::{AttemptState, Phase, RunState, WorkerState};
pub use validate::{Problem, parse_spec};
