//! Nothing is lost: every process of the product is killed in the middle of a run, and the run still ends with the
//! values, curves and weights of an undisturbed one.

use anyhow::Result;
use causeway_tests::{Server, Trainer, small_finetune, wait_for};
use serde_json::{Value, json};

/// Everything about a run's result that must not depend on what was killed on the way.
async fn visible(server: &Server, id: &str) -> Result<Value> {
    let mut metrics = server.get(&format!("/runs/{id}/metrics")).await?;
    // What a step took is the machine's affair.
    metrics.as_array_mut().unwrap().retain(|series| !series["name"].as_str().unwrap().starts_with("system/"));
    let curves = server.get(&format!("/runs/{id}/curves")).await?;
    let curves: Vec<Value> = curves["curves"]
        .as_array()
        .unwrap()
        .iter()
        .map(|curve| {
            let (dataset, protocol) = (&curve["dataset"]["digest"], &curve["protocol"]);
            json!({"dataset": dataset, "protocol": protocol, "checkpoint": curve["checkpoint"], "points": curve["points"]})
        })
        .collect();
    let run = server.get(&format!("/runs/{id}")).await?;
    Ok(
        json!({"metrics": metrics, "curves": curves, "checkpoint": run["checkpoint"], "backbone": run["backbone"]}),
    )
}

async fn steps_done(server: &Server, id: &str) -> Result<u64> {
    let series = server.get(&format!("/runs/{id}/metrics?names=loss")).await?;
    Ok(series[0]["steps"].as_array().and_then(|steps| steps.last()?.as_u64()).unwrap_or(0))
}

async fn wait_for_step(server: &Server, id: &str, step: u64) -> Result<()> {
    wait_for(&format!("step {step}"), 120, || async {
        Ok((steps_done(server, id).await.unwrap_or(0) >= step).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_run_survives_the_death_of_every_process_value_for_value() -> Result<()> {
    let mut spec = small_finetune();
    spec["training"]["steps"] = json!(30);
    spec["max_attempts"] = json!(6);

    let calm = Server::start().await?;
    let undisturbed = {
        let _trainer = Trainer::start(&calm, &[])?;
        let id = calm.submit(&spec).await?;
        calm.wait_for_run(&id, &["succeeded"], 240).await?;
        visible(&calm, &id).await?
    };

    let mut server = Server::start().await?;
    let mut trainer = Trainer::start(&server, &[])?;
    let id = server.submit(&spec).await?;

    // The training process, between two resume states.
    wait_for_step(&server, &id, 5).await?;
    assert_eq!(trainer.kill_attempts(), 1, "killed while it trained");
    let run = wait_for("a second attempt to be under way", 60, || async {
        let run = server.get(&format!("/runs/{id}")).await?;
        Ok((!run["attempt_list"][1]["environment"].is_null()).then_some(run))
    })
    .await?;
    assert_eq!(run["attempt_list"][0]["signal"], 9);

    // The agent: a new one finds the training process alive and goes on with it.
    wait_for_step(&server, &id, 8).await?;
    let training = trainer.attempts();
    trainer.kill()?;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    trainer.restart()?;
    wait_for_step(&server, &id, 12).await?;
    if steps_done(&server, &id).await? < 30 {
        assert_eq!(trainer.attempts(), training, "the same process trains on");
    }

    // The server, and then its database.
    server.kill()?;
    server.restart().await?;
    wait_for_step(&server, &id, 16).await?;
    let postgres = server.postgres_pid()?;
    // SAFETY: the postmaster of this test's own state folder.
    unsafe { libc::kill(postgres, libc::SIGKILL) };

    // The training process again, while it sweeps α: the next attempt begins with the sweep.
    wait_for("the evaluation", 180, || async {
        let Ok(run) = server.get(&format!("/runs/{id}")).await else { return Ok(None) };
        let live = ["queued", "running"].contains(&run["state"].as_str().unwrap_or_default());
        anyhow::ensure!(live, "the run ended early: {run}");
        Ok((run["phase"] == "evaluate" && run["progress"]["phase"] == "evaluate").then_some(()))
    })
    .await?;
    trainer.kill_attempts();

    let run = server.wait_for_run(&id, &["succeeded"], 240).await?;
    let attempts = run["attempt_list"].as_array().unwrap();
    assert!(attempts.len() >= 2, "{attempts:?}");
    assert_eq!(attempts[1]["resumed_step"].as_i64().unwrap() % 3, 0, "from a resume state");
    assert!(attempts[1]["resumed_step"].as_i64().unwrap() > 0);
    let disturbed = visible(&server, &id).await?;
    for part in ["backbone", "checkpoint", "metrics", "curves"] {
        assert_eq!(disturbed[part], undisturbed[part], "{part}");
    }
    Ok(())
}

#[tokio::test]
async fn a_cancelled_run_ends_its_process_and_frees_the_device() -> Result<()> {
    let server = Server::start().await?;
    let trainer = Trainer::start(&server, &[])?;
    let mut long = small_finetune();
    long["training"]["steps"] = json!(100_000);
    let id = server.submit(&long).await?;
    wait_for_step(&server, &id, 2).await?;
    server.user(reqwest::Method::POST, &format!("/runs/{id}/cancel"))?.send().await?.error_for_status()?;
    let run = wait_for("the cancel", 20, || async {
        let run = server.get(&format!("/runs/{id}")).await?;
        Ok((run["state"] == "cancelled").then_some(run))
    })
    .await?;
    assert_eq!(run["attempt_list"][0]["state"], "cancelled");
    assert!(trainer.attempts().is_empty());
    let workers = server.get("/workers").await?;
    assert_eq!(workers[0]["leases"], json!([]));
    Ok(())
}
