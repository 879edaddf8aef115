//! The rules of a search, each complaint naming the field and the rule it breaks. The last rule is that every run it
//! could ever make is a spec: a search is refused with the reason before any of it is stored.

use super::{Axis, Search, SearchObjective, Strategy};
use crate::{Alpha, Problem, Role, Spec, goal_and_guard};
use serde_json::{Map, Value};

/// Longest name, characters: a run's name has the trial behind it.
const NAME_MAX: usize = 100;
/// Most paths that are varied.
const AXES_MAX: usize = 16;
/// Most values to choose from.
const CHOICES_MAX: usize = 100;
/// Most trials.
const TRIALS_MAX: u64 = 1000;
/// Most seeds a trial.
const SEEDS_MAX: usize = 16;
/// Most rungs.
const RUNGS_MAX: usize = 12;
/// Most runs that a search could make.
const RUNS_MAX: u64 = 10_000;
/// Most runs waiting or running at once.
const PARALLEL_MAX: u32 = 256;
/// What the search itself sets, or what decides no result.
const RESERVED: [&str; 7] = ["experiment", "name", "seed", "tags", "note", "priority", "max_attempts"];
/// Names of ranges.
const AXES: [&str; 4] = ["choice", "uniform", "log_uniform", "integer"];

/// Reads a search from a JSON value, fills in every default and checks every rule, among them that each of its runs is a
/// spec.
///
/// # Errors
/// Every problem found; an unreadable document gives one, and of the trials the first that cannot be a spec.
pub fn parse_search(mut document: Value) -> Result<Search, Vec<Problem>> {
    if let Some(space) = document.get_mut("space") {
        let mut flat = Map::new();
        flatten(std::mem::take(space), String::new(), &mut flat);
        *space = Value::Object(flat);
    }
    let mut search: Search = serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "search".to_owned() } else { path };
        vec![Problem { field, rule: error.inner().to_string() }]
    })?;
    let mut list = Vec::new();
    search.fill_in_rungs(&mut list);
    search.own_problems(&mut list);
    if !list.is_empty() {
        return Err(list);
    }
    search.trial_problems()?;
    Ok(search)
}

/// `[space.training] learning_rate = …` says the same as `"training.learning_rate" = …`.
fn flatten(value: Value, path: String, into: &mut Map<String, Value>) {
    match value {
        Value::Object(fields) if !fields.keys().any(|name| AXES.contains(&name.as_str())) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                flatten(value, path, into);
            }
        }
        range => {
            into.insert(path, range);
        }
    }
}

fn when(list: &mut Vec<Problem>, broken: bool, field: &str, rule: impl Into<String>) {
    if broken {
        list.push(Problem { field: field.to_owned(), rule: rule.into() });
    }
}

impl Search {
    /// Rungs at min·η^k below `max_steps`, and at `max_steps`.
    fn fill_in_rungs(&mut self, list: &mut Vec<Problem>) {
        let Strategy::Asha { eta, min_steps, max_steps, rungs, .. } = &mut self.strategy else { return };
        match (min_steps.take(), max_steps.take()) {
            (Some(min), Some(max)) if rungs.is_empty() => {
                when(
                    list,
                    min == 0 || min >= max,
                    "strategy.min_steps",
                    "must be at least 1 and below max_steps",
                );
                let factor = u64::from((*eta).max(2));
                let mut step = min.max(1);
                while step < max && rungs.len() <= RUNGS_MAX {
                    rungs.push(step);
                    step = step.saturating_mul(factor);
                }
                rungs.push(max);
            }
            (None, None) => when(
                list,
                rungs.is_empty(),
                "strategy",
                "needs min_steps and max_steps, or the steps of every rung as `rungs`",
            ),
            (Some(_), Some(_)) => {
                when(
                    list,
                    true,
                    "strategy.rungs",
                    "says the steps already: leave out min_steps and max_steps",
                );
            }
            _ => when(list, true, "strategy", "needs both min_steps and max_steps"),
        }
    }

    fn own_problems(&self, list: &mut Vec<Problem>) {
        let length = self.name.trim().chars().count();
        when(
            list,
            length == 0 || length > NAME_MAX || self.name.chars().any(char::is_control),
            "name",
            format!("must have 1 to {NAME_MAX} characters and no control characters"),
        );
        for field in ["experiment", "name", "seed"] {
            when(
                list,
                self.spec.get(field).is_some(),
                &format!("spec.{field}"),
                "is set by the search: leave it out of the spec",
            );
        }
        when(list, !self.spec.is_object(), "spec", "must be a table: a spec without what the space sets");
        self.space_problems(list);
        self.strategy_problems(list);
        let again = (1..self.seeds.len()).any(|at| self.seeds[..at].contains(&self.seeds[at]));
        when(list, again, "seeds", "names a seed twice");
        when(
            list,
            self.seeds.is_empty() || self.seeds.len() > SEEDS_MAX,
            "seeds",
            format!("must be 1 to {SEEDS_MAX}"),
        );
        let seeds = u32::try_from(self.seeds.len()).unwrap_or(u32::MAX);
        when(
            list,
            self.parallel < seeds.max(1) || self.parallel > PARALLEL_MAX,
            "parallel",
            format!(
                "must be {} to {PARALLEL_MAX}, is {}: a trial's seeds are submitted together",
                seeds.max(1),
                self.parallel
            ),
        );
        when(list, self.seed > i64::MAX as u64, "seed", format!("must be at most {}", i64::MAX));
        self.objective_problems(list);
    }

    fn space_problems(&self, list: &mut Vec<Problem>) {
        when(
            list,
            self.space.is_empty() || self.space.len() > AXES_MAX,
            "space",
            format!("must have 1 to {AXES_MAX} paths"),
        );
        for (path, axis) in &self.space {
            let field = format!("space.{path}");
            let first = path.split('.').next().unwrap_or_default();
            when(
                list,
                RESERVED.contains(&first),
                &field,
                "is no hyper-parameter; seeds have a list of their own, `seeds`",
            );
            let below = self.space.keys().find(|other| other.starts_with(&format!("{path}.")));
            when(
                list,
                below.is_some(),
                &field,
                format!("would replace `{}`, which is varied too", below.map_or("", |other| other.as_str())),
            );
            when(
                list,
                path == "training.steps" && !self.strategy.rungs().is_empty(),
                &field,
                "is set by the rungs: leave it out",
            );
            axis.problems(&field, list);
        }
    }

    fn strategy_problems(&self, list: &mut Vec<Problem>) {
        let size = self.size();
        let trials = match &self.strategy {
            Strategy::Grid {} => {
                for (path, axis) in &self.space {
                    when(
                        list,
                        axis.size().is_none(),
                        &format!("space.{path}"),
                        "must be `choice` or `integer` in a grid, which tries every value",
                    );
                }
                let endless = self.space.values().any(|axis| axis.size().is_none());
                let size = size.unwrap_or(if endless { 1 } else { u64::MAX });
                when(
                    list,
                    size > TRIALS_MAX,
                    "space",
                    format!("makes a grid of more than {TRIALS_MAX} trials: give fewer values, or draw some"),
                );
                size
            }
            Strategy::Random { trials } | Strategy::Asha { trials, .. } => {
                let trials = u64::from(*trials);
                when(
                    list,
                    trials == 0 || trials > TRIALS_MAX,
                    "strategy.trials",
                    format!("must be 1 to {TRIALS_MAX}, is {trials}"),
                );
                let few = size.is_some_and(|size| size < trials);
                when(
                    list,
                    few,
                    "strategy.trials",
                    format!("must be at most {}, all that the space has", size.unwrap_or(0)),
                );
                trials
            }
        };
        if let Strategy::Asha { eta, rungs, .. } = &self.strategy {
            when(list, !(2..=16).contains(eta), "strategy.eta", format!("must be 2 to 16, is {eta}"));
            when(
                list,
                rungs.len() < 2 || rungs.len() > RUNGS_MAX,
                "strategy.rungs",
                format!("must be 2 to {RUNGS_MAX} numbers of steps"),
            );
            let ascending = rungs.first().is_some_and(|first| *first > 0)
                && rungs.windows(2).all(|pair| pair[0] < pair[1]);
            when(list, !ascending, "strategy.rungs", "must be numbers of steps that ascend");
        }
        let each = if self.is_promoted() { self.stages() as u64 } else { 1 };
        let runs = trials.saturating_mul(self.seeds.len() as u64).saturating_mul(each);
        when(
            list,
            trials <= TRIALS_MAX && runs > RUNS_MAX,
            "strategy",
            format!("could make {runs} runs; {RUNS_MAX} are the most"),
        );
    }

    fn objective_problems(&self, list: &mut Vec<Problem>) {
        match &self.objective {
            SearchObjective::Metric { name, .. } => {
                when(
                    list,
                    name.trim().is_empty(),
                    "objective.name",
                    "must name a series, for example `loss`",
                );
            }
            SearchObjective::BestAlpha { keep, .. } => {
                let good = (0.0..=100.0).contains(keep);
                when(list, !good, "objective.keep", format!("must be from 0 to 100, is {keep}"));
            }
            SearchObjective::Accuracy { .. } | SearchObjective::Area { .. } => {}
        }
        let against_backbone =
            matches!(self.objective, SearchObjective::BestAlpha { .. } | SearchObjective::Area { .. });
        for path in self.space.keys() {
            let first = path.split('.').next().unwrap_or_default();
            let field = format!("space.{path}");
            when(
                list,
                self.objective.is_of_curve() && first == "evaluation",
                &field,
                "decides how accuracy is measured: trials that are measured differently do not compare",
            );
            when(
                list,
                against_backbone && first == "weights",
                &field,
                "changes the backbone, against which this objective counts: judge by `accuracy` instead",
            );
        }
    }

    /// Makes every spec that could be run, and fills in what the first one decides.
    fn trial_problems(&mut self) -> Result<(), Vec<Problem>> {
        let points = self.points();
        let stages = if self.is_promoted() { self.stages() } else { 1 };
        for (trial, point) in (1..).zip(&points) {
            for stage in 0..stages {
                for seed in &self.seeds {
                    let spec = self.run_spec(trial, point, stage, *seed)?;
                    if trial == 1 && stage == 0 && *seed == self.seeds[0] {
                        // Every trial is evaluated alike: see `objective_problems`.
                        let problems = self.objective.fit(&spec);
                        if !problems.is_empty() {
                            return Err(problems);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

impl SearchObjective {
    /// Fills in the role that is to be gained, and finds out whether these runs will tell the objective.
    fn fit(&mut self, spec: &Spec) -> Vec<Problem> {
        let mut list = Vec::new();
        let roles: Vec<Role> = spec.evaluation.datasets.iter().map(|dataset| dataset.role).collect();
        let alphas = &spec.evaluation.alphas;
        match self {
            SearchObjective::Metric { .. } => {}
            SearchObjective::Accuracy { alpha, role, .. } => {
                fit_role(role, &roles, &mut list);
                when(
                    &mut list,
                    !alphas.contains(alpha),
                    "objective.alpha",
                    format!("must be one of evaluation.alphas, is {alpha}"),
                );
            }
            SearchObjective::BestAlpha { .. } => {
                let whole = alphas.contains(&Alpha::ZERO) && alphas.len() > 1;
                when(&mut list, !whole, "objective", "needs α = 0 and one more among evaluation.alphas");
            }
            SearchObjective::Area { role, .. } => {
                fit_role(role, &roles, &mut list);
                let whole = alphas.contains(&Alpha::ZERO) && alphas.contains(&Alpha::ONE);
                when(&mut list, !whole, "objective", "needs α = 0 and α = 1 among evaluation.alphas");
            }
        }
        list
    }
}

fn fit_role(role: &mut Option<Role>, roles: &[Role], list: &mut Vec<Problem>) {
    let wanted = *role.get_or_insert_with(|| goal_and_guard(roles.iter().copied()).0);
    when(
        list,
        !roles.contains(&wanted),
        "objective.role",
        format!("no dataset of the evaluation has the role {}", wanted.as_str()),
    );
}

impl Axis {
    fn problems(&self, field: &str, list: &mut Vec<Problem>) {
        match self {
            Axis::Choice(values) => {
                when(
                    list,
                    values.is_empty() || values.len() > CHOICES_MAX,
                    field,
                    format!("must have 1 to {CHOICES_MAX} choices"),
                );
                let again = (1..values.len()).any(|at| values[..at].contains(&values[at]));
                when(list, again, field, "names a choice twice");
            }
            Axis::Uniform((from, to)) => {
                let good = from.is_finite() && to.is_finite() && from < to;
                when(list, !good, field, format!("must be [from, to] with from below to, is [{from}, {to}]"));
            }
            Axis::LogUniform((from, to)) => {
                let good = *from > 0.0 && to.is_finite() && from < to;
                when(list, !good, field, format!("must be [from, to] with 0 < from < to, is [{from}, {to}]"));
            }
            Axis::Integer((from, to)) => {
                when(
                    list,
                    from >= to,
                    field,
                    format!("must be [from, to] with from below to, is [{from}, {to}]"),
                );
            }
        }
    }
}
