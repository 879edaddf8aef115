//! A worker leaves: told to, it gives its run back with the state it has reached; idle for long enough, it goes by itself.

use anyhow::Result;
use causeway_tests::{Server, Trainer, binary, demo_data, small_finetune, wait_for};
use serde_json::json;
use std::process::Command;

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
