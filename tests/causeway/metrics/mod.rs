//! Values by the chunk, against values one by one.

mod model;

use anyhow::{Context, Result};
use causeway_protocol::Number;
use causeway_tests::{FakeWorker, Held, Server, chaos::WRONG, spec};
use model::{Model, Random};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

fn started(resumed_step: i64) -> Value {
    let environment = json!({"version": "0", "commit": "c", "libtorch": "l", "host": "h", "device": "cpu", "cpu": "x",
                             "threads": 1});
    json!({"event": "started", "environment": environment, "phase": "train", "resumed_step": resumed_step})
}

fn columns(steps: &[i64], n: i32, name: &str, numbers: &[f64]) -> Value {
    let numbers: Vec<Number> = numbers.iter().map(|number| Number(*number)).collect();
    json!({"event": "values", "steps": steps, "n": n, "values": {name: numbers}})
}

async fn text(server: &Server, path: &str) -> Result<String> {
    Ok(server.user(Method::GET, path)?.send().await?.error_for_status()?.text().await?)
}

/// A worker that holds a run's lease, and the number of its next line.
struct Writer<'a> {
    worker: FakeWorker<'a>,
    held: Held,
    seq: u64,
}

impl Writer<'_> {
    async fn ship(&mut self, events: &[Value]) -> Result<()> {
        let (status, answer) = self.worker.ship(&self.held, self.seq, events).await?;
        anyhow::ensure!(status.is_success(), "{answer}");
        self.seq += events.len() as u64;
        Ok(())
    }

    /// The attempt crashes, and the next one takes over at a step.
    async fn resume(&mut self, step: i64) -> Result<()> {
        self.worker.finish(&self.held, "crashed", "killed").await?;
        self.held = self.worker.lease(20_000).await?.context("the next attempt")?;
        self.seq = 1;
        self.ship(&[started(step)]).await
    }
}

async fn writer<'a>(server: &'a Server, name: &str) -> Result<(String, Writer<'a>)> {
    let worker = FakeWorker::register(server, name).await?;
    let mut spec = spec();
    spec["max_attempts"] = json!(5);
    let id = server.submit(&spec).await?;
    let held = worker.lease(5000).await?.context("a lease")?;
    let mut writer = Writer { worker, held, seq: 1 };
    writer.ship(&[started(0)]).await?;
    Ok((id, writer))
}

async fn compare(server: &Server, database: &sqlx::PgPool, id: &str, model: &Model) -> Result<()> {
    let wrong: i64 = sqlx::query_scalar(WRONG).fetch_one(database).await?;
    assert_eq!(wrong, 0, "chunks whose rollup is not what their values come to");
    let taken_back: i64 =
        sqlx::query_scalar("select count(*) from value where rollback > 0").fetch_one(database).await?;
    assert_eq!(taken_back, model.taken_back as i64);
    // Both sides as text: a million numbers are no error message.
    let same = |what: &str, one: &Value, other: &Value| {
        let (one, other) = (one.to_string(), other.to_string());
        let at = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let around = |text: &str| text.get(at.saturating_sub(80)..text.len().min(at + 80)).map(str::to_owned);
        assert!(one == other, "{what}: {:?} is not {:?}", around(&one), around(&other));
    };
    same("metrics", &server.get(&format!("/runs/{id}/metrics")).await?, &model.series());
    same("summary", &server.get(&format!("/runs/{id}/summary")).await?, &model.summary());
    same("csv", &json!(text(server, &format!("/runs/{id}/metrics.csv")).await?), &json!(model.csv()));
    let mut conflicts: Vec<Value> = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = server.get(&format!("/runs/{id}/conflicts?limit=50{cursor}")).await?;
        for row in page["items"].as_array().context("items")? {
            let mut row = row.clone();
            row.as_object_mut().context("a conflict")?.retain(|key, _| key != "id" && key != "noted_at");
            conflicts.push(row);
        }
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let by = |row: &Value| {
        (row["attempt"].as_i64(), row["name"].to_string(), row["step"].as_i64(), row["n"].as_i64())
    };
    conflicts.sort_by_key(by);
    same("conflicts", &json!(conflicts), &json!(model.conflicts()));
    // A coarse chart: each point is a visible value, and the extremes are there.
    let chart = server.get(&format!("/runs/{id}/metrics?resolution=7")).await?;
    let visible = model.visible();
    for series in chart.as_array().context("series")? {
        let values = &visible[series["name"].as_str().context("name")?];
        let points: Vec<(i64, Number)> = series["steps"]
            .as_array()
            .context("steps")?
            .iter()
            .zip(series["values"].as_array().context("values")?)
            .map(|(step, number)| {
                Ok((step.as_i64().context("step")?, serde_json::from_value(number.clone())?))
            })
            .collect::<Result<_>>()?;
        assert!(points.len() <= 4 * 7, "{} points", points.len());
        let stands = |(step, number): &(i64, Number)| {
            values.iter().any(|value| value.0 == *step && Number(value.3).same(*number))
        };
        assert!(points.iter().all(stands));
        let least = values.iter().map(|value| value.3).filter(|number| number.is_finite()).reduce(f64::min);
        assert!(least.is_none_or(|least| points.iter().any(|(_, number)| number.0 == least)));
        assert_eq!(series["shown"]["count"], values.len());
        assert_eq!(series["shown"]["non_finite"], values.iter().filter(|value| !value.3.is_finite()).count());
    }
    Ok(())
}

/// Random values of a few series: mostly in order, some late, some twice, some with another number.
fn events(random: &mut Random, model: &mut Model, at: &mut i64) -> Vec<Value> {
    let mut events = Vec::new();
    for _ in 0..=random.below(3) {
        let name = ["loss", "accuracy", "a,b"][random.below(3) as usize];
        let size = [1, 2, 30, 200, 700, 1500][random.below(6) as usize];
        let stride = [1, 1, 1, 10][random.below(4) as usize];
        let begin = *at - [0, 0, 0, 5, 300, 2000][random.below(6) as usize];
        let n = i32::from(random.below(8) == 0);
        let jitter = random.below(3) == 0;
        let mut steps = Vec::new();
        let mut numbers = Vec::new();
        for place in 0..size {
            let shift = if jitter { random.below(7) as i64 } else { 0 };
            let step = (begin + place * stride - shift).max(0);
            // The same number as there was, or another one.
            let number = if random.below(3) == 0 { random.number() } else { (step % 97) as f64 };
            model.value(name, step, n, number);
            steps.push(step);
            numbers.push(number);
        }
        *at = (*at).max(begin + size * stride);
        events.push(if size == 1 && n == 0 {
            json!({"event": "metrics", "step": steps[0], "values": {name: Number(numbers[0])}})
        } else {
            columns(&steps, n, name, &numbers)
        });
    }
    events
}

#[tokio::test]
async fn whatever_the_order_of_arrival_chunks_come_to_what_their_values_come_to() -> Result<()> {
    let server = Server::start().await?;
    let database = server.database().await?;
    for seed in 1..=4 {
        let mut random = Random(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed));
        let (id, mut writer) = writer(&server, &format!("w{seed}")).await?;
        let (mut model, mut at) = (Model::default(), 1);
        model.resume(0);
        for round in 0..18 {
            let (seq, sent) = (writer.seq, events(&mut random, &mut model, &mut at));
            writer.ship(&sent).await?;
            if random.below(3) == 0 {
                // The answer was lost: the same lines again are nothing.
                writer.seq = seq;
                writer.ship(&sent).await?;
            }
            if random.below(6) == 0 {
                let step = random.below(at.unsigned_abs()) as i64;
                let back =
                    json!({"event": "rolled_back", "step": step, "rollbacks": 1, "reason": "on purpose"});
                writer.ship(&[back]).await?;
                model.roll_back(step);
                at = step + 1;
            }
            if round == 8 {
                let step = random.below(at.unsigned_abs()) as i64;
                writer.resume(step).await?;
                model.resume(step);
                at = step + 1;
            }
            if round % 6 == 5 {
                compare(&server, &database, &id, &model).await?;
            }
        }
        writer.worker.finish(&writer.held, "failed", "the end of the test").await?;
        writer.worker.drain().await?;
        sqlx::query("delete from series").execute(&database).await?;
    }
    Ok(())
}

#[tokio::test]
async fn small_batches_end_in_full_chunks() -> Result<()> {
    let server = Server::start().await?;
    let (_, mut writer) = writer(&server, "w").await?;
    for batch in 0..250 {
        let steps: Vec<i64> = (batch * 10..batch * 10 + 10).collect();
        writer.ship(&[columns(&steps, 0, "loss", &[1.0; 10])]).await?;
    }
    let counts: Vec<i32> = sqlx::query_scalar("select count from chunk order by first_step")
        .fetch_all(&server.database().await?)
        .await?;
    assert_eq!(counts.iter().sum::<i32>(), 2500);
    assert_eq!(counts[..2], [1024, 1024]);
    assert!(counts.len() < 8, "what remains is a few chunks: {counts:?}");
    Ok(())
}

#[tokio::test]
async fn a_chart_reads_chunks_and_an_export_reads_every_value() -> Result<()> {
    let server = Server::start().await?;
    let (id, mut writer) = writer(&server, "w").await?;
    let value = |step: i64| if step == 77_777 { 9.0 } else { 1.0 + (step % 2) as f64 };
    for batch in 0..30 {
        let steps: Vec<i64> = (batch * 10_000..(batch + 1) * 10_000).collect();
        let numbers: Vec<f64> = steps.iter().map(|step| value(*step)).collect();
        writer.ship(&[columns(&steps, 0, "loss", &numbers)]).await?;
    }
    let chunks: i64 =
        sqlx::query_scalar("select count(*) from chunk").fetch_one(&server.database().await?).await?;
    assert_eq!(chunks, 293, "292 full ones and the rest: too many for a chart to read their values");
    let chart = server.get(&format!("/runs/{id}/metrics?resolution=100")).await?;
    let (steps, values) = (chart[0]["steps"].as_array().unwrap(), chart[0]["values"].as_array().unwrap());
    assert!(steps.len() <= 400, "{}", steps.len());
    assert_eq!(chart[0]["shown"], json!({"exact": false, "count": 300_000, "non_finite": 0}));
    let spike = steps.iter().position(|step| step == 77_777).expect("one value in 300,000 is drawn");
    assert_eq!(values[spike], 9.0);
    let most = server.get(&format!("/runs/{id}/metrics?resolution=100&from_step=500&to_step=299499")).await?;
    assert_eq!(most[0]["shown"]["count"], 299_000, "of the chunks across the ends only a part counts");
    assert_eq!(
        (&most[0]["steps"][0], most[0]["steps"].as_array().unwrap().last()),
        (&json!(500), Some(&json!(299_499)))
    );
    // A closer look reads the values themselves.
    let zoomed =
        server.get(&format!("/runs/{id}/metrics?resolution=100&from_step=77700&to_step=77899")).await?;
    assert_eq!(zoomed[0]["shown"], json!({"exact": true, "count": 200, "non_finite": 0}));
    assert_eq!(zoomed[0]["steps"][77], 77_777);
    // The complete answer has a limit, and says what has none.
    let refused = server.user(Method::GET, &format!("/runs/{id}/metrics"))?.send().await?;
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(refused.text().await?.contains("metrics.csv"));
    let part = server.get(&format!("/runs/{id}/metrics?after_step=299997")).await?;
    assert_eq!(part, json!([{"name": "loss", "steps": [299_998, 299_999], "values": [1.0, 2.0]}]));
    let csv = text(&server, &format!("/runs/{id}/metrics.csv")).await?;
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("name,step,value,attempt,n"));
    for step in 0..300_000 {
        assert_eq!(lines.next(), Some(format!("loss,{step},{},1,0", value(step)).as_str()));
    }
    assert_eq!(lines.next(), None);
    Ok(())
}

#[tokio::test]
async fn what_a_resumed_attempt_hides_in_the_middle_of_a_chunk_is_in_no_chart() -> Result<()> {
    let server = Server::start().await?;
    let (id, mut writer) = writer(&server, "w").await?;
    let steps: Vec<i64> = (1..=1000).collect();
    let numbers: Vec<f64> = steps.iter().map(|step| if *step > 600 { -5.0 } else { 1.0 }).collect();
    writer.ship(&[columns(&steps, 0, "loss", &numbers)]).await?;
    writer.resume(600).await?;
    writer.ship(&[columns(&[601, 602], 0, "loss", &[2.0, 0.5])]).await?;
    let chart = server.get(&format!("/runs/{id}/metrics?resolution=2")).await?;
    assert_eq!(chart[0]["shown"], json!({"exact": false, "count": 602, "non_finite": 0}));
    assert!(!chart[0]["values"].as_array().unwrap().contains(&json!(-5.0)), "{chart}");
    let summary = server.get(&format!("/runs/{id}/summary")).await?;
    assert_eq!(
        summary,
        json!([{"name": "loss", "count": 602, "non_finite": 0, "last": 0.5, "last_step": 602, "min": 0.5,
                "min_step": 602, "max": 2.0, "max_step": 601}])
    );
    Ok(())
}

#[tokio::test]
async fn what_is_not_finite_survives_and_what_contradicts_is_told() -> Result<()> {
    let server = Server::start().await?;
    let (id, mut writer) = writer(&server, "w").await?;
    let line =
        |step: u64, number: Value| json!({"event": "metrics", "step": step, "values": {"loss": number}});
    writer.ship(&[line(1, json!("NaN")), line(2, json!("-Infinity")), line(3, json!(0.25))]).await?;
    writer.ship(&[line(1, json!("NaN")), line(3, json!(0.25))]).await?;
    assert_eq!(
        server.get(&format!("/runs/{id}/conflicts")).await?["items"],
        json!([]),
        "the same is nothing"
    );
    writer.ship(&[line(3, json!(0.5)), line(3, json!("Infinity"))]).await?;
    let metrics = server.get(&format!("/runs/{id}/metrics")).await?;
    assert_eq!(metrics, json!([{"name": "loss", "steps": [1, 2, 3], "values": ["NaN", "-Infinity", 0.25]}]));
    let conflict = server.get(&format!("/runs/{id}/conflicts")).await?["items"][0].clone();
    assert_eq!(
        (&conflict["step"], &conflict["kept"], &conflict["refused"], &conflict["times"]),
        (&json!(3), &json!(0.25), &json!("Infinity"), &json!(2))
    );
    let page = server.client.get(format!("{}/runs/{id}", server.url())).bearer_auth(server.token("user")?);
    let page = page.send().await?.error_for_status()?.text().await?;
    assert!(page.contains("0.25 stays; Infinity came later, the last of 2"), "the run's page tells it");
    assert!(page.contains("3, 2 not finite"), "and how many are not finite");
    Ok(())
}

#[tokio::test]
async fn a_batch_that_does_not_fit_is_refused_whole() -> Result<()> {
    let server = Server::start().await?;
    let (id, writer) = writer(&server, "w").await?;
    let good = json!({"event": "metrics", "step": 1, "values": {"loss": 1.0}});
    let short = json!({"event": "values", "steps": [1, 2], "values": {"loss": [1.0]}});
    let (status, answer) = writer.worker.ship(&writer.held, writer.seq, &[good.clone(), short]).await?;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let detail = "a line of values has 2 steps but 1 values of `loss`: send one for each step";
    assert_eq!(answer["detail"], detail);
    let nameless = json!({"event": "metrics", "step": 1, "values": {"": 1.0}});
    let (status, _) = writer.worker.ship(&writer.held, writer.seq, &[good, nameless]).await?;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let many: Vec<i64> = (0..=100_000).collect();
    let large = columns(&many, 0, "loss", &vec![1.0; many.len()]);
    let (status, answer) = writer.worker.ship(&writer.held, writer.seq, &[large]).await?;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["detail"], "a batch has at most 100000 values: send the rest in another");
    assert_eq!(server.get(&format!("/runs/{id}/metrics")).await?, json!([]));
    for (query, says) in [
        ("resolution=0", "resolution must be 1 to 4096 columns, is 0"),
        ("from_step=3&to_step=2", "from_step 3 is beyond to_step 2"),
    ] {
        let refused = server.user(Method::GET, &format!("/runs/{id}/metrics?{query}"))?.send().await?;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        assert_eq!(refused.json::<Value>().await?["detail"], says);
    }
    Ok(())
}

#[tokio::test]
async fn an_experiment_of_many_runs_is_shown_a_page_at_a_time() -> Result<()> {
    let server = Server::start().await?;
    let id = server.submit(&spec()).await?;
    let run = server.get(&format!("/runs/{id}")).await?;
    let experiment = run["experiment_id"].as_str().context("experiment")?;
    sqlx::query(
        "insert into run (id, experiment_id, name, kind, method, seed, spec, variant, state, phase, priority, max_attempts, project_id)
         select gen_random_uuid(), experiment_id, 'copy-' || i, kind, method, i, spec, variant, 'cancelled', phase,
                priority, max_attempts, project_id from run, generate_series(1, 249) i",
    )
    .execute(&server.database().await?)
    .await?;
    let mut path = format!("/experiments/{experiment}");
    let mut seen = std::collections::BTreeSet::new();
    for rows in [100, 100, 50] {
        let page = server.client.get(format!("{}{path}", server.url())).bearer_auth(server.token("user")?);
        let page = page.send().await?.error_for_status()?.text().await?;
        let links: Vec<&str> = page.split("<th scope=\"row\"><a href=\"/runs/").skip(1).collect();
        assert_eq!(links.len(), rows);
        seen.extend(links.iter().map(|link| link[..36].to_owned()));
        assert!(page.contains("250 runs"), "the head counts all");
        if rows == 100 {
            let older = page.split("rel=\"next\"").next().unwrap().rsplit("<a href=\"").next().unwrap();
            path = older.split('#').next().unwrap().replace("&amp;", "&").replace("&#38;", "&");
        }
    }
    assert_eq!(seen.len(), 250, "no run twice, none left out");
    Ok(())
}
