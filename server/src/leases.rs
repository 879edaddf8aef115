//! The worker protocol: a held request for work, a held heartbeat, the journal, the end. Every write locks the lease
//! row and compares the epoch in the same transaction; a stale epoch gets 409 and changes nothing.

mod end;
mod grant;

pub use end::finish;
pub use grant::grant;

use crate::{ApiJson, App, Error, Result, ingest, wake::Listener, workers};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use causeway_protocol::{
    EventBatch, EventsAccepted, FinishLease, HeartbeatAnswer, HeartbeatRequest, LeaseGrant, LeaseRequest,
    Order, RenewedLease,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use std::time::Duration;
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

/// Longest a request is held open, milliseconds.
const WAIT_MS_MAX: u64 = 30_000;

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
