//! The spec: the typed description of a run. What was POSTed, with every default filled in, so that a spec read
//! years later still says everything that decided the result.

use crate::{
    Analysis, COMMANDS_LABEL, Command, Evaluation, Method, Objective, Resources, Retention, Training,
    WeightSource, Weights,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// One run, described completely. The same document as JSON (API) or TOML (`causeway submit`).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The experiment the run belongs to; made if it does not exist.
    pub experiment: String,
    /// Name of the run; by default method and seed.
    #[serde(default)]
    pub name: String,
    /// What the run does.
    pub kind: Kind,
    /// Seeds everything random: order, initial values, augmentation.
    #[serde(default)]
    pub seed: u64,
    /// Higher goes first in the queue.
    #[serde(default)]
    pub priority: i32,
    /// The project whose share and quota it counts against.
    #[serde(default = "default_project", skip_serializing_if = "is_default_project")]
    pub project: String,
    /// Devices, workers and time.
    #[serde(default, skip_serializing_if = "Resources::is_default")]
    pub resources: Resources,
    /// Runs that must have succeeded before it begins. Runs named under `weights` count without being named here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Uuid>,
    /// Tries before a crashing run is given up. What is no fault of the run's, such as a lost worker, spends none.
    #[serde(default = "default_max_attempts")]
    pub max_attempts: u32,
    /// Labels to find the run by.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Free text.
    #[serde(default)]
    pub note: String,
    /// θ0 and θ1.
    #[serde(default, skip_serializing_if = "Weights::is_none")]
    pub weights: Weights,
    /// What is made trainable (finetune). A pretraining trains everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// The images and their captions (finetune, pretrain).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captions: Option<Captions>,
    /// The weighted sum of losses (finetune, pretrain).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
    /// What holds the encoder near θ0 (finetune).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// The training loop (finetune, pretrain).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
    /// The program (command).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// The α sweep.
    #[serde(default, skip_serializing_if = "Evaluation::is_none")]
    pub evaluation: Evaluation,
    /// What is asked of weights and features after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<Analysis>,
}

/// What a run does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Trains a fresh encoder as a masked autoencoder, keeps encoder and decoder, then evaluates it.
    Pretrain,
    /// Fine-tunes θ0, keeps the checkpoint, then sweeps α.
    Finetune,
    /// Sweeps α between two sets of weights that exist already.
    Evaluate,
    /// Runs a program of one's own.
    Command,
}

/// The image-caption pairs and what reads the captions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Captions {
    /// Name of the captions asset.
    pub asset: String,
    /// Name of the text encoder asset that the contrastive loss needs. Each caption is embedded once, unless it is trained.
    #[serde(default)]
    pub text_encoder: Option<String>,
    /// Train the text encoder along with the image encoder, at the encoder's rate, as FLYP does (arXiv 2212.00638). No
    /// feature rests on it: it is no part of the checkpoint.
    #[serde(default)]
    pub train_text_encoder: bool,
    /// Train on so many of the images only, chosen by `subset_seed`; all by default.
    #[serde(default)]
    pub limit: Option<u64>,
    /// Seed of that choice: apart from the run's seed, so that seeds compare on the same images.
    #[serde(default)]
    pub subset_seed: u64,
    /// Train although some of the images are also in an evaluation dataset.
    #[serde(default)]
    pub allow_leaks: bool,
}

impl Kind {
    /// The word used in SQL, JSON and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Pretrain => "pretrain",
            Kind::Finetune => "finetune",
            Kind::Evaluate => "evaluate",
            Kind::Command => "command",
        }
    }
}

impl Spec {
    /// Names of the assets a worker must hold to work on this run.
    pub fn assets(&self) -> Vec<&str> {
        let sources = [Some(&self.weights.theta0), self.weights.theta1.as_ref()];
        let weights = sources.into_iter().flatten().filter_map(|source| match source {
            WeightSource::Asset(name) => Some(name.as_str()).filter(|name| !name.is_empty()),
            WeightSource::Soup(soup) => soup.greedy_on.as_deref(),
            WeightSource::Blob(_) | WeightSource::Run(_) | WeightSource::File(_) | WeightSource::Fresh(_) => {
                None
            }
        });
        let language_model = self.objective.iter().filter_map(|objective| objective.caption.as_ref());
        let captions = self.captions.iter().flat_map(|captions| {
            std::iter::once(captions.asset.as_str()).chain(captions.text_encoder.as_deref())
        });
        let captions = captions.chain(language_model.map(|caption| caption.language_model.as_str()));
        let datasets = self.evaluation.datasets.iter().map(|dataset| dataset.asset.as_str());
        let method = self.method.iter().flat_map(Method::assets);
        let retention = self.retention.iter().flat_map(Retention::assets);
        let zero_shot = self.evaluation.zero_shot.iter().map(|zero_shot| zero_shot.text_encoder.as_str());
        let command = self.command.iter().flat_map(|command| command.assets.iter().map(String::as_str));
        let evaluation = datasets.chain(zero_shot);
        weights.chain(captions).chain(method).chain(retention).chain(evaluation).chain(command).collect()
    }

    /// The word that names what is trained: the method's, `mae` for a pretraining, `evaluate` where nothing is.
    pub fn trained(&self) -> &'static str {
        match (self.kind, &self.method) {
            (Kind::Pretrain, _) => "mae",
            (Kind::Finetune, Some(method)) => method.as_str(),
            (Kind::Command, _) => "command",
            _ => "evaluate",
        }
    }

    /// The name of a run that is given none.
    pub fn usual_name(&self) -> String {
        format!("{} seed {}", self.trained(), self.seed)
    }

    /// Labels that its workers must have.
    pub fn labels(&self) -> Vec<String> {
        let commands = (self.kind == Kind::Command).then(|| COMMANDS_LABEL.to_owned());
        self.resources.labels.iter().cloned().chain(commands).collect()
    }

    /// Names of the blobs in the server's store that this run reads.
    pub fn blobs(&self) -> Vec<&str> {
        let sources = [Some(&self.weights.theta0), self.weights.theta1.as_ref()];
        let blobs = sources.into_iter().flatten().flat_map(|source| match source {
            WeightSource::Blob(sha256) => std::slice::from_ref(sha256),
            WeightSource::Soup(soup) => &soup.checkpoints,
            WeightSource::Asset(_)
            | WeightSource::Run(_)
            | WeightSource::File(_)
            | WeightSource::Fresh(_) => &[],
        });
        blobs.map(String::as_str).collect()
    }

    /// The runs that must have succeeded before this one begins, each once.
    pub fn waits_for(&self) -> Vec<Uuid> {
        let sources = [Some(&self.weights.theta0), self.weights.theta1.as_ref()];
        let weights = sources.into_iter().flatten().filter_map(|source| match source {
            WeightSource::Run(run) => Some(*run),
            _ => None,
        });
        let mut runs: Vec<Uuid> = self.after.iter().copied().chain(weights).collect();
        runs.sort_unstable();
        runs.dedup();
        runs
    }
}

/// The project there always is.
pub const DEFAULT_PROJECT: &str = "default";

fn default_project() -> String {
    DEFAULT_PROJECT.to_owned()
}

fn is_default_project(name: &str) -> bool {
    name == DEFAULT_PROJECT
}

fn default_max_attempts() -> u32 {
    3
}
