//! A search: a set of runs over hyper-parameters. One document says what is varied, how trials are chosen, what they are
//! judged by and how far each may go. A trial is one point of the space; it runs every seed, and what it is worth is the
//! mean over its seeds: seeds are never compared with each other. The points follow from the document alone, so the same
//! document always makes the same specs.

use crate::{Alpha, Problem, Role, Spec, parse_spec};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

mod draw;
mod rules;

pub use rules::parse_search;

/// A search, described completely. The same document as JSON (API) or TOML (`causeway search submit`).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// Name; the names of its runs begin with it.
    pub name: String,
    /// The experiment that its runs belong to; made if it does not exist.
    pub experiment: String,
    /// What all runs have in common: a spec without what the space sets, and without experiment, name and seed.
    #[schema(value_type = Object)]
    pub spec: Value,
    /// What is varied: a path into the spec, such as `training.learning_rate`, and its range.
    pub space: BTreeMap<String, Axis>,
    /// How trials are chosen.
    pub strategy: Strategy,
    /// The seeds that every trial runs.
    #[serde(default = "default_seeds")]
    pub seeds: Vec<u64>,
    /// What a trial is judged by.
    pub objective: SearchObjective,
    /// Most runs waiting or running at once.
    #[serde(default = "default_parallel")]
    pub parallel: u32,
    /// Seeds the draws: apart from the runs' seeds.
    #[serde(default)]
    pub seed: u64,
}

/// The values that a path of the spec may take.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// One of these; tables too, such as whole methods.
    #[schema(value_type = Vec<Object>)]
    Choice(Vec<Value>),
    /// A number from the first to the second, every equal stretch as likely.
    #[schema(value_type = Vec<f64>)]
    Uniform((f64, f64)),
    /// A number from the first to the second, every equal ratio as likely.
    #[schema(value_type = Vec<f64>)]
    LogUniform((f64, f64)),
    /// A whole number from the first to the second, both included.
    #[schema(value_type = Vec<i64>)]
    Integer((i64, i64)),
}

/// How trials are chosen, and which of them go on.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Strategy {
    /// Every combination: paths in alphabetical order, the last one changes fastest.
    Grid {},
    /// Independent draws.
    Random {
        /// How many.
        trials: u32,
    },
    /// Independent draws, of which only the best part goes on at each rung: asynchronous successive halving (Li et al.
    /// 2018, arXiv 1810.05934).
    Asha {
        /// How many begin.
        trials: u32,
        /// One in so many goes on at a rung.
        #[serde(default = "default_eta")]
        eta: u32,
        /// Training steps at the first rung; each next rung has `eta` times as many.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        min_steps: Option<u64>,
        /// Training steps of those that go all the way.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_steps: Option<u64>,
        /// The training steps of every rung, instead of `min_steps` and `max_steps`; filled in where those are given.
        #[serde(default)]
        rungs: Vec<u64>,
    },
}

/// What a trial is judged by.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SearchObjective {
    /// A metric that its runs log.
    Metric {
        /// Name of the series, for example `loss`.
        name: String,
        /// Which of its values counts.
        #[serde(default)]
        of: SeriesValue,
        /// Which way is better.
        direction: Direction,
    },
    /// Mean top-1 accuracy at one α over the datasets of a role, percent.
    Accuracy {
        /// α, one of `evaluation.alphas`.
        alpha: Alpha,
        /// The role; by default what is to be gained.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<Role>,
        /// Which way is better.
        #[serde(default)]
        direction: Direction,
    },
    /// What the best α brings: chosen on a fixed half of each dataset's images, counted on the other half, in points of
    /// the mean accuracy that is to be gained against the backbone.
    BestAlpha {
        /// Points that the guarded mean may fall.
        #[serde(default = "default_keep")]
        keep: f64,
        /// Which way is better.
        #[serde(default)]
        direction: Direction,
    },
    /// Mean over the datasets of a role of the area between the curve and the backbone over α from 0 to 1, points·α.
    Area {
        /// The role; by default what is to be gained.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<Role>,
        /// Which way is better.
        #[serde(default)]
        direction: Direction,
    },
}

/// Which value of a series counts, among those up to a rung's step or, at the end, all.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SeriesValue {
    /// The newest.
    #[default]
    Last,
    /// The lowest.
    Min,
    /// The highest.
    Max,
}

/// Which way is better.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Less.
    Minimize,
    /// More.
    #[default]
    Maximize,
}

/// One point of the space: a value for every path.
pub type SearchPoint = BTreeMap<String, Value>;

impl SeriesValue {
    /// The word used in JSON and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            SeriesValue::Last => "last",
            SeriesValue::Min => "min",
            SeriesValue::Max => "max",
        }
    }
}

impl SearchObjective {
    /// Which way is better.
    pub fn direction(&self) -> Direction {
        match self {
            SearchObjective::Metric { direction, .. }
            | SearchObjective::Accuracy { direction, .. }
            | SearchObjective::BestAlpha { direction, .. }
            | SearchObjective::Area { direction, .. } => *direction,
        }
    }

    /// Whether it is read from the curve, so that a run must end before it is known.
    pub fn is_of_curve(&self) -> bool {
        !matches!(self, SearchObjective::Metric { .. })
    }

    /// What is judged, in words: "loss (last value)", "OOD accuracy at α 0.5, percent".
    pub fn words(&self) -> String {
        let of = |role: &Option<Role>| match role {
            Some(Role::Id) => "ID",
            Some(Role::Target) => "target",
            Some(Role::Ood) | None => "OOD",
        };
        match self {
            SearchObjective::Metric { name, of, .. } => {
                let which = match of {
                    SeriesValue::Last => "last value",
                    SeriesValue::Min => "lowest value",
                    SeriesValue::Max => "highest value",
                };
                format!("{name} ({which})")
            }
            SearchObjective::Accuracy { alpha, role, .. } => format!("{} accuracy at α {alpha}, %", of(role)),
            SearchObjective::BestAlpha { .. } => "gain at the best α, points".to_owned(),
            SearchObjective::Area { role, .. } => format!("{} area over the backbone, points·α", of(role)),
        }
    }
}

impl Strategy {
    /// The word used in JSON and pages.
    pub fn as_str(&self) -> &'static str {
        match self {
            Strategy::Grid {} => "grid",
            Strategy::Random { .. } => "random",
            Strategy::Asha { .. } => "asha",
        }
    }

    /// One in so many goes on at a rung.
    pub fn eta(&self) -> usize {
        match self {
            Strategy::Asha { eta, .. } => *eta as usize,
            Strategy::Grid {} | Strategy::Random { .. } => 1,
        }
    }

    /// Training steps of every rung; none without rungs.
    pub fn rungs(&self) -> &[u64] {
        match self {
            Strategy::Asha { rungs, .. } => rungs,
            Strategy::Grid {} | Strategy::Random { .. } => &[],
        }
    }
}

impl Search {
    /// How often trials are judged: once at each rung, once in all without any.
    pub fn stages(&self) -> usize {
        self.strategy.rungs().len().max(1)
    }

    /// Whether each rung is a run of its own. A curve is known only when a run has ended, so that what goes on is trained
    /// anew, for more steps; a metric is known on the way, so that one run passes every rung until it is stopped.
    pub fn is_promoted(&self) -> bool {
        self.objective.is_of_curve() && self.stages() > 1
    }

    /// The spec of a trial's run, every default filled in. Trials and stages count from 1 and 0.
    ///
    /// # Errors
    /// Why this point cannot be a spec; the fields are the search's.
    pub fn run_spec(
        &self,
        trial: u32,
        point: &SearchPoint,
        stage: usize,
        seed: u64,
    ) -> Result<Spec, Vec<Problem>> {
        let mut document = self.spec.clone();
        let mut name = format!("{} · trial {trial} · seed {seed}", self.name);
        for (path, value) in point {
            set(&mut document, path, value.clone())?;
        }
        let rungs = self.strategy.rungs();
        if let (Some(own), Some(last)) = (rungs.get(stage), rungs.last()) {
            let steps = if self.is_promoted() { own } else { last };
            set(&mut document, "training.steps", (*steps).into())?;
            if self.is_promoted() {
                name = format!("{name} · {steps} steps");
            }
        }
        set(&mut document, "experiment", self.experiment.clone().into())?;
        set(&mut document, "name", name.into())?;
        set(&mut document, "seed", seed.into())?;
        parse_spec(document).map_err(|problems| {
            let told = point_words(point);
            let problems = problems.into_iter().map(|problem| Problem {
                field: format!("spec.{}", problem.field),
                rule: format!("{} (trial {trial}: {told})", problem.rule),
            });
            problems.collect()
        })
    }
}

/// A point in words: "training.learning_rate 0.003, method.rank 8".
pub fn point_words(point: &SearchPoint) -> String {
    point.iter().map(|(path, value)| format!("{path} {}", value_words(value))).collect::<Vec<_>>().join(", ")
}

/// A table by its kind and what else it says: "adapter with rank 8".
fn value_words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) => {
            let kind = fields.get("kind").map(value_words).unwrap_or_default();
            let others = fields.iter().filter(|(name, _)| *name != "kind");
            let others: Vec<String> =
                others.map(|(name, value)| format!("{name} {}", value_words(value))).collect();
            match (kind.is_empty(), others.is_empty()) {
                (_, true) => kind,
                (true, false) => others.join(" and "),
                (false, false) => format!("{kind} with {}", others.join(" and ")),
            }
        }
        other => other.to_string(),
    }
}

/// Puts a value at a path, making the tables on the way.
fn set(document: &mut Value, path: &str, value: Value) -> Result<(), Vec<Problem>> {
    let mut place = document;
    let mut done = String::from("spec");
    for name in path.split('.') {
        if place.is_null() {
            *place = Value::Object(serde_json::Map::new());
        }
        let Some(fields) = place.as_object_mut() else {
            let rule = format!("is no table, so that `{path}` has no place in it");
            return Err(vec![Problem { field: done, rule }]);
        };
        done = format!("{done}.{name}");
        place = fields.entry(name).or_insert(Value::Null);
    }
    *place = value;
    Ok(())
}

fn default_seeds() -> Vec<u64> {
    vec![0]
}

fn default_parallel() -> u32 {
    4
}

fn default_eta() -> u32 {
    3
}

fn default_keep() -> f64 {
    crate::KEEP_POINTS
}

#[cfg(test)]
mod tests;
