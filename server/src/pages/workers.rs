//! `/workers`: one card per worker, the worst state first: what is lost, and what hangs on it.

use super::{Asked, Shell, format, home::percent, page};
use crate::{
    App, Result,
    workers::{Drain, Worker},
};
use askama::Template;
use axum::{
    Form,
    extract::{Path, State},
    response::{IntoResponse, Redirect, Response},
};
use causeway_protocol::{AssetSummary, RunProgress};
use serde::Deserialize;
use sqlx::{PgPool, types::Json};
use std::collections::HashMap;
use time::OffsetDateTime;
use uuid::Uuid;

#[derive(Template)]
#[template(path = "workers.html")]
struct Workers {
    shell: Shell,
    summary: Vec<String>,
    workers: Vec<Card>,
}

struct Card {
    id: String,
    /// In or out of service by hand.
    drained: bool,
    labels: String,
    name: String,
    host: String,
    state: String,
    seen: String,
    since: String,
    version: String,
    free: usize,
    devices: Vec<Device>,
    assets: Vec<AssetSummary>,
}

struct Device {
    name: String,
    what: String,
    lease: Option<Held>,
}

struct Held {
    run: String,
    run_id: String,
    attempt: i32,
    progress: String,
    expires: String,
}

/// `GET /workers`.
pub async fn show(State(app): State<App>, asked: Asked) -> Result<Response> {
    let list = crate::workers::workers(&app.pool, app.lease_seconds).await?;
    let counts = ["suspect", "lost", "draining", "ready"].map(|state| {
        (state, i64::try_from(list.iter().filter(|worker| worker.state == state).count()).unwrap_or(0))
    });
    let runs: Vec<Uuid> = list.iter().flat_map(|worker| &worker.leases).map(|lease| lease.run_id).collect();
    let progress = progress(&app.pool, &runs).await?;
    let view = Workers {
        shell: Shell::load(&app, &asked, true).await?,
        summary: super::home::state_counts(&counts),
        workers: list.into_iter().map(|worker| card(worker, &progress)).collect(),
    };
    page(&view, &asked)
}

async fn progress(pool: &PgPool, runs: &[Uuid]) -> Result<HashMap<Uuid, RunProgress>> {
    let rows = sqlx::query!(
        r#"select run_id, progress as "progress: Json<RunProgress>" from run_progress where run_id = any($1)"#,
        runs
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.run_id, row.progress.0)).collect())
}

fn card(worker: Worker, progress: &HashMap<Uuid, RunProgress>) -> Card {
    let devices: Vec<Device> = worker
        .devices
        .iter()
        .map(|device| Device {
            name: device.name.clone(),
            what: what(device),
            lease: worker.leases.iter().find(|lease| lease.devices.contains(&device.name)).map(|lease| {
                Held {
                    run: lease.run.clone(),
                    run_id: lease.run_id.to_string(),
                    attempt: lease.attempt,
                    progress: progress
                        .get(&lease.run_id)
                        .map(|p| format!("{} {} %", p.phase, percent(p)))
                        .unwrap_or_default(),
                    expires: match lease.expires_at - OffsetDateTime::now_utc() {
                        rest if rest.is_positive() => format!("lease ends in {}", format::span(rest)),
                        _ => "lease has run out".to_owned(),
                    },
                }
            }),
        })
        .collect();
    Card {
        id: worker.id.to_string(),
        drained: worker.drained,
        labels: worker.labels.join(", "),
        name: worker.name,
        host: worker.host,
        state: format::state(&worker.state),
        seen: format::ago_exact(worker.seen_at),
        since: format::ago(worker.registered_at),
        version: worker.version,
        free: devices.iter().filter(|device| device.lease.is_none()).count(),
        devices,
        assets: serde_json::from_value(worker.assets).unwrap_or_default(),
    }
}

/// Model, memory and compute capability, as far as they are known.
fn what(device: &crate::workers::Device) -> String {
    let memory = (device.memory > 0).then(|| format::bytes(device.memory));
    let capability = (!device.capability.is_empty()).then(|| format!("compute {}", device.capability));
    let model = (!device.model.is_empty()).then(|| device.model.clone());
    [model, memory, capability].into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

/// What a button of a worker's card says.
#[derive(Debug, Deserialize)]
pub struct Service {
    /// `drain`, `hand_over` or `work`.
    order: String,
}

/// `POST /workers/{id}/service`: the buttons.
pub async fn service(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Form(service): Form<Service>,
) -> Result<Response> {
    let drain = Drain { drain: service.order != "work", hand_over: service.order == "hand_over" };
    crate::workers::drain(&app, id, &drain).await?;
    Ok(Redirect::to("/workers").into_response())
}
