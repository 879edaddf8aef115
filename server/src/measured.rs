//! Curves as they are stored, gathered by line, dataset and α: what figures are computed from, with the hits that
//! paired comparisons need.

use crate::{
    Result,
    curves::{Curve, Point},
    figures::{
        Baseline, BestRule, Dataset, Differences, FigureInput, Halves, Paired, Queries, RobustnessKind,
        Score, SeedCurve, Variant, effective, paired, relative,
        stats::{mean, percent},
    },
};
use causeway_protocol::{Alpha, Hits, NumericsStamp, Role, selection_half};
use serde::Deserialize;
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

/// Fewest queries of a dataset that are parted into a half to choose α on and one to report on.
const HALVED_FROM: u32 = 40;

/// Curves under one protocol, ready for figures and for paired comparisons.
#[derive(Debug, Default)]
pub struct Measured {
    /// What the figure is computed from.
    pub input: FigureInput,
    /// Which queries were right, by checkpoint (empty for the backbone), dataset and α.
    hits: HashMap<(String, usize, Alpha), Hits>,
    /// Which queries of each dataset an α is chosen on, and the others.
    halves: Vec<(Hits, Hits)>,
    /// Runs left out because they start from another backbone than most.
    pub other_backbones: usize,
    /// What backbones have out of distribution, by what they have in distribution.
    baseline: Option<Baseline>,
}

/// A checkpoint at an α.
type Place<'a> = (&'a str, Alpha);

/// How robust a line's checkpoints are, in points.
#[derive(Clone, Debug)]
pub struct LineRobustness {
    /// Effective, or relative to the backbone.
    pub kind: RobustnessKind,
    /// Backbones behind the baseline; 0 where there is none.
    pub backbones: usize,
    /// Run and value at α = 1 of each seed.
    pub seeds: Vec<(Uuid, f64)>,
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
        let protocol = curves.first().map(|curve| curve.protocol.clone()).unwrap_or_default();
        let mut measured = Measured {
            halves: datasets.iter().map(parted).collect(),
            input: FigureInput { backbone: vec![None; datasets.len()], datasets, ..FigureInput::default() },
            other_backbones: left_out.len(),
            ..Measured::default()
        };
        if let Some(guard) = measured.rule().guard {
            measured.baseline = measured.baseline(pool, &protocol, guard).await?;
        }
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
            let zero = point.alpha == Alpha::ZERO;
            let name = if zero { String::new() } else { checkpoint.clone() };
            let known = self.hits.contains_key(&(name.clone(), at, point.alpha));
            let score = self.score(at, &point, !known);
            if zero {
                self.input.backbone[at] = Some(score);
            } else {
                of_run.1[at].insert(point.alpha, score);
            }
            if !known {
                self.hits.insert((name, at, point.alpha), point.hits);
            }
        }
    }

    /// A point's counts, also apart for the halves; a new one counts for its stamp.
    fn score(&mut self, at: usize, point: &Point, new: bool) -> Score {
        let stamp = stamp_words(&point.stamp);
        let stamps = &mut self.input.stamps;
        let index = stamps.iter().position(|(other, _)| *other == stamp).unwrap_or_else(|| {
            stamps.push((stamp, 0));
            stamps.len() - 1
        });
        stamps[index].1 += usize::from(new);
        let score = Score::new(point.n.unsigned_abs(), point.correct.unsigned_abs());
        let told = point.hits.count() == score.correct && score.n == self.input.datasets[at].queries;
        let halves = (told && score.n >= HALVED_FROM).then(|| {
            let (chosen, other) = &self.halves[at];
            let of = |half: &Hits| (both(half, &point.hits), half.count());
            Halves { chosen_on: of(chosen), reported_on: of(other) }
        });
        Score { halves, by_class: point.mean_per_class.map(|share| 100.0 * share), stamp: index, ..score }
    }

    /// How the best α is chosen here, but for what it may cost.
    fn rule(&self) -> BestRule {
        BestRule::for_roles(self.input.datasets.iter().map(|dataset| dataset.role), 0.0)
    }

    /// Which queries of a dataset a checkpoint had right at α; the backbone's at 0.
    fn hits(&self, checkpoint: &str, dataset: usize, alpha: Alpha) -> Option<&Hits> {
        let checkpoint = if alpha == Alpha::ZERO { "" } else { checkpoint };
        self.hits.get(&(checkpoint.to_owned(), dataset, alpha))
    }

    /// How the queries of a dataset change from one (checkpoint, α) of each pair to the other; the backbone is α = 0
    /// of any checkpoint.
    pub fn differences(
        &self,
        pairs: &[(Place<'_>, Place<'_>)],
        dataset: usize,
        on: Queries,
    ) -> Option<Differences> {
        let pairs: Option<Vec<(&Hits, &Hits)>> = pairs
            .iter()
            .map(|(before, after)| {
                Some((self.hits(before.0, dataset, before.1)?, self.hits(after.0, dataset, after.1)?))
            })
            .collect();
        let among = match on {
            Queries::All => None,
            Queries::ChosenOn => Some(&self.halves.get(dataset)?.0),
            Queries::ReportedOn => Some(&self.halves.get(dataset)?.1),
        };
        let n = self.input.backbone.get(dataset)?.as_ref()?.n as usize;
        Differences::count(&pairs?, n, among)
    }

    /// How the queries of a dataset change from the backbone to a line at α, those of its seeds that are there averaged.
    fn change_from_backbone(
        &self,
        line: usize,
        dataset: usize,
        alpha: Alpha,
        on: Queries,
    ) -> Option<Differences> {
        let seeds = &self.input.variants.get(line)?.seeds;
        let there = seeds.iter().filter(|seed| self.hits(&seed.checkpoint, dataset, alpha).is_some());
        let pairs: Vec<_> =
            there.map(|seed| (("", Alpha::ZERO), (seed.checkpoint.as_str(), alpha))).collect();
        self.differences(&pairs, dataset, on)
    }

    /// A line at α against the backbone on one dataset, over the same queries, its seeds averaged.
    pub fn against_backbone(&self, line: usize, dataset: usize, alpha: Alpha, on: Queries) -> Option<Paired> {
        paired(&[self.change_from_backbone(line, dataset, alpha, on)?])
    }

    /// The same, averaged over the datasets of a role.
    pub fn role_against_backbone(
        &self,
        line: usize,
        role: &str,
        alpha: Alpha,
        on: Queries,
    ) -> Option<Paired> {
        let parts: Option<Vec<Differences>> =
            self.of_role(role).map(|dataset| self.change_from_backbone(line, dataset, alpha, on)).collect();
        paired(&parts?)
    }

    /// Mean accuracy of a seed's curve at α over the datasets of a role, percent; none if one of them is not measured.
    fn role_mean(&self, seed: &SeedCurve, role: &str, alpha: Alpha, on: Queries) -> Option<f64> {
        let scores: Option<Vec<f64>> = self
            .of_role(role)
            .map(|at| {
                let score = match alpha {
                    Alpha::ZERO => self.input.backbone[at].as_ref()?,
                    alpha => seed.scores[at].get(&alpha)?,
                };
                score.percent(on)
            })
            .collect();
        mean(&scores?)
    }

    /// Mean accuracy of one checkpoint at α over the datasets of a role, percent; none if one of them is not measured.
    pub fn checkpoint_mean(&self, checkpoint: &str, role: &str, alpha: Alpha, on: Queries) -> Option<f64> {
        self.role_mean(self.of_checkpoint(checkpoint)?.1, role, alpha, on)
    }

    /// Change of one checkpoint's mean accuracy over the datasets of a role; none if one of them is not measured.
    pub fn checkpoint_delta(&self, checkpoint: &str, role: &str, alpha: Alpha, on: Queries) -> Option<f64> {
        let (_, seed) = self.of_checkpoint(checkpoint)?;
        Some(self.role_mean(seed, role, alpha, on)? - self.role_mean(seed, role, Alpha::ZERO, on)?)
    }

    /// The line and the curve of a checkpoint.
    pub fn of_checkpoint(&self, checkpoint: &str) -> Option<(usize, &SeedCurve)> {
        let lines = self.input.variants.iter().enumerate();
        let mut seeds = lines.flat_map(|(line, variant)| variant.seeds.iter().map(move |seed| (line, seed)));
        seeds.find(|(_, seed)| seed.checkpoint == checkpoint)
    }

    /// Robustness of a line's checkpoints at α = 1; none with one role only or before any of them is measured there.
    pub fn robustness(&self, line: usize) -> Option<LineRobustness> {
        let rule = self.rule();
        let guard = rule.guard?;
        let seeds = self.input.variants.get(line)?.seeds.iter().filter_map(|seed| {
            let pair = |alpha| {
                let of = |role| self.role_mean(seed, role, alpha, Queries::All);
                Some((of(guard)?, of(rule.goal)?))
            };
            let after = pair(Alpha::ONE)?;
            let value = match &self.baseline {
                Some(baseline) => effective(baseline, after),
                None => relative(pair(Alpha::ZERO)?, after),
            };
            Some((seed.run, value))
        });
        let seeds: Vec<(Uuid, f64)> = seeds.collect();
        let kind = match &self.baseline {
            Some(_) => RobustnessKind::Effective,
            None => RobustnessKind::RelativeToBackbone,
        };
        let backbones = self.baseline.map_or(0, |baseline| baseline.backbones);
        (!seeds.is_empty()).then_some(LineRobustness { kind, backbones, seeds })
    }

    fn of_role<'a>(&'a self, role: &'a str) -> impl Iterator<Item = usize> + 'a {
        let datasets = self.input.datasets.iter().enumerate();
        datasets.filter(move |(_, dataset)| dataset.role.as_str() == role).map(|(at, _)| at)
    }

    /// The line through all backbones that were measured on these datasets under this protocol. The random values that
    /// a pretraining begins with are no backbone.
    async fn baseline(&self, pool: &PgPool, protocol: &str, guard: &str) -> Result<Option<Baseline>> {
        let digests: Vec<String> = self.input.datasets.iter().map(|dataset| dataset.digest.clone()).collect();
        let rows = sqlx::query!(
            "select c.backbone, c.dataset, p.n, p.correct from curve c join point p on p.curve_id = c.id
             where c.checkpoint = '' and p.alpha = 0 and c.protocol = $1 and c.dataset = any($2)
               and not exists (select from run r where r.backbone = c.backbone and r.kind = 'pretrain')
             order by c.backbone limit $3",
            protocol,
            &digests,
            BASELINE_POINTS
        )
        .fetch_all(pool)
        .await?;
        let mut backbones: BTreeMap<&str, BTreeMap<&str, f64>> = BTreeMap::new();
        for row in &rows {
            let score = percent(row.correct.unsigned_abs(), row.n.unsigned_abs());
            backbones.entry(&row.backbone).or_default().insert(&row.dataset, score);
        }
        let points = backbones.values().filter_map(|scores| {
            let of = |role: &str| {
                let scores: Option<Vec<f64>> = self
                    .of_role(role)
                    .map(|at| scores.get(self.input.datasets[at].digest.as_str()).copied())
                    .collect();
                mean(&scores?)
            };
            Some((of(guard)?, of(self.rule().goal)?))
        });
        Ok(Baseline::fit(&points.collect::<Vec<_>>()))
    }
}

/// Most points of backbones that a baseline is fitted to.
const BASELINE_POINTS: i64 = 2_000;

/// The half of a dataset's queries that an α is chosen on, and the other.
fn parted(dataset: &Dataset) -> (Hits, Hits) {
    let half = selection_half(&dataset.digest, dataset.queries as usize);
    let others: Vec<bool> = half.iter().map(|chosen| !chosen).collect();
    (Hits::from_flags(&half), Hits::from_flags(&others))
}

/// Number of flags set in both.
fn both(left: &Hits, right: &Hits) -> u32 {
    left.0.iter().zip(&right.0).map(|(left, right)| (left & right).count_ones()).sum()
}

/// What computed a point, in words.
pub fn stamp_words(stamp: &serde_json::Value) -> String {
    let Ok(stamp) = NumericsStamp::deserialize(stamp) else { return "unknown".to_owned() };
    format!(
        "{} · trainer {} · libtorch {} · {} · batch {}",
        stamp.device,
        if stamp.version.is_empty() { "unknown" } else { &stamp.version },
        stamp.libtorch,
        if stamp.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", stamp.threads) },
        stamp.batch_size
    )
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

#[cfg(test)]
#[path = "measured_tests.rs"]
mod tests;
