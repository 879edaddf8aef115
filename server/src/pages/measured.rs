//! Curves as they are stored, gathered by line, dataset and α: what figures are computed from, with the hits that
//! paired comparisons need.

use crate::{
    Result,
    curves::Curve,
    figures::{
        Dataset, FigureInput, Score, SeedCurve, Variant,
        stats::{Paired, mean, mean_paired, paired, percent},
    },
};
use causeway_protocol::{Alpha, Hits, Role};
use sqlx::PgPool;
use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

/// A run whose curve is a line, or a part of one.
#[derive(Clone, Debug)]
pub struct Source {
    /// The run.
    pub run: Uuid,
    /// Equal for the runs of one line.
    pub line: String,
    /// Label of the line.
    pub label: String,
    /// Label where there is little room.
    pub short: String,
    /// Number of α its spec asks for.
    pub wanted: usize,
    /// Whether points may still come.
    pub open: bool,
    /// The method's word.
    pub method: String,
    /// Its seed.
    pub seed: i64,
    /// Its name.
    pub name: String,
}

/// A run's checkpoint, and its scores by α for each dataset.
type RunScores = (String, Vec<BTreeMap<Alpha, Score>>);

/// Curves under one protocol, ready for figures and for paired comparisons.
#[derive(Debug, Default)]
pub struct Measured {
    /// What the figure is computed from.
    pub input: FigureInput,
    /// Which queries were right, by checkpoint (empty for the backbone), dataset and α.
    hits: HashMap<(String, usize, Alpha), Hits>,
    /// Runs left out because they start from another backbone than most.
    pub other_backbones: usize,
}

impl Measured {
    /// Gathers the curves of the given runs; datasets come in the order of the curves.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn gather(pool: &PgPool, curves: Vec<Curve>, sources: &[Source]) -> Result<Measured> {
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for curve in &curves {
            *votes.entry(&curve.backbone).or_default() += 1;
        }
        let backbone = votes.into_iter().max_by_key(|(_, count)| *count).map(|(digest, _)| digest.to_owned());
        let (curves, others): (Vec<Curve>, Vec<Curve>) =
            curves.into_iter().partition(|curve| Some(&curve.backbone) == backbone.as_ref());
        let mut left_out: Vec<Uuid> = others.iter().map(|curve| curve.run_id).collect();
        left_out.sort_unstable();
        left_out.dedup();
        let datasets = datasets(pool, &curves).await?;
        let mut measured = Measured {
            input: FigureInput { backbone: vec![None; datasets.len()], datasets, variants: Vec::new() },
            hits: HashMap::new(),
            other_backbones: left_out.len(),
        };
        let mut scores: HashMap<Uuid, RunScores> = HashMap::new();
        for curve in curves {
            measured.take(curve, &mut scores);
        }
        measured.input.variants = variants(sources, &scores, measured.input.datasets.len());
        Ok(measured)
    }

    fn take(&mut self, curve: Curve, scores: &mut HashMap<Uuid, RunScores>) {
        let Some(at) = self.input.datasets.iter().position(|d| d.digest == curve.dataset.digest) else {
            return;
        };
        let checkpoint = curve.checkpoint.unwrap_or_default();
        let of_run = scores
            .entry(curve.run_id)
            .or_insert_with(|| (checkpoint.clone(), vec![BTreeMap::new(); self.input.datasets.len()]));
        for point in curve.points {
            let score = Score { n: point.n.unsigned_abs(), correct: point.correct.unsigned_abs() };
            if point.alpha == Alpha::ZERO {
                self.input.backbone[at] = Some(score);
                self.hits.insert((String::new(), at, Alpha::ZERO), point.hits);
            } else {
                of_run.1[at].insert(point.alpha, score);
                self.hits.insert((checkpoint.clone(), at, point.alpha), point.hits);
            }
        }
    }

    /// Which queries of a dataset a checkpoint had right at α; the backbone's at 0.
    pub fn hits(&self, checkpoint: &str, dataset: usize, alpha: Alpha) -> Option<&Hits> {
        let checkpoint = if alpha == Alpha::ZERO { "" } else { checkpoint };
        self.hits.get(&(checkpoint.to_owned(), dataset, alpha))
    }

    /// A line at α against the backbone on one dataset, over the same queries, its seeds averaged.
    pub fn against_backbone(&self, line: usize, dataset: usize, alpha: Alpha) -> Option<Paired> {
        let before = self.hits("", dataset, Alpha::ZERO)?;
        let seeds = &self.input.variants.get(line)?.seeds;
        let pairs: Vec<(&Hits, &Hits)> = seeds
            .iter()
            .filter_map(|seed| Some((before, self.hits(&seed.checkpoint, dataset, alpha)?)))
            .collect();
        paired(&pairs, self.input.backbone.get(dataset)?.as_ref()?.n as usize)
    }

    /// Change of one checkpoint's mean accuracy over the datasets of a role; none if one of them is not measured.
    pub fn checkpoint_delta(&self, checkpoint: &str, role: &str, alpha: Alpha) -> Option<f64> {
        let seeds = self.input.variants.iter().flat_map(|variant| &variant.seeds);
        let seed = seeds.into_iter().find(|seed| seed.checkpoint == checkpoint)?;
        let of_role = self.input.datasets.iter().enumerate().filter(|(_, d)| d.role.as_str() == role);
        let deltas: Option<Vec<f64>> = of_role
            .map(|(at, _)| {
                let (before, after) = (self.input.backbone[at]?, seed.scores[at].get(&alpha)?);
                Some(percent(after.correct, after.n) - percent(before.correct, before.n))
            })
            .collect();
        mean(&deltas?)
    }

    /// The same, averaged over the datasets of a role.
    pub fn role_against_backbone(&self, line: usize, role: &str, alpha: Alpha) -> Option<Paired> {
        let of_role = self.input.datasets.iter().enumerate().filter(|(_, d)| d.role.as_str() == role);
        let parts: Option<Vec<Paired>> =
            of_role.map(|(dataset, _)| self.against_backbone(line, dataset, alpha)).collect();
        mean_paired(&parts?)
    }
}

async fn datasets(pool: &PgPool, curves: &[Curve]) -> Result<Vec<Dataset>> {
    let mut order: Vec<(String, Role)> = Vec::new();
    for curve in curves {
        if !order.iter().any(|(digest, _)| *digest == curve.dataset.digest) {
            let role = match curve.dataset.role.as_str() {
                "id" => Role::Id,
                "target" => Role::Target,
                _ => Role::Ood,
            };
            order.push((curve.dataset.digest.clone(), role));
        }
    }
    let digests: Vec<String> = order.iter().map(|(digest, _)| digest.clone()).collect();
    let rows = sqlx::query!(
        r#"select digest, title, licence, source, queries, bank, leave_one_out,
                  jsonb_array_length(classes) as "classes!"
           from dataset where digest = any($1)"#,
        &digests
    )
    .fetch_all(pool)
    .await?;
    let found = order.into_iter().filter_map(|(digest, role)| {
        let row = rows.iter().find(|row| row.digest == digest)?;
        Some(Dataset {
            digest,
            short: short_title(&row.title, rows.iter().map(|row| row.title.as_str())),
            title: row.title.clone(),
            role,
            licence: row.licence.clone(),
            source: row.source.clone(),
            queries: row.queries.unsigned_abs(),
            bank: row.bank.unsigned_abs(),
            leave_one_out: row.leave_one_out,
            classes: usize::try_from(row.classes).unwrap_or(0),
        })
    });
    Ok(found.collect())
}

/// A title up to its first comma, if no other title begins like that.
fn short_title<'a>(title: &str, all: impl Iterator<Item = &'a str>) -> String {
    let short = |title: &'a str| title.split(',').next().unwrap_or(title);
    let own = title.split(',').next().unwrap_or(title);
    if all.map(short).filter(|other| *other == own).count() > 1 { title.to_owned() } else { own.to_owned() }
}

/// Lines in the order of their first run. Where a seed was run twice, the run that got further counts.
fn variants(sources: &[Source], scores: &HashMap<Uuid, RunScores>, datasets: usize) -> Vec<Variant> {
    let mut lines: Vec<(&str, Variant)> = Vec::new();
    for source in sources {
        let (checkpoint, scores) = scores.get(&source.run).cloned().unwrap_or_default();
        let points: usize = scores.iter().map(BTreeMap::len).sum();
        if points == 0 && !source.open {
            continue;
        }
        let scores = if scores.is_empty() { vec![BTreeMap::new(); datasets] } else { scores };
        let seed = SeedCurve {
            seed: source.seed,
            run: source.run,
            run_name: source.name.clone(),
            checkpoint,
            wanted: source.wanted,
            scores,
        };
        let at = match lines.iter().position(|(line, _)| *line == source.line) {
            Some(at) => at,
            None => {
                let ordinal = lines.iter().filter(|(_, variant)| variant.method == source.method).count();
                let variant = Variant {
                    label: source.label.clone(),
                    short: source.short.clone(),
                    method: source.method.clone(),
                    ordinal,
                    seeds: Vec::new(),
                };
                lines.push((&source.line, variant));
                lines.len() - 1
            }
        };
        let seeds = &mut lines[at].1.seeds;
        match seeds.iter().position(|other| other.seed == seed.seed) {
            Some(other) if seeds[other].scores.iter().map(BTreeMap::len).sum::<usize>() <= points => {
                seeds[other] = seed;
            }
            Some(_) => {}
            None => seeds.push(seed),
        }
    }
    lines.into_iter().map(|(_, variant)| variant).collect()
}
