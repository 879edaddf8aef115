//! The queue over HTTP: how many runs that do nothing pass through it a second, and how soon a waiting worker holds a
//! run that was just submitted. A real server on a real Postgres with fsync on; the workers speak the protocol as agents do:
//! a held request for work each, and for each run its journal and its end. Beside it, on the same Postgres, graphile-worker,
//! a queue for Node without HTTP, leases or fences, which npm fetches; without Node and npm it is left out.

use super::{metrics::spent, report};
use anyhow::{Context, Result, ensure};
use causeway_tests::{Server, repository};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, sync::watch, task::JoinSet};
use uuid::Uuid;

/// Workers that wait for one run.
const WAITING: [usize; 3] = [1, 16, 128];
/// Runs that are timed with so many.
const TIMED: usize = 200;
/// Workers of the throughput, and devices on each.
const WORKERS: usize = 16;
const DEVICES: usize = 8;
/// Runs that pass through.
const RUNS: usize = 3_000;
/// Connections that submit.
const SUBMITTERS: usize = 8;
/// The version of graphile-worker, and its jobs.
const PEER: &str = "graphile-worker@0.18.0";
const JOBS: usize = 10_000;

/// A run is in a worker's hand.
struct Picked {
    run: String,
    at: Instant,
}

/// The server, over connections that stay open.
struct Api {
    client: reqwest::Client,
    url: String,
    user: String,
    worker: String,
}

impl Api {
    async fn send(
        &self,
        method: Method,
        token: &str,
        path: &str,
        body: &Value,
    ) -> Result<(StatusCode, Value)> {
        let request = self.client.request(method, format!("{}/api/v1{path}", self.url)).bearer_auth(token);
        let response = request.json(body).send().await?;
        let (status, bytes) = (response.status(), response.bytes().await?);
        ensure!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&bytes));
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    async fn submit(&self) -> Result<String> {
        let spec = json!({"experiment": "bench", "kind": "command", "name": "nothing", "command": {"argv": ["true"]}});
        let (_, run) = self.send(Method::POST, &self.user, "/runs", &spec).await?;
        Ok(run["id"].as_str().context("id")?.to_owned())
    }

    async fn register(&self, worker: Uuid, devices: usize, draining: bool) -> Result<()> {
        let devices: Vec<Value> = (0..devices).map(|at| json!({"name": format!("cuda:{at}")})).collect();
        let body = json!({"id": worker, "name": worker, "host": "here", "version": "0", "devices": devices,
                          "assets": [], "labels": ["commands"], "draining": draining});
        self.send(Method::PUT, &self.worker, &format!("/workers/{worker}"), &body).await?;
        Ok(())
    }

    async fn lease(&self, worker: Uuid, held: Vec<String>) -> Result<Option<Value>> {
        let body = json!({"worker_id": worker, "held": held, "wait_ms": 10_000});
        let (status, grant) = self.send(Method::POST, &self.worker, "/leases", &body).await?;
        Ok((status == StatusCode::OK).then_some(grant))
    }

    /// What an agent sends of a run that does nothing: that it began, and that it has ended.
    async fn carry_out(&self, grant: Value) -> Result<String> {
        let (id, epoch) = (grant["id"].as_str().context("id")?.to_owned(), &grant["epoch"]);
        let environment = json!({"version": "0", "commit": "0", "libtorch": "none", "host": "here", "device": "cuda:0",
                                 "cpu": "none", "threads": 1});
        let line = json!({"seq": 1, "at": "2026-01-01T00:00:00Z", "event": "started", "environment": environment,
                          "phase": "train", "resumed_step": 0});
        let events = json!({"epoch": epoch, "lines": [line]});
        self.send(Method::POST, &self.worker, &format!("/leases/{id}/events"), &events).await?;
        let end = json!({"epoch": epoch, "outcome": "succeeded", "reason": ""});
        self.send(Method::POST, &self.worker, &format!("/leases/{id}/finish"), &end).await?;
        Ok(id)
    }
}

/// An agent: one request for work at a time while a device is free, as many runs beside each other as it has devices.
async fn agent(
    api: Arc<Api>,
    worker: Uuid,
    devices: usize,
    picked: mpsc::UnboundedSender<Picked>,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let mut tasks: JoinSet<Result<String>> = JoinSet::new();
    let mut held: Vec<String> = Vec::new();
    while !*stop.borrow() {
        if held.len() == devices {
            let ended = tasks.join_next().await.context("a run at work")???;
            held.retain(|lease| *lease != ended);
            continue;
        }
        let (asked, beside) = (api.clone(), held.clone());
        let request = async move { asked.lease(worker, beside).await };
        tokio::pin!(request);
        loop {
            tokio::select! {
                grant = &mut request => {
                    if let Some(grant) = grant? {
                        let run = grant["run_id"].as_str().context("run_id")?.to_owned();
                        let _ = picked.send(Picked { run, at: Instant::now() });
                        held.push(grant["id"].as_str().context("id")?.to_owned());
                        let api = api.clone();
                        tasks.spawn(async move { api.carry_out(grant).await });
                    }
                    break;
                }
                Some(ended) = tasks.join_next() => {
                    let ended = ended??;
                    held.retain(|lease| *lease != ended);
                }
                _ = stop.changed() => break,
            }
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    api.register(worker, devices, true).await
}

/// Agents at work, until they are told to stop.
struct Agents {
    tasks: JoinSet<Result<()>>,
    picked: mpsc::UnboundedReceiver<Picked>,
    stop: watch::Sender<bool>,
}

impl Agents {
    async fn start(api: &Arc<Api>, count: usize, devices: usize) -> Result<Agents> {
        let (sender, picked) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let worker = Uuid::now_v7();
            api.register(worker, devices, false).await?;
            tasks.spawn(agent(api.clone(), worker, devices, sender.clone(), stopped.clone()));
        }
        Ok(Agents { tasks, picked, stop })
    }

    async fn next(&mut self) -> Result<Picked> {
        tokio::time::timeout(Duration::from_secs(60), self.picked.recv()).await?.context("an agent")
    }

    async fn stop(mut self) -> Result<()> {
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(())
    }
}

/// The part `queue`.
pub async fn queue() -> Result<()> {
    let server = Server::start().await?;
    let api = Arc::new(Api {
        client: causeway_tests::http().build()?,
        url: server.url(),
        user: server.token("user")?,
        worker: server.token("worker")?,
    });
    for workers in WAITING {
        pick_up(&api, workers).await?;
    }
    pass_through(&server, &api).await?;
    peer(&server)
}

/// Runs come one after the other, and find all workers waiting.
async fn pick_up(api: &Arc<Api>, workers: usize) -> Result<()> {
    let mut agents = Agents::start(api, workers, 1).await?;
    tokio::time::sleep(Duration::from_millis(500)).await; // all of them wait for work
    let (mut times, mut posts) = (Vec::new(), Vec::new());
    for _ in 0..TIMED {
        let sent = Instant::now();
        let run = api.submit().await?;
        posts.push(sent.elapsed().as_secs_f64() * 1e3);
        let picked = agents.next().await?;
        ensure!(picked.run == run, "another run was picked up");
        times.push((picked.at - sent).as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(20)).await; // it ends, and its worker waits again
    }
    agents.stop().await?;
    let what = format!("from sending POST /runs until one of {workers} waiting workers holds the lease");
    quantiles(&format!("queue_pickup_{workers}"), &what, times);
    quantiles(&format!("queue_post_{workers}"), "POST /runs until its answer", posts);
    Ok(())
}

fn quantiles(name: &str, what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    for (quantile, share) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
        report(&format!("{name}_{quantile}"), times[(share * (times.len() - 1) as f64) as usize], "ms", what);
    }
}

async fn submit_all(api: &Arc<Api>, runs: usize) -> Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..SUBMITTERS {
        let api = api.clone();
        tasks.spawn(async move {
            for _ in 0..runs / SUBMITTERS {
                api.submit().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// Runs that wait already; then as many that are submitted while they are worked on.
async fn pass_through(server: &Server, api: &Arc<Api>) -> Result<()> {
    let start = Instant::now();
    submit_all(api, RUNS).await?;
    let rate = RUNS as f64 / start.elapsed().as_secs_f64();
    report("queue_submitted", rate, "runs/s", "POST /runs over eight connections, up to 3,000 waiting");
    for (name, what) in [
        ("queue_runs", "leased, begun and finished: three requests each, 16 agents of eight devices"),
        ("queue_runs_and_submissions", "the same, submitted meanwhile over eight connections"),
    ] {
        let before = spent(server)?;
        let mut agents = Agents::start(api, WORKERS, DEVICES).await?;
        let submitting = (name != "queue_runs").then(|| {
            let api = api.clone();
            tokio::spawn(async move { submit_all(&api, RUNS).await })
        });
        let first = agents.next().await?.at;
        for _ in 1..RUNS {
            agents.next().await?;
        }
        agents.stop().await?; // the last ones are finished
        if let Some(submitting) = submitting {
            submitting.await??;
        }
        report(name, RUNS as f64 / first.elapsed().as_secs_f64(), "runs/s", what);
        for ((who, before), (_, after)) in before.into_iter().zip(spent(server)?) {
            let milliseconds = (after - before) * 1e3 / RUNS as f64;
            report(&format!("{name}_cpu_{who}"), milliseconds, "ms/run", "processor time, all threads");
        }
    }
    let states = server.database().await?;
    let left: i64 =
        sqlx::query_scalar("select count(*) from run where state <> 'succeeded'").fetch_one(&states).await?;
    ensure!(left == 0, "{left} runs have not succeeded");
    Ok(())
}

/// The same of graphile-worker.
fn peer(server: &Server) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let there =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|it| it.status.success());
    if !there("node") || !there("npm") {
        eprintln!("there is no node, or no npm: graphile-worker is left out");
        return Ok(());
    }
    let mut install = Command::new("npm");
    install
        .args(["install", "--no-audit", "--no-fund", "--no-save", "--prefix"])
        .arg(folder.path())
        .arg(PEER);
    let installed = install.output()?;
    if !installed.status.success() {
        let why = String::from_utf8_lossy(&installed.stderr).into_owned();
        eprintln!("npm could not fetch {PEER}, which is left out: {why}");
        return Ok(());
    }
    for line in measure_peer(server, folder.path())?.lines() {
        let figure: Value = serde_json::from_str(line)?;
        let text = |name: &str| figure[name].as_str().context("a figure");
        report(text("bench")?, figure["value"].as_f64().context("value")?, text("unit")?, text("what")?);
    }
    Ok(())
}

fn measure_peer(server: &Server, modules: &Path) -> Result<String> {
    // Required from there, the script finds what was installed.
    let script = modules.join("graphile.cjs");
    fs::copy(repository().join("tests/benches/graphile.cjs"), &script)?;
    let output = Command::new("node")
        .arg(&script)
        .arg(server.state().canonicalize()?.join("socket"))
        .arg(JOBS.to_string())
        .arg(TIMED.to_string())
        .args(WAITING.map(|workers| workers.to_string()))
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
