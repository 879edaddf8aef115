//! Searches on a server that runs: over HTTP, through a kill, and on pages.

use super::{by_loss, lab};
use anyhow::{Context, Result};
use causeway_tests::{FakeWorker, Server};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test]
async fn a_search_over_http_goes_on_after_its_server_was_killed() -> Result<()> {
    let mut server = Server::start().await?;
    let mut document = by_loss(2);
    document["parallel"] = json!(1);
    let mut bad = document.clone();
    bad["space"]["training.learning_rate"] = json!({"choice": [-1.0]});
    bad["strategy"] = json!({"kind": "grid"});
    let refused = server.user(Method::POST, "/searches")?.json(&bad).send().await?;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let problem: Value = refused.json().await?;
    assert_eq!(problem["errors"][0]["field"], "spec.training.learning_rate", "{problem}");
    assert_eq!(server.get("/searches").await?["items"], json!([]), "nothing is stored");

    let post = || async {
        let request = server.user(Method::POST, "/searches")?.header("Idempotency-Key", "k");
        let response = request.json(&document).send().await?;
        anyhow::Ok((response.status(), response.json::<Value>().await?))
    };
    let (first, second) = (post().await?, post().await?);
    assert_eq!((first.0, second.0), (StatusCode::CREATED, StatusCode::OK));
    assert_eq!(first.1["id"], second.1["id"]);
    let id = first.1["id"].as_str().context("id")?.to_owned();

    let (worker, held) = {
        let worker = FakeWorker::register(&server, "w").await?;
        let held = worker.lease(10_000).await?.context("the first trial")?;
        assert_eq!(held.grant["spec"]["name"], "rates · trial 1 · seed 0");
        worker.ship(&held, 1, &[lab::started(), lab::loss(5, 2.0)]).await?;
        (worker.id, held)
    };
    server.kill()?;
    server.restart().await?;
    {
        let worker = FakeWorker::again(&server, worker);
        let events = lab::whole_curve(&held)?;
        let (status, answer) = worker.ship(&held, 3, &events).await?;
        assert!(status.is_success(), "{answer}");
        assert_eq!(worker.finish(&held, "succeeded", "").await?, StatusCode::NO_CONTENT);
        let second = worker.lease(10_000).await?.context("the second trial")?;
        worker.ship(&second, 1, &[lab::started(), lab::loss(5, 3.0)]).await?;
        let mut order = Value::Null;
        for _ in 0..10 {
            order = worker.post(&second, "heartbeat", json!({"wait_ms": 2000})).await?.1["order"].clone();
            if order == "stop" {
                break;
            }
        }
        assert_eq!(order, "stop", "worse than the first at the rung");
        worker.finish(&second, "cancelled", "").await?;
        let run = server.get(&format!("/runs/{}", second.grant["run_id"].as_str().unwrap())).await?;
        let reason = run["reason"].as_str().unwrap_or_default();
        assert!(
            reason.ends_with(
                "at rung 1 of 2 (5 steps): loss (last value) 3.000 is place 2 of 2, and the best one goes on"
            ),
            "{reason}"
        );
    }
    let mut found = Value::Null;
    for _ in 0..50 {
        found = server.get(&format!("/searches/{id}")).await?;
        if found["state"] != "running" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!((found["state"].as_str(), found["best"].as_i64()), (Some("succeeded"), Some(1)), "{found}");
    let decisions = server.get(&format!("/searches/{id}/decisions?limit=3")).await?;
    let actions: Vec<&str> =
        decisions["items"].as_array().unwrap().iter().filter_map(|made| made["action"].as_str()).collect();
    assert_eq!(actions, ["submit", "go_on", "finish"]);
    assert_eq!(decisions["items"][1]["made_from"]["seeds"], json!([{"seed": 0, "value": 2.0}]));
    assert_eq!(decisions["next"], "3");
    Ok(())
}

#[tokio::test]
async fn the_pages_of_a_search_are_linked_and_steer_it() -> Result<()> {
    let lab_server = Server::start().await?;
    let mut document = by_loss(3);
    document["spec"]["captions"]["asset"] = json!("nobody-has-these");
    let response = lab_server.user(Method::POST, "/searches")?.json(&document).send().await?;
    let made: Value = response.json().await?;
    let id = made["id"].as_str().context("id")?;
    let html = |path: String| {
        let server = &lab_server;
        async move {
            let request =
                server.client.get(format!("{}{path}", server.url())).bearer_auth(server.token("user")?);
            let response = request.header("accept", "text/html").send().await?.error_for_status()?;
            anyhow::Ok(response.text().await?)
        }
    };
    let link = format!("href=\"/searches/{id}\"");
    for page in ["/searches".to_owned(), format!("/experiments/{}", made["experiment_id"].as_str().unwrap())]
    {
        assert!(html(page.clone()).await?.contains(&link), "{page}");
    }
    let run = causeway_tests::wait_for("the first run", 10, || async {
        Ok(lab_server.get("/runs").await?["items"][0]["id"].as_str().map(str::to_owned))
    })
    .await?;
    assert!(html(format!("/runs/{run}")).await?.contains(&link), "a run leads to its search");
    let press = |path: String, form: &'static str| {
        let server = &lab_server;
        async move {
            let request = server.client.post(format!("{}/searches/{path}", server.url()));
            let request = request.header("content-type", "application/x-www-form-urlencoded").body(form);
            anyhow::Ok(request.bearer_auth(server.token("user")?).send().await?.text().await?)
        }
    };
    assert!(press(format!("{id}/pause"), "").await?.contains("Resume search"));
    assert!(press(format!("{id}/resume"), "").await?.contains("Pause search"));
    assert!(press(format!("{id}/extend"), "trials=5&max_steps=").await?.contains("of 5 trials"));
    assert!(press(format!("{id}/extend"), "trials=many").await?.contains("must be a whole number"));
    let cancelled = press(format!("{id}/cancel"), "").await?;
    assert!(
        !cancelled.contains("Cancel search") && cancelled.contains("5 of 5 trials decided"),
        "{cancelled}"
    );
    Ok(())
}
