//! An evaluation spread over workers. A run whose spec says `evaluation.parts = n` gets n runs beside it once there is
//! something to evaluate: each computes the features of a share of the images and uploads them. The whole waits until
//! its parts have ended, takes the features that are there, computes what is missing, and counts the votes. A part that
//! fails therefore costs time and nothing else.

use crate::{Error, Result, runs};
use causeway_protocol::{BlobRef, FeatureFile, Kind, Part, Phase, RunState, Spec, WeightSource};
use serde::Serialize;
use sqlx::{PgConnection, PgPool, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

/// A part of an evaluation, as the page of the whole shows it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PartSummary {
    /// The part's own run.
    pub id: Uuid,
    /// From 1.
    pub part: i32,
    /// State.
    pub state: String,
    /// Why it ended, in a sentence.
    pub reason: String,
    /// How far it is (`RunProgress`).
    pub progress: Option<serde_json::Value>,
}

/// Puts the parts of a run into the queue, where its spec asks for some and it has none yet. `checkpoint` is what the
/// run itself has made.
///
/// # Errors
/// If the database does not answer.
pub async fn spread(conn: &mut PgConnection, run: Uuid, checkpoint: Option<&str>) -> Result<()> {
    let row = sqlx::query!(
        r#"select r.experiment_id, r.name, r.method, r.seed, r.variant, r.priority, r.queue_position as "queue_position!",
                  r.max_attempts, r.part_of, r.project_id, r.submitted_by, r.devices, r.device_memory, r.labels,
                  r.spec as "spec: Json<Spec>", exists (select from run p where p.part_of = r.id) as "spread!"
           from run r where r.id = $1 for update of r"#,
        run
    )
    .fetch_one(&mut *conn)
    .await?;
    let whole = row.spec.0;
    let parts = whole.evaluation.parts;
    if parts < 2 || row.spread || row.part_of.is_some() {
        return Ok(());
    }
    for part in 1..=parts {
        let spec = part_of(&whole, checkpoint, &format!("{} · part {part} of {parts}", row.name));
        sqlx::query!(
            "insert into run (id, experiment_id, name, kind, method, seed, spec, variant, state, phase, priority,
                              max_attempts, part_of, part, queue_position, project_id, submitted_by, devices,
                              device_memory, labels, needs)
             overriding system value
             values ($1, $2, $3, $4, $5, $6, $7, $8, 'queued', $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
                     $20)",
            Uuid::now_v7(),
            row.experiment_id,
            spec.name,
            spec.kind.as_str(),
            row.method,
            row.seed,
            serde_json::to_value(&spec).map_err(anyhow::Error::from)?,
            row.variant,
            Phase::Evaluate.as_str(),
            row.priority,
            row.max_attempts,
            run,
            part.cast_signed(),
            row.queue_position, // not behind what was submitted since
            row.project_id,
            row.submitted_by,
            row.devices,
            row.device_memory,
            &row.labels,
            &spec.assets().into_iter().map(str::to_owned).collect::<Vec<_>>(),
        )
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

/// The spec of a part: the evaluation alone.
fn part_of(whole: &Spec, checkpoint: Option<&str>, name: &str) -> Spec {
    let mut spec = Spec {
        name: name.to_owned(),
        kind: Kind::Evaluate,
        method: None,
        captions: None,
        objective: None,
        retention: None,
        training: None,
        analysis: None,
        ..whole.clone()
    };
    if let Some(checkpoint) = checkpoint {
        spec.weights.theta1 = Some(WeightSource::Blob(checkpoint.to_owned()));
    }
    (spec.evaluation.parts, spec.evaluation.refine) = (1, 0);
    spec
}

/// Which part a run is, if it is one.
///
/// # Errors
/// If the database does not answer.
pub async fn part(conn: &mut PgConnection, run: Uuid) -> Result<Option<Part>> {
    let row = sqlx::query!(
        r#"select part as "part!", (select count(*) from run o where o.part_of = r.part_of) as "of!"
           from run r where id = $1 and part is not null"#,
        run
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| Part {
        index: row.part.cast_unsigned() - 1,
        of: u32::try_from(row.of).unwrap_or(u32::MAX),
    }))
}

/// The parts of a run, in order.
///
/// # Errors
/// If the database does not answer.
pub async fn parts(pool: &PgPool, run: Uuid) -> Result<Vec<PartSummary>> {
    let parts = sqlx::query_as!(
        PartSummary,
        r#"select r.id, r.part as "part!", r.state, r.reason, p.progress as "progress?"
           from run r left join run_progress p on p.run_id = r.id where r.part_of = $1 order by r.part"#,
        run
    )
    .fetch_all(pool)
    .await?;
    Ok(parts)
}

/// Notes what a part has computed; its file is here already.
///
/// # Errors
/// 400 for a run that is no part.
pub async fn note_features(conn: &mut PgConnection, run: Uuid, file: FeatureFile) -> Result<()> {
    if part(conn, run).await?.is_none() {
        return Err(Error::BadRequest("only a part of an evaluation brings features".into()));
    }
    let FeatureFile { key, blob } = file;
    sqlx::query!(
        "insert into feature_file (run_id, blob, bytes, key) values ($1, $2, $3, $4) on conflict do nothing",
        run,
        blob.sha256,
        blob.bytes.cast_signed(),
        key
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What the parts of a run have computed.
///
/// # Errors
/// If the database does not answer.
pub async fn features(conn: &mut PgConnection, run: Uuid) -> Result<Vec<FeatureFile>> {
    let rows = sqlx::query!(
        "select f.blob, f.bytes, f.key from feature_file f join run p on p.id = f.run_id
         where p.part_of = $1 order by p.part, f.blob",
        run
    )
    .fetch_all(conn)
    .await?;
    let files = rows.into_iter().map(|row| FeatureFile {
        key: row.key,
        blob: BlobRef { file: row.blob.clone(), sha256: row.blob, bytes: row.bytes.cast_unsigned() },
    });
    Ok(files.collect())
}

/// Runs have ended: their parts are of no more use.
///
/// # Errors
/// If the database does not answer.
pub async fn end(conn: &mut PgConnection, runs: &[Uuid]) -> Result<()> {
    let all =
        sqlx::query_scalar!("select id from run where part_of = any($1)", runs).fetch_all(&mut *conn).await?;
    if all.is_empty() {
        return Ok(());
    }
    sqlx::query!("delete from feature_file where run_id = any($1)", &all).execute(&mut *conn).await?;
    sqlx::query!("update run set cancel_requested = true where id = any($1) and state = 'running'", &all)
        .execute(&mut *conn)
        .await?;
    let waiting: Vec<Uuid> =
        sqlx::query_scalar!("select id from run where id = any($1) and state in ('queued', 'paused')", &all)
            .fetch_all(&mut *conn)
            .await?;
    if !waiting.is_empty() {
        Box::pin(runs::change_states(conn, &waiting, RunState::Cancelled, "the whole has ended")).await?;
    }
    Ok(())
}
