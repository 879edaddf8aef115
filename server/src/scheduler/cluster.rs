//! What a decision rests on, read from the database in a handful of statements, whatever the number of runs.

use super::plan::{Cluster, Device, Host, Project, Running, Waiting};
use crate::Result;
use causeway_protocol::{AssetSummary, Spec};
use sqlx::{PgConnection, types::Json};
use std::collections::HashMap;
use time::OffsetDateTime;
use uuid::Uuid;

/// Waiting runs looked at in one pass; those behind them wait for a later one.
const WAITING_MAX: i64 = 1000;
/// A project's use of devices counts for half after so long, seconds: a week.
pub const HALF_LIFE: f64 = 7.0 * 86_400.0;
/// Workers on which a run has left something, at most.
const WARM_MAX: i64 = 3;

/// A lease, as far as decisions go.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Its id.
    pub id: Uuid,
    /// The run that is worked on.
    pub run: Uuid,
    /// Who does.
    pub worker: Uuid,
    /// Since when.
    pub assigned_at: OffsetDateTime,
    /// When it runs out unless renewed.
    pub expires_at: OffsetDateTime,
    /// When the run is past its limit, if it has one.
    pub ends_at: Option<OffsetDateTime>,
}

/// All leases. A pass looks once: every lease that ended leaves a dead row, and while any session holds an old snapshot none
/// of them can be cleared away, so each look goes past all of them.
///
/// # Errors
/// If the database does not answer.
pub async fn leases(conn: &mut PgConnection) -> Result<Vec<Lease>> {
    let leases = sqlx::query_as!(
        Lease,
        "select id, run_id as run, worker_id as worker, assigned_at, expires_at, ends_at from lease order by run_id, rank"
    );
    Ok(leases.fetch_all(conn).await?)
}

/// The workers heard of within a lease, and their devices. `suspect` ones keep what they have and get nothing new.
///
/// # Errors
/// If the database does not answer.
pub async fn hosts(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    lease_seconds: f64,
    leases: &[Lease],
) -> Result<Vec<Host>> {
    let suspect = super::suspect_seconds(lease_seconds);
    let at_work: Vec<Uuid> = leases.iter().map(|lease| lease.worker).collect();
    let workers = sqlx::query!(
        r#"select w.id, w.labels, w.assets as "assets: Json<Vec<AssetSummary>>",
                  p.seen_at > $1::timestamptz - make_interval(secs => $2) and not w.draining and not w.drained as "accepting!"
           from worker w join worker_pulse p on p.worker_id = w.id
           where p.seen_at > $1::timestamptz - make_interval(secs => $3) or w.id = any($4)
           order by w.registered_at, w.id"#,
        now,
        suspect,
        lease_seconds,
        &at_work,
    )
    .fetch_all(&mut *conn)
    .await?;
    let devices = sqlx::query!(
        "select worker_id, name, memory, lease_id from device order by worker_id, ordinal, name"
    )
    .fetch_all(&mut *conn)
    .await?;
    let runs: HashMap<Uuid, Uuid> = leases.iter().map(|lease| (lease.id, lease.run)).collect();
    let mut of_worker: HashMap<Uuid, Vec<Device>> = HashMap::new();
    for row in devices {
        // Lent since the leases were read, which only happens to one who does not decide: held, by a run not known here.
        let held_by = row.lease_id.map(|lease| runs.get(&lease).copied().unwrap_or(lease));
        let device = Device { name: row.name, memory: row.memory, held_by };
        of_worker.entry(row.worker_id).or_default().push(device);
    }
    let hosts = workers.into_iter().map(|row| Host {
        worker: row.id,
        labels: row.labels.into_iter().collect(),
        assets: row.assets.0.into_iter().map(|asset| asset.name).collect(),
        devices: of_worker.remove(&row.id).unwrap_or_default(),
        accepting: row.accepting,
    });
    Ok(hosts.collect())
}

/// The workers, their devices, and what they do.
///
/// # Errors
/// If the database does not answer.
pub async fn read(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    lease_seconds: f64,
    leases: &[Lease],
) -> Result<Cluster> {
    let hosts = hosts(conn, now, lease_seconds, leases).await?;
    let of_run: HashMap<Uuid, &Lease> = leases.iter().map(|lease| (lease.run, lease)).collect();
    let held: Vec<Uuid> = of_run.keys().copied().collect();
    let running = sqlx::query!(
        r#"select id, project_id, coalesce(submitted_by, $1) as "user!", priority,
                  yield_for is not null or cancel_requested as "yielding!"
           from run where id = any($2) and state = 'running' order by id"#,
        Uuid::nil(),
        &held
    )
    .fetch_all(&mut *conn)
    .await?;
    let running = running.into_iter().filter_map(|row| {
        let lease = of_run.get(&row.id)?;
        Some(Running {
            run: row.id,
            project: row.project_id,
            user: row.user,
            priority: row.priority,
            started: seconds(lease.assigned_at),
            ends: lease.ends_at.map(seconds),
            yielding: row.yielding,
        })
    });
    let running = running.collect();
    Ok(Cluster { now: seconds(now), hosts, running, projects: projects(conn, now).await? })
}

fn seconds(time: OffsetDateTime) -> f64 {
    time.unix_timestamp_nanos() as f64 / 1e9
}

/// The projects, their use decayed to now and what they hold counted up to now.
async fn projects(conn: &mut PgConnection, now: OffsetDateTime) -> Result<Vec<Project>> {
    let rows = sqlx::query!(
        r#"select id, name, weight, usage, devices_max, user_devices_max,
                  extract(epoch from $1::timestamptz - usage_at)::float8 as "age!" from project order by id"#,
        now
    )
    .fetch_all(conn)
    .await?;
    let most = |most: Option<i32>| most.map(|most| usize::try_from(most).unwrap_or(0));
    let projects = rows.into_iter().map(|row| Project {
        id: row.id,
        name: row.name,
        weight: row.weight,
        usage: row.usage * 0.5_f64.powf(row.age.max(0.0) / HALF_LIFE),
        devices_max: most(row.devices_max),
        user_devices_max: most(row.user_devices_max),
    });
    Ok(projects.collect())
}

/// The waiting runs that are ready, as far as one pass looks.
///
/// # Errors
/// If the database does not answer.
pub async fn waiting(conn: &mut PgConnection, now: OffsetDateTime) -> Result<Vec<Waiting>> {
    let rows = sqlx::query!(
        r#"select r.id, r.project_id, coalesce(r.submitted_by, $2) as "user!", r.priority, r.queue_position as "position!",
                  r.nodes, r.devices, r.device_memory, r.labels, r.needs, r.limit_seconds,
                  case when r.needs is null then r.spec end as "spec: Json<Spec>",
                  case when r.epoch > 0 then array(select a.worker_id from attempt a where a.run_id = r.id
                                                   order by a.number desc limit $3) end as warm
           from run r
           where r.state = 'queued' and r.ready_at <= $1
             and not exists (select from run part where part.part_of = r.id and part.state in ('queued', 'running', 'paused'))
             and not exists (select from run_dependency d where d.run_id = r.id and not d.resolved)
           order by r.priority desc, r.queue_position, r.id limit $4"#,
        now,
        Uuid::nil(),
        WARM_MAX,
        WAITING_MAX,
    )
    .fetch_all(conn)
    .await?;
    let count = |count: i32| usize::try_from(count).unwrap_or(1).max(1);
    let waiting = rows.into_iter().map(|row| {
        let of_spec = |spec: Json<Spec>| spec.assets().into_iter().map(str::to_owned).collect();
        Waiting {
            run: row.id,
            project: row.project_id,
            user: row.user,
            priority: row.priority,
            position: row.position,
            nodes: count(row.nodes),
            devices: count(row.devices),
            memory: row.device_memory,
            labels: row.labels,
            assets: row.needs.or_else(|| row.spec.map(of_spec)).unwrap_or_default(),
            limit: row.limit_seconds.map(f64::from),
            warm: row.warm.unwrap_or_default(),
        }
    });
    Ok(waiting.collect())
}
