//! Workers: what they are, what they hold, and when they were last heard of.

use crate::{ApiJson, App, Error, Result, scheduler};
use axum::{
    Json,
    extract::{Path, State},
};
use causeway_protocol::{AssetSummary, DEVICES_MAX, DeviceReport, RegisterWorker, WorkerState};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use std::collections::HashMap;
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

/// How often in a lease's length it is noted that a worker was heard of.
const NOTED_IN_A_LEASE: f64 = 20.0;
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
    /// Its devices.
    pub devices: Vec<Device>,
    /// What runs may ask for by name.
    pub labels: Vec<String>,
    /// Whether somebody has taken it out of service.
    pub drained: bool,
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

/// A device of a worker.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Device {
    /// Name.
    pub name: String,
    /// What it is; empty if unknown.
    pub model: String,
    /// Memory, bytes; 0 if unknown.
    pub memory: i64,
    /// Memory nobody used when the worker last looked, bytes.
    pub free_memory: i64,
    /// CUDA compute capability; empty for what has none.
    pub capability: String,
    /// The run that works on it.
    pub run_id: Option<Uuid>,
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
    /// The devices.
    pub devices: Vec<String>,
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
    if worker.devices.is_empty()
        || worker.devices.len() > DEVICES_MAX as usize
        || worker.assets.len() > ASSETS_MAX
    {
        return Err(Error::BadRequest(format!(
            "a worker has 1 to {DEVICES_MAX} devices and at most {ASSETS_MAX} assets"
        )));
    }
    let assets = serde_json::to_value(&worker.assets).map_err(anyhow::Error::from)?;
    let mut tx = app.pool.begin().await?;
    sqlx::query!(
        "insert into worker (id, name, host, version, labels, assets, draining, address)
         values ($1, $2, $3, $4, $5, $6, $7, $8)
         on conflict (id) do update
         set name = $2, host = $3, version = $4, labels = $5, assets = $6, draining = $7, address = $8",
        id,
        worker.name,
        worker.host,
        worker.version,
        &worker.labels,
        assets,
        worker.draining,
        if worker.address.is_empty() { &worker.host } else { &worker.address },
    )
    .execute(&mut *tx)
    .await?;
    register_devices(&mut tx, id, &worker.devices).await?;
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
    app.wake.ring_scheduler();
    Ok(axum::http::StatusCode::NO_CONTENT)
}

/// Notes what devices a worker has now. One that is gone but works on something stays until that has ended.
async fn register_devices(conn: &mut PgConnection, id: Uuid, devices: &[DeviceReport]) -> Result<()> {
    let names: Vec<String> = devices.iter().map(|device| device.name.clone()).collect();
    sqlx::query!(
        "delete from device where worker_id = $1 and name <> all($2) and lease_id is null",
        id,
        &names
    )
    .execute(&mut *conn)
    .await?;
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    for (ordinal, device) in devices.iter().enumerate() {
        sqlx::query!(
            "insert into device (worker_id, name, ordinal, model, memory, free_memory, capability)
             values ($1, $2, $3, $4, $5, $6, $7)
             on conflict (worker_id, name) do update
             set ordinal = $3, model = $4, memory = $5, free_memory = $6, capability = $7",
            id,
            device.name,
            i32::try_from(ordinal).map_err(anyhow::Error::from)?,
            device.model,
            bytes(device.memory),
            bytes(device.free_memory),
            device.capability,
        )
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

/// Notes that a worker was heard of, if that was not noted a moment ago: a row written for each request would cost more than
/// the request. True if it had been silent for so long that it was given nothing.
///
/// # Errors
/// 404 if it never registered.
pub async fn pulse(app: &App, id: Uuid) -> Result<bool> {
    let before = sqlx::query_scalar!(
        r#"with noted as (
               update worker_pulse set seen_at = now()
               where worker_id = $1 and seen_at < now() - make_interval(secs => $2)
           )
           select extract(epoch from now() - seen_at)::float8 as "silent!" from worker_pulse where worker_id = $1"#,
        id,
        app.lease_seconds / NOTED_IN_A_LEASE
    )
    .fetch_optional(&app.pool)
    .await?;
    match before {
        Some(silent) => Ok(silent > scheduler::suspect_seconds(app.lease_seconds)),
        None => Err(Error::NotFound(format!("no worker {id}: register it first"))),
    }
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
        r#"select w.id, w.name, w.host, w.version, w.labels, w.assets, w.draining, w.drained, w.registered_at,
                  p.seen_at,
                  extract(epoch from now() - p.seen_at)::float8 as "silent!"
           from worker w join worker_pulse p on p.worker_id = w.id order by w.registered_at, w.id"#
    )
    .fetch_all(pool)
    .await?;
    let leases = sqlx::query!(
        r#"select l.worker_id, l.run_id, r.name as run, l.attempt, l.expires_at,
                  array(select d.name from device d where d.lease_id = l.id order by d.ordinal) as "devices!"
           from lease l join run r on r.id = l.run_id order by l.worker_id, l.run_id"#
    )
    .fetch_all(pool)
    .await?;
    let devices = sqlx::query!(
        r#"select d.worker_id, d.name, d.model, d.memory, d.free_memory, d.capability, l.run_id as "run_id?"
           from device d left join lease l on l.id = d.lease_id order by d.worker_id, d.ordinal, d.name"#
    )
    .fetch_all(pool)
    .await?;
    let mut of_worker: HashMap<Uuid, Vec<Device>> = HashMap::new();
    for row in devices {
        of_worker.entry(row.worker_id).or_default().push(Device {
            name: row.name,
            model: row.model,
            memory: row.memory,
            free_memory: row.free_memory,
            capability: row.capability,
            run_id: row.run_id,
        });
    }
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
                    devices: lease.devices.clone(),
                    expires_at: lease.expires_at,
                })
                .collect(),
            id: row.id,
            name: row.name,
            host: row.host,
            version: row.version,
            state: state_after(row.silent, row.draining || row.drained, lease_seconds).as_str().to_owned(),
            devices: of_worker.remove(&row.id).unwrap_or_default(),
            labels: row.labels,
            drained: row.drained,
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

/// Whether to take a worker out of service or back into it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// It takes no new work. False lets it work again.
    pub drain: bool,
    /// What it is working on saves its state and goes on elsewhere, instead of being finished here.
    #[serde(default)]
    pub hand_over: bool,
}

/// Take a worker out of service, or back into it.
#[utoipa::path(post, path = "/api/v1/workers/{id}/drain", operation_id = "drain_worker", tag = "workers",
    params(("id" = Uuid, Path)), request_body = Drain,
    responses((status = 204), (status = 404, body = crate::error::ProblemDetails)))]
pub async fn drain_worker(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    ApiJson(order): ApiJson<Drain>,
) -> Result<axum::http::StatusCode> {
    drain(&app, id, &order).await?;
    Ok(axum::http::StatusCode::NO_CONTENT)
}

/// Takes a worker out of service, or back into it.
///
/// # Errors
/// 404 if there is none.
pub async fn drain(app: &App, id: Uuid, order: &Drain) -> Result<()> {
    let mut tx = app.pool.begin().await?;
    let touched = sqlx::query!("update worker set drained = $2 where id = $1", id, order.drain)
        .execute(&mut *tx)
        .await?;
    if touched.rows_affected() == 0 {
        return Err(Error::NotFound(format!("no worker {id}")));
    }
    if order.drain {
        sqlx::query!("update lease set expires_at = now() where worker_id = $1 and not delivered", id)
            .execute(&mut *tx)
            .await?;
    }
    if order.drain && order.hand_over {
        sqlx::query!(
            "update run set yield_for = 'drain', yield_by = now() + make_interval(secs => $2)
             where yield_for is null and id in (select run_id from lease where worker_id = $1)",
            id,
            scheduler::YIELD_SECONDS
        )
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await?;
    app.wake.ring();
    Ok(())
}
