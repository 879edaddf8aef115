//! The faults, each a real thing that is done to a process, a connection, a clock or a disk, and put right after a while.

use super::{
    cluster::{Cluster, LEASE_SECONDS},
    load::{Book, Program},
    postgres::{CONNECTIONS, Postgres},
    proxy::Weather,
    random::Random,
};
use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use std::{fs, io::Write, path::Path, sync::Arc, time::Duration};

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// `kill -9` of an agent; started again later, it finds its training processes.
    AgentKilled,
    /// `kill -9` of a training process.
    ProcessKilled,
    /// `kill -9` of a training process and all it has started.
    GroupKilled,
    /// `kill -9` of the program that a training process runs.
    ProgramKilled,
    /// An agent is stopped for longer than its lease, and comes back with an epoch that is another's by then.
    AgentFrozen,
    /// `kill -9` of a server.
    ServerKilled,
    /// A server is stopped for a while, with whatever it holds.
    ServerFrozen,
    /// The immediate shutdown of Postgres, or `kill -9` of its postmaster.
    PostgresKilled,
    /// Half of the servers' sessions are ended.
    SessionsEnded,
    /// The session that holds the scheduler's lock is ended.
    LeaderSessionEnded,
    /// `kill -9` of the server that holds the scheduler's lock.
    LeaderKilled,
    /// The server that holds the scheduler's lock is stopped while it does.
    LeaderFrozen,
    /// An agent's connections are cut in the middle of a request or an answer.
    ConnectionsCut,
    /// An agent's bytes arrive late.
    NetworkSlow,
    /// An agent's bytes vanish.
    NetworkBlack,
    /// All connections that Postgres allows are taken.
    ConnectionsTaken,
    /// A table that every request needs is locked, until the servers' pools are empty.
    PoolsEmpty,
    /// Many requests at once, again and again: submissions under few keys, and requests for work.
    RetryStorm,
    /// A flood of runs of high priority.
    PriorityFlood,
    /// The clock of an agent's host jumps.
    ClockWrong,
    /// A worker's disk is full.
    DiskFull,
}

use Fault::*;

/// All of them.
pub const ALL: [Fault; 21] = [
    AgentKilled,
    ProcessKilled,
    GroupKilled,
    ProgramKilled,
    AgentFrozen,
    ServerKilled,
    ServerFrozen,
    PostgresKilled,
    SessionsEnded,
    LeaderSessionEnded,
    LeaderKilled,
    LeaderFrozen,
    ConnectionsCut,
    NetworkSlow,
    NetworkBlack,
    ConnectionsTaken,
    PoolsEmpty,
    RetryStorm,
    PriorityFlood,
    ClockWrong,
    DiskFull,
];

/// Who holds the scheduler's lock; the number is its name, 0x0043_4155_5345_5741.
const LEADER: &str = "select a.usename::text, l.pid from pg_locks l join pg_stat_activity a using (pid)
    where l.locktype = 'advisory' and l.granted and (l.classid::bigint << 32 | l.objid::bigint) = 18930658164692801";
/// How long the holder of the lock is looked for.
const LOOK: Duration = Duration::from_secs(5);

/// Does one; false where there is nothing that it could be done to.
///
/// # Errors
/// If what should always work does not.
pub async fn inject(cluster: &Arc<Cluster>, book: &Book, fault: Fault, mut random: Random) -> Result<bool> {
    let random = &mut random;
    match fault {
        AgentKilled => {
            let Some((_, mut node)) = agent(cluster, random) else { return Ok(false) };
            node.kill();
            let down = random.ms(0..6000);
            cluster
                .later(async move {
                    tokio::time::sleep(down).await;
                    node.start().await
                })
                .await;
            Ok(true)
        }
        AgentFrozen => {
            let Some((_, node)) = agent(cluster, random) else { return Ok(false) };
            node.signal(libc::SIGSTOP);
            let frozen = random.ms(LEASE_SECONDS * 1200..LEASE_SECONDS * 2000);
            cluster
                .later(async move {
                    tokio::time::sleep(frozen).await;
                    node.signal(libc::SIGCONT);
                    Ok(())
                })
                .await;
            Ok(true)
        }
        ProcessKilled | GroupKilled | ProgramKilled => kill_attempt(cluster, fault, random).await,
        ServerKilled => {
            let first = random.below(cluster.servers.len());
            kill_server(cluster, first, random).await
        }
        ServerFrozen => {
            let first = random.below(cluster.servers.len());
            let Some((_, node)) = Cluster::free(&cluster.servers, first) else { return Ok(false) };
            node.signal(libc::SIGSTOP);
            let frozen = random.ms(1000..12_000);
            cluster
                .later(async move {
                    tokio::time::sleep(frozen).await;
                    node.signal(libc::SIGCONT);
                    Ok(())
                })
                .await;
            Ok(true)
        }
        PostgresKilled => {
            let Ok(mut postgres) = cluster.postgres.clone().try_lock_owned() else { return Ok(false) };
            let signal = if random.below(2) == 0 { libc::SIGQUIT } else { libc::SIGKILL };
            tokio::task::block_in_place(|| postgres.kill(signal));
            let down = random.ms(0..4000);
            cluster
                .later(async move {
                    tokio::time::sleep(down).await;
                    postgres.restart().await
                })
                .await;
            Ok(true)
        }
        SessionsEnded => {
            let Ok(mut session) = cluster.database().await else { return Ok(false) };
            let half = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                        where application_name = 'causeway' and pid % 2 = $1";
            let rest = random.below(2) as i32;
            Ok(sqlx::query(half).bind(rest).execute(&mut session).await.is_ok())
        }
        LeaderSessionEnded => Ok(leader(cluster, true).await.is_some()),
        LeaderKilled => match leader(cluster, false).await {
            Some((server, _)) => kill_server(cluster, server, random).await,
            None => Ok(false),
        },
        LeaderFrozen => freeze_leader(cluster, random.ms(4000..15_000)).await,
        ConnectionsCut => {
            let weather = [Weather::Severed, Weather::Half(true), Weather::Half(false), Weather::HalfOpen];
            storm(cluster, weather[random.below(4)], random.ms(300..3000), random).await
        }
        NetworkSlow => {
            let late = Weather::Late(random.ms(100..2500));
            storm(cluster, late, random.ms(2000..8000), random).await
        }
        NetworkBlack => {
            storm(cluster, Weather::BlackHole, random.ms(1000..LEASE_SECONDS * 1500), random).await
        }
        ConnectionsTaken => take_connections(cluster, random).await,
        PoolsEmpty => {
            let Ok(mut session) = cluster.database().await else { return Ok(false) };
            if session.execute("begin; lock table worker_pulse in access exclusive mode").await.is_err() {
                return Ok(false);
            }
            let held = random.ms(2000..7000);
            cluster
                .later(async move {
                    tokio::time::sleep(held).await;
                    drop(session.close().await);
                    Ok(())
                })
                .await;
            Ok(true)
        }
        RetryStorm => retry_storm(cluster, book, random).await,
        PriorityFlood => {
            for number in 0..8 {
                let program = Program { seed: random.any() >> 40, steps: 8 };
                let key = format!("flood-{}-{number}", program.seed);
                let spec = program.spec(&key, 50, "default");
                book.submit(cluster, random, &key, Some(program), &spec).await?;
            }
            Ok(true)
        }
        ClockWrong => {
            let agent = &cluster.agents[random.below(cluster.agents.len())];
            let days = random.below(7) as i64 - 3;
            fs::write(&agent.clock, (days * 86_400 + random.below(7200) as i64 - 3600).to_string())?;
            Ok(true)
        }
        DiskFull => fill_disk(cluster, random).await,
    }
}

type Guard = tokio::sync::OwnedMutexGuard<super::node::Node>;

fn agent(cluster: &Cluster, random: &mut Random) -> Option<(usize, Guard)> {
    let nodes: Vec<_> = cluster.agents.iter().map(|agent| agent.node.clone()).collect();
    Cluster::free(&nodes, random.below(nodes.len()))
}

async fn kill_attempt(cluster: &Cluster, fault: Fault, random: &mut Random) -> Result<bool> {
    for _ in 0..30 {
        let found: Vec<i32> =
            cluster.agents.iter().flat_map(|agent| agent.attempts()).map(|(pid, _)| pid).collect();
        let children =
            |pid: i32| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        if let Some(pid) = found.get(random.below(found.len())) {
            let target = match fault {
                ProcessKilled => Some(*pid),
                GroupKilled => Some(-pid),
                _ => children(*pid).split_whitespace().next().and_then(|child| child.parse().ok()),
            };
            // SAFETY: a training process of this cluster, seen a moment ago, or its group or child.
            if target.is_some_and(|target| unsafe { libc::kill(target, libc::SIGKILL) } == 0) {
                return Ok(true);
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(false)
}

async fn kill_server(cluster: &Cluster, first: usize, random: &mut Random) -> Result<bool> {
    let Some((_, mut node)) = Cluster::free(&cluster.servers, first) else { return Ok(false) };
    node.kill();
    let down = random.ms(0..5000);
    cluster
        .later(async move {
            tokio::time::sleep(down).await;
            node.start().await
        })
        .await;
    Ok(true)
}

/// Looks for the session that holds the scheduler's lock until one is met, and ends it if told to: its server and pid.
async fn leader(cluster: &Cluster, end: bool) -> Option<(usize, i32)> {
    let mut session = cluster.database().await.ok()?;
    let what = if end { "where pg_terminate_backend(pid)" } else { "" };
    // Materialised: nobody else's session may be ended because the planner prefers to ask that first.
    let look = format!("with leader as materialized ({LEADER}) select usename, pid from leader {what}");
    let started = std::time::Instant::now();
    while started.elapsed() < LOOK {
        let found: Option<(String, i32)> =
            sqlx::query_as(sqlx::AssertSqlSafe(look.as_str())).fetch_optional(&mut session).await.ok()?;
        if let Some((role, pid)) = found {
            return Some((role.trim_start_matches("server").parse().ok()?, pid));
        }
    }
    None
}

/// Stops servers at random moments until one is caught with the lock in its hands.
pub async fn freeze_leader(cluster: &Cluster, lasting: Duration) -> Result<bool> {
    let Ok(mut session) = cluster.database().await else { return Ok(false) };
    let holds = format!("select count(*) from ({LEADER} and a.usename = $1) leader");
    for _ in 0..40 {
        let Some((server, _)) = leader(cluster, false).await else { return Ok(false) };
        let Ok(node) = cluster.servers[server].clone().try_lock_owned() else { continue };
        node.signal(libc::SIGSTOP);
        tokio::time::sleep(Duration::from_millis(30)).await;
        let role = format!("server{server}");
        let held: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(holds.as_str()))
            .bind(role)
            .fetch_one(&mut session)
            .await
            .unwrap_or(0);
        if held > 0 {
            cluster
                .later(async move {
                    tokio::time::sleep(lasting).await;
                    node.signal(libc::SIGCONT);
                    Ok(())
                })
                .await;
            return Ok(true);
        }
        node.signal(libc::SIGCONT);
    }
    Ok(false)
}

async fn storm(cluster: &Cluster, weather: Weather, lasting: Duration, random: &mut Random) -> Result<bool> {
    let proxy = cluster.agents[random.below(cluster.agents.len())].proxy.clone();
    cluster
        .later(async move {
            proxy.storm(weather, lasting).await;
            Ok(())
        })
        .await;
    Ok(true)
}

async fn take_connections(cluster: &Cluster, random: &mut Random) -> Result<bool> {
    let mut sessions: Vec<PgConnection> = Vec::new();
    let url = cluster.database_url("crowd");
    while let Ok(session) = Postgres::connect(&url).await {
        sessions.push(session);
        if sessions.len() >= CONNECTIONS {
            break;
        }
    }
    if sessions.is_empty() {
        return Ok(false);
    }
    let held = random.ms(2000..7000);
    cluster
        .later(async move {
            tokio::time::sleep(held).await;
            drop(sessions);
            Ok(())
        })
        .await;
    Ok(true)
}

/// Submissions of three runs, each sent by many at once; beside them requests for work under the agents' own ids, whose
/// answers nobody reads.
async fn retry_storm(cluster: &Arc<Cluster>, book: &Book, random: &mut Random) -> Result<bool> {
    let mut requests = tokio::task::JoinSet::new();
    let mut runs = Vec::new();
    for number in 0..3 {
        let program = Program { seed: random.any() >> 40, steps: 6 };
        let key = format!("storm-{}-{number}", program.seed);
        let spec = program.spec(&key, 0, "default");
        for server in 0..12 {
            let (cluster, book, key, spec) = (cluster.clone(), book.clone(), key.clone(), spec.clone());
            requests
                .spawn(async move { book.try_submit(&cluster, server, &key, Some(program), &spec).await });
        }
        runs.push((key, program, spec));
    }
    for server in 0..60 {
        let id = worker_id(&cluster.agents[server % cluster.agents.len()].seen);
        let cluster = cluster.clone();
        requests.spawn(async move {
            let body = json!({"worker_id": id, "held": [], "wait_ms": 0});
            Ok(cluster.request(server, "worker", Method::POST, "/leases", None, &body).await.is_ok())
        });
    }
    while let Some(done) = requests.join_next().await {
        done??;
    }
    for (key, program, spec) in runs {
        book.submit(cluster, random, &key, Some(program), &spec).await?;
    }
    Ok(true)
}

fn worker_id(state: &Path) -> String {
    fs::read_to_string(state.join("worker.id")).unwrap_or_default().trim().to_owned()
}

async fn fill_disk(cluster: &Cluster, random: &mut Random) -> Result<bool> {
    let Some(agent) = cluster.agents.iter().find(|agent| agent.has_small_disk()) else { return Ok(false) };
    // A name of its own: it may still be full from the last time.
    let ballast = agent.seen.join(format!("ballast-{:x}", random.any()));
    let mut file = fs::File::create(&ballast)?;
    while file.write_all(&[0; 1 << 16]).is_ok() {}
    // To the last byte.
    while file.write_all(&[0; 64]).is_ok() {}
    let full = random.ms(1000..5000);
    cluster
        .later(async move {
            tokio::time::sleep(full).await;
            Ok(fs::remove_file(ballast)?)
        })
        .await;
    Ok(true)
}
