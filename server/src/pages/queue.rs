//! `/queue`: the order of dispatch, and for each run the one reason it waits.

use super::{Asked, Shell, format, page};
use crate::{App, Result, figures::method_svg, scheduler};
use askama::Template;
use axum::{extract::State, response::Response};
use sqlx::PgPool;
use std::collections::HashMap;
use time::OffsetDateTime;
use uuid::Uuid;

#[derive(Template)]
#[template(path = "queue.html")]
struct Queue {
    shell: Shell,
    summary: String,
    entries: Vec<Entry>,
}

struct Entry {
    place: usize,
    id: String,
    name: String,
    sample: String,
    experiment: String,
    experiment_id: String,
    project: String,
    priority: i32,
    asks: String,
    waits: String,
    /// As HTML.
    why: String,
    impossible: bool,
}

/// `GET /queue`.
pub async fn show(State(app): State<App>, asked: Asked) -> Result<Response> {
    let queue = scheduler::queue(&app).await?;
    let ids: Vec<Uuid> = queue.iter().map(|entry| entry.run_id).collect();
    let mut details = details(&app.pool, &ids).await?;
    let entries = queue.into_iter().filter_map(|entry| {
        let (method, experiment_id, since) = details.remove(&entry.run_id)?;
        Some(Entry {
            place: entry.place,
            id: entry.run_id.to_string(),
            name: entry.name,
            sample: method_svg(&method),
            experiment: entry.experiment,
            experiment_id: experiment_id.to_string(),
            project: entry.project,
            priority: entry.priority,
            asks: match (entry.nodes, entry.gpus) {
                (1, devices) => devices.to_string(),
                (nodes, devices) => format!("{nodes} × {devices}"),
            },
            impossible: entry.impossible,
            waits: format::span(OffsetDateTime::now_utc() - since),
            why: format::sentence(&entry.why),
        })
    });
    let entries: Vec<Entry> = entries.collect();
    let view = Queue {
        summary: summary(&app.pool, entries.len(), app.lease_seconds).await?,
        entries,
        shell: Shell::load(&app, &asked, true).await?,
    };
    page(&view, &asked)
}

async fn details(pool: &PgPool, ids: &[Uuid]) -> Result<HashMap<Uuid, (String, Uuid, OffsetDateTime)>> {
    let rows = sqlx::query!("select id, method, experiment_id, created_at from run where id = any($1)", ids)
        .fetch_all(pool)
        .await?;
    Ok(rows.into_iter().map(|row| (row.id, (row.method, row.experiment_id, row.created_at))).collect())
}

async fn summary(pool: &PgPool, waiting: usize, lease_seconds: f64) -> Result<String> {
    let row = sqlx::query!(
        r#"select (select count(*) from run where state = 'running') as "running!",
                  count(d.name) as "devices!", count(d.name) filter (where d.lease_id is null) as "free!"
           from worker w join worker_pulse p on p.worker_id = w.id join device d on d.worker_id = w.id
           where p.seen_at > now() - make_interval(secs => $1) and not w.draining and not w.drained"#,
        scheduler::suspect_seconds(lease_seconds)
    )
    .fetch_one(pool)
    .await?;
    Ok(format!("{waiting} waiting · {} running · {} of {} devices free", row.running, row.free, row.devices))
}
