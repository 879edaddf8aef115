//! The launcher on a real Slurm cluster: real pilots, real runs, and everything killed that a centre's users see killed.
//! Not part of `make test`, for it needs Slurm and root; `make chaos` runs it where both are.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod cluster;

use anyhow::{Context, Result, ensure};
use causeway_tests::{Process, Server, binary, demo_data, small_finetune, wait_for};
use cluster::{Cluster, Job};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, path::PathBuf, process::Command, time::Duration};

/// The words of a launcher: a pilot has one CPU device, half a gigabyte, and the demo's assets.
fn words(cluster: &Cluster, more: &[&str]) -> Vec<String> {
    let shared = cluster.shared().to_string_lossy().into_owned();
    let data = demo_data().to_string_lossy().into_owned();
    let words = ["slurm", "--work-dir", &shared, "--data", &data, "--threads", "1", "--memory", "500"];
    words.iter().chain(&["--poll-seconds", "1"]).chain(more).map(|word| (*word).to_owned()).collect()
}

/// A launcher as a process of its own.
fn launch(cluster: &Cluster, server: &Server, log: &str, more: &[&str]) -> Result<(Process, PathBuf)> {
    let log = server.folder().join(log);
    let mut command = Command::new(binary("causeway"));
    command.arg("launch").args(words(cluster, more)).env("SLURM_CONF", cluster.configuration());
    command.args(["--server", &server.url(), "--token-file"]).arg(server.state().join("user.token"));
    Ok((Process::start(&mut command, &log)?, log))
}

/// A run that lasts until it is cancelled, with no state kept but what a signal makes it keep.
fn endless() -> Value {
    let mut spec = small_finetune();
    (spec["training"]["steps"], spec["training"]["resume_every"]) = (json!(100_000), json!(100_000));
    spec["max_attempts"] = json!(1);
    spec
}

async fn wait_for_step(server: &Server, id: &str, step: u64) -> Result<()> {
    wait_for(&format!("step {step}"), 120, || async {
        let series = server.get(&format!("/runs/{id}/metrics?names=loss")).await?;
        let done = series[0]["steps"].as_array().and_then(|steps| steps.last()?.as_u64()).unwrap_or(0);
        Ok((done >= step).then_some(()))
    })
    .await
}

/// Waits until a run's second attempt has begun to work, and returns the run.
async fn wait_for_second(server: &Server, id: &str, seconds: u64) -> Result<Value> {
    wait_for("a second attempt", seconds, || async {
        let run = server.get(&format!("/runs/{id}")).await?;
        Ok((!run["attempt_list"][1]["environment"].is_null()).then_some(run))
    })
    .await
}

async fn cancel(server: &Server, id: &str) -> Result<()> {
    server.user(reqwest::Method::POST, &format!("/runs/{id}/cancel"))?.send().await?.error_for_status()?;
    Ok(())
}

async fn wait_for_jobs(cluster: &Cluster, what: &str, good: impl Fn(&[Job]) -> bool) -> Result<Vec<Job>> {
    wait_for(what, 90, || async { Ok(Some(cluster.jobs()?).filter(|jobs| good(jobs))) }).await
}

#[tokio::test]
async fn waiting_runs_are_finished_by_pilots_that_end_when_there_is_no_more_work() -> Result<()> {
    let cluster = Cluster::start().await?;
    // As an option of the server.
    let line: Vec<String> = words(&cluster, &["--max-pilots", "2", "--idle", "4"])
        .iter()
        .map(|word| format!("'{word}'"))
        .collect();
    let configuration = cluster.configuration().to_string_lossy().into_owned();
    let server =
        Server::with(30.0, &[("CAUSEWAY_LAUNCH", &line.join(" ")), ("SLURM_CONF", &configuration)]).await?;
    let mut ids = Vec::new();
    for seed in 0..3 {
        let mut spec = small_finetune();
        (spec["seed"], spec["training"]["steps"]) = (json!(seed), json!(4));
        ids.push(server.submit(&spec).await?);
    }
    let mut impossible = small_finetune();
    impossible["captions"]["asset"] = json!("captions-of-nobody");
    let impossible = server.submit(&impossible).await?;

    let mut most = 0;
    for id in &ids {
        let path = format!("/runs/{id}");
        wait_for("a run to succeed", 240, || {
            most = most.max(cluster.jobs().map_or(0, |jobs| jobs.len()));
            async {
                let run = server.get(&path).await?;
                ensure!(run["state"] != "failed", "{run}");
                Ok((run["state"] == "succeeded").then_some(()))
            }
        })
        .await?;
    }
    assert!((1..=2).contains(&most), "{most} pilots at once");
    for id in &ids {
        let run = server.get(&format!("/runs/{id}")).await?;
        let worker = run["attempt_list"][0]["worker"].as_str().unwrap();
        assert!(worker.starts_with("causeway-"), "{worker}");
    }
    wait_for_jobs(&cluster, "the pilots to end by themselves", <[Job]>::is_empty).await?;

    // The run that nobody can have brings no pilot, however often the launcher looks, and is told once.
    let last = cluster.last_job()?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(cluster.last_job()?, last);
    let log = fs::read_to_string(server.log())?;
    assert_eq!(log.matches(&format!("no pilot for the run {impossible}")).count(), 1);
    assert!(log.contains("no pilot holds captions-of-nobody"));
    // Neither the token nor anything like it is in what Slurm knows of a pilot.
    let secret = fs::read_to_string(cluster.shared().join("worker.token"))?;
    let job = last.to_string();
    let known = cluster.call("scontrol", &["show", "job", &job])?
        + &cluster.call("scontrol", &["write", "batch_script", &job, "-"])?;
    assert!(
        known.contains("worker.token") && !known.contains("cww_") && secret.starts_with("cww_"),
        "{known}"
    );
    Ok(())
}

#[tokio::test]
async fn a_pilot_that_is_told_to_end_gives_its_run_back_and_another_goes_on_with_it() -> Result<()> {
    let cluster = Cluster::start().await?;
    let server = Server::start().await?;
    let mut spec = endless();
    spec["training"]["steps"] = json!(60);
    let id = server.submit(&spec).await?;
    let _launcher = launch(&cluster, &server, "launcher.log", &["--max-pilots", "1", "--idle", "5"])?;
    wait_for_step(&server, &id, 3).await?;
    let jobs = cluster.jobs()?;
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    // What Slurm does ahead of the time limit with --signal=B:TERM@…
    cluster.call("scancel", &["--batch", "--signal=TERM", &jobs[0].id.to_string()])?;
    let run = server.wait_for_run(&id, &["succeeded"], 240).await?;
    let attempts = run["attempt_list"].as_array().context("attempts")?;
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert!(attempts[1]["resumed_step"].as_i64().unwrap() >= 3, "only the signal made it keep a state");
    assert_eq!((&run["attempts"], &run["max_attempts"]), (&json!(1), &json!(1)), "no attempt was spent");
    assert!(cluster.last_job()? > jobs[0].id, "by another pilot");
    Ok(())
}

#[tokio::test]
async fn slurms_own_time_limit_is_felt_ahead_and_costs_no_step() -> Result<()> {
    let cluster = Cluster::start().await?;
    let server = Server::start().await?;
    let id = server.submit(&endless()).await?;
    let limited = ["--max-pilots", "1", "--idle", "5", "--time", "2", "--margin-seconds", "55"];
    let _launcher = launch(&cluster, &server, "launcher.log", &limited)?;
    wait_for_step(&server, &id, 1).await?;
    let first = cluster.jobs()?;
    let run = wait_for_second(&server, &id, 200).await?;
    let [given_back, resumed] = [0, 1].map(|attempt| run["attempt_list"][attempt].clone());
    assert_eq!(given_back["exit_code"], 0, "{given_back}");
    assert_eq!(run["attempts"], 1, "no attempt was spent");
    let told = format!("its state after step {} is kept", resumed["resumed_step"]);
    assert!(given_back["reason"].as_str().unwrap().contains(&told), "{given_back}");
    let known = cluster.call("scontrol", &["show", "job", &first[0].id.to_string()])?;
    assert!(known.contains("JobState=COMPLETED") && known.contains("ExitCode=0:0"), "{known}");
    cancel(&server, &id).await
}

#[tokio::test]
async fn the_lease_notices_a_dead_node_and_another_pilot_finishes_its_run() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let server = Server::with_lease(15.0).await?;
    let mut spec = small_finetune();
    (spec["training"]["steps"], spec["max_attempts"]) = (json!(60), json!(2));
    let id = server.submit(&spec).await?;
    let _launcher = launch(&cluster, &server, "launcher.log", &["--max-pilots", "2", "--idle", "5"])?;
    wait_for_step(&server, &id, 5).await?;
    let jobs = cluster.jobs()?;
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    cluster.kill_node(&jobs[0])?;
    wait_for_second(&server, &id, 60).await?;
    let dead = cluster.jobs()?.into_iter().find(|job| job.id == jobs[0].id);
    assert_eq!(dead.map(|job| job.state).as_deref(), Some("RUNNING"), "Slurm has not noticed yet");
    let run = server.wait_for_run(&id, &["succeeded"], 240).await?;
    let attempts = run["attempt_list"].as_array().context("attempts")?;
    assert_eq!((attempts.len(), attempts[0]["state"].as_str()), (2, Some("lost")), "{attempts:?}");
    assert_ne!(
        attempts[0]["worker"], attempts[1]["worker"],
        "on another node, though the dead one has more room"
    );
    assert!(attempts[1]["resumed_step"].as_i64().unwrap() >= 3, "from its last resume state");
    Ok(())
}

#[tokio::test]
async fn a_launcher_killed_and_started_twice_doubles_nothing() -> Result<()> {
    let cluster = Cluster::start().await?;
    let server = Server::start().await?;
    let mut ids = Vec::new();
    for seed in 0..5 {
        let mut spec = endless();
        spec["seed"] = json!(seed);
        ids.push(server.submit(&spec).await?);
    }
    let slots = |jobs: &[Job]| jobs.iter().map(|job| job.name.clone()).collect::<BTreeSet<_>>().len();

    // Two that look at an empty queue in the same moment, each on its own: what both submitted, Slurm runs once.
    let options = ["--max-pilots", "3", "--idle", "60"];
    let once = [&options[..], &["--once"]].concat();
    let mut pair =
        [launch(&cluster, &server, "once-0.log", &once)?, launch(&cluster, &server, "once-1.log", &once)?];
    wait_for("both to have looked", 60, || {
        let ended = pair.iter_mut().all(|(launcher, _)| !launcher.running());
        async move { Ok(ended.then_some(())) }
    })
    .await?;
    let submitted = cluster.jobs()?.len();
    assert!((3..=6).contains(&submitted), "{submitted}");
    eprintln!("two launchers at once submitted {submitted} jobs for 3 pilots");

    let (mut first, _) = launch(&cluster, &server, "first.log", &options)?;
    let running = |jobs: &[Job]| jobs.iter().filter(|job| job.state == "RUNNING").count();
    let three = |jobs: &[Job]| jobs.len() == 3 && slots(jobs) == 3 && running(jobs) == 3;
    let before = wait_for_jobs(&cluster, "three pilots, one a slot", three).await?;
    first.kill()?;
    let _second = launch(&cluster, &server, "second.log", &options)?;
    let _third = launch(&cluster, &server, "third.log", &options)?;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(cluster.jobs()?, before);
    }
    let runs = server.get("/runs?state=running").await?;
    assert_eq!(runs["items"].as_array().map(Vec::len), Some(3), "one run a pilot");
    for id in &ids {
        cancel(&server, id).await?;
    }
    Ok(())
}
