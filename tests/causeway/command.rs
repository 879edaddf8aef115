//! A program of the lab's own under the scheduler: `configs/command.toml` from submission to its kept file, and one that
//! is asked to give way.

use anyhow::{Context, Result};
use causeway_tests::{Server, Trainer, repository, wait_for};
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test]
async fn a_command_reports_its_values_and_its_file_is_kept() -> Result<()> {
    let server = Server::start().await?;
    let text = std::fs::read_to_string(repository().join("configs/command.toml"))?;
    let spec: Value = toml::from_str(&text)?;
    let id = server.submit(&spec).await?;
    let plain = Trainer::start(&server, &[])?;
    wait_for("the reason", 30, || async {
        let run = server.get(&format!("/runs/{id}")).await?;
        let why = run["waiting"].as_str().unwrap_or_default().to_owned();
        Ok(why.contains("--allow-commands").then_some(()))
    })
    .await?;
    drop(plain);
    let _trainer = Trainer::with_commands(&server)?;
    let run = server.wait_for_run(&id, &["succeeded"], 60).await?;
    let loss = server.get(&format!("/runs/{id}/metrics?names=loss")).await?;
    assert_eq!(loss[0]["steps"], json!((1..=10).collect::<Vec<u64>>()));
    assert_eq!(loss[0]["values"][3], 0.25);
    let sha256 = run["checkpoint"].as_str().context("a checkpoint")?;
    let file = server.user(Method::GET, &format!("/blobs/{sha256}"))?.send().await?.error_for_status()?;
    assert_eq!(file.text().await?, "42\n");
    Ok(())
}

#[tokio::test]
async fn a_command_that_is_paused_goes_on_from_the_file_it_left() -> Result<()> {
    let server = Server::start().await?;
    let _trainer = Trainer::with_commands(&server)?;
    let script = r#"
        if [ -n "$CAUSEWAY_RESUME" ]; then test "$(cat "$CAUSEWAY_RESUME")" = half && exit 0; exit 9; fi
        echo half > state
        echo '{"resume": {"path": "state", "step": 1}}' >> "$CAUSEWAY_JOURNAL"
        sleep 600"#;
    let id = server
        .submit(&json!({"experiment": "e", "kind": "command", "command": {"argv": ["sh", "-c", script]}}))
        .await?;
    let database = server.database().await?;
    wait_for("its state", 60, || async {
        let states: i64 =
            sqlx::query_scalar("select count(*) from resume_state").fetch_one(&database).await?;
        Ok((states > 0).then_some(()))
    })
    .await?;
    server.user(Method::POST, &format!("/runs/{id}/pause"))?.send().await?.error_for_status()?;
    let run = server.wait_for_run(&id, &["paused"], 30).await?;
    assert_eq!(run["attempts"], 0, "giving way spends none");
    server.user(Method::POST, &format!("/runs/{id}/resume"))?.send().await?.error_for_status()?;
    server.wait_for_run(&id, &["succeeded"], 30).await?;
    Ok(())
}
