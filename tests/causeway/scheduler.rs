//! The scheduler over HTTP: who gets which devices, who gives way, who waits for whom, and what an end costs a run.

use anyhow::{Context, Result};
use causeway_tests::{FakeWorker, Held, Server, spec};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// A command that asks for so many devices on so many workers.
fn command(gpus: u32, nodes: u32) -> Value {
    json!({"experiment": "commands", "kind": "command", "name": format!("{nodes} × {gpus}"),
           "command": {"argv": ["true"]}, "resources": {"gpus": gpus, "nodes": nodes}})
}

async fn act(server: &Server, run: &str, action: &str) -> Result<(StatusCode, Value)> {
    let response = server.user(Method::POST, &format!("/runs/{run}/{action}"))?.send().await?;
    let status = response.status();
    Ok((status, response.json().await?))
}

async fn refused(server: &Server, spec: &Value) -> Result<String> {
    let response = server.user(Method::POST, "/runs")?.json(spec).send().await?;
    assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let problem: Value = response.json().await?;
    let error = &problem["errors"][0];
    Ok(format!("{}: {}", error["field"].as_str().context("field")?, error["rule"].as_str().context("rule")?))
}

async fn state(server: &Server, run: &str) -> Result<String> {
    Ok(server.get(&format!("/runs/{run}")).await?["state"].as_str().context("state")?.to_owned())
}

async fn order(worker: &FakeWorker<'_>, held: &Held) -> Result<Value> {
    Ok(worker.post(held, "heartbeat", json!({"wait_ms": 5000})).await?.1)
}

fn devices(held: &Held) -> String {
    let names = held.grant["devices"].as_array().unwrap();
    names.iter().map(|name| name.as_str().unwrap()).collect::<Vec<_>>().join(",")
}

#[tokio::test]
async fn a_run_gets_the_devices_it_asks_for_and_an_impossible_one_is_refused() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register_with(&server, "w", 4, 8_000_000_000, &["commands"]).await?;
    let rule = refused(&server, &command(6, 1)).await?;
    assert_eq!(rule, "resources: needs 6 devices on one worker, the largest has 4");
    let mut large = command(1, 1);
    large["resources"]["memory_gb"] = json!(40);
    assert_eq!(
        refused(&server, &large).await?,
        "resources: needs 1 device of 40 GB on one worker, the largest has 0"
    );
    let mut trained = spec();
    trained["resources"] = json!({"gpus": 2});
    assert_eq!(
        refused(&server, &trained).await?,
        "resources.gpus: must be 1: a finetune run computes on one device"
    );
    let (first, second) = (server.submit(&command(3, 1)).await?, server.submit(&command(2, 1)).await?);
    let held = worker.lease(5000).await?.context("a lease")?;
    assert_eq!(
        (held.grant["run_id"].as_str(), devices(&held)),
        (Some(&*first), "cpu:0,cpu:1,cpu:2".to_owned())
    );
    assert!(worker.lease_beside(&[&held], 300).await?.is_none(), "one device is left, two are asked for");
    assert_eq!(server.get(&format!("/runs/{second}")).await?["waiting"], "next, when a device frees");
    worker.finish(&held, "succeeded", "").await?;
    let held = worker.lease(5000).await?.context("the second")?;
    assert_eq!(held.grant["run_id"], second);
    Ok(())
}

#[tokio::test]
async fn a_gang_begins_on_all_its_workers_at_once_and_ends_with_any() -> Result<()> {
    let server = Server::start().await?;
    let a = FakeWorker::register_with(&server, "a", 2, 0, &["commands"]).await?;
    let run = server.submit(&command(2, 2)).await?;
    assert!(a.lease(500).await?.is_none(), "half of it is not begun");
    let b = FakeWorker::register_with(&server, "b", 2, 0, &["commands"]).await?;
    let (one, other) = tokio::join!(a.lease(5000), b.lease(5000));
    let (one, other) = (one?.context("rank 0")?, other?.context("rank 1")?);
    let (gang, second) = (&one.grant["gang"], &other.grant["gang"]);
    assert_eq!((&gang["rank"], &second["rank"], &gang["nodes"]), (&json!(0), &json!(1), &json!(2)));
    assert_eq!((&gang["address"], &gang["port"]), (&second["address"], &second["port"]));
    assert_eq!(one.grant["epoch"], other.grant["epoch"]);
    let members = server.get(&format!("/runs/{run}")).await?["attempt_list"][0]["members"].clone();
    assert_eq!((&members[0]["name"], &members[1]["name"]), (&json!("a"), &json!("b")), "by rank");
    // One is done: the run goes on. Then the other fails: the run is tried again, and nothing of it is held.
    assert_eq!(a.finish(&one, "succeeded", "").await?, StatusCode::NO_CONTENT);
    assert_eq!(state(&server, &run).await?, "running");
    assert_eq!(b.finish(&other, "crashed", "no memory").await?, StatusCode::NO_CONTENT);
    assert_eq!(server.get(&format!("/runs/{run}")).await?["attempts"], 1);
    let (one, other) = tokio::join!(a.lease(8000), b.lease(8000));
    let (one, other) = (one?.context("again")?, other?.context("again")?);
    // A failure of either ends it for both: the other's word is not heard any more.
    assert_eq!(b.finish(&other, "failed", "a bug").await?, StatusCode::NO_CONTENT);
    assert_eq!(a.post(&one, "heartbeat", json!({"wait_ms": 0})).await?.0, StatusCode::CONFLICT);
    assert_eq!(state(&server, &run).await?, "failed");
    Ok(())
}

#[tokio::test]
async fn a_run_of_higher_priority_makes_another_yield_and_that_spends_none_of_its_attempts() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let low = server.submit(&spec()).await?;
    let held = worker.lease(5000).await?.context("a lease")?;
    let mut urgent = spec();
    urgent["priority"] = json!(10);
    let high = server.submit(&urgent).await?;
    let told = order(&worker, &held).await?;
    assert_eq!(told["order"], "yield");
    assert!((1..=120_000).contains(&told["yield_within_ms"].as_i64().context("time")?));
    let waiting = server.get(&format!("/runs/{high}")).await?;
    assert_eq!(waiting["waiting"], "a run of lower priority was asked to yield to it");
    assert_eq!(server.get(&format!("/runs/{low}")).await?["yield_for"], "preempt");
    worker.finish(&held, "yielded", "").await?;
    let next = worker.lease(5000).await?.context("the urgent one")?;
    assert_eq!(next.grant["run_id"], high);
    let run = server.get(&format!("/runs/{low}")).await?;
    assert_eq!((&run["state"], &run["attempts"]), (&json!("queued"), &json!(0)));
    let attempt = &run["attempt_list"][0];
    assert_eq!((&attempt["state"], &attempt["cause"]), (&json!("yielded"), &json!("yielded")));
    worker.finish(&next, "succeeded", "").await?;
    Ok(())
}

#[tokio::test]
async fn whoever_does_not_yield_in_time_loses_the_lease() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let run = server.submit(&spec()).await?;
    let held = worker.lease(5000).await?.context("a lease")?;
    assert_eq!(act(&server, &run, "pause").await?.0, StatusCode::OK);
    let database = server.database().await?;
    sqlx::query("update run set yield_by = now()").execute(&database).await?;
    let paused = server.wait_for_run(&run, &["paused"], 10).await?;
    assert_eq!(paused["attempts"], 0);
    assert_eq!(paused["attempt_list"][0]["cause"], "not_yielded");
    assert_eq!(worker.finish(&held, "succeeded", "").await?, StatusCode::CONFLICT);
    Ok(())
}

#[tokio::test]
async fn a_paused_run_waits_until_it_is_resumed() -> Result<()> {
    let server = Server::start().await?;
    let run = server.submit(&spec()).await?;
    let (status, paused) = act(&server, &run, "pause").await?;
    assert_eq!((status, &paused["state"]), (StatusCode::OK, &json!("paused")));
    assert_eq!(act(&server, &run, "pause").await?.0, StatusCode::CONFLICT);
    let worker = FakeWorker::register(&server, "w").await?;
    assert!(worker.lease(500).await?.is_none());
    assert_eq!(act(&server, &run, "resume").await?.1["state"], "queued");
    let held = worker.lease(5000).await?.context("resumed")?;
    assert_eq!(act(&server, &run, "resume").await?.0, StatusCode::CONFLICT, "it runs");
    act(&server, &run, "pause").await?;
    assert_eq!(order(&worker, &held).await?["order"], "yield");
    // Resumed before it has given way: it does, and goes on at once.
    assert_eq!(act(&server, &run, "resume").await?.0, StatusCode::OK);
    worker.finish(&held, "yielded", "").await?;
    let held = worker.lease(5000).await?.context("again")?;
    act(&server, &run, "pause").await?;
    worker.finish(&held, "yielded", "").await?;
    assert_eq!(state(&server, &run).await?, "paused");
    assert_eq!(act(&server, &run, "cancel").await?.1["reason"], "cancelled while paused");
    Ok(())
}

#[tokio::test]
async fn what_is_no_fault_of_a_run_spends_none_of_its_attempts_but_does_not_go_on_for_ever() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let mut once = spec();
    once["max_attempts"] = json!(1);
    let run = server.submit(&once).await?;
    for round in 1..=10 {
        let held = worker.lease(5000).await?.context("a lease")?;
        worker.finish(&held, "interrupted", "the host ran out of memory").await?;
        let now = server.get(&format!("/runs/{run}")).await?;
        assert_eq!(now["attempt_list"][round - 1]["cause"], "interrupted");
        if round == 10 {
            assert_eq!(now["attempts"], 0);
            assert_eq!(now["state"], "lost");
            assert_eq!(
                now["reason"],
                "the host ran out of memory; 10 times in a row without getting further"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn getting_further_forgets_what_happened_before() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let run = server.submit(&spec()).await?;
    let held = worker.lease(5000).await?.context("a lease")?;
    worker.finish(&held, "interrupted", "x").await?;
    let held = worker.lease(5000).await?.context("a lease")?;
    let sha256 = worker.upload(&held, b"state").await?;
    let resume =
        json!({"event": "resume_state", "step": 5, "blob": {"sha256": sha256, "bytes": 5, "file": "r"}});
    assert_eq!(worker.ship(&held, 1, &[resume]).await?.0, StatusCode::OK);
    let database = server.database().await?;
    let setbacks: i32 = sqlx::query_scalar("select setbacks from run").fetch_one(&database).await?;
    assert_eq!(setbacks, 0);
    worker.finish(&held, "yielded", "").await?;
    let held = worker.lease(5000).await?.context("a lease")?;
    assert_eq!(held.grant["resume"]["step"], 5, "run {run} goes on from there");
    Ok(())
}

#[tokio::test]
async fn a_run_waits_for_those_it_needs_and_gets_what_they_made() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let first = server.submit(&spec()).await?;
    let evaluate = json!({"experiment": "chain", "kind": "evaluate",
        "weights": {"theta0": {"asset": "vit"}, "theta1": {"run": first}},
        "evaluation": {"datasets": [{"asset": "shapes", "role": "ood"}], "alphas": [0, 1], "k": [1]}});
    let second = server.submit(&evaluate).await?;
    let held = worker.lease(5000).await?.context("the first")?;
    assert_eq!(held.grant["run_id"], first);
    assert_eq!(server.get(&format!("/runs/{second}")).await?["waiting"], "waits for adapter seed 0");
    let sha256 = worker.upload(&held, b"checkpoint").await?;
    let database = server.database().await?;
    // What a whole attempt would have told, as far as it matters here.
    sqlx::query("insert into checkpoint (digest, backbone, method) values ($1, 'b', 'adapter')")
        .bind(&sha256)
        .execute(&database)
        .await?;
    sqlx::query(
        "update run set checkpoint = $1, state = 'succeeded', finished_at = now() where id = $2::uuid",
    )
    .bind(&sha256)
    .bind(&first)
    .execute(&database)
    .await?;
    sqlx::query("delete from lease").execute(&database).await?;
    let next = worker.lease(5000).await?.context("the second")?;
    assert_eq!(
        (&next.grant["run_id"], &next.grant["spec"]["weights"]["theta1"]["blob"]),
        (&json!(second), &json!(sha256))
    );
    let run = server.get(&format!("/runs/{second}")).await?;
    assert_eq!(run["after"][0]["id"], first);
    Ok(())
}

#[tokio::test]
async fn a_run_whose_need_fails_is_cancelled_with_the_reason() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let first = server.submit(&spec()).await?;
    let mut after = spec();
    after["after"] = json!([first]);
    let second = server.submit(&after).await?;
    let held = worker.lease(5000).await?.context("a lease")?;
    worker.finish(&held, "failed", "a NaN loss").await?;
    let run = server.wait_for_run(&second, &["cancelled"], 10).await?;
    assert_eq!(run["reason"], "it waited for adapter seed 0, which has failed");
    assert_eq!(
        refused(&server, &after).await?,
        format!("after: names run {first}, which has ended without success (failed)")
    );
    after["after"] = json!([uuid::Uuid::nil()]);
    assert!(refused(&server, &after).await?.contains("names no run that there is"));
    Ok(())
}

#[tokio::test]
async fn projects_have_quotas_and_a_spec_names_one_that_exists() -> Result<()> {
    let server = Server::start().await?;
    let mut theirs = spec();
    theirs["project"] = json!("theirs");
    assert!(refused(&server, &theirs).await?.contains("causeway projects set theirs"));
    let put = |body: Value| server.user(Method::PUT, "/projects/theirs").map(|request| request.json(&body));
    assert_eq!(put(json!({"weight": 0}))?.send().await?.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(put(json!({"devices_max": 0}))?.send().await?.status(), StatusCode::OK);
    let run = server.submit(&theirs).await?;
    let worker = FakeWorker::register(&server, "w").await?;
    assert!(worker.lease(500).await?.is_none());
    assert_eq!(
        server.get(&format!("/runs/{run}")).await?["waiting"],
        "its project `theirs` may hold 0 devices at once"
    );
    put(json!({"devices_max": 1, "weight": 2}))?.send().await?;
    assert_eq!(worker.lease(5000).await?.context("a lease")?.grant["run_id"], run);
    Ok(())
}

#[tokio::test]
async fn a_run_is_moved_to_the_front_and_done_again() -> Result<()> {
    let server = Server::start().await?;
    let (first, second) = (server.submit(&spec()).await?, server.submit(&spec()).await?);
    assert_eq!(act(&server, &second, "front").await?.0, StatusCode::OK);
    let queue = server.get("/queue").await?;
    assert_eq!((&queue[0]["run_id"], &queue[1]["run_id"]), (&json!(second), &json!(first)));
    let changed = json!({"changes": {"seed": 7, "training": {"steps": 20}}});
    let clone = server.user(Method::POST, &format!("/runs/{first}/clone"))?.json(&changed).send().await?;
    assert_eq!(clone.status(), StatusCode::CREATED);
    let clone: Value = clone.json().await?;
    assert_eq!((&clone["spec"]["seed"], &clone["spec"]["training"]["steps"]), (&json!(7), &json!(20)));
    assert_eq!((&clone["made_from"], &clone["name"]), (&json!(first), &json!("adapter seed 7")));
    let renamed = json!({"changes": {"name": "mine"}});
    let named = server.user(Method::POST, &format!("/runs/{first}/clone"))?.json(&renamed).send().await?;
    let named = named.json::<Value>().await?["id"].as_str().context("id")?.to_owned();
    let again = server.user(Method::POST, &format!("/runs/{named}/clone"))?.json(&changed).send().await?;
    assert_eq!(again.json::<Value>().await?["name"], "mine", "a name that somebody gave stays");
    let body = json!({"runs": [first, second]});
    let cancelled = server.user(Method::POST, "/runs/cancel")?.json(&body).send().await?;
    assert_eq!(cancelled.json::<Value>().await?["cancelled"], 2);
    let unknown = json!({"runs": [clone["id"], uuid::Uuid::nil()]});
    let answer = server.user(Method::POST, "/runs/cancel")?.json(&unknown).send().await?;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert_eq!(state(&server, clone["id"].as_str().context("id")?).await?, "queued", "all or none");
    Ok(())
}

#[tokio::test]
async fn a_drained_worker_hands_its_work_over() -> Result<()> {
    let server = Server::start().await?;
    let (a, b) = (FakeWorker::register(&server, "a").await?, FakeWorker::register(&server, "b").await?);
    let run = server.submit(&spec()).await?;
    let (one, other) = tokio::join!(a.lease(1500), b.lease(1500));
    let (holder, held, free) = match (one?, other?) {
        (Some(held), None) => (&a, held, &b),
        (None, Some(held)) => (&b, held, &a),
        both => anyhow::bail!("{both:?}"),
    };
    let order_to = |id: uuid::Uuid, body: Value| {
        server.user(Method::POST, &format!("/workers/{id}/drain")).map(|request| request.json(&body))
    };
    assert_eq!(
        order_to(holder.id, json!({"drain": true, "hand_over": true}))?.send().await?.status(),
        StatusCode::NO_CONTENT
    );
    assert_eq!(order(holder, &held).await?["order"], "yield");
    holder.finish(&held, "yielded", "").await?;
    assert!(holder.lease(300).await?.is_none(), "it is out of service");
    assert_eq!(free.lease(5000).await?.context("elsewhere")?.grant["run_id"], run);
    let workers = server.get("/workers").await?;
    let states: Vec<&str> =
        workers.as_array().context("workers")?.iter().filter_map(|w| w["state"].as_str()).collect();
    assert_eq!(states, ["draining", "ready"]);
    order_to(holder.id, json!({"drain": false}))?.send().await?;
    server.submit(&spec()).await?;
    assert!(holder.lease(5000).await?.is_some(), "back to work");
    Ok(())
}

#[tokio::test]
async fn a_run_past_its_limit_fails() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    let mut limited = spec();
    limited["resources"] = json!({"minutes": 3});
    let run = server.submit(&limited).await?;
    let held = worker.lease(5000).await?.context("a lease")?;
    let database = server.database().await?;
    sqlx::query("update lease set ends_at = ends_at - interval '3 minutes'").execute(&database).await?;
    let failed = server.wait_for_run(&run, &["failed"], 10).await?;
    assert_eq!(failed["reason"], "it took longer than the 3 minutes of resources.minutes");
    assert_eq!(worker.finish(&held, "succeeded", "").await?, StatusCode::CONFLICT);
    Ok(())
}
