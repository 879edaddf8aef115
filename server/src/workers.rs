//! Workers: what they are, what they hold, and when they were last heard of.

use crate::{ApiJson, App, Error, Result, scheduler};
use axum::{
    Json,
    extract::{Path, State},
};
use causeway_protocol::{AssetSummary, RegisterWorker, WorkerState};
use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

/// Most devices one worker may have.
const DEVICES_MAX: usize = 64;
/// Most assets one worker may report.
const ASSETS_MAX: usize = 10_000;

/// A worker as pages and clients see it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Worker {
    /// Id.
    pub id: Uuid,
    /// Name.
    pub name: String,
    /// Host name.
    pub host: String,
    /// Version of its trainer.
    pub version: String,
    /// `ready`, `draining` (it takes no new work), `suspect` (silent for half a lease) or `lost` (for a whole one).
    pub state: String,
    /// Device names.
    pub devices: Vec<String>,
    /// The assets it holds.
    #[schema(value_type = Vec<AssetSummary>)]
    pub assets: serde_json::Value,
    /// When it first came.
    #[serde(with = "time::serde::rfc3339")]
    pub registered_at: OffsetDateTime,
    /// When it was last heard of.
    #[serde(with = "time::serde::rfc3339")]
    pub seen_at: OffsetDateTime,
    /// What it is working on.
    pub leases: Vec<HeldLease>,
}

/// A lease as others see it: without its id, which is the worker's.
#[derive(Debug, Serialize, ToSchema)]
pub struct HeldLease {
    /// The run.
    pub run_id: Uuid,
    /// Its name.
    pub run: String,
    /// The attempt.
    pub attempt: i32,
    /// The device.
    pub device: String,
    /// When it runs out unless renewed.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// A worker makes itself known: after each start, and when its assets change.
#[utoipa::path(put, path = "/api/v1/workers/{id}", operation_id = "register_worker", tag = "worker protocol",
    params(("id" = Uuid, Path)), request_body = RegisterWorker, responses((status = 204)))]
pub async fn register_worker(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    ApiJson(worker): ApiJson<RegisterWorker>,
) -> Result<axum::http::StatusCode> {
    if worker.id != id {
        return Err(Error::BadRequest("the id in the body is not the one in the path".into()));
    }
    if worker.devices.is_empty() || worker.devices.len() > DEVICES_MAX || worker.assets.len() > ASSETS_MAX {
        return Err(Error::BadRequest(format!(
            "a worker has 1 to {DEVICES_MAX} devices and at most {ASSETS_MAX} assets"
        )));
    }
    let assets = serde_json::to_value(&worker.assets).map_err(anyhow::Error::from)?;
    let mut tx = app.pool.begin().await?;
    sqlx::query!(
        "insert into worker (id, name, host, version, devices, assets, draining) values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (id) do update
         set name = $2, host = $3, version = $4, devices = $5, assets = $6, draining = $7",
        id,
        worker.name,
        worker.host,
        worker.version,
        &worker.devices,
        assets,
        worker.draining
    )
    .execute(&mut *tx)
    .await?;
    if worker.draining {
        // What was assigned to it and not yet picked up goes to another at once.
        sqlx::query!("update lease set expires_at = now() where worker_id = $1 and not delivered", id)
            .execute(&mut *tx)
            .await?;
    }
    sqlx::query!(
        "insert into worker_pulse (worker_id) values ($1) on conflict (worker_id) do update set seen_at = now()",
        id
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    app.wake.ring();
    Ok(axum::http::StatusCode::NO_CONTENT)
}

/// Notes that a worker was heard of.
///
/// # Errors
/// 404 if it never registered.
pub async fn pulse(pool: &PgPool, id: Uuid) -> Result<()> {
    let touched = sqlx::query!("update worker_pulse set seen_at = now() where worker_id = $1", id)
        .execute(pool)
        .await?;
    if touched.rows_affected() == 0 {
        return Err(Error::NotFound(format!("no worker {id}: register it first")));
    }
    Ok(())
}

/// List workers, the worst state first.
#[utoipa::path(get, path = "/api/v1/workers", operation_id = "list_workers", tag = "workers",
    responses((status = 200, body = Vec<Worker>)))]
pub async fn list_workers(State(app): State<App>) -> Result<Json<Vec<Worker>>> {
    workers(&app.pool, app.lease_seconds).await.map(Json)
}

/// The workers with their leases, the worst state first.
///
/// # Errors
/// If the database does not answer.
pub async fn workers(pool: &PgPool, lease_seconds: f64) -> Result<Vec<Worker>> {
    let rows = sqlx::query!(
        r#"select w.id, w.name, w.host, w.version, w.devices, w.assets, w.draining, w.registered_at,
                  p.seen_at,
                  extract(epoch from now() - p.seen_at)::float8 as "silent!"
           from worker w join worker_pulse p on p.worker_id = w.id order by w.registered_at, w.id"#
    )
    .fetch_all(pool)
    .await?;
    let leases = sqlx::query!(
        "select l.worker_id, l.run_id, r.name as run, l.attempt, l.device, l.expires_at
         from lease l join run r on r.id = l.run_id order by l.device"
    )
    .fetch_all(pool)
    .await?;
    let mut workers: Vec<Worker> = rows
        .into_iter()
        .map(|row| Worker {
            leases: leases
                .iter()
                .filter(|lease| lease.worker_id == row.id)
                .map(|lease| HeldLease {
                    run_id: lease.run_id,
                    run: lease.run.clone(),
                    attempt: lease.attempt,
                    device: lease.device.clone(),
                    expires_at: lease.expires_at,
                })
                .collect(),
            id: row.id,
            name: row.name,
            host: row.host,
            version: row.version,
            state: state_after(row.silent, row.draining, lease_seconds).as_str().to_owned(),
            devices: row.devices,
            assets: row.assets,
            registered_at: row.registered_at,
            seen_at: row.seen_at,
        })
        .collect();
    let rank =
        |state: &str| ["suspect", "lost", "draining", "ready"].iter().position(|known| *known == state);
    workers.sort_by_key(|worker| rank(&worker.state));
    Ok(workers)
}

/// Suspect first, lost later: silence is not death.
fn state_after(silent_seconds: f64, draining: bool, lease_seconds: f64) -> WorkerState {
    if silent_seconds <= scheduler::suspect_seconds(lease_seconds) {
        if draining { WorkerState::Draining } else { WorkerState::Ready }
    } else if silent_seconds <= lease_seconds {
        WorkerState::Suspect
    } else {
        WorkerState::Lost
    }
}
