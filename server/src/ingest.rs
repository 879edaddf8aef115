//! What the journal says, into the tables. The caller holds the lease's row lock, so lines arrive one batch at a
//! time and each at most once; everything here happens in that one transaction.

use crate::{
    Error, Result, analysis,
    leases::Fenced,
    metrics::{batch::Batch, hide, store},
    runs::parts,
};
use causeway_protocol::{
    Event, EventBatch, JournalLine, LogLine, Phase, Place, PointRecord, Report, ReportLine, RunProgress, Spec,
};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

/// Most journal lines, and most log lines, in one batch.
const LINES_MAX: usize = 1000;
/// Longest log line kept, bytes; the rest is cut.
const LOG_LINE_MAX: usize = 4096;

/// Takes the lines that are new, in order, and answers the last one the server has.
///
/// # Errors
/// 400 for a gap or too many lines; nothing is taken then.
pub async fn ingest(conn: &mut PgConnection, lease: &Fenced, batch: EventBatch) -> Result<u64> {
    if batch.lines.len() > LINES_MAX || batch.logs.len() > LINES_MAX {
        return Err(Error::BadRequest(format!(
            "a batch has at most {LINES_MAX} journal lines and as many log lines"
        )));
    }
    let mut shipped = lease.shipped_seq.cast_unsigned();
    let mut values = Batch::default();
    for line in batch.lines {
        match Place::of(line.seq, shipped) {
            Place::Known => continue,
            Place::Next => {}
            Place::Gap => {
                return Err(Error::BadRequest(format!(
                    "journal line {} does not follow line {shipped}, the last one here",
                    line.seq
                )));
            }
        }
        shipped = line.seq;
        if lease.rank > 0 {
            continue; // of several workers the first speaks for the run
        }
        match line.event {
            Event::Metrics { step, values: of_step } => values.metrics(step, of_step)?,
            Event::Values { steps, n, values: columns } => values.values(&steps, n, columns)?,
            Event::RolledBack { step, rollbacks, .. } => {
                store::insert(conn, lease, &mut values).await?;
                let number = i32::try_from(rollbacks).unwrap_or(i32::MAX);
                hide::take_back(conn, lease, step.cast_signed(), number).await?;
            }
            _ => take(conn, lease, line).await?,
        }
    }
    store::insert(conn, lease, &mut values).await?;
    insert_logs(conn, lease, &batch.logs).await?;
    sqlx::query!("update lease set shipped_seq = $2 where id = $1", lease.id, shipped.cast_signed())
        .execute(conn)
        .await?;
    Ok(shipped)
}

/// Takes what a command reports through the API. It has no numbers of its own: a value that is sent again has its place.
///
/// # Errors
/// 400 for too many lines, or values beyond the limits; 409 for another worker than the first of several.
pub async fn report(conn: &mut PgConnection, lease: &Fenced, report: Report) -> Result<()> {
    if report.lines.len() > LINES_MAX {
        return Err(Error::BadRequest(format!("a report has at most {LINES_MAX} lines")));
    }
    if lease.rank > 0 {
        let rule = format!("this is rank {}; of several workers rank 0 reports for the run", lease.rank);
        return Err(Error::Conflict(rule));
    }
    let (mut values, mut progress) = (Batch::default(), None);
    for line in report.lines {
        match line {
            ReportLine::Metrics { step, values: of_step } => values.metrics(step, of_step)?,
            ReportLine::Progress { done, total } => progress = Some(RunProgress::of_command(done, total)),
        }
    }
    store::insert(conn, lease, &mut values).await?;
    match progress {
        Some(progress) => note_how_far(conn, lease.run_id, progress).await,
        None => Ok(()),
    }
}

async fn note_how_far(conn: &mut PgConnection, run: Uuid, progress: RunProgress) -> Result<()> {
    sqlx::query!(
        "insert into run_progress (run_id, progress) values ($1, $2)
         on conflict (run_id) do update set progress = $2, updated_at = now()",
        run,
        serde_json::to_value(progress).map_err(anyhow::Error::from)?
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The run got further: what happened to its workers before counts no more.
async fn note_progress(conn: &mut PgConnection, run: Uuid) -> Result<()> {
    sqlx::query!("update run set setbacks = 0 where id = $1 and setbacks > 0", run).execute(conn).await?;
    Ok(())
}

async fn take(conn: &mut PgConnection, lease: &Fenced, line: JournalLine) -> Result<()> {
    if matches!(
        line.event,
        Event::ResumeState { .. } | Event::Checkpoint { .. } | Event::Point(_) | Event::Features(_)
    ) {
        note_progress(conn, lease.run_id).await?;
    }
    match line.event {
        Event::Metrics { .. } | Event::Values { .. } | Event::RolledBack { .. } => Ok(()), // the caller's
        Event::Started { environment, phase: _, resumed_step } => {
            let resumed = resumed_step.cast_signed();
            sqlx::query!(
                "update attempt set environment = $2, resumed_step = $3 where id = $1",
                lease.attempt_id,
                serde_json::to_value(environment).map_err(anyhow::Error::from)?,
                resumed
            )
            .execute(&mut *conn)
            .await?;
            hide::resume_from(conn, lease, resumed).await
        }
        Event::Backbone { digest, parameters, trainable } => {
            let spec = sqlx::query_scalar!(
                r#"select spec as "spec: Json<Spec>" from run where id = $1"#,
                lease.run_id
            )
            .fetch_one(&mut *conn)
            .await?;
            let name = match &spec.weights.theta0 {
                causeway_protocol::WeightSource::Asset(name) => name.clone(),
                causeway_protocol::WeightSource::Blob(sha256) => {
                    format!("blob {}", &sha256[..12.min(sha256.len())])
                }
                causeway_protocol::WeightSource::Run(run) => format!("run {run}"),
                causeway_protocol::WeightSource::File(path) => path.clone(),
                causeway_protocol::WeightSource::Fresh(_) => format!("fresh, seed {}", spec.seed),
                // The rules of a spec keep soups for θ1.
                causeway_protocol::WeightSource::Soup(_) => "soup".to_owned(),
            };
            sqlx::query!(
                "insert into backbone (digest, name, parameters) values ($1, $2, $3) on conflict do nothing",
                digest,
                name,
                parameters.cast_signed()
            )
            .execute(&mut *conn)
            .await?;
            if let Some(causeway_protocol::WeightSource::Blob(sha256)) = &spec.weights.theta1 {
                // An evaluation whose points all exist already reports none: its θ1 is known from the spec.
                note_checkpoint(conn, sha256, &digest, "evaluate").await?;
                sqlx::query!("update run set checkpoint = $2 where id = $1", lease.run_id, sha256)
                    .execute(&mut *conn)
                    .await?;
            }
            sqlx::query!(
                "update run set backbone = $2, trainable = $3 where id = $1",
                lease.run_id,
                digest,
                trainable.cast_signed()
            )
            .execute(conn)
            .await?;
            Ok(())
        }
        Event::Captions { digest, images, .. } => {
            sqlx::query!(
                "update run set captions = $2, training_images = $3 where id = $1",
                lease.run_id,
                digest,
                images.cast_signed()
            )
            .execute(conn)
            .await?;
            Ok(())
        }
        Event::Phase { phase } => {
            sqlx::query!("update run set phase = $2 where id = $1", lease.run_id, phase.as_str())
                .execute(conn)
                .await?;
            Ok(())
        }
        Event::Progress(progress) => note_how_far(conn, lease.run_id, progress).await,
        Event::ResumeState { step, blob } => {
            require_blob(conn, &blob.sha256).await?;
            sqlx::query!(
                "insert into resume_state (run_id, step, attempt, blob, file) values ($1, $2, $3, $4, $5)
                 on conflict (run_id, step) do update set attempt = $3, blob = $4, file = $5",
                lease.run_id,
                step.cast_signed(),
                lease.attempt,
                blob.sha256,
                blob.file
            )
            .execute(&mut *conn)
            .await?;
            // The last two are kept: one that is being read, and one to fall back on.
            sqlx::query!(
                "delete from resume_state where run_id = $1 and step not in
                 (select step from resume_state where run_id = $1 order by step desc limit 2)",
                lease.run_id
            )
            .execute(conn)
            .await?;
            Ok(())
        }
        Event::Checkpoint { step, blob, backbone, method } => {
            require_blob(conn, &blob.sha256).await?;
            note_checkpoint(conn, &blob.sha256, &backbone, &method).await?;
            sqlx::query!(
                "update run set checkpoint = $2, checkpoint_step = $3,
                        phase = case when kind = 'command' then phase else $4 end where id = $1",
                lease.run_id,
                blob.sha256,
                step.cast_signed(),
                Phase::Evaluate.as_str()
            )
            .execute(&mut *conn)
            .await?;
            parts::spread(conn, lease.run_id, Some(&blob.sha256)).await
        }
        Event::Dataset {
            asset,
            digest,
            title,
            licence,
            source,
            queries,
            bank,
            leave_one_out,
            classes,
            queries_per_class,
        } => {
            let cast =
                |n: u32| i32::try_from(n).map_err(|_| Error::BadRequest("a dataset is too large".into()));
            sqlx::query!(
                "insert into dataset
                   (digest, name, title, licence, source, queries, bank, leave_one_out, classes, queries_per_class)
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict do nothing",
                digest,
                asset,
                title,
                licence,
                source,
                cast(queries)?,
                cast(bank)?,
                leave_one_out,
                serde_json::to_value(classes).map_err(anyhow::Error::from)?,
                &queries_per_class.into_iter().map(cast).collect::<Result<Vec<i32>>>()?
            )
            .execute(&mut *conn)
            .await?;
            // Role and place come from the spec.
            sqlx::query!(
                "insert into run_dataset (run_id, dataset, role, ordinal)
                 select r.id, $2, d.value ->> 'role', d.ordinality::int
                 from run r, jsonb_array_elements(r.spec -> 'evaluation' -> 'datasets') with ordinality d
                 where r.id = $1 and d.value ->> 'asset' = $3
                 on conflict do nothing",
                lease.run_id,
                digest,
                asset
            )
            .execute(conn)
            .await?;
            Ok(())
        }
        Event::Features(file) => {
            require_blob(conn, &file.blob.sha256).await?;
            parts::note_features(conn, lease.run_id, *file).await
        }
        Event::Point(point) => insert_point(conn, lease, *point).await,
        Event::Spectrum(report) => analysis::insert_spectrum(conn, lease, *report).await,
        Event::Similarity(report) => analysis::insert_similarity(conn, lease, *report).await,
    }
}

/// Refuses a line whose file is not here yet.
///
/// # Errors
/// 409 if it is not.
pub async fn require_blob(conn: &mut PgConnection, sha256: &str) -> Result<()> {
    let there =
        sqlx::query_scalar!(r#"select exists (select from blob where sha256 = $1) as "there!""#, sha256)
            .fetch_one(conn)
            .await?;
    if there { Ok(()) } else { Err(Error::Conflict(format!("blob {sha256} has not been uploaded yet"))) }
}

async fn note_checkpoint(conn: &mut PgConnection, digest: &str, backbone: &str, method: &str) -> Result<()> {
    sqlx::query!(
        "insert into checkpoint (digest, backbone, method) values ($1, $2, $3) on conflict do nothing",
        digest,
        backbone,
        method
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A point is computed once: the first one stays, and an equal one later changes nothing.
async fn insert_point(conn: &mut PgConnection, lease: &Fenced, point: PointRecord) -> Result<()> {
    let cast =
        |n: u32| i32::try_from(n).map_err(|_| Error::BadRequest("a point counts too many images".into()));
    let of_classes = point.correct_per_class.iter().try_fold(0u32, |sum, n| sum.checked_add(*n));
    if point.hits.count() != point.correct
        || of_classes != Some(point.correct)
        || point.correct > point.n
        || point.correct_top5 > point.n
    {
        return Err(Error::BadRequest(format!(
            "the counts of the point at α = {} contradict each other",
            point.alpha
        )));
    }
    let definition = serde_json::to_value(&point.protocol).map_err(anyhow::Error::from)?;
    sqlx::query!(
        "insert into protocol (id, definition) values ($1, $2) on conflict do nothing",
        point.protocol.id,
        definition
    )
    .execute(&mut *conn)
    .await?;
    let checkpoint = point.checkpoint.unwrap_or_default();
    if !checkpoint.is_empty() {
        // An evaluation brings its own θ1: that is the run's checkpoint.
        let method = sqlx::query_scalar!("select method from run where id = $1", lease.run_id)
            .fetch_one(&mut *conn)
            .await?;
        note_checkpoint(conn, &checkpoint, &point.backbone, &method).await?;
        sqlx::query!(
            "update run set checkpoint = $2 where id = $1 and checkpoint is null",
            lease.run_id,
            checkpoint
        )
        .execute(&mut *conn)
        .await?;
    }
    sqlx::query!(
        "insert into curve (backbone, checkpoint, dataset, protocol) values ($1, $2, $3, $4) on conflict do nothing",
        point.backbone,
        checkpoint,
        point.dataset,
        point.protocol.id
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "insert into point (curve_id, alpha, n, correct, correct_top5, hits, stamp, run_id, correct_per_class)
         select id, $5::int8::numeric / 10000, $6, $7, $8, $9, $10, $11, $12 from curve
         where backbone = $1 and checkpoint = $2 and dataset = $3 and protocol = $4
         on conflict do nothing",
        point.backbone,
        checkpoint,
        point.dataset,
        point.protocol.id,
        point.alpha.ten_thousandths(),
        cast(point.n)?,
        cast(point.correct)?,
        cast(point.correct_top5)?,
        point.hits.0,
        serde_json::to_value(point.stamp).map_err(anyhow::Error::from)?,
        lease.run_id,
        &point.correct_per_class.into_iter().map(cast).collect::<Result<Vec<i32>>>()?
    )
    .execute(conn)
    .await?;
    Ok(())
}

async fn insert_logs(conn: &mut PgConnection, lease: &Fenced, lines: &[LogLine]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    // Each of several workers counts its own positions.
    let stream = |line: &LogLine| match lease.rank {
        0 => line.stream.as_str().to_owned(),
        rank => format!("{} of rank {rank}", line.stream.as_str()),
    };
    let streams: Vec<String> = lines.iter().map(stream).collect();
    let positions: Vec<i64> = lines.iter().map(|line| line.offset.cast_signed()).collect();
    let texts: Vec<String> = lines.iter().map(|line| clean(&line.text)).collect();
    sqlx::query!(
        "insert into log_line (run_id, attempt, stream, position, text)
         select $1, $2, l.stream, l.position, l.text
         from unnest($3::text[], $4::int8[], $5::text[]) as l(stream, position, text)
         on conflict do nothing",
        lease.run_id,
        lease.attempt,
        &streams,
        &positions,
        &texts
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Cuts what is too long, and takes out the one character that Postgres text cannot hold.
fn clean(text: &str) -> String {
    let mut end = text.len().min(LOG_LINE_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace('\0', "\u{fffd}")
}

/// What a run that says it succeeded still lacks: every dataset of its spec, at every α and k.
///
/// # Errors
/// If the database does not answer.
pub async fn missing_points(
    conn: &mut PgConnection,
    run_id: Uuid,
    spec: &Spec,
    backbone: &str,
    checkpoint: &str,
) -> Result<Option<String>> {
    let evaluation = &spec.evaluation;
    let protocols: Vec<String> = evaluation.protocols().into_iter().map(|protocol| protocol.id).collect();
    let alphas: Vec<i64> = evaluation.alphas.iter().map(|alpha| alpha.ten_thousandths()).collect();
    let expected = evaluation.datasets.len() * protocols.len() * alphas.len();
    if expected == 0 {
        return Ok(None);
    }
    let found = sqlx::query_scalar!(
        r#"select count(*) as "count!" from run_dataset d
           join curve c on c.dataset = d.dataset and c.backbone = $2 and c.protocol = any($4)
           join point p on p.curve_id = c.id
           where d.run_id = $1 and (p.alpha * 10000)::int8 = any($5)
             and c.checkpoint = case when p.alpha = 0 then '' else $3 end"#,
        run_id,
        backbone,
        checkpoint,
        &protocols,
        &alphas
    )
    .fetch_one(conn)
    .await?;
    let found = usize::try_from(found).unwrap_or(0);
    Ok((found < expected).then(|| format!("the attempt ended with {found} of {expected} points")))
}
