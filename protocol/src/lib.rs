//! What Causeway's server and trainer say to each other: the spec of a run, the states it goes through, the
//! lease a worker holds, and the journal a training process writes. Types and their validation only: no I/O,
//! no async, no tensors, so that both sides can depend on it and neither drags in the other's world.

mod alpha;
mod analysis;
mod best;
mod command;
mod describe;
mod digest;
mod evaluation;
mod journal;
mod lease;
mod method;
mod number;
mod objective;
mod resources;
mod retention;
mod search;
mod spec;
mod state;
mod training;
mod upload;
mod validate;
mod weights;

pub use alpha::Alpha;
pub use analysis::{
    Analysis, AnalysisKind, BlockCka, LayerDistance, LayerSpectrum, Qkv, QueryNeighbours, ShownNeighbour,
    SimilarityAnalysis, SimilarityReport, SpectrumAnalysis, SpectrumReport, SpectrumValues, Tail, TailStatus,
    Tiles,
};
pub use best::{Change, KEEP_POINTS, best_change, goal_and_guard};
pub use command::{COMMANDS_LABEL, Command, CommandLine, Report, ReportLine, ReportToken};
pub use describe::Description;
pub use digest::{hex, selection_half, sha256_hex};
pub use evaluation::{
    Dtype, EvaluatedDataset, Evaluation, Feature, LinearProbe, Positions, Preprocess, Protocol, Readout,
    Role, ZeroShot,
};
pub use journal::{
    BlobRef, Environment, Event, Hits, JournalLine, LogLine, NumericsStamp, Place, PointRecord,
};
pub use journal::{RunProgress, Stream};
pub use lease::{
    AssetSummary, EventBatch, EventsAccepted, FeatureFile, FinishLease, HeartbeatAnswer, HeartbeatRequest,
    KnownPoint, LeaseGrant, LeaseRequest, Order, Outcome, Part, RegisterWorker, RenewedLease, ResumeFrom,
};
pub use method::{
    Adapter, AdapterForm, AdapterInit, BlockExpansion, Buffer, CaptionForm, CrossModal, Film, FilmGenerator,
    Fusion, FusionAttention, Ladder, Lora, LoraTarget, Method, NullText, Program, Reading, Reads, Reprogram,
    Selection, Selective, TokenReplay,
};
pub use number::Number;
pub use objective::{Captioning, Contrastive, Decoder, Objective, Reconstruction, View};
pub use resources::{DEVICES_MAX, DeviceReport, Gang, NODES_MAX, Resources};
pub use retention::{Ewc, FeatureDistillation, L2Sp, Lwf, Retention};
pub use search::{
    Axis, Direction, Search, SearchObjective, SearchPoint, SeriesValue, Strategy, parse_search, point_words,
};
pub use spec::{Captions, DEFAULT_PROJECT, Kind, Spec};
pub use state::{AttemptState, Phase, RunState, WorkerState};
pub use training::{Divergence, Schedule, Training};
pub use upload::{UPLOAD_LENGTH, UPLOAD_OFFSET, UPLOAD_PIECE_BYTES};
pub use validate::{Problem, parse_spec};
pub use weights::{Architecture, Soup, WeightSource, Weights};
