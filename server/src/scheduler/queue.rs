//! The queue as people see it: the waiting runs in the order in which they are looked at, each with the one reason it
//! waits. The reasons are those of the decision itself, made once more and thrown away.

use super::{cluster, fit, plan};
use crate::{App, Result};
use causeway_protocol::{Problem, Spec};
use serde::Serialize;
use sqlx::PgConnection;
use std::{collections::HashMap, sync::Arc, time::Instant};
use tokio::sync::Mutex;
use utoipa::ToSchema;
use uuid::Uuid;

/// Waiting runs in one answer.
const QUEUE_MAX: i64 = 1000;

/// A place in the queue.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueEntry {
    /// Place, from 1.
    pub place: usize,
    /// The run.
    pub run_id: Uuid,
    /// Its name.
    pub name: String,
    /// Its experiment.
    pub experiment: String,
    /// Its project.
    pub project: String,
    /// Higher goes first.
    pub priority: i32,
    /// Workers it asks for.
    pub nodes: i32,
    /// Devices it asks for on each.
    pub gpus: i32,
    /// Assets it needs.
    pub assets: Vec<String>,
    /// The one reason it waits.
    pub why: String,
    /// Whether no worker that is there could take it.
    pub impossible: bool,
}

/// The waiting runs in the order in which they will be dispatched, each with the reason it waits.
#[utoipa::path(get, path = "/api/v1/queue", operation_id = "list_queue", tag = "queue",
    responses((status = 200, body = Vec<QueueEntry>)))]
pub async fn list_queue(
    axum::extract::State(app): axum::extract::State<App>,
) -> Result<axum::Json<Vec<QueueEntry>>> {
    queue(&app).await.map(axum::Json)
}

/// The waiting runs in the order of dispatch, at most 1,000.
///
/// # Errors
/// If the database does not answer.
pub async fn queue(app: &App) -> Result<Vec<QueueEntry>> {
    entries(app, None).await
}

/// The places of all waiting runs, or what is known of one.
async fn entries(app: &App, only: Option<Uuid>) -> Result<Vec<QueueEntry>> {
    let reasons = app.reasons.now(app).await?;
    let rows = sqlx::query!(
        r#"select r.id, r.name, e.name as experiment, p.name as project, r.priority, r.nodes, r.devices,
                  coalesce(r.needs, '{}') as "needs!",
                  ceil(extract(epoch from r.ready_at - now()))::int8 as "pause!",
                  (select count(*) from run part where part.part_of = r.id) as "parts!",
                  (select count(*) from run part where part.part_of = r.id
                     and part.state in ('queued', 'running', 'paused')) as "parts_left!",
                  (select string_agg(needed.name, ', ' order by needed.id) from run_dependency d
                     join run needed on needed.id = d.needs_run
                     where d.run_id = r.id and needed.state <> 'succeeded') as needs_runs
           from run r join experiment e on e.id = r.experiment_id join project p on p.id = r.project_id
           where r.state = 'queued' and ($2::uuid is null or r.id = $2)
           order by r.priority desc, r.queue_position, r.id limit $1"#,
        QUEUE_MAX,
        only
    )
    .fetch_all(&app.pool)
    .await?;
    let mut entries: Vec<(usize, QueueEntry)> = rows
        .into_iter()
        .map(|row| {
            let decided = reasons.get(&row.id);
            let why = match (row.needs_runs, decided) {
                (Some(runs), _) => format!("waits for {runs}"),
                _ if row.parts_left > 0 => format!("waits for {} of its {} parts", row.parts_left, row.parts),
                _ if row.pause > 0 => format!("its last attempt crashed; the next is due in {} s", row.pause),
                (None, Some((_, why))) => why.to_string(),
                (None, None) => "behind the first thousand".to_owned(),
            };
            let impossible = matches!(decided, Some((_, plan::Why::Impossible(_))));
            let rank = decided.map_or(usize::MAX, |(rank, _)| *rank);
            let entry = QueueEntry {
                place: 0,
                run_id: row.id,
                name: row.name,
                experiment: row.experiment,
                project: row.project,
                priority: row.priority,
                nodes: row.nodes,
                gpus: row.devices,
                assets: row.needs,
                why,
                impossible,
            };
            (rank, entry)
        })
        .collect();
    entries.sort_by_key(|(rank, _)| *rank); // stable: what is not ready stays in the order of the table
    let placed = entries.into_iter().enumerate();
    Ok(placed.map(|(at, (_, entry))| QueueEntry { place: at + 1, ..entry }).collect())
}

/// For each run that is ready: its turn, and why it waits.
type Turns = HashMap<Uuid, (usize, plan::Why)>;

/// Why runs wait, decided for all who ask at the same time at once: with a long queue a decision costs more than all else in
/// an answer, and a script that submits a thousand runs is told of each why it waits.
#[derive(Clone, Debug, Default)]
pub struct Reasons(Arc<Mutex<Option<Decided>>>);

#[derive(Debug)]
struct Decided {
    began: Instant,
    /// None if the database did not answer.
    turns: Option<Arc<Turns>>,
}

impl Reasons {
    /// As things are now: what was read before this call is not good enough.
    async fn now(&self, app: &App) -> Result<Arc<Turns>> {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        if let Some(decided) = last.as_ref().filter(|decided| decided.began >= asked) {
            // While this one waited for its turn. What failed then, each tries for itself: not one after the other.
            let shared = decided.turns.clone();
            drop(last);
            return match shared {
                Some(turns) => Ok(turns),
                None => turns(app).await.map(Arc::new),
            };
        }
        let began = Instant::now();
        let turns = turns(app).await.map(Arc::new);
        *last = Some(Decided { began, turns: turns.as_ref().ok().cloned() });
        turns
    }
}

async fn turns(app: &App) -> Result<Turns> {
    let mut conn = app.pool.acquire().await?;
    let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(&mut *conn).await?;
    let waiting = cluster::waiting(&mut conn, now).await?;
    let leases = cluster::leases(&mut conn).await?;
    let mut cluster = cluster::read(&mut conn, now, app.lease_seconds, &leases).await?;
    let whys = plan::plan(&mut cluster, &waiting).whys;
    Ok(whys.into_iter().enumerate().map(|(rank, (run, why))| (run, (rank, why))).collect())
}

/// The one reason why a run waits; none if it does not.
///
/// # Errors
/// If the database does not answer.
pub async fn why_waiting(app: &App, run: Uuid) -> Result<Option<String>> {
    Ok(entries(app, Some(run)).await?.pop().map(|entry| entry.why))
}

/// Refuses a spec that asks for more devices or memory on one worker than any that is known here has. More workers of a
/// kind, labels and assets may still come, so what is merely not here yet is accepted and waits.
///
/// # Errors
/// The field and what the largest has.
pub async fn refuse_impossible(conn: &mut PgConnection, spec: &Spec, lease_seconds: f64) -> Result<()> {
    let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(&mut *conn).await?;
    let leases = cluster::leases(conn).await?;
    let mut hosts = cluster::hosts(conn, now, lease_seconds, &leases).await?;
    for host in &mut hosts {
        host.accepting = true; // a worker that drains or is silent may come back
    }
    let cluster = plan::Cluster { hosts, ..plan::Cluster::default() };
    if cluster.hosts.is_empty() {
        return Ok(());
    }
    let resources = &spec.resources;
    let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    let bare = plan::Waiting {
        run: Uuid::nil(),
        project: Uuid::nil(),
        user: Uuid::nil(),
        priority: 0,
        position: 0,
        nodes: 1,
        devices: count(resources.gpus),
        memory: resources.memory_bytes(),
        labels: Vec::new(),
        assets: Vec::new(),
        limit: None,
        warm: Vec::new(),
    };
    match fit::lack(&cluster, &bare) {
        None => Ok(()),
        Some(lack) => Err(crate::Error::Invalid(vec![Problem { field: "resources".to_owned(), rule: lack }])),
    }
}
