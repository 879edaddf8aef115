//! A worker leaves: told to, it gives its run back with the state it has reached; idle for long enough, it goes by itself.

use anyhow::Result;
use causeway_tests::{Server, Trainer, binary, demo_data, small_finetune, wait_for};
use serde_json::json;
use std::process::Command;

#[tokio::test]
async fn a_worker_told_to_end_gives_its_run_back_with_its_progress_and_spends_no_attempt() -> Result<()> {
    let server = Server::start().await?;
    let mut trainer = Trainer::start(&server, &[])?;
    let mut spec = small_finetune();
    // No state but the one that the signal makes it keep, and no second try.
    (spec["training"]["steps"], spec["training"]["resume_every"]) = (json!(40), json!(1000));
    spec["max_attempts"] = json!(1);
    let id = server.submit(&spec).await?;
    wait_for("step 3", 120, || async {
        let series = server.get(&format!("/runs/{id}/metrics?names=loss")).await?;
        let done = series[0]["steps"].as_array().and_then(|steps| steps.last()?.as_u64()).unwrap_or(0);
        Ok((done >= 3).then_some(()))
    })
    .await?;
    trainer.stop()?;
    let run = server.get(&format!("/runs/{id}")).await?;
    assert_eq!((run["state"].as_str(), run["attempts"].as_i64()), (Some("queued"), Some(0)), "{run}");
    let reason = run["attempt_list"][0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("told to end; its state after step "), "{reason}");

    trainer.restart()?;
    let run = server.wait_for_run(&id, &["succeeded"], 240).await?;
    let resumed = run["attempt_list"][1]["resumed_step"].as_i64().unwrap();
    assert!(
        (3..40).contains(&resumed) && reason.contains(&format!("step {resumed} ")),
        "{resumed}: {reason}"
    );
    let loss = server.get(&format!("/runs/{id}/metrics?names=loss")).await?;
    assert_eq!(loss[0]["steps"], json!((1..=40).collect::<Vec<u64>>()), "no step is missing or there twice");
    Ok(())
}

#[tokio::test]
async fn a_worker_without_work_for_long_enough_says_goodbye_and_ends() -> Result<()> {
    let server = Server::start().await?;
    let output = Command::new(binary("causeway-trainer"))
        .args(["work", "--idle-seconds", "1", "--server", &server.url(), "--token-file"])
        .arg(server.state().join("worker.token"))
        .arg("--state")
        .arg(server.folder().join("idle"))
        .arg("--data")
        .arg(demo_data())
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(server.get("/workers").await?[0]["state"], "draining");

    // A server that cannot be reached gives no work either.
    let output = Command::new(binary("causeway-trainer"))
        .args([
            "work",
            "--idle-seconds",
            "1",
            "--server",
            "http://127.0.0.1:9",
            "--token-file",
            "/dev/null",
            "--state",
        ])
        .arg(server.folder().join("alone"))
        .arg("--data")
        .arg(server.folder())
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
