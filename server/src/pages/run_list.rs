//! The runs of an experiment: a page of them for the table, newest first, and those a figure is drawn from. Neither reads
//! all runs, so that an experiment of ten thousand opens like one of ten.

use super::{format, home::percent};
use crate::{
    Result,
    figures::{self, AlphaFigure, Chosen, Queries, RobustnessKind, signed},
    measured::Measured,
};
use causeway_protocol::{Alpha, RunProgress};
use sqlx::{PgPool, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

/// Runs on a page of the table.
const PAGE: i64 = 100;
/// Most runs that a figure is drawn from: the newest of those that have something to show or may have.
pub const FIGURE_RUNS: i64 = 200;

/// A run as the experiment's page needs it.
pub struct StoredRun {
    /// Id.
    pub id: Uuid,
    /// Name.
    pub name: String,
    /// The method's word.
    pub method: String,
    /// Seed.
    pub seed: i64,
    /// Equal for the runs of one line.
    pub variant: String,
    /// State.
    pub state: String,
    phase: String,
    reason: String,
    /// Digest of its checkpoint.
    pub checkpoint: Option<String>,
    progress: Option<RunProgress>,
    /// Its spec.
    pub document: serde_json::Value,
    updated: OffsetDateTime,
}

/// A row of the table.
pub struct RunRow {
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// A sample of its method's line.
    pub sample: String,
    /// The method's word.
    pub method: String,
    /// Seed.
    pub seed: i64,
    /// State as shape and word.
    pub state: String,
    /// How far it is, or why it ended.
    pub note: String,
    /// Digest of its checkpoint.
    pub checkpoint: Option<String>,
    /// Change at α = 1 for each role.
    pub deltas: Vec<(String, &'static str)>,
    /// What its line's best α brings this run, and which α that is.
    pub best: (String, &'static str, String),
    /// Robustness at α = 1.
    pub robust: (String, &'static str),
    /// When something happened last.
    pub updated: String,
}

/// The runs that a figure is drawn from, oldest first: the newest that a worker has begun, and those still to come where
/// there is room.
///
/// # Errors
/// If the database does not answer.
pub async fn in_figure(pool: &PgPool, experiment: Uuid) -> Result<Vec<StoredRun>> {
    let rows = sqlx::query!(
        r#"select r.id from
             ((select id from run where experiment_id = $1 and part_of is null and backbone is not null
               order by id desc limit $2)
              union all
              (select id from run where experiment_id = $1 and part_of is null and backbone is null
                 and state in ('queued', 'running') order by id desc limit $2)
              limit $2) r"#,
        experiment,
        FIGURE_RUNS
    )
    .fetch_all(pool)
    .await?;
    let ids: Vec<Uuid> = rows.into_iter().filter_map(|row| row.id).collect();
    let mut runs = stored(pool, &ids).await?;
    runs.sort_by_key(|run| run.id);
    Ok(runs)
}

/// A page of the table, newest first, and where the next one begins.
///
/// # Errors
/// If the database does not answer.
pub async fn listed(
    pool: &PgPool,
    experiment: Uuid,
    after: Option<Uuid>,
) -> Result<(Vec<StoredRun>, Option<Uuid>)> {
    let mut ids = sqlx::query_scalar!(
        "select id from run where experiment_id = $1 and part_of is null and ($2::uuid is null or id < $2)
         order by id desc limit $3",
        experiment,
        after,
        PAGE + 1
    )
    .fetch_all(pool)
    .await?;
    let page = usize::try_from(PAGE).unwrap_or(usize::MAX);
    let more = ids.len() > page;
    ids.truncate(page);
    let mut runs = stored(pool, &ids).await?;
    runs.sort_by_key(|run| std::cmp::Reverse(run.id));
    Ok((runs, ids.last().copied().filter(|_| more)))
}

async fn stored(pool: &PgPool, ids: &[Uuid]) -> Result<Vec<StoredRun>> {
    let rows = sqlx::query!(
        r#"select r.id, r.name, r.method, r.seed, r.variant, r.state, r.phase, r.reason, r.checkpoint, r.spec,
                  (select p.progress from run_progress p where p.run_id = r.id) as "progress?: Json<RunProgress>",
                  greatest(r.created_at, r.started_at, r.finished_at) as "updated!"
           from run r where r.id = any($1)"#,
        ids
    )
    .fetch_all(pool)
    .await?;
    let runs = rows.into_iter().map(|row| StoredRun {
        id: row.id,
        name: row.name,
        method: row.method,
        seed: row.seed,
        variant: row.variant,
        state: row.state,
        phase: row.phase,
        reason: row.reason,
        checkpoint: row.checkpoint,
        progress: row.progress.map(|json| json.0),
        document: row.spec,
        updated: row.updated,
    });
    Ok(runs.collect())
}

/// What the column of robustness is, by what there is to show.
pub fn robustness(measured: &Measured) -> Option<(&'static str, String)> {
    let found = (0..measured.input.variants.len()).find_map(|line| measured.robustness(line))?;
    Some(match found.kind {
        RobustnessKind::Effective => (
            "effective robustness",
            format!(
                "Effective robustness: OOD accuracy at α 1 above what the line through {} backbones (logit axes) expects \
                 of its ID accuracy, points.",
                found.backbones
            ),
        ),
        RobustnessKind::RelativeToBackbone => (
            "ΔOOD − ΔID",
            "ΔOOD − ΔID is relative to the backbone, at α 1, points; effective robustness needs three backbones \
             measured under this protocol."
                .to_owned(),
        ),
    })
}

/// A row of the table: the run, and what its checkpoint changes.
pub fn run_row(
    run: &StoredRun,
    measured: &Measured,
    roles: &[&'static str],
    figure: Option<&AlphaFigure>,
) -> RunRow {
    let deltas = roles.iter().map(|role| {
        let digest = run.checkpoint.as_deref();
        shown(digest.and_then(|digest| measured.checkpoint_delta(digest, role, Alpha::ONE, Queries::All)))
    });
    let curve =
        run.checkpoint.as_deref().and_then(|digest| Some((digest, measured.of_checkpoint(digest)?.0)));
    let best = curve.zip(figure).and_then(|((digest, line), figure)| {
        let best = figure.lines.get(line)?.best.as_ref()?;
        let alpha = Alpha::from_f64(best.alpha)?;
        let delta = measured.checkpoint_delta(digest, figure.rule.goal, alpha, best.chosen.reports());
        let test = if best.chosen == Chosen::Test { "on test " } else { "" };
        let (text, tone) = shown(delta);
        Some((text, tone, format!("{test}α {alpha}")))
    });
    let robust = curve.and_then(|(_, line)| {
        let found = measured.robustness(line)?;
        found.seeds.iter().find(|(other, _)| *other == run.id).map(|(_, value)| *value)
    });
    let progress = run.progress.as_ref().filter(|progress| progress.phase.as_str() == run.phase);
    let note = match (run.state.as_str(), progress) {
        ("running", Some(progress)) => format!("{} {} %", run.phase, percent(progress)),
        ("running", None) => format!("{} starts", run.phase),
        _ => run.reason.clone(),
    };
    RunRow {
        id: run.id.to_string(),
        name: run.name.clone(),
        sample: figures::method_svg(&run.method),
        method: run.method.clone(),
        seed: run.seed,
        state: format::state(&run.state),
        note,
        checkpoint: run.checkpoint.clone(),
        deltas: deltas.collect(),
        best: best.unwrap_or(("\u{2013}".to_owned(), "", String::new())),
        robust: shown(robust),
        updated: format::ago(run.updated),
    }
}

/// A difference and its tone; a dash where there is none.
fn shown(delta: Option<f64>) -> (String, &'static str) {
    delta.map_or(("\u{2013}".to_owned(), ""), |delta| (signed(delta), figures::tone(delta)))
}
