//! The dashboard in a real browser: every page, wide and narrow, light and dark, with and without JavaScript, and axe.
//! Leaves screenshots in `tests/screenshots/`.

use anyhow::{Context, Result, ensure};
use causeway_tests::{Server, Trainer, repository, small_finetune};
use serde_json::{Value, json};
use std::{env, fs, path::PathBuf, process::Command};

#[tokio::test]
async fn every_page_reads_well_in_a_browser() -> Result<()> {
    let server = Server::start().await?;
    let _trainer = Trainer::start(&server, &[])?;
    let mut ids = Vec::new();
    for method in ["adapter", "film"] {
        for seed in [0, 1] {
            let mut spec = small_finetune();
            (spec["method"], spec["seed"]) = (json!({ "kind": method }), json!(seed));
            spec["training"]["steps"] = json!(4);
            spec["analysis"] = json!({
                "spectrum": {"alphas": [0, 0.5, 1]},
                "similarity": {"dataset": "digits-200", "images": 40, "queries": 3, "neighbours": 4}
            });
            ids.push(server.submit(&spec).await?);
        }
    }
    let mut base = small_finetune();
    base.as_object_mut()
        .context("a spec")?
        .retain(|field, _| !["experiment", "name", "seed"].contains(&field.as_str()));
    let search = json!({
        "name": "A search", "experiment": "searched", "spec": base, "parallel": 2,
        "space": {"training.learning_rate": {"log_uniform": [1e-4, 1e-2]}},
        "strategy": {"kind": "asha", "trials": 3, "eta": 2, "rungs": [1, 3]},
        "objective": {"kind": "metric", "name": "loss", "direction": "minimize"}
    });
    let response = server.user(reqwest::Method::POST, "/searches")?.json(&search).send().await?;
    ensure!(response.status().is_success(), "{}", response.text().await?);
    for id in &ids {
        server.wait_for_run(id, &["succeeded"], 240).await?;
    }
    // One that waits, so that the queue has something to say.
    let mut waiting = small_finetune();
    waiting["captions"]["asset"] = json!("captions-nobody-has");
    server.submit(&waiting).await?;

    let announced: Value = serde_json::from_str(&fs::read_to_string(server.state().join("server.json"))?)?;
    let sign_in = announced["sign_in_url"].as_str().context("sign_in_url")?;
    let output = Command::new(on_path("node").context("node is not on the PATH")?)
        .arg("test/smoke.mjs")
        .arg(sign_in)
        .arg(repository().join("tests/screenshots"))
        .current_dir(repository().join("web"))
        .env("CHROMIUM", on_path("chromium").context("chromium is not on the PATH")?)
        .output()?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{text}");
    println!("{text}");
    Ok(())
}

fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}
