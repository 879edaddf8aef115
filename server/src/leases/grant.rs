//! What a lease brings to its worker: the spec, where to go on from, what is known already, the place among several.

use super::lease_ms;
use crate::{App, Result, analysis, runs::parts};
use causeway_protocol::{
    Alpha, BlobRef, Gang, Hits, KnownPoint, LeaseGrant, LeaseRequest, Phase, ResumeFrom, Spec, WeightSource,
    selection_half,
};
use sqlx::{PgConnection, types::Json as SqlJson};
use uuid::Uuid;

/// Where rank 0 of an attempt on several workers listens: below the ports that systems hand out on their own.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Most known points told with a lease; the rest is computed again, to the same values.
const KNOWN_POINTS_MAX: i64 = 50_000;

/// A lease of this worker that its agent does not hold: newly assigned, or one whose answer was lost on the way. Once lines
/// have come under it, it was held; an agent that does not know it has lost the journal, and another one's first lines would
/// be taken for those that are here. Such a lease runs out.
///
/// # Errors
/// If the database does not answer.
pub async fn grant(app: &App, request: &LeaseRequest) -> Result<Option<LeaseGrant>> {
    let mut conn = app.pool.acquire().await?;
    let waiting = sqlx::query_scalar!(
        r#"select exists (select from lease where worker_id = $1 and id <> all($2) and shipped_seq = 0) as "there!""#,
        request.worker_id,
        &request.held,
    )
    .fetch_one(&mut *conn)
    .await?;
    if !waiting {
        return Ok(None);
    }
    // Should what is read after this statement fail, the lease is not held and the next request is granted it again.
    let row = sqlx::query!(
        r#"with granted as (
               select id, attempt_id from lease
               where worker_id = $1 and id <> all($2) and shipped_seq = 0 order by id limit 1 for update
           ), delivered as (
               update lease l set delivered = true, expires_at = now() + make_interval(secs => $3)
               from granted g where l.id = g.id
               returning l.id, l.run_id, l.attempt_id, l.attempt, l.epoch, l.rank
           ), begun as (
               update attempt a set state = 'running', started_at = coalesce(a.started_at, now())
               from granted g where a.id = g.attempt_id
           )
           select l.id as "id!", l.run_id as "run_id!", l.attempt_id as "attempt_id!", l.attempt as "attempt!",
                  l.epoch as "epoch!", l.rank as "rank!",
                  r.spec as "spec: SqlJson<Spec>", r.phase, r.checkpoint, b.bytes as "bytes?", r.part is not null as "is_part!",
                  exists (select from run p where p.part_of = r.id) as "is_spread!", r.nodes > 1 as "is_gang!",
                  array(select d.name from device d where d.lease_id = l.id order by d.ordinal) as "devices!"
           from delivered l join run r on r.id = l.run_id left join blob b on b.sha256 = r.checkpoint"#,
        request.worker_id,
        &request.held,
        app.lease_seconds
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let phase: Phase = row.phase.parse().map_err(anyhow::Error::msg)?;
    let resume = match phase {
        Phase::Train if row.attempt > 1 => resume_from(&mut conn, row.run_id).await?,
        _ => None,
    };
    let spec = row.spec.0;
    let checkpoint = match (&row.checkpoint, row.bytes) {
        (Some(digest), Some(bytes)) => Some(BlobRef {
            sha256: digest.clone(),
            bytes: bytes.cast_unsigned(),
            file: "checkpoint.safetensors".into(),
        }),
        _ => None,
    };
    let known_points = known_points(&mut conn, &spec, row.checkpoint.as_deref()).await?;
    let part = if row.is_part { parts::part(&mut conn, row.run_id).await? } else { None };
    let features = if row.is_spread { parts::features(&mut conn, row.run_id).await? } else { Vec::new() };
    let analysed = match spec.analysis {
        Some(_) => analysis::analysed(&mut conn, row.run_id).await?,
        None => Vec::new(),
    };
    let gang = if row.is_gang { gang(&mut conn, row.attempt_id, row.rank).await? } else { None };
    Ok(Some(LeaseGrant {
        id: row.id,
        run_id: row.run_id,
        attempt: row.attempt.cast_unsigned(),
        epoch: row.epoch,
        device: row.devices.first().cloned().unwrap_or_default(),
        devices: row.devices,
        gang,
        spec,
        phase,
        resume,
        checkpoint,
        known_points,
        part,
        features,
        analysed,
        expires_in_ms: lease_ms(app),
    }))
}

/// A member's place, if the attempt runs on several workers.
async fn gang(conn: &mut PgConnection, attempt: Uuid, rank: i32) -> Result<Option<Gang>> {
    let row = sqlx::query!(
        r#"select count(*) as "nodes!", min(w.address) filter (where l.rank = 0) as address from lease l
           join worker w on w.id = l.worker_id where l.attempt_id = $1"#,
        attempt
    )
    .fetch_one(conn)
    .await?;
    let nodes = u32::try_from(row.nodes).map_err(anyhow::Error::from)?;
    // Two attempts that meet on one host differ in their ports nearly always; where they do not, one fails to listen and
    // its next attempt has another.
    let port = PORTS.start + (attempt.as_u128() % u128::from(PORTS.end - PORTS.start)) as u16;
    let address = row.address.unwrap_or_default();
    Ok((nodes > 1).then(|| Gang { rank: rank.cast_unsigned(), nodes, address, port }))
}

async fn resume_from(conn: &mut PgConnection, run_id: Uuid) -> Result<Option<ResumeFrom>> {
    let row = sqlx::query!(
        "select s.step, s.blob, s.file, b.bytes from resume_state s join blob b on b.sha256 = s.blob
         where s.run_id = $1 order by s.step desc limit 1",
        run_id
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| ResumeFrom {
        step: row.step.cast_unsigned(),
        blob: BlobRef { sha256: row.blob, bytes: row.bytes.cast_unsigned(), file: row.file },
    }))
}

/// Points of this spec's datasets and protocols that exist: α = 0 from whichever run, and the checkpoint's own.
async fn known_points(
    conn: &mut PgConnection,
    spec: &Spec,
    checkpoint: Option<&str>,
) -> Result<Vec<KnownPoint>> {
    let protocols: Vec<String> =
        spec.evaluation.protocols().into_iter().map(|protocol| protocol.id).collect();
    let names: Vec<String> = spec.evaluation.datasets.iter().map(|dataset| dataset.asset.clone()).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let given = match &spec.weights.theta1 {
        Some(WeightSource::Blob(sha256)) => Some(sha256.as_str()),
        _ => None,
    };
    let own = checkpoint.or(given).unwrap_or("");
    // Which α a refinement goes on with rests on the points that are there.
    let refines = spec.evaluation.refine > 0;
    let choosing = protocols.get(spec.evaluation.choosing()).filter(|_| refines).map(String::as_str);
    let rows = sqlx::query!(
        r#"select c.backbone, c.checkpoint, c.dataset, c.protocol, (p.alpha * 10000)::int8 as "alpha!", p.n,
                  case when c.protocol = $5 then p.hits end as hits
           from curve c join point p on p.curve_id = c.id join dataset d on d.digest = c.dataset
           where c.protocol = any($1) and d.name = any($2) and c.checkpoint in ('', $3) limit $4"#,
        &protocols,
        &names,
        own,
        KNOWN_POINTS_MAX,
        choosing,
    )
    .fetch_all(conn)
    .await?;
    let points = rows.into_iter().filter_map(|row| {
        let count = usize::try_from(row.n).unwrap_or(0);
        let selected = row.hits.map(|hits| Hits(hits).count_among(&selection_half(&row.dataset, count)));
        Some(KnownPoint {
            backbone: row.backbone,
            checkpoint: (!row.checkpoint.is_empty()).then_some(row.checkpoint),
            dataset: row.dataset,
            protocol: row.protocol,
            alpha: Alpha::from_ten_thousandths(row.alpha)?,
            selected,
        })
    });
    Ok(points.collect())
}
