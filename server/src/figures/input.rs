//! What figures are computed from: scores by line, seed, dataset and α, all under one protocol.

use super::stats::percent;
use causeway_protocol::{Alpha, Role};
use std::collections::BTreeMap;
use uuid::Uuid;

/// What was measured under one protocol.
#[derive(Clone, Debug, Default)]
pub struct FigureInput {
    /// The datasets in the order of their panels: id, target, ood, then as in the spec.
    pub datasets: Vec<Dataset>,
    /// The backbone's score on each dataset, where there is one yet.
    pub backbone: Vec<Option<Score>>,
    /// The lines.
    pub variants: Vec<Variant>,
    /// What computed the points, in words, by how many each did; most first.
    pub stamps: Vec<(String, usize)>,
}

/// A dataset as figures and captions show it.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Its digest.
    pub digest: String,
    /// Title in full.
    pub title: String,
    /// Title as panels show it: without what follows a comma, where that still tells the datasets apart.
    pub short: String,
    /// Its part in the evaluation.
    pub role: Role,
    /// Licence of the images.
    pub licence: String,
    /// Where the images come from.
    pub source: String,
    /// Images scored.
    pub queries: u32,
    /// Neighbours.
    pub bank: u32,
    /// Whether the two are the same images.
    pub leave_one_out: bool,
    /// Number of classes.
    pub classes: usize,
}

/// Right answers among queries.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Score {
    /// Queries.
    pub n: u32,
    /// Right answers.
    pub correct: u32,
    /// The same apart for the half of the queries that an α may be chosen on; none without hits or with too few queries.
    pub halves: Option<Halves>,
    /// Mean over classes of the accuracy inside a class, percent.
    pub by_class: Option<f64>,
    /// Index of what computed it.
    pub stamp: usize,
}

/// Right answers (correct, queries) on the two halves of a dataset's queries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Halves {
    /// Where an α is chosen.
    pub chosen_on: (u32, u32),
    /// Where it is reported.
    pub reported_on: (u32, u32),
}

impl Score {
    /// A score of which no more than this is known.
    pub fn new(n: u32, correct: u32) -> Score {
        Score { n, correct, ..Score::default() }
    }

    /// Percent right on these queries.
    pub fn percent(&self, on: Queries) -> Option<f64> {
        let (correct, n) = match on {
            Queries::All => (self.correct, self.n),
            Queries::ChosenOn => self.halves?.chosen_on,
            Queries::ReportedOn => self.halves?.reported_on,
        };
        Some(percent(correct, n))
    }
}

/// Which of a dataset's queries a number counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Queries {
    /// All of them.
    All,
    /// The half that α is chosen on.
    ChosenOn,
    /// The other half.
    ReportedOn,
}

/// Runs whose specs differ in nothing but the seed.
#[derive(Clone, Debug)]
pub struct Variant {
    /// Label of the line.
    pub label: String,
    /// Label at the line's end, where there is room for a word.
    pub short: String,
    /// The method's word.
    pub method: String,
    /// How many variants of the same method come before it.
    pub ordinal: usize,
    /// One curve per seed.
    pub seeds: Vec<SeedCurve>,
}

/// The curve of one checkpoint on every dataset.
#[derive(Clone, Debug)]
pub struct SeedCurve {
    /// The seed.
    pub seed: i64,
    /// The run that made it.
    pub run: Uuid,
    /// Its name.
    pub run_name: String,
    /// The checkpoint's digest.
    pub checkpoint: String,
    /// Number of α that its spec asks for, α = 0 included.
    pub wanted: usize,
    /// Scores by α, for each dataset, without α = 0.
    pub scores: Vec<BTreeMap<Alpha, Score>>,
}
