//! The whole road: POST a run, train, sweep α, read the curve; then score weights one already has.

use anyhow::{Context, Result};
use causeway_tests::{Server, Trainer, binary, small_finetune};
use serde_json::{Value, json};
use std::{fs, process::Command};

/// (α, right answers) of a run's curve on a dataset at one k.
fn points(curves: &Value, dataset: &str, k: u32) -> Vec<(f64, i64)> {
    let prefix = format!("knn{k}-");
    let wanted = |curve: &&Value| {
        curve["dataset"]["name"] == dataset && curve["protocol"].as_str().unwrap().starts_with(&prefix)
    };
    let curve = curves["curves"].as_array().unwrap().iter().find(wanted).expect("the curve is there");
    let points = curve["points"].as_array().unwrap().iter();
    points.map(|point| (point["alpha"].as_f64().unwrap(), point["correct"].as_i64().unwrap())).collect()
}

#[tokio::test]
async fn a_posted_run_trains_and_draws_its_curve_and_its_weights_can_be_scored_again() -> Result<()> {
    let server = Server::start().await?;
    let _trainer = Trainer::start(&server, &[])?;
    let id = server.submit(&small_finetune()).await?;
    let run = server.wait_for_run(&id, &["succeeded"], 240).await?;
    let loss = server.get(&format!("/runs/{id}/metrics?names=loss")).await?;
    let values: Vec<f64> =
        loss[0]["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    assert_eq!(values.len(), 12);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(mean(&values[8..]) < mean(&values[..4]), "the loss falls: {values:?}");
    let environment = &run["attempt_list"][0]["environment"];
    for field in ["version", "commit", "libtorch", "host", "device", "threads"] {
        assert!(!environment[field].is_null(), "{field} is recorded");
    }
    assert_eq!(
        run["trainable"], 83_040,
        "12 · (2 · 384 · 8 + 8 + 384 + 384): Adapter+ of rank 8 with a scale"
    );

    let curves = server.get(&format!("/runs/{id}/curves")).await?;
    let swept = points(&curves, "tux-held-out", 20);
    assert_eq!(swept.iter().map(|point| point.0).collect::<Vec<_>>(), [0.0, 0.5, 1.0]);

    // The same line from two files, without training, on a finer grid.
    let checkpoint = run["checkpoint"].as_str().context("checkpoint")?;
    let file = server.user(reqwest::Method::GET, &format!("/checkpoints/{checkpoint}/file"))?.send().await?;
    let theta1 = server.folder().join("theta1.safetensors");
    fs::write(&theta1, file.error_for_status()?.bytes().await?)?;
    let theta0 = causeway_tests::demo_data().join("vit-s14-imgfocus/model.safetensors");
    let spec = server.folder().join("evaluate.toml");
    fs::write(
        &spec,
        "experiment = 'again'\nkind = 'evaluate'\n[weights]\n[evaluation]\nimage_size = 56\nk = [20]\n\
         alphas = [0, 0.25, 0.5, 1]\n[[evaluation.datasets]]\nasset = 'tux-held-out'\nrole = 'target'\n",
    )?;
    let submit = || {
        Command::new(binary("causeway"))
            .args(["submit", "--wait", "--server", &server.url(), "--token-file"])
            .arg(server.state().join("user.token"))
            .args(["--set", &format!("weights.theta0.file={}", theta0.display())])
            .args(["--set", &format!("weights.theta1.file={}", theta1.display())])
            .arg(&spec)
            .output()
    };
    let output = submit()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let runs = server.get("/runs?method=evaluate").await?;
    let again = runs["items"][0]["id"].as_str().context("the evaluation")?;
    let scored = points(&server.get(&format!("/runs/{again}/curves")).await?, "tux-held-out", 20);
    assert_eq!(scored.len(), 4);
    for point in swept {
        assert!(scored.contains(&point), "{point:?} in {scored:?}");
    }

    // Everything is known now: a second submission computes nothing and shows the same.
    let output = submit()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let third =
        server.get("/runs?method=evaluate").await?["items"][0]["id"].as_str().context("id")?.to_owned();
    assert_ne!(third, again);
    assert_eq!(points(&server.get(&format!("/runs/{third}/curves")).await?, "tux-held-out", 20), scored);
    let computed: i64 = sqlx::query_scalar("select count(*) from point where run_id = $1")
        .bind(uuid::Uuid::parse_str(&third)?)
        .fetch_one(&server.database().await?)
        .await?;
    assert_eq!(computed, 0);

    // α = 0 of the first run and of the evaluation is one point, and belongs to the backbone.
    let bare: i64 = sqlx::query_scalar(
        "select count(*) from point p join curve c on c.id = p.curve_id where c.checkpoint = '' and p.alpha <> 0",
    )
    .fetch_one(&server.database().await?)
    .await?;
    assert_eq!(bare, 0);
    let comparison = server.get(&format!("/compare?checkpoints={}", &checkpoint[..12])).await?;
    assert_eq!(comparison["checkpoints"][0]["digest"], json!(checkpoint));
    Ok(())
}

#[tokio::test]
async fn an_autoencoder_is_pretrained_and_then_fine_tuned_with_its_own_decoder() -> Result<()> {
    let server = Server::start().await?;
    let _trainer = Trainer::start(&server, &[])?;
    let datasets = json!([{"asset": "digits-200", "role": "ood"}]);
    let decoder = json!({"dim": 32, "depth": 1, "heads": 2});
    let pretrain = json!({
        "experiment": "from nothing", "kind": "pretrain",
        "weights": {"theta0": {"fresh": {"dim": 64, "depth": 2, "heads": 2, "patch": 14, "image_size": 56}}},
        "captions": {"asset": "tux-captions", "limit": 40, "subset_seed": 3},
        "objective": {"reconstruction": {"decoder": decoder}},
        "training": {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "image_size": 56, "flip": true,
                     "crop_scale": [0.2, 1.0]},
        "evaluation": {"datasets": datasets, "k": [1], "image_size": 56}
    });
    let id = server.submit(&pretrain).await?;
    let run = server.wait_for_run(&id, &["succeeded"], 120).await?;
    assert_eq!((run["method"].as_str(), run["training_images"].as_i64()), (Some("mae"), Some(40)));
    let curves = server.get(&format!("/runs/{id}/curves")).await?;
    assert_eq!(points(&curves, "digits-200", 1).iter().map(|point| point.0).collect::<Vec<_>>(), [0.0, 1.0]);

    let mut finetune = pretrain.clone();
    (finetune["kind"], finetune["method"]) = (json!("finetune"), json!({"kind": "adapter", "rank": 4}));
    finetune["weights"]["theta0"] = json!({"blob": run["checkpoint"]});
    finetune["captions"]["text_encoder"] = json!("minilm-l6");
    finetune["objective"]["contrastive"] = json!({"view": "visible"});
    finetune["evaluation"]["alphas"] = json!([0, 1]);
    let next = server.submit(&finetune).await?;
    server.wait_for_run(&next, &["succeeded"], 120).await?;
    let metrics = server.get(&format!("/runs/{next}/metrics?names=loss/reconstruction,distance")).await?;
    assert_eq!(metrics[1]["steps"].as_array().map(Vec::len), Some(6), "{metrics}");
    assert!(
        metrics[0]["values"][0].as_f64().unwrap() > 0.0,
        "its own decoder needs no head start: {metrics}"
    );
    Ok(())
}

#[tokio::test]
async fn a_soup_of_two_runs_is_a_checkpoint_of_its_own() -> Result<()> {
    let server = Server::start().await?;
    let _trainer = Trainer::start(&server, &[])?;
    let mut checkpoints = Vec::new();
    for seed in [0, 1] {
        let mut finetune = small_finetune();
        (finetune["seed"], finetune["training"]["steps"]) = (json!(seed), json!(4));
        finetune["evaluation"]["alphas"] = json!([0, 1]);
        let id = server.submit(&finetune).await?;
        let run = server.wait_for_run(&id, &["succeeded"], 240).await?;
        checkpoints.push(run["checkpoint"].as_str().context("checkpoint")?.to_owned());
    }
    let soup = json!({
        "experiment": "soup", "kind": "evaluate",
        "weights": {"theta0": {"asset": "vit-s14-imgfocus"},
                    "theta1": {"soup": {"checkpoints": checkpoints, "greedy_on": "fashion-mnist-200"}}},
        "evaluation": {"datasets": [{"asset": "digits-200", "role": "ood"}], "alphas": [0, 0.5, 1], "k": [1],
                       "image_size": 56}
    });
    let id = server.submit(&soup).await?;
    let run = server.wait_for_run(&id, &["succeeded"], 240).await?;
    let made = run["checkpoint"].as_str().context("the soup's checkpoint")?;
    assert!(!checkpoints.iter().any(|own| own == made), "it is none of those it was made of");
    let listed = server.get(&format!("/checkpoints/{made}")).await?;
    assert_eq!((listed["method"].as_str(), listed["run_id"].as_str()), (Some("adapter"), Some(id.as_str())));
    let alphas =
        |curves: &Value| points(curves, "digits-200", 1).iter().map(|point| point.0).collect::<Vec<_>>();
    assert_eq!(alphas(&server.get(&format!("/runs/{id}/curves")).await?), [0.0, 0.5, 1.0]);

    let file = server.user(reqwest::Method::GET, &format!("/checkpoints/{made}/file"))?.send().await?;
    let bytes = file.error_for_status()?.bytes().await?;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(1 << 16)]).into_owned();
    assert!(checkpoints.iter().all(|own| text.contains(own.as_str())), "it tells what it was made of");

    // What the server does not have is refused by its place.
    let mut unknown = soup.clone();
    unknown["weights"]["theta1"]["soup"]["checkpoints"][1] = json!("0".repeat(64));
    let error = server.submit(&unknown).await.err().context("it was taken")?;
    assert!(format!("{error:#}").contains("weights.theta1.soup.checkpoints[1]"), "{error:#}");
    Ok(())
}

/// (dataset, protocol, α, right answers, which) of every point.
fn all_points(curves: &Value) -> Vec<Value> {
    let curves = curves["curves"].as_array().unwrap().iter();
    let rows = curves.flat_map(|curve| {
        let points = curve["points"].as_array().unwrap().iter();
        points.map(|point| {
            json!([
                curve["dataset"]["digest"],
                curve["protocol"],
                point["alpha"],
                point["hits"],
                point["stamp"]
            ])
        })
    });
    rows.collect()
}

#[tokio::test]
async fn an_evaluation_on_two_workers_has_the_points_of_one() -> Result<()> {
    let server = Server::start().await?;
    let trainers = [Trainer::start_as("a", &server, &[])?, Trainer::start_as("b", &server, &[])?];
    let mut spread = small_finetune();
    (spread["training"]["steps"], spread["evaluation"]["parts"]) = (json!(4), json!(3));
    let id = server.submit(&spread).await?;
    let run = server.wait_for_run(&id, &["succeeded"], 240).await?;
    let parts: Vec<&str> =
        run["parts"].as_array().unwrap().iter().filter_map(|part| part["state"].as_str()).collect();
    assert_eq!(parts, ["succeeded"; 3], "{run}");
    let phases: Vec<&str> =
        run["attempt_list"].as_array().unwrap().iter().filter_map(|a| a["phase"].as_str()).collect();
    assert_eq!(phases, ["train", "evaluate"]);
    let mut workers = std::collections::BTreeSet::new();
    for part in run["parts"].as_array().unwrap() {
        let part = server.get(&format!("/runs/{}", part["id"].as_str().unwrap())).await?;
        workers.insert(part["attempt_list"][0]["worker"].as_str().unwrap().to_owned());
    }
    assert_eq!(workers.len(), 2, "both workers were free");
    let spread_points = all_points(&server.get(&format!("/runs/{id}/curves")).await?);
    assert_eq!(spread_points.len(), 2 * 3 * 2, "datasets, α, k");

    // Forgotten, and computed again in one piece.
    sqlx::query("delete from curve").execute(&server.database().await?).await?;
    for trainer in &trainers {
        fs::remove_dir_all(trainer.state().join("features"))?;
    }
    let mut alone = spread.clone();
    for training in ["method", "captions", "objective", "training"] {
        alone.as_object_mut().context("a spec")?.remove(training);
    }
    (alone["kind"], alone["evaluation"]["parts"]) = (json!("evaluate"), json!(1));
    alone["weights"]["theta1"] = json!({"blob": run["checkpoint"]});
    let again = server.submit(&alone).await?;
    server.wait_for_run(&again, &["succeeded"], 240).await?;
    assert_eq!(all_points(&server.get(&format!("/runs/{again}/curves")).await?), spread_points);
    Ok(())
}
