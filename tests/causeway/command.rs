//! A program of the lab's own under the scheduler: `configs/command.toml` from submission to its kept file, one that is
//! asked to give way, and one that reports over HTTP.

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
    let page = server.client.get(format!("{}/runs/{id}", server.url())).bearer_auth(server.token("user")?);
    let page = page.send().await?.error_for_status()?.text().await?;
    assert!(page.contains("Loss against step") && page.contains("run.js"), "drawn, and the log is followed");
    assert!(!page.contains("sweep over α"), "a command has none");
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

/// Reports over HTTP with nothing but Python; the same values twice, as after a lost answer.
const REPORTS: &str = r#"
import json, os, sys, urllib.error, urllib.request
def report(*lines):
    request = urllib.request.Request(
        os.environ["CAUSEWAY_REPORT_URL"], json.dumps({"lines": lines}).encode(),
        {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["CAUSEWAY_REPORT_TOKEN"]})
    try:
        return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error:
        return error.status
lines = [{"metrics": {"step": step, "values": {"loss": 1 / step}}} for step in (1, 2, 4)]
good = [report(*lines), report(*lines), report({"progress": {"done": 4, "total": 8}})]
bad = [report({"checkpoint": {"path": "a", "step": 1}}), report({"metrics": {"step": 5, "values": {"": 1.0}}})]
print(good, bad, file=sys.stderr)
with open("said", "w") as file:
    file.write(os.environ["CAUSEWAY_REPORT_URL"] + " " + os.environ["CAUSEWAY_REPORT_TOKEN"])
with open(os.environ["CAUSEWAY_JOURNAL"], "a") as journal:
    journal.write(json.dumps({"checkpoint": {"path": "said", "step": 4}}) + "\n")
sys.exit(good != [204, 204, 204] or bad != [422, 400])
"#;

#[tokio::test]
async fn a_command_reports_over_http_while_it_holds_its_lease() -> Result<()> {
    let server = Server::start().await?;
    let _trainer = Trainer::with_commands(&server)?;
    let spec = json!({"experiment": "e", "kind": "command", "command": {"argv": ["python3", "-c", REPORTS]},
                      "max_attempts": 1});
    let id = server.submit(&spec).await?;
    let run = server.wait_for_run(&id, &["succeeded", "failed"], 60).await?;
    assert_eq!(run["state"], "succeeded", "{run}");
    let loss = server.get(&format!("/runs/{id}/metrics")).await?;
    assert_eq!((&loss[0]["name"], &loss[0]["steps"]), (&json!("loss"), &json!([1, 2, 4])), "each value once");
    assert_eq!(loss[0]["values"], json!([1.0, 0.5, 0.25]));
    let conflicts = server.get(&format!("/runs/{id}/conflicts")).await?;
    assert!(!conflicts.to_string().contains("loss"), "equal values are no conflict: {conflicts}");

    // The lease is over, and with it the right to report.
    let sha256 = run["checkpoint"].as_str().context("what it said")?;
    let said = server.user(Method::GET, &format!("/blobs/{sha256}"))?.send().await?.text().await?;
    let (url, token) = said.split_once(' ').context("URL and token")?;
    let http = causeway_tests::http().build()?;
    let report = |token: &str| http.post(url).bearer_auth(token).json(&json!({"lines": []}));
    assert_eq!(report(token).send().await?.status(), 409);
    assert_eq!(report("cwr_nothing").send().await?.status(), 401);
    let worker = std::fs::read_to_string(server.state().join("worker.token"))?;
    assert_eq!(report(worker.trim()).send().await?.status(), 401, "a worker ships its journal instead");
    Ok(())
}
