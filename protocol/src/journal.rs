//! The journal: the hinge of reliability. A training process has no network; it appends one JSON line per event,
//! numbered from 1, to `journal.jsonl` in its attempt's folder. The agent ships the lines in order, and the
//! server takes each line at most once. Without a server the same file is what a person reads.

use crate::{Alpha, FeatureFile, Number, Phase, Protocol, SimilarityReport, SpectrumReport, Training, hex};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use utoipa::{PartialSchema, ToSchema, openapi};

/// One line of the journal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct JournalLine {
    /// 1, 2, 3, … without gaps within an attempt.
    pub seq: u64,
    /// When it happened, on the worker's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Where a line stands to those that the server has taken: of the lines of an attempt each is taken once, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// It has been taken.
    Known,
    /// It is the one that follows.
    Next,
    /// Others are missing before it.
    Gap,
}

impl Place {
    /// The place of line `seq` after line `shipped`, the last that was taken.
    pub fn of(seq: u64, shipped: u64) -> Place {
        match seq {
            seq if seq <= shipped => Place::Known,
            seq if seq == shipped + 1 => Place::Next,
            _ => Place::Gap,
        }
    }
}

/// What happened in a training process.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// First line of an attempt.
    Started {
        /// What the attempt runs on.
        environment: Environment,
        /// The phase it begins in.
        phase: Phase,
        /// Steps that earlier attempts have done; their values beyond it are hidden from now on.
        resumed_step: u64,
    },
    /// The encoder is loaded.
    Backbone {
        /// sha256 over the canonical tensors of θ0.
        digest: String,
        /// Number of values in θ0.
        parameters: u64,
        /// Number of values that training may change, added tensors included, projections not.
        trainable: u64,
    },
    /// The captions have been read, and their images compared with the evaluation's.
    Captions {
        /// Name of the asset.
        asset: String,
        /// sha256 over the ordered (pixel sha256, caption) list.
        digest: String,
        /// Images to train on.
        images: u64,
        /// Distinct captions.
        distinct: u64,
    },
    /// The attempt enters a phase.
    Phase {
        /// The phase that begins.
        phase: Phase,
    },
    /// Values of metrics at a step.
    Metrics {
        /// Optimiser steps done.
        step: u64,
        /// Value by metric name.
        #[serde(with = "crate::number::by_name")]
        #[schema(value_type = BTreeMap<String, Number>)]
        values: BTreeMap<String, f64>,
    },
    /// Values of metrics at many steps, column by column: what many lines of `metrics` say, in a fraction of the bytes
    /// and of the work.
    Values {
        /// Steps, ascending where possible.
        steps: Vec<u64>,
        /// Which of the values at its step each is, from 0: more than one value of a metric at a step need numbers.
        #[serde(default, skip_serializing_if = "is_zero")]
        n: u32,
        /// By metric name as many values as there are steps.
        values: BTreeMap<String, Vec<Number>>,
    },
    /// Training diverged and goes on from an earlier step with lower rates: the values beyond that step are taken
    /// back, and their steps come again.
    RolledBack {
        /// The step after which training goes on.
        step: u64,
        /// Rollbacks of this training so far, this one included.
        rollbacks: u32,
        /// What diverged, in a sentence.
        reason: String,
    },
    /// How far the phase is.
    Progress(RunProgress),
    /// A state from which another attempt can go on. Its blob is uploaded before this line is shipped.
    ResumeState {
        /// Steps done.
        step: u64,
        /// The file.
        blob: BlobRef,
    },
    /// The weights training ended with. Its blob is uploaded before this line is shipped.
    Checkpoint {
        /// Steps done.
        step: u64,
        /// The file; its sha256 is the checkpoint's digest.
        blob: BlobRef,
        /// Digest of θ0.
        backbone: String,
        /// The method, by its word.
        method: String,
    },
    /// A dataset of the evaluation has been read.
    Dataset {
        /// Name of the asset.
        asset: String,
        /// sha256 over its ordered (pixel sha256, label, split) list.
        digest: String,
        /// As figures show it.
        title: String,
        /// Licence of the images, SPDX where possible.
        licence: String,
        /// Where the images come from.
        source: String,
        /// Images that are scored.
        queries: u32,
        /// Images that are neighbours.
        bank: u32,
        /// Whether the two are the same images, each left out of its own neighbours.
        leave_one_out: bool,
        /// Class names in label order.
        classes: Vec<String>,
        /// Of the scored images, how many are of each class.
        queries_per_class: Vec<u32>,
    },
    /// Features of a share of a dataset's images. Their file is uploaded before this line is shipped.
    Features(Box<FeatureFile>),
    /// One point of a curve. Its protocol comes with it, so that the line stands alone.
    Point(Box<PointRecord>),
    /// The spectra of the line's layers.
    Spectrum(Box<SpectrumReport>),
    /// How similar θ_α is to θ0. Its small images are uploaded before this line is shipped.
    Similarity(Box<SimilarityReport>),
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// One point: accuracy of one α on one dataset under one protocol.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PointRecord {
    /// Digest of θ0.
    pub backbone: String,
    /// Digest of the checkpoint; none at α = 0, which is the bare backbone and belongs to no run.
    pub checkpoint: Option<String>,
    /// Digest of the dataset.
    pub dataset: String,
    /// The protocol.
    pub protocol: Protocol,
    /// α.
    pub alpha: Alpha,
    /// Images scored.
    pub n: u32,
    /// Images whose first class is right.
    pub correct: u32,
    /// Images whose label is among the first five classes.
    pub correct_top5: u32,
    /// Of each class, images whose first class is right.
    pub correct_per_class: Vec<u32>,
    /// Which images are right: what paired comparisons need.
    pub hits: Hits,
    /// What computed it.
    pub stamp: NumericsStamp,
}

/// What computed a number. Equal stamps promise equal bits.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NumericsStamp {
    /// The GPU's model, or the processor's with its family and model number: what decides which kernels compute.
    pub device: String,
    /// Version of the trainer.
    #[serde(default)]
    pub version: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// Intra-op threads.
    pub threads: u32,
    /// Images per forward pass.
    pub batch_size: u32,
}

/// One bit per query in dataset order, least significant bit first; lower-case hex on the wire.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hits(pub Vec<u8>);

impl Hits {
    /// Packs one flag per query.
    pub fn from_flags(flags: &[bool]) -> Hits {
        let mut bytes = vec![0u8; flags.len().div_ceil(8)];
        for (index, _) in flags.iter().enumerate().filter(|(_, hit)| **hit) {
            bytes[index / 8] |= 1 << (index % 8);
        }
        Hits(bytes)
    }

    /// Whether query `index` was right; false beyond the end.
    pub fn get(&self, index: usize) -> bool {
        self.0.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
    }

    /// Number of right queries.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|byte| byte.count_ones()).sum()
    }

    /// Number of right queries among those that are marked.
    pub fn count_among(&self, marked: &[bool]) -> u32 {
        marked.iter().enumerate().filter(|(query, marked)| **marked && self.get(*query)).count() as u32
    }
}

impl Serialize for Hits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Hits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if !text.is_ascii() || text.len() % 2 == 1 {
            return Err(D::Error::custom("hits must be an even number of hex digits"));
        }
        let bytes = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16));
        bytes.collect::<Result<_, _>>().map(Hits).map_err(D::Error::custom)
    }
}

impl PartialSchema for Hits {
    fn schema() -> openapi::RefOr<openapi::schema::Schema> {
        openapi::ObjectBuilder::new()
            .schema_type(openapi::schema::Type::String)
            .description(Some("One bit per query in dataset order, least significant first, as hex"))
            .into()
    }
}

impl ToSchema for Hits {}

/// A file named by its contents.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BlobRef {
    /// sha256, 64 lower-case hex digits.
    pub sha256: String,
    /// Size, bytes.
    pub bytes: u64,
    /// File name inside the attempt's folder; where the agent finds it.
    pub file: String,
}

/// How far a phase is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RunProgress {
    /// The phase.
    pub phase: Phase,
    /// Units done: steps in training, forward passes of one image in evaluation. There the passes that share their first
    /// blocks advance it as far as their work goes, all passes of a sweep together being `total`.
    pub done: u64,
    /// Units in all.
    pub total: u64,
    /// Images per second lately.
    pub images_per_second: f64,
    /// What is being done, in words: "Fashion-MNIST, batch 2 of 7".
    pub doing: String,
}

impl RunProgress {
    /// What a command says of itself, which may be more than it has to do.
    pub fn of_command(done: u64, total: u64) -> RunProgress {
        RunProgress {
            phase: Phase::Train,
            done: done.min(total),
            total,
            images_per_second: 0.0,
            doing: "the command reports".to_owned(),
        }
    }

    /// Seconds until the phase's end at the present rate; none where nothing has been measured yet.
    pub fn seconds_left(&self, training: Option<&Training>) -> Option<f64> {
        let images = match (self.phase, training) {
            (Phase::Train, Some(training)) => f64::from(training.batch_size) * f64::from(training.accumulate),
            _ => 1.0,
        };
        let rest = self.total.saturating_sub(self.done) as f64 * images;
        (self.images_per_second > 0.0).then(|| rest / self.images_per_second)
    }
}

/// What an attempt runs on, so that every number can be traced.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Environment {
    /// Version of `causeway-trainer`.
    pub version: String,
    /// Commit it was built from, or `unknown`.
    pub commit: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// Host name.
    pub host: String,
    /// `cpu`, or the GPU's model.
    pub device: String,
    /// Processor model.
    pub cpu: String,
    /// Intra-op threads.
    pub threads: u32,
}

/// Where a log line came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line that the training process printed. Named by its place in the file, so that a line sent twice is one line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// The file.
    pub stream: Stream,
    /// Byte offset of the line's beginning.
    pub offset: u64,
    /// The line without its end.
    pub text: String,
}

impl Stream {
    /// The word used in SQL, JSON and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_keep_their_order_over_the_wire() {
        let flags = [true, false, false, true, false, false, false, false, false, true];
        let hits = Hits::from_flags(&flags);
        let text = serde_json::to_string(&hits).unwrap();
        assert_eq!(text, "\"0902\"");
        let back: Hits = serde_json::from_str(&text).unwrap();
        assert!(flags.iter().enumerate().all(|(index, hit)| back.get(index) == *hit));
        assert_eq!(back.count(), 3);
        assert!(serde_json::from_str::<Hits>("\"0é\"").is_err());
    }

    #[test]
    fn what_is_left_counts_every_image_of_a_step() {
        let progress = |phase, images_per_second| RunProgress {
            phase,
            done: 10,
            total: 40,
            images_per_second,
            doing: String::new(),
        };
        let training =
            serde_json::json!({"steps": 40, "batch_size": 8, "accumulate": 2, "learning_rate": 1e-3});
        let training: Training = serde_json::from_value(training).unwrap();
        let left = |phase, rate| progress(phase, rate).seconds_left(Some(&training));
        assert_eq!(left(Phase::Train, 16.0), Some(30.0));
        assert_eq!(left(Phase::Evaluate, 15.0), Some(2.0));
        assert_eq!(left(Phase::Evaluate, 0.0), None);
    }

    #[test]
    fn a_line_reads_back_as_it_was_written() {
        let line = JournalLine {
            seq: 7,
            at: OffsetDateTime::UNIX_EPOCH,
            event: Event::Metrics { step: 3, values: BTreeMap::from([("loss".to_owned(), 2.5)]) },
        };
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(
            text,
            r#"{"seq":7,"at":"1970-01-01T00:00:00Z","event":"metrics","step":3,"values":{"loss":2.5}}"#
        );
        assert_eq!(serde_json::from_str::<JournalLine>(&text).unwrap(), line);
    }

    #[test]
    fn many_steps_are_one_line_and_an_infinite_loss_is_told() {
        let columns = BTreeMap::from([("loss".to_owned(), vec![Number(2.5), Number(f64::INFINITY)])]);
        let line = JournalLine {
            seq: 8,
            at: OffsetDateTime::UNIX_EPOCH,
            event: Event::Values { steps: vec![3, 4], n: 0, values: columns },
        };
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(
            text,
            r#"{"seq":8,"at":"1970-01-01T00:00:00Z","event":"values","steps":[3,4],"values":{"loss":[2.5,"Infinity"]}}"#
        );
        assert_eq!(serde_json::from_str::<JournalLine>(&text).unwrap(), line);
        let event = Event::Metrics { step: 3, values: BTreeMap::from([("loss".to_owned(), f64::INFINITY)]) };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(text, r#"{"event":"metrics","step":3,"values":{"loss":"Infinity"}}"#);
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
}
