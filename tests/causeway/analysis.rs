//! Spectra and similarity: asked for in a spec, told once, kept with the run, shown on its page.

use anyhow::{Context, Result};
use causeway_tests::{FakeWorker, Server, Trainer, small_finetune, spec};
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test]
async fn a_run_is_told_its_spectra_and_its_similarity_to_where_it_began() -> Result<()> {
    let server = Server::start().await?;
    let _trainer = Trainer::start(&server, &[])?;
    let mut asked = small_finetune();
    asked["training"]["steps"] = json!(4);
    asked["analysis"] = json!({
        "spectrum": {"alphas": [0, 0.5, 1], "qkv": "split"},
        "similarity": {"dataset": "digits-200", "images": 40, "queries": 3, "neighbours": 4, "alphas": [1]}
    });
    let id = server.submit(&asked).await?;
    let run = server.wait_for_run(&id, &["succeeded"], 240).await?;

    let spectrum = server.get(&format!("/runs/{id}/spectrum")).await?;
    assert_eq!(spectrum["checkpoint"], run["checkpoint"]);
    let layers = spectrum["layers"].as_array().context("layers")?;
    let of = |added: bool| layers.iter().filter(|layer| layer["added"] == json!(added)).collect::<Vec<_>>();
    assert_eq!(of(false).len(), 73, "12 · 6 and the patches");
    assert!(of(false).iter().all(|layer| layer["moved"] == false && layer["values"][1].is_null()));
    assert_eq!(of(true).len(), 24, "an adapter's two matrices in each block");
    assert!(of(true).iter().all(|layer| layer["values"].as_array().is_some_and(|values| values.len() == 3)));
    let first = layers[0]["values"][0]["tail"]["ww_alpha"].as_f64().context("ww_alpha")?;
    assert!(first > 1.0, "{first}");

    let similarity = server.get(&format!("/runs/{id}/similarity")).await?;
    assert_eq!(similarity["cka"].as_array().map(Vec::len), Some(2));
    assert_eq!(similarity["cka"][1]["class"].as_array().map(Vec::len), Some(12));
    assert!((similarity["cka"][0]["feature"].as_f64().context("feature")? - 1.0).abs() < 1e-6);
    let tiles = similarity["tiles"]["blob"]["sha256"].as_str().context("tiles")?;

    let page = |path: String| {
        let request = server.client.get(format!("{}{path}", server.url()));
        let token = server.token("user");
        async move { anyhow::Ok(request.bearer_auth(token?).send().await?.error_for_status()?) }
    };
    let image = page(format!("/tiles/{tiles}")).await?;
    assert_eq!(image.headers()["content-type"], "image/jpeg");
    assert_eq!(image.bytes().await?[..2], [0xff, 0xd8], "a JPEG begins so");
    let html = page(format!("/runs/{id}")).await?.text().await?;
    for part in ["id=\"spectrum\"", "id=\"similarity\"", "weightwatcher 0.7.7", "of 4 of its class", tiles] {
        assert!(html.contains(part), "{part} is on the page");
    }
    let csv = page(format!("/runs/{id}/spectrum.csv")).await?.text().await?;
    assert_eq!(csv.lines().count(), 1 + 73 + 24 * 3);
    let comparison = server
        .get(&format!("/compare?checkpoints={}", run["checkpoint"].as_str().context("checkpoint")?))
        .await?;
    assert_eq!(comparison["spectra"][0]["layers"].as_array().map(Vec::len), Some(97));

    // A checkpoint is no image, whoever asks.
    let address = format!("{}/tiles/{}", server.url(), run["checkpoint"].as_str().context("checkpoint")?);
    let refused = server.client.get(address).bearer_auth(server.token("user")?).send().await?;
    assert_eq!(refused.status().as_u16(), 404);
    Ok(())
}

/// Spectra of one layer that did not move.
fn spectrum() -> Value {
    let values = json!({"alpha": 0, "num_evals": 8, "norm": 8.0, "spectral_norm": 1.0, "stable_rank": 8.0,
                        "log_norm": 0.903, "tail": null});
    json!({"event": "spectrum", "follows": "weightwatcher 0.7.7", "backbone": "b", "checkpoint": "c", "qkv": "fused",
           "alphas": [0, 1], "layers": [{"name": "w", "block": null, "added": false, "moved": false, "shape": [8, 8],
                                         "values": [values]}]})
}

#[tokio::test]
async fn what_was_told_is_not_asked_again_and_what_contradicts_itself_is_refused() -> Result<()> {
    let server = Server::start().await?;
    let mut asked = spec();
    asked["analysis"] = json!({"spectrum": {}});
    let id = server.submit(&asked).await?;
    let error = server.user(Method::GET, &format!("/runs/{id}/spectrum"))?.send().await?;
    assert_eq!(error.status().as_u16(), 404);
    let worker = FakeWorker::register(&server, "w").await?;
    let held = worker.lease(5000).await?.context("a lease")?;
    assert_eq!(held.grant["analysed"], json!([]));

    let mut moved = spectrum();
    moved["layers"][0]["moved"] = json!(true);
    let (status, answer) = worker.ship(&held, 1, &[moved]).await?;
    assert_eq!(status.as_u16(), 400, "two α and one value: {answer}");
    let (status, answer) = worker.ship(&held, 1, &[spectrum()]).await?;
    assert!(status.is_success(), "{answer}");
    worker.finish(&held, "crashed", "a test").await?;
    let again = worker.lease(10_000).await?.context("the next attempt")?;
    assert_eq!(again.grant["analysed"], json!(["spectrum"]));
    assert_eq!(server.get(&format!("/runs/{id}/spectrum")).await?["layers"][0]["name"], "w");
    Ok(())
}
