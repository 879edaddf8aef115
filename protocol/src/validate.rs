//! The rules of a spec, all checked at once, each complaint naming the field and the rule it breaks. The server
//! answers them as problem+json, the trainer prints them.

use crate::{Alpha, Architecture, Kind, Spec, WeightSource};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod analysis;
mod command;
mod evaluation;
mod method;
mod readout;
mod training;

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
        spec.name = spec.usual_name();
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
