//! The rules about values: what a program has reported is in the database, once, with that number.

use super::check::{Broken, Evidence};
use anyhow::{Context, Result};
use serde_json::Value;
use sqlx::PgConnection;
use std::{collections::BTreeMap, fs};

/// Chunks whose rollup is not what their values come to, or that reach into the next.
pub const WRONG: &str = include_str!("wrong.sql");

/// A value: run, attempt, step, number, whether it is visible.
type Row = (String, i32, i64, f64, bool);

/// Steps with their values, in order.
type Values = Vec<(i64, f64)>;

/// What programs have reported.
const VALUES: &str = "
    select s.run_id::text, v.attempt, v.step, v.value, a.number is not null and v.step <= coalesce(a.visible_through, v.step)
    from value v join series s on s.id = v.series_id left join attempt a on a.run_id = s.run_id and a.number = v.attempt
    where s.name = 'x' and v.rollback = 0 order by s.run_id, v.attempt, v.step, v.n";

/// Every value has the number that its program gives; the visible ones of a run are steps 1, 2, 3 …, each once, to the
/// last one if it succeeded.
pub(super) async fn numbers(
    session: &mut PgConnection,
    evidence: &Evidence,
    broken: &mut Broken<'_>,
) -> Result<()> {
    let rows: Vec<Row> = sqlx::query_as(VALUES).fetch_all(&mut *session).await?;
    let mut visible: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    let programs = evidence.programs();
    for (run, attempt, step, number, shown) in &rows {
        let Some(program) = programs.get(run.as_str()) else { continue };
        let expected = program.number(step.unsigned_abs());
        if *number != expected {
            broken.push(format!("step {step} of attempt {attempt} of run {run} is {number}, not {expected}"));
        }
        if *shown {
            visible.entry(run).or_default().push(*step);
        }
    }
    let states: Vec<(String, String)> =
        sqlx::query_as("select id::text, state from run where kind = 'command'").fetch_all(session).await?;
    for (run, state) in &states {
        let Some(program) = programs.get(run.as_str()) else { continue };
        let mut steps = visible.remove(run.as_str()).unwrap_or_default();
        steps.sort_unstable();
        let last = if state == "succeeded" { program.steps as i64 } else { steps.len() as i64 };
        if !steps.iter().copied().eq(1..=last) {
            broken.push(format!("run {run} is {state} and has the steps {steps:?} of {}", program.steps));
        }
    }
    Ok(())
}

/// Rollups and summaries are what the values come to, and no value has arrived with two numbers.
pub(super) async fn rollups(session: &mut PgConnection, broken: &mut Broken<'_>) -> Result<()> {
    let wrong: i64 = sqlx::query_scalar(WRONG).fetch_one(&mut *session).await?;
    if wrong > 0 {
        broken.push(format!("{wrong} chunks are not what their values come to"));
    }
    let counts = "select s.run_id::text, s.name, coalesce(m.attempt, c.attempt), coalesce(m.count, 0), coalesce(c.count, 0)
         from (select v.series_id, v.attempt, count(*) as count from value v join series s on s.id = v.series_id
               join attempt a on a.run_id = s.run_id and a.number = v.attempt
               where v.rollback = 0 and v.step <= coalesce(a.visible_through, v.step) group by 1, 2) c
         full join summary m using (series_id, attempt) join series s on s.id = series_id
         where m.count is distinct from c.count";
    let counts: Vec<(String, String, i32, i64, i64)> =
        sqlx::query_as(counts).fetch_all(&mut *session).await?;
    for (run, name, attempt, told, there) in counts {
        broken
            .push(format!("{name} of attempt {attempt} of run {run}: {told} in the summary, {there} there"));
    }
    let conflicts =
        "select s.run_id::text, s.name, c.step from conflict c join series s on s.id = c.series_id";
    let conflicts: Vec<(String, String, i64)> = sqlx::query_as(conflicts).fetch_all(session).await?;
    for (run, name, step) in conflicts {
        broken.push(format!("{name} of run {run} has two numbers at step {step}"));
    }
    Ok(())
}

/// A journal's whole lines are numbered from 1, and what the database has of an attempt is how its journal begins: all of
/// it, where the attempt's end was told by its agent.
pub(super) async fn journals(
    session: &mut PgConnection,
    evidence: &Evidence,
    broken: &mut Broken<'_>,
) -> Result<()> {
    let rows: Vec<Row> = sqlx::query_as(VALUES).fetch_all(&mut *session).await?;
    let mut taken: BTreeMap<(&str, i32), Vec<(i64, f64)>> = BTreeMap::new();
    for (run, attempt, step, number, _) in &rows {
        taken.entry((run, *attempt)).or_default().push((*step, *number));
    }
    let ends = "select run_id::text, number,
                       state in ('succeeded', 'yielded', 'cancelled') or state = 'failed' and cause = 'bug'
                       or state = 'lost' and cause = 'interrupted' from attempt";
    let ends: Vec<(String, i32, Option<bool>)> = sqlx::query_as(ends).fetch_all(session).await?;
    let told: BTreeMap<(&str, i32), bool> =
        ends.iter().map(|(run, number, told)| ((run.as_str(), *number), told.unwrap_or(false))).collect();
    let mut said: BTreeMap<(String, i32), Vec<Values>> = BTreeMap::new();
    for folder in &evidence.journals {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let of = name.split('.').next().and_then(|name| name.rsplit_once('-'));
            let (run, attempt) = of.context("a journal's name")?;
            let text = fs::read_to_string(&path)?;
            match values(&text) {
                Ok(values) => said.entry((run.to_owned(), attempt.parse()?)).or_default().push(values),
                Err(error) => broken.push(format!("{name}: {error:#}")),
            }
        }
    }
    for ((run, attempt), journals) in &said {
        let here = taken.remove(&(run.as_str(), *attempt)).unwrap_or_default();
        let all = told.get(&(run.as_str(), *attempt)).copied().unwrap_or(false);
        let matches = |journal: &Values| {
            if all { *journal == here } else { journal.starts_with(&here) }
        };
        if !journals.iter().any(matches) {
            let lengths: Vec<usize> = journals.iter().map(Vec::len).collect();
            let what = if all { "all" } else { "the beginning" };
            broken.push(format!(
                "attempt {attempt} of run {run} has {} values, which are not {what} of the {lengths:?} it reported",
                here.len()
            ));
        }
    }
    Ok(())
}

/// The values of `x` in a journal; a last line without an end counts for nothing.
fn values(text: &str) -> Result<Values> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut values = Vec::new();
    for (line, number) in whole.lines().zip(1..) {
        let line: Value = serde_json::from_str(line).with_context(|| format!("line {number}"))?;
        anyhow::ensure!(line["seq"] == number, "line {number} has the number {}", line["seq"]);
        if let (Some(step), Some(value)) = (line["step"].as_i64(), line["values"]["x"].as_f64()) {
            values.push((step, value));
        }
    }
    Ok(values)
}

/// Fine-tunings of one spec and seed that have succeeded have the same losses, bit for bit, and the same checkpoint.
pub(super) async fn tunings(session: &mut PgConnection, broken: &mut Broken<'_>) -> Result<()> {
    let rows = "select r.id::text, coalesce(r.checkpoint, ''),
                       array(select v.value from value v join series s on s.id = v.series_id
                             join attempt a on a.run_id = s.run_id and a.number = v.attempt
                             where s.run_id = r.id and s.name = 'loss' and v.rollback = 0
                               and v.step <= coalesce(a.visible_through, v.step) order by v.step)
                from run r where r.kind = 'finetune' and r.state = 'succeeded' order by r.finished_at";
    let rows: Vec<(String, String, Vec<f64>)> = sqlx::query_as(rows).fetch_all(session).await?;
    let Some((first, others)) = rows.split_first() else { return Ok(()) };
    for (run, checkpoint, losses) in others {
        if (checkpoint, losses) != (&first.1, &first.2) {
            broken.push(format!(
                "run {run} has come to {checkpoint} by {losses:?}, run {} to {}",
                first.0, first.1
            ));
        }
    }
    Ok(())
}
