//! The queue: leases, fences, expiry, retries and cancels, with workers that only speak the protocol.

use anyhow::{Context, Result};
use causeway_protocol::{Evaluation, Hits, selection_half};
use causeway_tests::{FakeWorker, Server, spec};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn started(resumed_step: u64) -> Value {
    let environment = json!({"version": "0", "commit": "c", "libtorch": "l", "host": "h", "device": "cpu", "cpu": "c",
                             "threads": 1});
    json!({"event": "started", "environment": environment, "phase": "train", "resumed_step": resumed_step})
}

fn loss(step: u64, value: f64) -> Value {
    json!({"event": "metrics", "step": step, "values": {"loss": value}})
}

#[tokio::test]
async fn a_run_is_leased_once_and_again_after_expiry() -> Result<()> {
    let server = Server::with_lease(2.0).await?;
    let (a, b) = (FakeWorker::register(&server, "a").await?, FakeWorker::register(&server, "b").await?);
    let id = server.submit(&spec()).await?;
    let (first, second) = tokio::join!(a.lease(1000), b.lease(1000));
    let grants: Vec<_> = [first?, second?].into_iter().flatten().collect();
    assert_eq!(grants.len(), 1, "one run, one lease");
    let held = &grants[0];
    assert_eq!((&held.grant["attempt"], &held.grant["epoch"]), (&json!(1), &json!(1)));
    // Nobody renews it: it comes back to the queue, and to whoever asks.
    let c = FakeWorker::register(&server, "c").await?;
    let mut again = None;
    let start = Instant::now();
    while again.is_none() && start.elapsed() < Duration::from_secs(15) {
        again = c.lease(1000).await?;
    }
    let again = again.expect("a lease after expiry");
    assert_eq!((&again.grant["attempt"], &again.grant["epoch"]), (&json!(2), &json!(2)));
    let run = server.get(&format!("/runs/{id}")).await?;
    assert_eq!(run["attempt_list"][0]["state"], "lost");
    assert_eq!(run["attempt_list"][1]["state"], "running");
    Ok(())
}

#[tokio::test]
async fn a_stale_epoch_changes_nothing() -> Result<()> {
    let server = Server::with_lease(1.0).await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let id = server.submit(&spec()).await?;
    let old = worker.lease(5000).await?.unwrap();
    assert_eq!(worker.ship(&old, 1, &[started(0), loss(1, 3.0)]).await?.0, StatusCode::OK);
    // The lease runs out; the next attempt gets a new epoch.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut new = None;
    for _ in 0..10 {
        new = new.or(worker.lease(1000).await?);
    }
    let new = new.expect("the next attempt");
    let before = server.get(&format!("/runs/{id}")).await?;
    let metrics = server.get(&format!("/runs/{id}/metrics")).await?;
    assert_eq!(worker.ship(&old, 3, &[loss(2, 2.0)]).await?.0, StatusCode::CONFLICT);
    assert_eq!(worker.finish(&old, "failed", "too late").await?, StatusCode::CONFLICT);
    assert_eq!(worker.post(&old, "renew", json!({})).await?.0, StatusCode::CONFLICT);
    assert_eq!(worker.post(&old, "heartbeat", json!({"wait_ms": 0})).await?.0, StatusCode::CONFLICT);
    let path = format!("/leases/{}/blobs/{}?epoch=1", old.grant["id"].as_str().unwrap(), "0".repeat(64));
    assert_eq!(server.worker(Method::PUT, &path)?.body("x").send().await?.status(), StatusCode::CONFLICT);
    // The new lease's id with the old epoch is no better.
    let mut forged = new.clone();
    forged.grant["epoch"] = json!(1);
    assert_eq!(worker.finish(&forged, "failed", "forged").await?, StatusCode::CONFLICT);
    assert_eq!(server.get(&format!("/runs/{id}")).await?["state"], before["state"]);
    assert_eq!(server.get(&format!("/runs/{id}/metrics")).await?, metrics);
    Ok(())
}

#[tokio::test]
async fn lines_are_taken_once_in_order_and_without_gaps() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let id = server.submit(&spec()).await?;
    let held = worker.lease(5000).await?.unwrap();
    let lines = [started(0), loss(1, 3.0), loss(2, 2.5)];
    assert_eq!(worker.ship(&held, 1, &lines).await?, (StatusCode::OK, json!({"shipped_seq": 3})));
    assert_eq!(worker.ship(&held, 1, &lines).await?.1["shipped_seq"], 3, "sent again, taken once");
    assert_eq!(worker.ship(&held, 5, &[loss(4, 1.0)]).await?.0, StatusCode::BAD_REQUEST, "a gap");
    assert_eq!(worker.ship(&held, 3, &[loss(2, 2.5), loss(3, 2.25)]).await?.1["shipped_seq"], 4);
    let series = server.get(&format!("/runs/{id}/metrics?names=loss")).await?;
    assert_eq!(series, json!([{"name": "loss", "steps": [1, 2, 3], "values": [3.0, 2.5, 2.25]}]));
    Ok(())
}

#[tokio::test]
async fn a_resumed_attempt_hides_what_it_does_again() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let id = server.submit(&spec()).await?;
    let held = worker.lease(5000).await?.unwrap();
    worker.ship(&held, 1, &[started(0), loss(1, 3.0), loss(2, 2.0), loss(3, 9.0)]).await?;
    assert_eq!(worker.finish(&held, "crashed", "killed").await?, StatusCode::NO_CONTENT);
    let held = worker.lease(5000).await?.unwrap();
    worker.ship(&held, 1, &[started(2), loss(3, 1.0)]).await?;
    let series = server.get(&format!("/runs/{id}/metrics")).await?;
    assert_eq!(series, json!([{"name": "loss", "steps": [1, 2, 3], "values": [3.0, 2.0, 1.0]}]));
    let run = server.get(&format!("/runs/{id}")).await?;
    assert_eq!(run["attempt_list"][0]["visible_through"], 2);
    Ok(())
}

#[tokio::test]
async fn the_queue_goes_by_priority_then_by_order() -> Result<()> {
    let server = Server::start().await?;
    let mut ids = Vec::new();
    for (seed, priority) in [(0, 0), (1, 0), (2, 5)] {
        let mut spec = spec();
        (spec["seed"], spec["priority"]) = (json!(seed), json!(priority));
        ids.push(server.submit(&spec).await?);
    }
    let order: Vec<String> = [2, 0, 1].iter().map(|index: &usize| ids[*index].clone()).collect();
    let queue = server.get("/queue").await?;
    let shown: Vec<&str> =
        queue.as_array().unwrap().iter().map(|entry| entry["run_id"].as_str().unwrap()).collect();
    assert_eq!(shown, order);
    let worker = FakeWorker::register(&server, "w").await?;
    for expected in order {
        let held = worker.lease(5000).await?.unwrap();
        assert_eq!(held.grant["run_id"], expected);
        worker.finish(&held, "failed", "on purpose").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_cancel_reaches_a_held_heartbeat_within_a_second() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let id = server.submit(&spec()).await?;
    let held = worker.lease(5000).await?.unwrap();
    let waiting = worker.post(&held, "heartbeat", json!({"wait_ms": 20_000}));
    let cancelling = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let response = server.user(Method::POST, &format!("/runs/{id}/cancel"))?.send().await?;
        anyhow::Ok((response.status(), Instant::now()))
    };
    let (answer, cancelled) = tokio::join!(waiting, cancelling);
    let (status, asked) = cancelled?;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(answer?.1["order"], "stop");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    worker.finish(&held, "cancelled", "").await?;
    assert_eq!(server.get(&format!("/runs/{id}")).await?["state"], "cancelled");
    let again = server.user(Method::POST, &format!("/runs/{id}/cancel"))?.send().await?;
    assert_eq!(again.status(), StatusCode::CONFLICT, "a terminal state never changes");
    Ok(())
}

#[tokio::test]
async fn crashes_are_tried_again_and_failures_are_not() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let mut twice = spec();
    twice["max_attempts"] = json!(2);
    let id = server.submit(&twice).await?;
    let mut ends = Vec::new();
    for _ in 0..2 {
        let held = worker.lease(5000).await?.unwrap();
        let end = json!({"outcome": "crashed", "reason": "killed by signal 9", "signal": 9});
        worker.post(&held, "finish", end).await?;
        ends.push(Instant::now());
    }
    assert!(
        ends[1] - ends[0] >= Duration::from_millis(900),
        "a crash loop must not burn its attempts at once"
    );
    let run = server.get(&format!("/runs/{id}")).await?;
    assert_eq!(run["state"], "failed");
    assert_eq!(run["reason"], "killed by signal 9; all 2 attempts are used up");
    assert_eq!(run["attempt_list"][1]["signal"], 9);
    let id = server.submit(&spec()).await?;
    let held = worker.lease(5000).await?.unwrap();
    worker.finish(&held, "failed", "loss became NaN at step 3").await?;
    let run = server.get(&format!("/runs/{id}")).await?;
    assert_eq!((run["state"].as_str(), run["attempts"].as_i64()), (Some("failed"), Some(1)));
    assert_eq!(run["reason"], "loss became NaN at step 3");
    Ok(())
}

#[tokio::test]
async fn a_leaving_worker_gets_nothing_and_what_it_did_not_pick_up_goes_on() -> Result<()> {
    let server = Server::start().await?;
    let leaving = FakeWorker::register(&server, "leaving").await?;
    let id = server.submit(&spec()).await?;
    server.wait_for_run(&id, &["running"], 10).await?; // assigned, not picked up
    leaving.drain().await?;
    let staying = FakeWorker::register(&server, "staying").await?;
    let held = staying.lease(5000).await?.context("the run of the worker that left")?;
    assert_eq!(held.grant["run_id"], id.to_string());
    let next = server.submit(&spec()).await?;
    assert!(leaving.lease(1500).await?.is_none());
    assert_eq!(server.get(&format!("/runs/{next}")).await?["state"], "queued");
    let workers = server.get("/workers").await?;
    assert_eq!(workers[0]["state"], "draining", "{workers}");
    Ok(())
}

#[tokio::test]
async fn success_without_all_points_is_no_success() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let id = server.submit(&spec()).await?;
    let held = worker.lease(5000).await?.unwrap();
    worker.finish(&held, "succeeded", "").await?;
    let run = server.get(&format!("/runs/{id}")).await?;
    assert_eq!(run["attempt_list"][0]["reason"], "the attempt ended with 0 of 3 points");
    assert_ne!(run["state"], "succeeded");
    Ok(())
}

#[tokio::test]
async fn the_points_of_a_refinement_are_the_runs_and_its_next_attempt_is_told_what_they_say() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let mut refined = spec();
    refined["evaluation"]["refine"] = json!(1);
    let id = server.submit(&refined).await?;
    let held = worker.lease(5000).await?.unwrap();
    let evaluation: Evaluation = serde_json::from_value(held.grant["spec"]["evaluation"].clone())?;
    let protocol = &evaluation.protocols()[0];
    let backbone = json!({"event": "backbone", "digest": "b0", "parameters": 1, "trainable": 1});
    let dataset = json!({"event": "dataset", "asset": "shapes", "digest": "d0", "title": "Shapes", "licence": "CC0-1.0",
                         "source": "a test", "queries": 10, "bank": 10, "leave_one_out": true, "classes": ["x"],
                         "queries_per_class": [10]});
    // Eight of ten are right, whichever half is asked.
    let hits = Hits::from_flags(&[true, true, true, true, true, true, true, true, false, false]);
    let stamp = json!({"device": "cpu", "version": "0", "libtorch": "l", "threads": 1, "batch_size": 8});
    let point = |alpha: f64| {
        json!({"event": "point", "backbone": "b0", "checkpoint": (alpha > 0.0).then_some("c0"), "dataset": "d0",
               "protocol": protocol, "alpha": alpha, "n": 10, "correct": 8, "correct_top5": 10,
               "correct_per_class": [8], "hits": hits, "stamp": stamp})
    };
    let events = [started(0), backbone, dataset, point(0.0), point(0.5), point(1.0), point(0.75)];
    let (status, answer) = worker.ship(&held, 1, &events).await?;
    assert!(status.is_success(), "{answer}");

    let curves = server.get(&format!("/runs/{id}/curves")).await?;
    let points = curves["curves"][0]["points"].as_array().context("points")?;
    let alphas: Vec<f64> = points.iter().filter_map(|point| point["alpha"].as_f64()).collect();
    assert_eq!(alphas, [0.0, 0.5, 0.75, 1.0]);

    worker.finish(&held, "crashed", "killed").await?;
    let again = worker.lease(10_000).await?.context("the second attempt")?;
    let selected = hits.count_among(&selection_half("d0", 10));
    let known = again.grant["known_points"].as_array().context("known points")?;
    assert_eq!(known.len(), 4, "{known:?}");
    assert!(known.iter().all(|point| point["selected"] == json!(selected)), "{known:?}");
    Ok(())
}

#[tokio::test]
async fn what_a_rollback_takes_back_is_kept_but_hidden() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let id = server.submit(&spec()).await?;
    let held = worker.lease(5000).await?.unwrap();
    let back = |rollbacks: u32| json!({"event": "rolled_back", "step": 2, "rollbacks": rollbacks, "reason": "the loss became NaN at step 5"});
    let first = [started(0), loss(1, 1.0), loss(2, 2.0), loss(3, 3.0), loss(4, 4.0), back(1), loss(3, 30.0)];
    let (status, answer) = worker.ship(&held, 1, &first).await?;
    assert!(status.is_success(), "{answer}");
    let (status, answer) = worker.ship(&held, 8, &[back(2), loss(3, 300.0), loss(4, 400.0)]).await?;
    assert!(status.is_success(), "{answer}");
    let metrics = server.get(&format!("/runs/{id}/metrics?names=loss")).await?;
    assert_eq!(metrics[0]["steps"], json!([1, 2, 3, 4]));
    assert_eq!(metrics[0]["values"], json!([1.0, 2.0, 300.0, 400.0]));
    let kept: i64 = sqlx::query_scalar("select count(*) from value where rollback > 0")
        .fetch_one(&server.database().await?)
        .await?;
    assert_eq!(kept, 3, "steps 3 and 4 of the first course, 3 of the second");
    Ok(())
}

#[tokio::test]
async fn a_lost_answer_is_given_again() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    server.submit(&spec()).await?;
    let lost = worker.lease(5000).await?.unwrap();
    let again = worker.lease(5000).await?.expect("the agent does not hold it, so it is told again");
    assert_eq!(again.grant["id"], lost.grant["id"]);
    assert!(worker.lease_beside(&[&again], 200).await?.is_none(), "held, and its device is taken");
    Ok(())
}

#[tokio::test]
async fn a_run_waits_for_a_worker_that_holds_its_assets() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let mut spec = spec();
    spec["captions"]["asset"] = json!("coco");
    server.submit(&spec).await?;
    assert!(worker.lease(1500).await?.is_none());
    assert_eq!(server.get("/queue").await?[0]["why"], "no ready worker holds coco");
    Ok(())
}

#[tokio::test]
async fn leases_get_a_fresh_period_after_the_server_was_away() -> Result<()> {
    let mut server = Server::with_lease(2.0).await?;
    let id = server.submit(&spec()).await?;
    let held = {
        let worker = FakeWorker::register(&server, "w").await?;
        let held = worker.lease(5000).await?.unwrap();
        worker.ship(&held, 1, &[started(0)]).await?;
        (worker.id, held)
    };
    server.kill()?;
    tokio::time::sleep(Duration::from_secs(4)).await; // twice the lease
    server.restart().await?;
    let run = server.get(&format!("/runs/{id}")).await?;
    assert_eq!(run["state"], "running", "nobody could renew while no server was there");
    let path = format!("/leases/{}/renew", held.1.grant["id"].as_str().unwrap());
    let renewed = server.worker(Method::POST, &path)?.json(&json!({"epoch": 1})).send().await?;
    assert_eq!(renewed.status(), StatusCode::OK);
    assert_eq!(renewed.json::<Value>().await?["shipped_seq"], 1);
    Ok(())
}

#[tokio::test]
async fn an_evaluation_in_parts_waits_for_them_and_gets_what_they_computed() -> Result<()> {
    let server = Server::start().await?;
    let a = FakeWorker::register(&server, "a").await?;
    let mut spread = spec();
    spread["evaluation"]["parts"] = json!(2);
    let id = server.submit(&spread).await?;
    let later = server.submit(&spec()).await?;
    let held = a.lease(5000).await?.context("training is nobody's part")?;
    assert_eq!(held.grant["run_id"], id.to_string());
    assert_eq!(
        server.get(&format!("/runs?part_of={id}")).await?["items"],
        json!([]),
        "nothing to evaluate yet"
    );
    let blob = a.upload(&held, b"weights").await?;
    let checkpoint = json!({"event": "checkpoint", "step": 10, "backbone": "0", "method": "adapter",
                            "blob": {"sha256": blob, "bytes": 7, "file": "checkpoint.safetensors"}});
    let (status, answer) = a.ship(&held, 1, &[started(0), checkpoint]).await?;
    assert!(status.is_success(), "{answer}");
    assert_eq!(a.finish(&held, "handed_over", "").await?, StatusCode::NO_CONTENT);

    // Before the run that was submitted since.
    let b = FakeWorker::register(&server, "b").await?;
    let (first, second) = tokio::join!(a.lease(5000), b.lease(5000));
    let (first, second) = (first?.context("a part")?, second?.context("the other part")?);
    for (held, index) in [(&first, 0), (&second, 1)] {
        assert_eq!(held.grant["part"], json!({"index": index, "of": 2}));
        assert_eq!(held.grant["spec"]["weights"]["theta1"], json!({"blob": blob}));
    }
    let run = server.get(&format!("/runs/{id}")).await?;
    assert_eq!((run["state"].as_str(), run["attempts"].as_i64()), (Some("queued"), Some(0)));
    assert_eq!(run["waiting"], "waits for 2 of its 2 parts");
    let listed = server.get("/runs").await?;
    let listed: Vec<&Value> = listed["items"].as_array().unwrap().iter().map(|run| &run["id"]).collect();
    assert_eq!(listed, [&json!(later), &json!(id)], "parts are in no list but their run's");

    let features = a.upload(&first, b"features").await?;
    let file = json!({"event": "features", "key": {"dataset": "d", "alpha": 0.5},
                      "blob": {"sha256": features, "bytes": 8, "file": "f"}});
    let (status, answer) = a.ship(&first, 1, std::slice::from_ref(&file)).await?;
    assert!(status.is_success(), "{answer}");
    assert_eq!(a.finish(&first, "succeeded", "").await?, StatusCode::NO_CONTENT, "a part brings no points");
    assert_eq!(a.lease(5000).await?.context("the next run")?.grant["run_id"], later.to_string());
    // A part that fails costs time and nothing else.
    assert_eq!(b.finish(&second, "failed", "no").await?, StatusCode::NO_CONTENT);
    let whole = b.lease(5000).await?.context("the whole")?;
    assert_eq!((&whole.grant["run_id"], &whole.grant["phase"]), (&json!(id), &json!("evaluate")));
    assert_eq!(whole.grant["features"][0]["key"], file["key"]);
    assert_eq!(whole.grant["features"][0]["blob"]["sha256"], json!(features));
    let path = format!(
        "/leases/{}/blobs/{features}?epoch={}",
        whole.grant["id"].as_str().unwrap(),
        whole.grant["epoch"]
    );
    assert_eq!(server.worker(Method::GET, &path)?.send().await?.bytes().await?.as_ref(), b"features");
    b.finish(&whole, "failed", "no").await?;
    let left: i64 =
        sqlx::query_scalar("select count(*) from feature_file").fetch_one(&server.database().await?).await?;
    assert_eq!(left, 0, "of no more use");
    Ok(())
}

#[tokio::test]
async fn parts_end_with_their_run_and_no_run_without_parts_is_handed_over() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let mut spread = spec();
    for training in ["method", "captions", "objective", "training"] {
        spread.as_object_mut().unwrap().remove(training);
    }
    (spread["kind"], spread["evaluation"]["parts"]) = (json!("evaluate"), json!(3));
    spread["weights"]["theta1"] = json!({"asset": "vit"});
    let id = server.submit(&spread).await?;
    let part = worker.lease(5000).await?.context("a part")?;
    assert_eq!(part.grant["part"]["of"], 3);
    server.user(Method::POST, &format!("/runs/{id}/cancel"))?.send().await?.error_for_status()?;
    let (_, beat) = worker.post(&part, "heartbeat", json!({"wait_ms": 5000})).await?;
    assert_eq!(beat["order"], "stop");
    worker.finish(&part, "cancelled", "").await?;
    let parts = server.get(&format!("/runs/{id}")).await?["parts"].clone();
    let states: Vec<&str> =
        parts.as_array().unwrap().iter().filter_map(|part| part["state"].as_str()).collect();
    assert_eq!(states, ["cancelled"; 3]);

    let alone = server.submit(&spec()).await?;
    let held = worker.lease(5000).await?.context("a run without parts")?;
    worker.finish(&held, "handed_over", "").await?;
    let run = server.get(&format!("/runs/{alone}")).await?;
    assert_eq!((run["state"].as_str(), run["attempts"].as_i64()), (Some("failed"), Some(1)), "{run}");
    Ok(())
}
