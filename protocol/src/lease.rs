//! The words between a worker's agent and the server. A lease is the right to work on one attempt until it
//! expires; its epoch is the fence that every write carries.

use crate::{Alpha, AnalysisKind, BlobRef, JournalLine, LogLine, Phase, Spec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// A worker makes itself known; again after each start and whenever its assets change.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterWorker {
    /// The worker's id; made once and kept on its disk.
    pub id: Uuid,
    /// Name on pages.
    pub name: String,
    /// Host name.
    pub host: String,
    /// Version of `causeway-trainer`.
    pub version: String,
    /// Device names, for example `cpu:0` or `cuda:1`; a lease takes one.
    pub devices: Vec<String>,
    /// The assets under its data folders.
    pub assets: Vec<AssetSummary>,
    /// It takes no new work: it is ending.
    #[serde(default)]
    pub draining: bool,
}

/// What a worker tells of an asset it holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AssetSummary {
    /// Name that specs use.
    pub name: String,
    /// `weights`, `text_encoder`, `language_model`, `captions` or `dataset`.
    pub kind: String,
    /// As figures show it.
    pub title: String,
    /// Licence, SPDX where possible.
    pub licence: String,
    /// Where it comes from.
    pub source: String,
    /// sha256 of its manifest.
    pub digest: String,
    /// Images or pairs it holds; 0 for weights.
    pub images: u64,
}

/// "I have these devices; what shall I do?" Held open until there is an answer or `wait_ms` have passed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// The worker.
    pub worker_id: Uuid,
    /// Leases the agent is working on; a lease that is not among them is granted again.
    pub held: Vec<Uuid>,
    /// How long to wait for work, at most 30,000.
    pub wait_ms: u64,
}

/// The right to work on one attempt.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LeaseGrant {
    /// The lease.
    pub id: Uuid,
    /// Its run.
    pub run_id: Uuid,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// The fence; monotone per run.
    pub epoch: i64,
    /// The device.
    pub device: String,
    /// What to do.
    pub spec: Spec,
    /// Where to begin.
    pub phase: Phase,
    /// The newest resume state, if training was interrupted.
    pub resume: Option<ResumeFrom>,
    /// The checkpoint to evaluate, if training is over.
    pub checkpoint: Option<BlobRef>,
    /// Points that exist already and need no computing.
    pub known_points: Vec<KnownPoint>,
    /// Which part of an evaluation this run is, if it is one: it brings features and no points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// Features that the parts of this run have computed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<FeatureFile>,
    /// Analyses that earlier attempts have told.
    #[serde(default)]
    pub analysed: Vec<AnalysisKind>,
    /// Milliseconds until the lease expires unless renewed.
    pub expires_in_ms: u64,
}

/// A point that exists already.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
pub struct KnownPoint {
    /// Digest of θ0.
    pub backbone: String,
    /// Digest of the checkpoint; none at α = 0.
    pub checkpoint: Option<String>,
    /// Digest of the dataset.
    pub dataset: String,
    /// Id of the protocol.
    pub protocol: String,
    /// α.
    pub alpha: Alpha,
    /// Of the queries that an α may be chosen on ([`crate::selection_half`]), how many are right. Told where the run
    /// refines its α and this point has a say in which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selected: Option<u32>,
}

/// One of the shares that an evaluation's images are divided into.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Part {
    /// Which, from 0.
    pub index: u32,
    /// How many there are.
    pub of: u32,
}

/// Features of consecutive images of a dataset, and the file that holds them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FeatureFile {
    /// What they are features of and what made them, in the trainer's words. The server passes it on.
    #[schema(value_type = Object)]
    pub key: serde_json::Value,
    /// The file.
    pub blob: BlobRef,
}

/// A state to go on from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ResumeFrom {
    /// Steps done.
    pub step: u64,
    /// The file.
    pub blob: BlobRef,
}

/// "Still here." Held open up to `wait_ms` so that an order to stop arrives at once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatRequest {
    /// The fence.
    pub epoch: i64,
    /// How long to wait for an order, at most 30,000.
    pub wait_ms: u64,
}

/// What the worker is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Go on.
    Continue,
    /// End the training process and finish the lease as cancelled.
    Stop,
}

/// Answer to a heartbeat.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HeartbeatAnswer {
    /// What to do.
    pub order: Order,
    /// Milliseconds until the lease expires unless renewed.
    pub expires_in_ms: u64,
}

/// The state of a lease an agent asks about after a restart.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RenewedLease {
    /// The last journal line the server has.
    pub shipped_seq: u64,
    /// Milliseconds until the lease expires unless renewed.
    pub expires_in_ms: u64,
}

/// Journal lines and log lines, in order.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EventBatch {
    /// The fence.
    pub epoch: i64,
    /// Journal lines; those the server has already are skipped, a gap is refused. At most 1,000.
    pub lines: Vec<JournalLine>,
    /// Printed lines; those the server has already are skipped. At most 1,000.
    #[serde(default)]
    pub logs: Vec<LogLine>,
}

/// Answer to a batch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct EventsAccepted {
    /// The last journal line the server has.
    pub shipped_seq: u64,
}

/// How an attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everything was done.
    Succeeded,
    /// It failed, and would fail again: a NaN loss, a corrupt file, a spec that does not fit the data.
    Failed,
    /// Its process died; another attempt may do better.
    Crashed,
    /// It was told to stop.
    Cancelled,
    /// Training is over and the evaluation's parts take over.
    HandedOver,
    /// Its worker had to leave, and it went with its state kept: another attempt goes on from there.
    Yielded,
}

/// The end of an attempt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FinishLease {
    /// The fence.
    pub epoch: i64,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, in a sentence; empty on success.
    #[serde(default)]
    pub reason: String,
    /// Exit code of the process, if it exited.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Signal that ended the process, if one did.
    #[serde(default)]
    pub signal: Option<i32>,
}
