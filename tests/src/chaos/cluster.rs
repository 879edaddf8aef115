//! A cluster on one machine: a Postgres, servers that share it, agents that reach them through proxies.

use super::{
    agent::{Agent, Kind},
    node::{Announced, Node},
    postgres::Postgres,
    proxy::Ports,
};
use crate::process::{binary, wait_for};
use anyhow::{Context, Result, bail};
use reqwest::{Client, Method, StatusCode};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    task::JoinSet,
};

/// Length of a lease: short, so that many run out.
pub const LEASE_SECONDS: u64 = 8;
/// Projects beside the one that is always there.
pub const PROJECTS: [&str; 2] = ["vision", "language"];
/// Longest that a request of a user may take.
const REQUEST: Duration = Duration::from_secs(10);

/// The processes, each with a lock that a fault holds while it is at it.
pub struct Cluster {
    folder: PathBuf,
    /// The database.
    pub postgres: Arc<Mutex<Postgres>>,
    admin: String,
    /// The servers.
    pub servers: Vec<Arc<Mutex<Node>>>,
    ports: Ports,
    /// The agents.
    pub agents: Vec<Agent>,
    client: Client,
    /// What is still to be put right.
    pub repairs: Mutex<JoinSet<Result<()>>>,
}

impl Cluster {
    /// Starts so many servers, and an agent of each of these kinds.
    ///
    /// # Errors
    /// If anything does not come up.
    pub async fn start(folder: &Path, servers: usize, agents: &[Kind]) -> Result<Cluster> {
        let folder = folder.canonicalize()?;
        let postgres = Postgres::start(&folder.join("db")).await?;
        let admin = postgres.url("causeway");
        let mut session = Postgres::connect(&admin).await?;
        // Not superusers: the last places of Postgres are not theirs. Their names tell whose a session is.
        for server in 0..servers {
            let role = format!(
                "create role server{server} login in role causeway; alter role server{server} set role = causeway"
            );
            sqlx::raw_sql(AssertSqlSafe(role)).execute(&mut session).await?;
        }
        session.execute("create role crowd login").await?;
        let ports: Ports = Arc::new((0..servers).map(|_| AtomicU16::new(0)).collect());
        let mut nodes = Vec::new();
        for index in 0..servers {
            let url = postgres.url(&format!("server{index}"));
            let mut node = server(&folder, index, url, &ports);
            node.start().await?;
            nodes.push(Arc::new(Mutex::new(node)));
        }
        sqlx::raw_sql(include_str!("recorder.sql")).execute(&mut session).await?;
        let client = crate::http().pool_max_idle_per_host(0).timeout(REQUEST).build()?;
        let mut cluster = Cluster {
            folder,
            postgres: Arc::new(Mutex::new(postgres)),
            admin,
            servers: nodes,
            ports,
            agents: Vec::new(),
            client,
            repairs: Mutex::default(),
        };
        for project in PROJECTS {
            let (path, share) = (format!("/projects/{project}"), serde_json::json!({"weight": 2}));
            let (status, answer) = cluster.request(0, "user", Method::PUT, &path, None, &share).await?;
            anyhow::ensure!(status.is_success(), "{status}: {answer}");
        }
        for (index, kind) in agents.iter().enumerate() {
            let token = cluster.token_file("worker");
            let agent = Agent::start(&cluster.folder, index, *kind, &token, cluster.ports.clone()).await?;
            cluster.agents.push(agent);
        }
        Ok(cluster)
    }

    /// A session of the superuser.
    ///
    /// # Errors
    /// If Postgres does not answer.
    pub async fn database(&self) -> Result<PgConnection> {
        Postgres::connect(&self.admin).await
    }

    /// The URL of the database for a role.
    pub fn database_url(&self, role: &str) -> String {
        self.admin.replacen("causeway@", &format!("{role}@"), 1)
    }

    /// Where a server is at the moment; it gets another port with each start.
    pub fn url(&self, server: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[server].load(Ordering::Relaxed))
    }

    /// A token that every server knows.
    pub fn token_file(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("s0/{kind}.token"))
    }

    /// Where all servers keep blobs.
    pub fn blobs(&self) -> PathBuf {
        self.folder.join("blobs")
    }

    /// A request to one of the servers, as `user` or `worker`: status and answer.
    ///
    /// # Errors
    /// If that server is down, or does not answer.
    pub async fn request(
        &self,
        server: usize,
        token: &str,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: &Value,
    ) -> Result<(StatusCode, Value)> {
        let port = self.ports[server % self.ports.len()].load(Ordering::Relaxed);
        anyhow::ensure!(port != 0, "server {server} is down");
        let token = fs::read_to_string(self.token_file(token))?;
        let url = format!("http://127.0.0.1:{port}/api/v1{path}");
        let mut request = self.client.request(method, url).bearer_auth(token.trim()).json(body);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let answer = request.send().await?;
        let status = answer.status();
        Ok((status, answer.json().await.unwrap_or_default()))
    }

    /// Something to be done once a fault has lasted long enough.
    pub async fn later(&self, repair: impl Future<Output = Result<()>> + Send + 'static) {
        self.repairs.lock().await.spawn(repair);
    }

    /// Waits until every fault is over.
    ///
    /// # Errors
    /// If something cannot be put right.
    pub async fn repaired(&self) -> Result<()> {
        let mut repairs = self.repairs.lock().await;
        while let Some(done) = repairs.join_next().await {
            done??;
        }
        Ok(())
    }

    /// One of these that no other fault is at, beginning at `first`.
    pub fn free<T>(nodes: &[Arc<Mutex<T>>], first: usize) -> Option<(usize, OwnedMutexGuard<T>)> {
        let count = nodes.len();
        let mut places = (0..count).map(|step| (first + step) % count);
        places.find_map(|place| Some((place, nodes[place].clone().try_lock_owned().ok()?)))
    }

    /// Ends everything in order.
    ///
    /// # Errors
    /// If something does not end.
    pub async fn stop(&self) -> Result<()> {
        for agent in &self.agents {
            agent.node.lock().await.stop()?;
        }
        for server in &self.servers {
            server.lock().await.stop()?;
        }
        Ok(())
    }

    /// Waits until `count` runs, or all, have ended: none may hang.
    ///
    /// # Errors
    /// With what has not, after so many seconds.
    pub async fn all_ended(&self, seconds: u64) -> Result<()> {
        let ended = wait_for("every run to end", seconds, || async {
            let Ok(mut session) = self.database().await else { return Ok(None) };
            let open = sqlx::query_scalar::<_, i64>(OPEN).fetch_one(&mut session).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            Ok((open.unwrap_or(1) == 0).then_some(()))
        });
        let Err(error) = ended.await else { return Ok(()) };
        let mut session = self.database().await.context("after the faults")?;
        let list = "select coalesce(string_agg(id || ' is ' || state, ', '), '') from run
                    where state in ('queued', 'running', 'paused')";
        let open: String = sqlx::query_scalar(list).fetch_one(&mut session).await?;
        session.close().await?;
        bail!("{error}: {open}")
    }
}

/// How many runs have not ended.
pub const OPEN: &str = "select count(*) from run where state in ('queued', 'running', 'paused')";

fn server(folder: &Path, index: usize, database: String, ports: &Ports) -> Node {
    let (state, blobs) = (folder.join(format!("s{index}")), folder.join("blobs"));
    let announced = Announced { file: state.join("server.json"), index, ports: ports.clone() };
    let command = move || {
        let mut command = Command::new(binary("causeway"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--lease-seconds", &LEASE_SECONDS.to_string()]);
        command.arg("--state").arg(&state).arg("--blobs").arg(&blobs).env("DATABASE_URL", &database);
        command
    };
    Node {
        name: format!("server {index}"),
        log: folder.join(format!("server{index}.log")),
        command: Box::new(command),
        announced: Some(announced),
        process: None,
    }
}
