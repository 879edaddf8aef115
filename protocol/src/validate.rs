//! The rules of a spec, all checked at once, each complaint naming the field and the rule it breaks. The server
//! answers them as problem+json, the trainer prints them.

use crate::{
    Alpha, Architecture, DEVICES_MAX, Decoder, Kind, NODES_MAX, Resources, Spec, View, WeightSource,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod analysis;
mod method;
mod readout;

/// A field that breaks a rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Path of the field, for example `training.learning_rate`.
    pub field: String,
    /// What must hold.
    pub rule: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` {}", self.field, self.rule)
    }
}

/// Reads a spec from a JSON value (TOML is turned into one by its reader), fills in every default and checks every
/// rule.
///
/// # Errors
/// Every problem found; an unreadable document gives one.
pub fn parse_spec(document: serde_json::Value) -> Result<Spec, Vec<Problem>> {
    let alphas_given = !document["evaluation"]["alphas"].is_null();
    let mut spec: Spec = serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string();
        vec![Problem {
            field: if path == "." { "spec".to_owned() } else { path },
            rule: error.inner().to_string(),
        }]
    })?;
    if spec.name.is_empty() {
        spec.name = format!("{} seed {}", spec.trained(), spec.seed);
    }
    let image_size = spec.training.as_ref().map_or(0, |training| training.image_size);
    if let Some(method) = &mut spec.method {
        method.fill_in(image_size);
    }
    if spec.kind == Kind::Pretrain && !alphas_given {
        // Nothing lies between random values and a trained encoder.
        spec.evaluation.alphas = vec![Alpha::ZERO, Alpha::ONE];
    }
    let problems = spec.problems();
    if problems.is_empty() { Ok(spec) } else { Err(problems) }
}

/// Longest name, tag or other short text, characters.
const TEXT_MAX: usize = 200;
/// Longest note, characters.
const NOTE_MAX: usize = 10_000;
/// Most tags on a run.
const TAGS_MAX: usize = 50;
/// What is wrong with a visible view where nothing is hidden.
const VISIBLE_ALONE: &str =
    "can be `visible` only beside objective.reconstruction, which decides what is visible";
/// Most arguments of a command, and most variables of its environment.
const ARGUMENTS_MAX: usize = 1000;
/// Longest command, bytes.
const COMMAND_BYTES_MAX: usize = 100_000;
/// Most runs that one waits for.
const AFTER_MAX: usize = 100;
/// Most datasets in one evaluation.
const DATASETS_MAX: usize = 32;
/// Most runs that an evaluation is spread over.
const PARTS_MAX: f64 = 64.0;
/// Most α in one sweep.
const ALPHAS_MAX: usize = 101;
/// Most rounds of refinement: a step of 0.1 is 0.0004 after eight, and α has four decimals.
const REFINE_MAX: u32 = 8;

impl Spec {
    /// Every rule this spec breaks.
    pub fn problems(&self) -> Vec<Problem> {
        let mut list = Problems(Vec::new());
        list.text("experiment", &self.experiment, 1);
        list.text("name", &self.name, 1);
        list.when(
            self.note.chars().count() > NOTE_MAX,
            "note",
            format!("must have at most {NOTE_MAX} characters"),
        );
        list.when(self.tags.len() > TAGS_MAX, "tags", format!("must be at most {TAGS_MAX}"));
        for (at, tag) in self.tags.iter().enumerate() {
            list.text(&format!("tags[{at}]"), tag, 1);
        }
        list.within("max_attempts", f64::from(self.max_attempts), 1.0, 20.0);
        list.within("priority", f64::from(self.priority), -1000.0, 1000.0);
        list.when(
            self.seed > i64::MAX as u64,
            "seed",
            format!("must be at most {}, the largest that JSON and SQL both keep", i64::MAX),
        );
        list.text("project", &self.project, 1);
        self.resources_problems(&mut list);
        if self.kind == Kind::Command {
            self.command_problems(&mut list);
            return list.0;
        }
        list.when(
            self.command.is_some(),
            "command",
            format!("has no meaning for kind = \"{}\"; leave it out", self.kind.as_str()),
        );
        list.source("weights.theta0", &self.weights.theta0);
        list.when(
            self.kind != Kind::Pretrain && matches!(self.weights.theta0, WeightSource::Fresh(_)),
            "weights.theta0.fresh",
            "is for kind = \"pretrain\"; name an asset or a blob".into(),
        );
        match self.kind {
            Kind::Pretrain | Kind::Finetune => self.training_problems(&mut list),
            Kind::Evaluate => self.evaluate_problems(&mut list),
            Kind::Command => {}
        }
        self.evaluation_problems(&mut list);
        self.analysis_problems(&mut list);
        list.0
    }

    fn resources_problems(&self, list: &mut Problems) {
        let Resources { gpus, memory_gb, labels, nodes, minutes } = &self.resources;
        if self.kind == Kind::Command {
            list.within("resources.gpus", f64::from(*gpus), 1.0, f64::from(DEVICES_MAX));
            list.within("resources.nodes", f64::from(*nodes), 1.0, f64::from(NODES_MAX));
        } else {
            let kind = self.kind.as_str();
            list.when(
                *gpus != 1,
                "resources.gpus",
                format!("must be 1: a {kind} run computes on one device"),
            );
            list.when(
                *nodes != 1,
                "resources.nodes",
                format!("must be 1: a {kind} run computes on one worker"),
            );
        }
        if let Some(gb) = memory_gb {
            list.within("resources.memory_gb", *gb, 0.001, 1e6);
        }
        list.when(labels.len() > TAGS_MAX, "resources.labels", format!("must be at most {TAGS_MAX}"));
        for (at, label) in labels.iter().enumerate() {
            list.text(&format!("resources.labels[{at}]"), label, 1);
        }
        if let Some(minutes) = minutes {
            list.within("resources.minutes", f64::from(*minutes), 1.0, 525_600.0);
        }
        list.when(self.after.len() > AFTER_MAX, "after", format!("must be at most {AFTER_MAX}"));
    }

    fn command_problems(&self, list: &mut Problems) {
        let given = [
            ("weights", !self.weights.is_none()),
            ("method", self.method.is_some()),
            ("captions", self.captions.is_some()),
            ("objective", self.objective.is_some()),
            ("retention", self.retention.is_some()),
            ("training", self.training.is_some()),
            ("evaluation", !self.evaluation.is_none()),
            ("analysis", self.analysis.is_some()),
        ];
        for (field, given) in given {
            list.when(given, field, "has no meaning for kind = \"command\"; leave it out".into());
        }
        let Some(command) = &self.command else {
            return list.when(true, "command", "must be given for kind = \"command\"".into());
        };
        list.within("command.argv", command.argv.len() as f64, 1.0, ARGUMENTS_MAX as f64);
        let program = command.argv.first().is_some_and(|program| !program.is_empty());
        list.when(!program, "command.argv[0]", "must name a program".into());
        let bytes: usize = command.argv.iter().map(String::len).sum();
        list.when(
            bytes > COMMAND_BYTES_MAX,
            "command.argv",
            format!("must have at most {COMMAND_BYTES_MAX} bytes in all"),
        );
        list.when(
            command.argv.iter().any(|argument| argument.contains('\0')),
            "command.argv",
            "must have no NUL characters".into(),
        );
        list.when(
            command.environment.len() > ARGUMENTS_MAX,
            "command.environment",
            format!("must be at most {ARGUMENTS_MAX} variables"),
        );
        for (name, value) in &command.environment {
            let field = format!("command.environment.{name}");
            let named = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            list.when(!named, &field, "must be named with letters, digits and _".into());
            list.when(name.starts_with("CAUSEWAY_"), &field, "is Causeway's own".into());
            list.when(value.contains('\0'), &field, "must have no NUL characters".into());
        }
        for (at, asset) in command.assets.iter().enumerate() {
            list.text(&format!("command.assets[{at}]"), asset, 1);
        }
    }

    fn training_problems(&self, list: &mut Problems) {
        let kind = self.kind.as_str();
        let must = format!("must be given for kind = \"{kind}\"");
        list.when(
            self.weights.theta1.is_some(),
            "weights.theta1",
            format!("is what a {kind} run makes; leave it out"),
        );
        let pretrain = self.kind == Kind::Pretrain;
        let fresh = matches!(self.weights.theta0, WeightSource::Fresh(_));
        list.when(
            pretrain && !fresh,
            "weights.theta0",
            "must be `fresh` for kind = \"pretrain\": it starts from random values".into(),
        );
        list.when(
            pretrain && self.method.is_some(),
            "method",
            "has no meaning for kind = \"pretrain\", which trains everything; leave it out".into(),
        );
        list.when(!pretrain && self.method.is_none(), "method", must.clone());
        list.when(self.captions.is_none(), "captions", must.clone());
        list.when(self.objective.is_none(), "objective", must.clone());
        list.when(self.training.is_none(), "training", must);
        list.when(
            pretrain && self.retention.is_some(),
            "retention",
            "has no meaning for kind = \"pretrain\": there is nothing to retain; leave it out".into(),
        );
        self.method_problems(list);
        self.retention_problems(list);
        if let Some(captions) = &self.captions {
            list.text("captions.asset", &captions.asset, 1);
            if let Some(text_encoder) = &captions.text_encoder {
                list.text("captions.text_encoder", text_encoder, 1);
            }
            if let Some(limit) = captions.limit {
                list.within("captions.limit", limit as f64, 2.0, 1e12);
            }
        }
        self.objective_problems(list);
        if let Some(training) = &self.training {
            list.within("training.steps", training.steps as f64, 1.0, 1e9);
            list.within("training.batch_size", f64::from(training.batch_size), 2.0, 65_536.0);
            list.within("training.accumulate", f64::from(training.accumulate), 1.0, 65_536.0);
            list.within("training.layer_decay", training.layer_decay, 0.01, 1.0);
            if let Some((least, most)) = training.crop_scale {
                list.when(
                    !(least > 0.0 && least <= most && most <= 1.0),
                    "training.crop_scale",
                    format!("must be two shares of the area, 0 < least <= most <= 1, is [{least}, {most}]"),
                );
            }
            if let Some(decay) = training.ema {
                list.within("training.ema", decay, 0.0, 0.999_999);
            }
            if let Some(steps) = training.encoder_frozen_steps {
                list.when(
                    steps >= training.steps,
                    "training.encoder_frozen_steps",
                    "must be less than training.steps, or the encoder is never trained".into(),
                );
            }
            if let Some(spike) = training.divergence.spike {
                list.within("training.divergence.spike", spike, 1.000_001, 1e9);
            }
            if let Some(norm) = training.divergence.gradient_norm {
                list.positive("training.divergence.gradient_norm", norm);
            }
            list.within("training.divergence.rollbacks", f64::from(training.divergence.rollbacks), 0.0, 20.0);
            list.within("training.divergence.lower", training.divergence.lower, 0.001, 1.0);
            list.positive("training.learning_rate", training.learning_rate);
            list.positive("training.head_learning_rate", training.head_learning_rate);
            list.within("training.weight_decay", training.weight_decay, 0.0, 1e3);
            list.within("training.betas[0]", training.betas.0, 0.0, 0.999_999);
            list.within("training.betas[1]", training.betas.1, 0.0, 0.999_999);
            list.positive("training.clip_norm", training.clip_norm);
            list.within("training.image_size", f64::from(training.image_size), 8.0, 2048.0);
            list.within("training.resume_every", training.resume_every as f64, 1.0, 1e9);
            list.when(
                training.warmup_steps > training.steps,
                "training.warmup_steps",
                "must be at most training.steps".into(),
            );
        }
    }

    fn objective_problems(&self, list: &mut Problems) {
        let Some(objective) = &self.objective else { return };
        let (contrastive, caption) = (&objective.contrastive, &objective.caption);
        let visible_alone = |view: View| view == View::Visible && objective.reconstruction.is_none();
        let nothing = contrastive.is_none() && caption.is_none() && objective.reconstruction.is_none();
        list.when(nothing, "objective", "must have a term: contrastive, reconstruction or caption".into());
        if self.kind == Kind::Pretrain {
            let alone = "is for finetune runs; a pretraining has the reconstruction alone";
            list.when(contrastive.is_some(), "objective.contrastive", alone.into());
            list.when(caption.is_some(), "objective.caption", alone.into());
        }
        if let Some(loss) = contrastive {
            list.positive("objective.contrastive.weight", loss.weight);
            list.within(
                "objective.contrastive.projection_dim",
                f64::from(loss.projection_dim),
                1.0,
                65_536.0,
            );
            list.within("objective.contrastive.temperature", loss.temperature, 0.01, 10.0);
            list.when(visible_alone(loss.view), "objective.contrastive.view", VISIBLE_ALONE.into());
        }
        if let Some(loss) = &objective.reconstruction {
            list.positive("objective.reconstruction.weight", loss.weight);
            list.within("objective.reconstruction.mask_ratio", loss.mask_ratio, 0.01, 0.99);
            let Decoder { dim, depth, heads } = loss.decoder;
            list.shape("objective.reconstruction.decoder", dim, depth, heads);
            list.when(dim % 4 != 0, "objective.reconstruction.decoder.dim", "must be a multiple of 4".into());
        }
        if let Some(loss) = caption {
            list.positive("objective.caption.weight", loss.weight);
            list.text("objective.caption.language_model", &loss.language_model, 1);
            list.when(visible_alone(loss.view), "objective.caption.view", VISIBLE_ALONE.into());
            list.within("objective.caption.dropout", loss.dropout, 0.0, 0.9);
        }
        let text_encoder = self.captions.as_ref().map(|captions| captions.text_encoder.is_some());
        list.when(
            contrastive.is_some() && text_encoder == Some(false),
            "captions.text_encoder",
            "must be given: the contrastive loss compares images with its embeddings".into(),
        );
        let reads = self.method.as_ref().is_some_and(|method| method.reads().is_some());
        list.when(
            contrastive.is_none() && !reads && text_encoder == Some(true),
            "captions.text_encoder",
            "is read by the contrastive loss and by methods that read captions; leave it out".into(),
        );
        let trained = self.captions.as_ref().is_some_and(|captions| captions.train_text_encoder);
        list.when(
            trained && contrastive.is_none(),
            "captions.train_text_encoder",
            "needs objective.contrastive, the loss that trains it".into(),
        );
    }

    fn evaluate_problems(&self, list: &mut Problems) {
        match &self.weights.theta1 {
            Some(WeightSource::Soup(soup)) => {
                list.soup("weights.theta1.soup", soup, true);
                self.greedy_problems(soup, list);
            }
            Some(source) => list.source("weights.theta1", source),
            None => list.when(true, "weights.theta1", "must be given for kind = \"evaluate\"".into()),
        }
        let given = [
            ("method", self.method.is_some()),
            ("captions", self.captions.is_some()),
            ("objective", self.objective.is_some()),
            ("retention", self.retention.is_some()),
            ("training", self.training.is_some()),
        ];
        for (field, given) in given {
            list.when(given, field, "has no meaning for kind = \"evaluate\"; leave it out".into());
        }
    }

    fn evaluation_problems(&self, list: &mut Problems) {
        let evaluation = &self.evaluation;
        let datasets = &evaluation.datasets;
        list.within("evaluation.datasets", datasets.len() as f64, 1.0, DATASETS_MAX as f64);
        for (at, dataset) in datasets.iter().enumerate() {
            list.text(&format!("evaluation.datasets[{at}].asset"), &dataset.asset, 1);
            let again = datasets[..at].iter().any(|earlier| earlier.asset == dataset.asset);
            list.when(again, &format!("evaluation.datasets[{at}].asset"), "is named twice".into());
        }
        list.within("evaluation.refine", f64::from(evaluation.refine), 0.0, f64::from(REFINE_MAX));
        list.when(
            evaluation.refine > 0 && (evaluation.alphas.len() < 2 || evaluation.alphas[0] != Alpha::ZERO),
            "evaluation.refine",
            "needs α = 0 and one more among evaluation.alphas: it halves the steps beside the best of them, and the \
             best is what gains most against α = 0"
                .into(),
        );
        list.within("evaluation.parts", f64::from(evaluation.parts), 1.0, PARTS_MAX);
        let soup = matches!(self.weights.theta1, Some(WeightSource::Soup(_)));
        list.when(
            evaluation.parts > 1 && soup,
            "evaluation.parts",
            "must be 1 where θ1 is a soup: each part would cook its own; evaluate the soup's checkpoint instead".into(),
        );
        self.readout_problems(list);
        list.within("evaluation.alphas", evaluation.alphas.len() as f64, 1.0, ALPHAS_MAX as f64);
        let ascending = evaluation.alphas.windows(2).all(|pair| pair[0] < pair[1]);
        list.when(!ascending, "evaluation.alphas", "must ascend without repeats".into());
        list.within("evaluation.k", evaluation.k.len() as f64, 1.0, 16.0);
        let ascending = evaluation.k.windows(2).all(|pair| pair[0] < pair[1]);
        list.when(!ascending, "evaluation.k", "must ascend without repeats".into());
        list.when(
            evaluation.k.iter().any(|k| *k == 0 || *k > 10_000),
            "evaluation.k",
            "must be 1 to 10000".into(),
        );
        list.within("evaluation.temperature", evaluation.temperature, 0.01, 10.0);
        list.within("evaluation.image_size", f64::from(evaluation.image_size), 8.0, 2048.0);
        list.within("evaluation.batch_size", f64::from(evaluation.batch_size), 1.0, 65_536.0);
    }
}

struct Problems(Vec<Problem>);

impl Problems {
    fn when(&mut self, broken: bool, field: &str, rule: String) {
        if broken {
            self.0.push(Problem { field: field.to_owned(), rule });
        }
    }

    fn text(&mut self, field: &str, text: &str, min: usize) {
        let length = text.trim().chars().count();
        let broken = length < min || length > TEXT_MAX || text.chars().any(char::is_control);
        self.when(
            broken,
            field,
            format!("must have {min} to {TEXT_MAX} characters and no control characters"),
        );
    }

    fn within(&mut self, field: &str, value: f64, min: f64, max: f64) {
        let broken = !(min..=max).contains(&value);
        self.when(broken, field, format!("must be from {min} to {max}, is {value}"));
    }

    fn positive(&mut self, field: &str, value: f64) {
        self.when(
            !value.is_finite() || value <= 0.0,
            field,
            format!("must be a positive number, is {value}"),
        );
    }

    fn digest(&mut self, field: &str, sha256: &str) {
        let hex = sha256.len() == 64 && sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        self.when(!hex, field, "must be a sha256: 64 lower-case hex digits".into());
    }

    /// Width, number of blocks and heads of a transformer.
    fn shape(&mut self, field: &str, dim: u32, depth: u32, heads: u32) {
        self.within(&format!("{field}.dim"), f64::from(dim), 4.0, 16_384.0);
        self.within(&format!("{field}.depth"), f64::from(depth), 1.0, 256.0);
        let divides = dim > 0 && dim.is_multiple_of(heads);
        self.when(!divides, &format!("{field}.heads"), format!("must divide the width of {dim}, is {heads}"));
    }

    fn source(&mut self, field: &str, source: &WeightSource) {
        match source {
            WeightSource::Asset(name) => self.text(&format!("{field}.asset"), name, 1),
            WeightSource::Blob(sha256) => self.digest(&format!("{field}.blob"), sha256),
            WeightSource::Run(_) => {} // whether there is such a run, the server knows
            WeightSource::Soup(soup) => self.soup(&format!("{field}.soup"), soup, false),
            WeightSource::File(_) => self.when(
                true,
                &format!("{field}.file"),
                "is a path on the submitter's machine; `causeway submit` uploads it and sends `blob` instead"
                    .into(),
            ),
            WeightSource::Fresh(Architecture { dim, depth, heads, patch, image_size }) => {
                let field = format!("{field}.fresh");
                self.shape(&field, *dim, *depth, *heads);
                self.when(dim % 4 != 0, &format!("{field}.dim"), "must be a multiple of 4".into());
                self.within(&format!("{field}.patch"), f64::from(*patch), 1.0, 64.0);
                let whole = *patch > 0 && *image_size >= *patch && image_size % patch == 0;
                self.when(!whole, &format!("{field}.image_size"), "must be a multiple of the patch".into());
            }
        }
    }
}

#[cfg(test)]
mod tests;
