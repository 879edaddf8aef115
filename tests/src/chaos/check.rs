//! The checker: what must hold once everything has ended, read from the database, the blobs and the agents' journals.
//! Each rule is a sentence of what is promised, and a function that lists what breaks it.

use super::load::{Entry, Program};
use super::values;
use anyhow::Result;
use causeway_protocol::{RunState, sha256_hex};
use sqlx::PgConnection;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

/// A promise that was not kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which.
    pub rule: String,
    /// Where.
    pub detail: String,
}

/// What the database is compared with.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Submissions by key.
    pub submitted: BTreeMap<String, Entry>,
    /// The folder of blobs.
    pub blobs: PathBuf,
    /// Folders of kept journals.
    pub journals: Vec<PathBuf>,
}

impl Evidence {
    /// The programs by run.
    pub fn programs(&self) -> BTreeMap<&str, Program> {
        let entries = self.submitted.values().filter_map(|entry| Some((entry.program?, &entry.runs)));
        entries.flat_map(|(program, runs)| runs.iter().map(move |run| (run.as_str(), program))).collect()
    }
}

/// Collects what breaks one rule.
pub(super) struct Broken<'a> {
    rule: &'static str,
    found: &'a mut Vec<Violation>,
}

impl<'a> Broken<'a> {
    fn of(rule: &'static str, found: &'a mut Vec<Violation>) -> Broken<'a> {
        Broken { rule, found }
    }

    pub(super) fn push(&mut self, detail: impl Into<String>) {
        self.found.push(Violation { rule: self.rule.to_owned(), detail: detail.into() });
    }
}

/// Checks every rule.
///
/// # Errors
/// If the database or a file cannot be read.
pub async fn check(session: &mut PgConnection, evidence: &Evidence) -> Result<Vec<Violation>> {
    let mut found = recorded(session).await?;
    ended(session, &mut Broken::of("every run ends once", &mut found)).await?;
    submitted(session, evidence, &mut Broken::of("a submission is one run", &mut found)).await?;
    given_back(session, &mut Broken::of("devices are given back", &mut found)).await?;
    reasons(session, &mut Broken::of("no run fails for what happens around it", &mut found)).await?;
    values::numbers(session, evidence, &mut Broken::of("every value once", &mut found)).await?;
    values::rollups(session, &mut Broken::of("rollups are what values come to", &mut found)).await?;
    values::journals(session, evidence, &mut Broken::of("what a journal says", &mut found)).await?;
    values::tunings(session, &mut Broken::of("a resumed training is the undisturbed one", &mut found))
        .await?;
    blobs(session, evidence, &mut Broken::of("blobs are whole", &mut found)).await?;
    checkpoints(session, evidence, &mut Broken::of("checkpoints are whole", &mut found)).await?;
    Ok(found)
}

/// What the database has noted by itself; see `recorder.sql`.
///
/// # Errors
/// If it does not answer.
pub async fn recorded(session: &mut PgConnection) -> Result<Vec<Violation>> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("select rule, detail from recorder.violation order by at").fetch_all(session).await?;
    Ok(rows.into_iter().map(|(rule, detail)| Violation { rule, detail }).collect())
}

/// Every run has ended; it got there by moves that the protocol allows, and its last one is its only end.
async fn ended(session: &mut PgConnection, broken: &mut Broken<'_>) -> Result<()> {
    let open = "select id::text, state from run where state in ('queued', 'running', 'paused')";
    let open: Vec<(String, String)> = sqlx::query_as(open).fetch_all(&mut *session).await?;
    open.iter().for_each(|(run, state)| broken.push(format!("run {run} is {state}")));
    let moves = "select s.run_id::text, s.old, s.new, r.state from recorder.state s left join run r on r.id = s.run_id
                 order by s.run_id, s.id";
    let moves: Vec<(String, Option<String>, String, Option<String>)> =
        sqlx::query_as(moves).fetch_all(&mut *session).await?;
    let state = |word: &str| word.parse::<RunState>().map_err(anyhow::Error::msg);
    let mut before: Option<(&str, &str)> = None;
    for (at, (run, old, new, now)) in moves.iter().enumerate() {
        let last = before.filter(|(of, _)| of == run).map(|(_, state)| state);
        if old.as_deref() != last {
            broken.push(format!("run {run} became {new} from {old:?}, having been {last:?}"));
        } else if let Some(last) = last
            && !state(last)?.may_become(state(new)?)
        {
            broken.push(format!("run {run} went from {last} to {new}"));
        }
        before = Some((run, new));
        let is_last = moves.get(at + 1).is_none_or(|next| next.0 != *run);
        if is_last && now.as_ref() != Some(new) {
            broken.push(format!("run {run} is {now:?}, and nothing made it so after {new}"));
        }
    }
    Ok(())
}

/// Every submission that was taken is there, once, however often it was sent.
async fn submitted(session: &mut PgConnection, evidence: &Evidence, broken: &mut Broken<'_>) -> Result<()> {
    let runs: Vec<(String, String)> =
        sqlx::query_as("select id::text, name from run").fetch_all(session).await?;
    let mut by_name: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (run, name) in &runs {
        by_name.entry(name).or_default().insert(run);
    }
    for (key, entry) in &evidence.submitted {
        let there = by_name.remove(key.as_str()).unwrap_or_default();
        let answered: BTreeSet<&str> = entry.runs.iter().map(String::as_str).collect();
        if !answered.is_subset(&there) {
            broken.push(format!("{key} was answered as {answered:?}, but there is {there:?}"));
        }
        if there.len() > 1 || answered.len() > 1 {
            broken.push(format!("{key} is several runs: {there:?}"));
        }
    }
    by_name.iter().for_each(|(name, _)| broken.push(format!("nobody submitted the run {name}")));
    Ok(())
}

/// When all has ended nobody holds anything.
async fn given_back(session: &mut PgConnection, broken: &mut Broken<'_>) -> Result<()> {
    let held = "select 'lease ' || id || ' of run ' || run_id from lease
                union all select 'device ' || name || ' of worker ' || worker_id from device where lease_id is not null
                union all select 'attempt ' || number || ' of run ' || run_id || ' is ' || state from attempt
                          where state in ('assigned', 'running')";
    let held: Vec<String> = sqlx::query_scalar(held).fetch_all(session).await?;
    held.iter().for_each(|what| broken.push(what.as_str()));
    Ok(())
}

/// A run fails for what its program or its disk does, and is lost for what kills its workers again and again: never
/// because a server, a database or a network did not answer.
async fn reasons(session: &mut PgConnection, broken: &mut Broken<'_>) -> Result<()> {
    let odd = "select id::text, state, reason from run
               where state = 'failed' and reason not like '%attempts are used up' and reason not like '%disk is full%'
                  or state = 'lost' and reason not like '%in a row without getting further'";
    let odd: Vec<(String, String, String)> = sqlx::query_as(odd).fetch_all(session).await?;
    odd.iter().for_each(|(run, state, reason)| broken.push(format!("run {run} is {state}: {reason}")));
    Ok(())
}

/// What a row says of a blob is what lies on the disk, and no file bears a name that is not its digest.
async fn blobs(session: &mut PgConnection, evidence: &Evidence, broken: &mut Broken<'_>) -> Result<()> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("select sha256, bytes from blob").fetch_all(session).await?;
    for (sha256, bytes) in rows {
        match fs::metadata(evidence.blobs.join(&sha256[..2]).join(&sha256)) {
            Ok(file) if file.len() as i64 == bytes => {}
            Ok(file) => broken.push(format!("blob {sha256} has {} bytes, not {bytes}", file.len())),
            Err(error) => broken.push(format!("blob {sha256}: {error}")),
        }
    }
    let folders = fs::read_dir(&evidence.blobs)?.flatten().map(|entry| entry.path());
    for folder in folders.filter(|path| path.file_name().is_some_and(|name| name.len() == 2)) {
        for file in fs::read_dir(folder)? {
            let path = file?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let found = sha256_hex(&fs::read(&path)?);
            if found != name {
                broken.push(format!("the file {name} has the sha256 {found}"));
            }
        }
    }
    Ok(())
}

/// A run that has succeeded has the file that its program leaves, and no other run has it.
async fn checkpoints(session: &mut PgConnection, evidence: &Evidence, broken: &mut Broken<'_>) -> Result<()> {
    let programs = evidence.programs();
    let rows = "select id::text, state, checkpoint from run where kind = 'command'";
    let rows: Vec<(String, String, Option<String>)> = sqlx::query_as(rows).fetch_all(session).await?;
    for (run, state, checkpoint) in rows {
        let Some(program) = programs.get(run.as_str()) else { continue };
        let expected = sha256_hex(program.model().as_bytes());
        let right = match &checkpoint {
            Some(sha256) => *sha256 == expected,
            None => state != "succeeded",
        };
        if !right {
            broken.push(format!("run {run} is {state} with the checkpoint {checkpoint:?}, not {expected}"));
        }
    }
    Ok(())
}
