//! Pages of results as large as the official test sets make them: five datasets of 26,032 queries (SVHN's), three methods
//! with three seeds, eleven α. Every difference on them has its paired interval, computed when the page is asked for. The
//! points come in as a worker sends them; which queries are right is drawn, some more wrong or right with every α.

use super::{quantiles, report};
use anyhow::{Context, Result, ensure};
use causeway_protocol::{Evaluation, Hits};
use causeway_tests::{FakeWorker, Held, Server, chaos::Random, spec};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Instant;
use uuid::Uuid;

/// Queries of each dataset, classes, and their roles.
const QUERIES: usize = 26_032;
const CLASSES: usize = 10;
const ROLES: [&str; 5] = ["id", "id", "ood", "ood", "ood"];
const METHODS: [&str; 3] = ["adapter", "film", "full"];
const SEEDS: usize = 3;
/// Share of the queries that the backbone has right, and that a checkpoint changes at most.
const RIGHT: f64 = 0.6;
const CHANGED: f64 = 0.15;
/// Requests that are timed of each page.
const REQUESTS: usize = 50;

/// The part `results`.
pub async fn results() -> Result<()> {
    let server = Server::start().await?;
    let names: Vec<String> = (0..ROLES.len()).map(|at| format!("set-{at}")).collect();
    let worker = register(&server, &names).await?;
    let mut random = Random::new(1);
    let mut sets: Vec<(String, Vec<bool>)> = Vec::new();
    for name in &names {
        sets.push((name.clone(), (0..QUERIES).map(|_| unit(&mut random) < RIGHT).collect()));
    }
    let (mut experiment, mut checkpoints) = (String::new(), Vec::new());
    for method in METHODS {
        for seed in 0..SEEDS {
            let mut asked = spec();
            (asked["name"], asked["method"]["kind"]) = (json!(format!("{method} {seed}")), json!(method));
            asked["seed"] = json!(seed);
            let datasets = names.iter().zip(ROLES).map(|(name, role)| json!({"asset": name, "role": role}));
            asked["evaluation"]["datasets"] = datasets.collect();
            asked["evaluation"]["alphas"] = (0..=10).map(|tenth| json!(f64::from(tenth) / 10.0)).collect();
            let id = server.submit(&asked).await?;
            let held = worker.lease(10_000).await?.context("a lease")?;
            let content: &'static [u8] = Box::leak(id.clone().into_bytes().into_boxed_slice());
            let digest = worker.upload(&held, content).await?;
            let blob = json!({"sha256": digest, "bytes": content.len(), "file": "checkpoint.safetensors"});
            let events = journal(&held, method, &blob, &sets, &mut random)?;
            let (status, answer) = worker.ship(&held, 1, &events).await?;
            ensure!(status.is_success(), "{answer}");
            ensure!(worker.finish(&held, "succeeded", "").await?.is_success());
            let run = server.get(&format!("/runs/{id}")).await?;
            ensure!(run["state"] == "succeeded", "{}", run["attempt_list"]);
            experiment = run["experiment_id"].as_str().context("experiment")?.to_owned();
            checkpoints.push(digest);
        }
    }
    let what = "five datasets of 26,032 queries, nine runs, eleven α";
    let pages = [
        ("experiment", format!("/experiments/{experiment}")),
        ("compare_two", format!("/compare?checkpoints={}", checkpoints[..2].join(","))),
        ("compare_five", format!("/compare?checkpoints={}", checkpoints[..5].join(","))),
        ("curves_json", format!("/api/v1/experiments/{experiment}/curves")),
    ];
    for (name, path) in pages {
        timed(&server, name, &path, what).await?;
    }
    Ok(())
}

/// A worker that holds what the specs name.
async fn register<'a>(server: &'a Server, datasets: &[String]) -> Result<FakeWorker<'a>> {
    let id = Uuid::now_v7();
    let mut names: Vec<&str> = vec!["vit", "pairs", "minilm"];
    names.extend(datasets.iter().map(String::as_str));
    let asset = |name: &&str| {
        json!({"name": name, "kind": "dataset", "title": name, "licence": "CC0-1.0", "source": "a benchmark",
               "digest": "0", "images": QUERIES})
    };
    let assets: Vec<Value> = names.iter().map(asset).collect();
    let body = json!({"id": id, "name": "results", "host": "here", "version": "0", "devices": [{"name": "cpu:0"}],
                      "assets": assets, "labels": [], "draining": false});
    let answer = server.worker(Method::PUT, &format!("/workers/{id}"))?.json(&body).send().await?;
    answer.error_for_status()?;
    Ok(FakeWorker::again(server, id))
}

/// What an agent ships of a run: that it began, what it made, and its points. `sets` are the datasets by name, with the
/// queries that the backbone has right.
fn journal(
    held: &Held,
    method: &str,
    blob: &Value,
    sets: &[(String, Vec<bool>)],
    random: &mut Random,
) -> Result<Vec<Value>> {
    let evaluation: Evaluation = serde_json::from_value(held.grant["spec"]["evaluation"].clone())?;
    let environment = json!({"version": "0", "commit": "0", "libtorch": "0", "host": "here", "device": "cpu", "cpu": "none",
                             "threads": 1});
    let stamp = json!({"device": "cpu", "version": "0", "libtorch": "0", "threads": 1, "batch_size": 8});
    let checkpoint = &blob["sha256"];
    let mut events = vec![
        json!({"event": "started", "environment": environment, "phase": "train", "resumed_step": 0}),
        json!({"event": "backbone", "digest": "b", "parameters": 1, "trainable": 1}),
        json!({"event": "checkpoint", "step": 10, "blob": blob, "backbone": "b", "method": method}),
    ];
    let per_class = |right: &[bool]| -> Vec<usize> {
        let class = |class| right.iter().skip(class).step_by(CLASSES).filter(|right| **right).count();
        (0..CLASSES).map(class).collect()
    };
    for (name, right) in sets {
        let classes: Vec<String> = (0..CLASSES).map(|class| format!("class {class}")).collect();
        events.push(
            json!({"event": "dataset", "asset": name, "digest": name, "title": name, "licence": "CC0-1.0",
                   "source": "a benchmark", "queries": QUERIES, "bank": QUERIES, "leave_one_out": true,
                   "classes": classes, "queries_per_class": per_class(&vec![true; QUERIES])}),
        );
        // Each query changes at an α of its own, if at all.
        let turns: Vec<f64> = (0..QUERIES).map(|_| unit(random) / CHANGED).collect();
        for alpha in &evaluation.alphas {
            let flags: Vec<bool> =
                right.iter().zip(&turns).map(|(right, turn)| *right != (*turn < alpha.as_f64())).collect();
            let correct = flags.iter().filter(|right| **right).count();
            for protocol in evaluation.protocols() {
                events.push(
                    json!({"event": "point", "backbone": "b", "checkpoint": (alpha.as_f64() > 0.0).then_some(checkpoint),
                           "dataset": name, "protocol": protocol, "alpha": alpha, "n": QUERIES, "correct": correct,
                           "correct_top5": QUERIES, "correct_per_class": per_class(&flags),
                           "hits": Hits::from_flags(&flags), "stamp": stamp}),
                );
            }
        }
    }
    Ok(events)
}

async fn timed(server: &Server, name: &str, path: &str, what: &str) -> Result<()> {
    let client = causeway_tests::http().build()?;
    let (url, token) = (format!("{}{path}", server.url()), server.token("user")?);
    let (mut times, mut bytes) = (Vec::new(), 0);
    for _ in 0..REQUESTS {
        let start = Instant::now();
        bytes = client.get(&url).bearer_auth(&token).send().await?.error_for_status()?.bytes().await?.len();
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let (p50, p95) = quantiles(times);
    let what = format!("{what}: {} kB", bytes / 1000);
    report(&format!("results_{name}_p50"), p50, "ms", &what);
    report(&format!("results_{name}_p95"), p95, "ms", &what);
    Ok(())
}

/// From 0 to 1.
fn unit(random: &mut Random) -> f64 {
    random.any() as f64 / u64::MAX as f64
}
