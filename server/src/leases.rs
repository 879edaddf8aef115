//! The worker protocol: a held request for work, a held heartbeat, the journal, the end. Every write locks the lease
//! row and compares the epoch in the same transaction; a stale epoch gets 409 and changes nothing.

use crate::{
    ApiJson, App, Error, Result, analysis, ingest, runs,
    runs::parts,
    scheduler::{
        end_attempt, give_back,
        retry::{Cause, Then, Verdict, verdict},
    },
    wake::Listener,
    workers,
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use causeway_protocol::{
    Alpha, BlobRef, EventBatch, EventsAccepted, FinishLease, Gang, HeartbeatAnswer, HeartbeatRequest, Hits,
    KnownPoint, LeaseGrant, LeaseRequest, Order, Outcome, Phase, RenewedLease, ResumeFrom, RunState, Spec,
    WeightSource, selection_half,
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, types::Json as SqlJson};
use std::time::Duration;
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

/// Longest a request is held open, milliseconds.
const WAIT_MS_MAX: u64 = 30_000;
/// Where rank 0 of an attempt on several workers listens: below the ports that systems hand out on their own.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Longest pause before a crashed run is tried again, seconds; the first is one second, and each doubles it.
const PAUSE_MAX: f64 = 60.0;
/// Most known points told with a lease; the rest is computed again, to the same values.
const KNOWN_POINTS_MAX: i64 = 50_000;

/// A lease whose row is locked: the fence has been passed, and holds until the transaction ends.
#[derive(Debug)]
pub struct Fenced {
    /// The lease.
    pub id: Uuid,
    /// Its run.
    pub run_id: Uuid,
    /// Its attempt's row.
    pub attempt_id: Uuid,
    /// Its attempt's number.
    pub attempt: i32,
    /// Which of the attempt's workers, from 0.
    pub rank: i32,
    /// Last journal line taken.
    pub shipped_seq: i64,
}

/// Locks the lease and compares the epoch.
///
/// # Errors
/// `StaleLease` if it is gone or another epoch's.
pub async fn fence(conn: &mut PgConnection, id: Uuid, epoch: i64) -> Result<Fenced> {
    let row = sqlx::query!(
        "select run_id, attempt_id, attempt, epoch, rank, shipped_seq from lease where id = $1 for update",
        id
    )
    .fetch_optional(conn)
    .await?;
    match row {
        Some(row) if row.epoch == epoch => Ok(Fenced {
            id,
            run_id: row.run_id,
            attempt_id: row.attempt_id,
            attempt: row.attempt,
            rank: row.rank,
            shipped_seq: row.shipped_seq,
        }),
        _ => Err(Error::StaleLease),
    }
}

/// Ask for work. Held until something is assigned or `wait_ms` have passed.
#[utoipa::path(post, path = "/api/v1/leases", operation_id = "request_lease", tag = "worker protocol",
    request_body = LeaseRequest,
    responses((status = 200, body = LeaseGrant), (status = 204, description = "Nothing to do within wait_ms")))]
pub async fn request_lease(
    State(app): State<App>,
    ApiJson(request): ApiJson<LeaseRequest>,
) -> Result<Response> {
    let deadline = Instant::now() + wait(request.wait_ms);
    if workers::pulse(&app, request.worker_id).await? {
        app.wake.ring_scheduler(); // a worker that was silent may be what a pass is waiting for
    }
    loop {
        let mut wake = app.wake.listen_as_worker(request.worker_id);
        if let Some(grant) = grant(&app, &request).await? {
            return Ok(Json(grant).into_response());
        }
        if sleep_until(&mut wake, deadline, &app).await {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        workers::pulse(&app, request.worker_id).await?;
    }
}

/// Sleeps until something changes; true when the time is up or the server is stopping.
async fn sleep_until(wake: &mut Listener, deadline: Instant, app: &App) -> bool {
    tokio::select! {
        () = wake.heard() => Instant::now() >= deadline,
        () = tokio::time::sleep_until(deadline) => true,
        () = app.stop.cancelled() => true,
    }
}

fn wait(ms: u64) -> Duration {
    Duration::from_millis(ms.min(WAIT_MS_MAX))
}

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

fn lease_ms(app: &App) -> u64 {
    (app.lease_seconds * 1000.0) as u64
}

/// Renew a lease, and wait for an order. Held up to `wait_ms`, so that a cancel arrives at once.
#[utoipa::path(post, path = "/api/v1/leases/{id}/heartbeat", operation_id = "heartbeat", tag = "worker protocol",
    params(("id" = Uuid, Path)), request_body = HeartbeatRequest,
    responses((status = 200, body = HeartbeatAnswer), (status = 409, body = crate::error::ProblemDetails)))]
pub async fn heartbeat(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    ApiJson(request): ApiJson<HeartbeatRequest>,
) -> Result<Json<HeartbeatAnswer>> {
    let deadline = Instant::now() + wait(request.wait_ms);
    renew(&app, id, request.epoch).await?;
    loop {
        let mut wake = app.wake.listen();
        let row = sqlx::query!(
            r#"select r.cancel_requested, r.yield_for,
                      (extract(epoch from r.yield_by - now()) * 1000)::int8 as yield_ms
               from lease l join run r on r.id = l.run_id where l.id = $1 and l.epoch = $2"#,
            id,
            request.epoch
        )
        .fetch_optional(&app.pool)
        .await?;
        let (order, yield_within_ms) = match row {
            None => return Err(Error::StaleLease),
            Some(row) if row.cancel_requested => (Order::Stop, None),
            Some(row) if row.yield_for.is_some() => {
                (Order::Yield, Some(row.yield_ms.unwrap_or(0).max(0).cast_unsigned()))
            }
            Some(_) => (Order::Continue, None),
        };
        if order != Order::Continue || sleep_until(&mut wake, deadline, &app).await {
            return Ok(Json(HeartbeatAnswer { order, yield_within_ms, expires_in_ms: lease_ms(&app) }));
        }
    }
}

/// Gives the lease a fresh period, and notes that its worker was heard of.
async fn renew(app: &App, id: Uuid, epoch: i64) -> Result<i64> {
    let row = sqlx::query!(
        "update lease set expires_at = now() + make_interval(secs => $3) where id = $1 and epoch = $2
         returning worker_id, shipped_seq",
        id,
        epoch,
        app.lease_seconds
    )
    .fetch_optional(&app.pool)
    .await?
    .ok_or(Error::StaleLease)?;
    workers::pulse(app, row.worker_id).await?;
    Ok(row.shipped_seq)
}

/// The fence alone.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// The epoch of the lease.
    pub epoch: i64,
}

/// Renew a lease after a restart of the agent; the answer says which journal lines have arrived.
#[utoipa::path(post, path = "/api/v1/leases/{id}/renew", operation_id = "renew_lease", tag = "worker protocol",
    params(("id" = Uuid, Path)), request_body = Epoch,
    responses((status = 200, body = RenewedLease), (status = 409, body = crate::error::ProblemDetails)))]
pub async fn renew_lease(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    ApiJson(request): ApiJson<Epoch>,
) -> Result<Json<RenewedLease>> {
    let shipped = renew(&app, id, request.epoch).await?;
    Ok(Json(RenewedLease { shipped_seq: shipped.cast_unsigned(), expires_in_ms: lease_ms(&app) }))
}

/// Ship journal and log lines. One transaction: fence, skip what is here, insert the rest.
#[utoipa::path(post, path = "/api/v1/leases/{id}/events", operation_id = "ship_events", tag = "worker protocol",
    params(("id" = Uuid, Path)), request_body = EventBatch,
    responses((status = 200, body = EventsAccepted), (status = 409, body = crate::error::ProblemDetails)))]
pub async fn ship_events(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    ApiJson(batch): ApiJson<EventBatch>,
) -> Result<Json<EventsAccepted>> {
    let mut tx = app.pool.begin().await?;
    let lease = fence(&mut tx, id, batch.epoch).await?;
    let shipped_seq = ingest::ingest(&mut tx, &lease, batch).await?;
    tx.commit().await?;
    Ok(Json(EventsAccepted { shipped_seq }))
}

/// End an attempt. A run whose process crashed goes back to the queue while it has attempts left.
#[utoipa::path(post, path = "/api/v1/leases/{id}/finish", operation_id = "finish_lease", tag = "worker protocol",
    params(("id" = Uuid, Path)), request_body = FinishLease,
    responses((status = 204), (status = 409, body = crate::error::ProblemDetails)))]
pub async fn finish_lease(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    ApiJson(end): ApiJson<FinishLease>,
) -> Result<StatusCode> {
    finish(&app, id, end).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends an attempt, or a member's share of one.
///
/// # Errors
/// `StaleLease` if the lease is gone or another epoch's; nothing has changed then.
pub async fn finish(app: &App, id: Uuid, end: FinishLease) -> Result<()> {
    let mut tx = app.pool.begin().await?;
    let lease = fence(&mut tx, id, end.epoch).await?;
    let others = end_lease(&mut tx, &lease, end).await?;
    tx.commit().await?;
    if others {
        app.wake.ring(); // those of its other workers have ended with it
    } else {
        app.wake.ring_scheduler();
    }
    Ok(())
}

/// What a run that says it succeeded still lacks: points, then analyses.
async fn missing(conn: &mut PgConnection, run_id: Uuid) -> Result<Option<String>> {
    let run = sqlx::query!(
        r#"select spec as "spec: SqlJson<Spec>", backbone, checkpoint, part is not null as "is_part!"
           from run where id = $1"#,
        run_id
    )
    .fetch_one(&mut *conn)
    .await?;
    if run.is_part {
        return Ok(None); // it brings features; the whole computes what is missing
    }
    let (backbone, checkpoint) = (run.backbone.unwrap_or_default(), run.checkpoint.unwrap_or_default());
    match ingest::missing_points(conn, run_id, &run.spec, &backbone, &checkpoint).await? {
        None => analysis::missing(conn, run_id, &run.spec).await,
        points => Ok(points),
    }
}

/// True if the attempt had other workers.
async fn end_lease(conn: &mut PgConnection, lease: &Fenced, mut end: FinishLease) -> Result<bool> {
    let run = sqlx::query!(
        r#"select cancel_requested,
                  exists (select from lease l where l.attempt_id = $2 and l.id <> $3) as "others!",
                  exists (select from run p where p.part_of = run.id) as "parts!"
           from run where id = $1 for update"#,
        lease.run_id,
        lease.attempt_id,
        lease.id
    )
    .fetch_one(&mut *conn)
    .await?;
    let (cancelled, others) = (run.cancel_requested, run.others);
    if end.outcome == Outcome::Succeeded && others {
        // One of several workers is done; the attempt is when the last one is.
        sqlx::query!("delete from lease where id = $1", lease.id).execute(conn).await?;
        return Ok(true);
    }
    if end.outcome == Outcome::Succeeded
        && let Some(missing) = missing(conn, lease.run_id).await?
    {
        (end.outcome, end.reason) = (Outcome::Crashed, missing);
    }
    if end.outcome == Outcome::HandedOver && !run.parts {
        let reason = "the attempt hands its evaluation over, but the run has no parts".to_owned();
        (end.outcome, end.reason) = (Outcome::Failed, reason);
    }
    let Verdict { attempt, cause, run: then } = verdict(end.outcome, cancelled);
    sqlx::query!(
        "update attempt set state = $2, reason = $3, exit_code = $4, signal = $5, cause = $6, ended_at = now()
         where id = $1",
        lease.attempt_id,
        attempt.as_str(),
        end.reason,
        end.exit_code,
        end.signal,
        cause.map(Cause::as_str),
    )
    .execute(&mut *conn)
    .await?;
    // Of all its workers: what the others still say is not heard any more.
    end_attempt(conn, lease.attempt_id).await?;
    match then {
        Then::Ends(state) => {
            let reason = match state {
                RunState::Failed => &end.reason,
                RunState::Cancelled => "cancelled",
                _ => "",
            };
            runs::change_state(conn, lease.run_id, state, reason).await?;
        }
        Then::GivenBack(cause) => {
            let next = give_back(conn, lease.run_id, cause, &end.reason).await?;
            if cause == Cause::Bug && next == RunState::Queued {
                pause(conn, lease.run_id).await?;
            }
        }
    }
    Ok(others || run.parts)
}

/// What made a run crash may pass: each try waits longer than the one before.
async fn pause(conn: &mut PgConnection, run: Uuid) -> Result<()> {
    sqlx::query!(
        "update run set ready_at = now() + make_interval(secs => least($2, 2 ^ (attempts - 1)))
         where id = $1",
        run,
        PAUSE_MAX
    )
    .execute(conn)
    .await?;
    Ok(())
}
