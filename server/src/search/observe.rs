//! What the runs of a search have come to: which trials have reached a rung, what they are worth there, which have failed.
//! This only reads, and outside any lock: a value of a run that has got so far does not change, and whoever decides looks
//! again which trials are still open.

use crate::{
    Result,
    curves::{Curve, CurveFilter, curves},
    figures::{Chosen, FigureOptions, Queries, View, alpha_figure, stats::mean},
    measured::{Measured, Source},
};
use causeway_protocol::{Alpha, RunState, Search, SearchObjective, Spec};
use sqlx::{PgPool, types::Json};
use std::collections::BTreeMap;
use uuid::Uuid;

/// What became of an open trial since it was last looked at.
#[derive(Clone, PartialEq, Debug)]
pub struct Seen {
    /// The trial.
    pub trial: i32,
    /// The rungs it has reached, in order, from the one it was on its way to.
    pub reached: Vec<(usize, Worth)>,
    /// Why nothing more will come of it.
    pub failed: Option<String>,
}

/// What a trial is worth.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Worth {
    /// Seed and value.
    pub seeds: Vec<(i64, f64)>,
    /// How it was found, where that is worth a word.
    pub note: String,
}

impl Worth {
    /// The mean over the seeds; NaN if one of them is.
    pub fn mean(&self) -> f64 {
        mean(&self.seeds.iter().map(|(_, value)| *value).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    }
}

/// A run that a trial is at.
#[derive(Clone, Debug)]
struct Own {
    seed: i64,
    id: Uuid,
    state: RunState,
    reason: String,
}

/// Looks at all open trials of a search; those with nothing new are left out.
///
/// # Errors
/// If the database does not answer.
pub async fn observe(pool: &PgPool, id: Uuid, search: &Search) -> Result<Vec<Seen>> {
    let rows = sqlx::query!(
        r#"select t.trial, t.rung, o.seed as "seed?", o.run_id as "run_id?", r.state as "state?", r.reason as "reason?"
           from search_trial t
           left join search_run o on o.search_id = t.search_id and o.trial = t.trial
             and o.rung = (select max(rung) from search_run n where n.search_id = t.search_id and n.trial = t.trial)
           left join run r on r.id = o.run_id
           where t.search_id = $1 and t.state = 'running' order by t.trial, o.seed"#,
        id
    )
    .fetch_all(pool)
    .await?;
    let mut trials: BTreeMap<i32, (usize, Vec<Own>)> = BTreeMap::new();
    for row in rows {
        let rung = usize::try_from(row.rung).unwrap_or(0);
        let (_, runs) = trials.entry(row.trial).or_insert((rung, Vec::new()));
        if let (Some(seed), Some(id), Some(state), Some(reason)) =
            (row.seed, row.run_id, row.state, row.reason)
        {
            let state = state.parse().map_err(anyhow::Error::msg)?;
            runs.push(Own { seed, id, state, reason });
        }
    }
    let metric = match &search.objective {
        SearchObjective::Metric { name, of, .. } => {
            metric_values(pool, search, &trials, name, of.as_str()).await?
        }
        _ => BTreeMap::new(),
    };
    let mut seen = Vec::new();
    for (trial, (rung, runs)) in trials {
        let last = search.stages() - 1;
        let ended_well = !runs.is_empty() && runs.iter().all(|run| run.state == RunState::Succeeded);
        let mut found = Seen { trial, reached: Vec::new(), failed: failure(search, &runs) };
        let value = |at: usize, run: &Own| Some((run.seed, *metric.get(&(run.id, at))?));
        let whole = |at: usize| runs.iter().map(|run| value(at, run)).collect::<Option<Vec<_>>>();
        if search.objective.is_of_curve() {
            if ended_well {
                match of_curve(pool, search, &runs).await? {
                    Ok(worth) => found.reached.push((rung, worth)),
                    Err(lacking) => found.failed = Some(lacking),
                }
            }
        } else if !runs.is_empty() {
            for at in rung..last {
                let Some(seeds) = whole(at) else { break };
                found.reached.push((at, Worth { seeds, note: String::new() }));
            }
            if ended_well {
                match whole(last) {
                    Some(seeds) => found.reached.push((last, Worth { seeds, note: String::new() })),
                    None => found.failed = Some("its runs logged no such metric".to_owned()),
                }
            }
        }
        if found.failed.is_some() || !found.reached.is_empty() {
            seen.push(found);
        }
    }
    Ok(seen)
}

/// Why a trial cannot be judged any more: its objective is the mean over all seeds.
fn failure(search: &Search, runs: &[Own]) -> Option<String> {
    let bad =
        runs.iter().find(|run| matches!(run.state, RunState::Failed | RunState::Lost | RunState::Cancelled));
    match bad {
        Some(run) if run.reason.is_empty() => Some(format!("seed {}: {}", run.seed, run.state)),
        Some(run) => Some(format!("seed {} {}: {}", run.seed, run.state, run.reason)),
        None if runs.len() < search.seeds.len() => Some("some of its runs are not there any more".to_owned()),
        None => None,
    }
}

/// The metric of each run at each rung that it has reached, by run and rung. A rung is reached with the first value at or
/// beyond its step; what counts are the visible values up to that one, and at the last rung all of a run that has ended.
async fn metric_values(
    pool: &PgPool,
    search: &Search,
    trials: &BTreeMap<i32, (usize, Vec<Own>)>,
    name: &str,
    of: &str,
) -> Result<BTreeMap<(Uuid, usize), f64>> {
    let last = search.stages() - 1;
    let (mut runs, mut rungs, mut steps, mut ended) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (from, own) in trials.values() {
        for run in own {
            let over = run.state == RunState::Succeeded;
            for at in (*from..=last).filter(|at| *at < last || over) {
                let step = search.strategy.rungs().get(at).filter(|_| at < last);
                runs.push(run.id);
                rungs.push(i32::try_from(at).unwrap_or(i32::MAX));
                steps.push(step.map_or(i64::MAX, |step| i64::try_from(*step).unwrap_or(i64::MAX)));
                ended.push(over);
            }
        }
    }
    if runs.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = sqlx::query!(
        r#"select w.run_id as "run_id!", w.rung as "rung!", f.value as "value!"
           from unnest($1::uuid[], $2::int4[], $3::int8[], $4::bool[]) w(run_id, rung, step, ended)
           join series s on s.run_id = w.run_id and s.name = $5
           cross join lateral (
             select min(v.step) as step from value v join attempt a on a.run_id = s.run_id and a.number = v.attempt
             where v.series_id = s.id and v.step >= w.step and v.step <= coalesce(a.visible_through, v.step) and v.rollback = 0
           ) reached
           cross join lateral (
             select case $6
               when 'last' then
                 (select v.value from value v join attempt a on a.run_id = s.run_id and a.number = v.attempt
                  where v.series_id = s.id and v.step <= coalesce(reached.step, v.step)
                    and v.step <= coalesce(a.visible_through, v.step) and v.rollback = 0
                  order by v.step desc, v.attempt desc, v.n desc limit 1)
               else
                 (select case when count(*) > 0 then coalesce(case $6
                     when 'min' then min(v.value) filter (where v.value <> 'NaN')
                     else max(v.value) filter (where v.value <> 'NaN') end, 'NaN') end
                  from value v join attempt a on a.run_id = s.run_id and a.number = v.attempt
                  where v.series_id = s.id and v.step <= coalesce(reached.step, v.step)
                    and v.step <= coalesce(a.visible_through, v.step) and v.rollback = 0)
             end as value
           ) f
           where (reached.step is not null or w.ended) and f.value is not null"#,
        &runs,
        &rungs,
        &steps,
        &ended,
        name,
        of,
    )
    .fetch_all(pool)
    .await?;
    let values =
        rows.into_iter().filter_map(|row| Some(((row.run_id, usize::try_from(row.rung).ok()?), row.value)));
    Ok(values.collect())
}

/// What the curves of a trial's runs, which have all ended well, say; or what they lack.
async fn of_curve(pool: &PgPool, search: &Search, runs: &[Own]) -> Result<Result<Worth, String>> {
    let spec = sqlx::query_scalar!(r#"select spec as "spec: Json<Spec>" from run where id = $1"#, runs[0].id)
        .fetch_one(pool)
        .await?;
    let protocols = spec.evaluation.protocols();
    let protocol = protocols.get(spec.evaluation.choosing()).map(|protocol| protocol.id.clone());
    let of_trial = Some(runs.iter().map(|run| run.id).collect());
    let filter = CurveFilter { runs: of_trial, protocol, ..CurveFilter::default() };
    let all: Vec<Curve> = curves(pool, &filter).await?;
    let lacking = || "its curve lacks what the objective is read from".to_owned();
    if let SearchObjective::Area { role: Some(role), .. } = &search.objective {
        let of_seed = |run: &Own| {
            let own =
                all.iter().filter(|curve| curve.run_id == run.id && curve.dataset.role == role.as_str());
            let areas: Option<Vec<f64>> = own.map(|curve| curve.area).collect();
            Some((run.seed, mean(&areas?)?))
        };
        let seeds = runs.iter().map(of_seed).collect::<Option<Vec<_>>>();
        return Ok(seeds.map(|seeds| Worth { seeds, note: String::new() }).ok_or_else(lacking));
    }
    let measured = Measured::gather(pool, all, &sources(runs)).await?;
    Ok(of_line(&search.objective, &measured).ok_or_else(lacking))
}

/// The seeds of a trial as one line.
fn sources(runs: &[Own]) -> Vec<Source> {
    let sources = runs.iter().map(|run| Source {
        run: run.id,
        line: String::new(),
        label: String::new(),
        short: String::new(),
        wanted: 0,
        open: false,
        method: String::new(),
        seed: run.seed,
        name: String::new(),
    });
    sources.collect()
}

fn of_line(objective: &SearchObjective, measured: &Measured) -> Option<Worth> {
    let seeds = &measured.input.variants.first()?.seeds;
    let each = |of: &dyn Fn(&str) -> Option<f64>| {
        seeds.iter().map(|seed| Some((seed.seed, of(&seed.checkpoint)?))).collect::<Option<Vec<_>>>()
    };
    match objective {
        SearchObjective::Accuracy { alpha, role, .. } => {
            let role = (*role)?.as_str();
            let seeds = each(&|checkpoint| measured.checkpoint_mean(checkpoint, role, *alpha, Queries::All))?;
            Some(Worth { seeds, note: String::new() })
        }
        SearchObjective::BestAlpha { keep, .. } => {
            let figure = alpha_figure(&measured.input, FigureOptions { view: View::Accuracy, keep: *keep });
            let best = figure.lines.first()?.best.as_ref()?;
            let alpha = Alpha::from_f64(best.alpha)?;
            let on = best.chosen.reports();
            let seeds =
                each(&|checkpoint| measured.checkpoint_delta(checkpoint, figure.rule.goal, alpha, on))?;
            let how = match best.chosen {
                Chosen::Half => "chosen on the one half of the images, counted on the other",
                Chosen::Test => "best on test: chosen on the images that it is counted on",
            };
            Some(Worth { seeds, note: format!("best α {alpha}, {how}") })
        }
        SearchObjective::Metric { .. } | SearchObjective::Area { .. } => None,
    }
}
