//! Values over HTTP: how many a second go in, how long a batch takes at a steady pace, and how fast charts and pages
//! answer when there are many. Real Postgres with fsync on, a real server, eight writers, all on this machine; what each
//! of the three spends is told, since they share its cores. About five minutes.

use super::{quantiles, report};
use anyhow::{Context, Result, ensure};
use causeway_tests::{FakeWorker, Held, Server, spec};
use serde_json::Value;
use std::{
    fmt::Write,
    fs,
    time::{Duration, Instant},
};

const WRITERS: usize = 8;
/// Metrics of a run: what a batch's values belong to.
const NAMES: [&str; 4] = ["loss", "learning_rate", "gradient_norm", "temperature"];
/// How long each way in is timed.
const SUSTAINED: Duration = Duration::from_secs(20);
/// Batches a second in all, and how long, at a steady pace.
const PACE: u64 = 50;
const PACED_BATCHES: u64 = 50 * 15;
/// Values of the long series, and of each of its batches.
const LONG: u64 = 10_000_000;
const LONG_BATCH: u64 = 50_000;
/// Runs of the large experiment.
const RUNS: i32 = 10_000;
/// Requests that are timed of each kind.
const REQUESTS: usize = 50;

/// How values travel.
#[derive(Clone, Copy)]
enum Form {
    /// A line for each step, as the trainer writes them.
    Lines,
    /// One line with a column for each metric.
    Columns,
}

/// A writer with its lease. Numbers are those of f32 arithmetic, seventeen digits long, as a trainer's are.
struct Writer {
    client: reqwest::Client,
    url: String,
    token: String,
    epoch: i64,
    run: String,
    seq: u64,
    step: u64,
    numbers: Vec<String>,
}

impl Writer {
    fn new(server: &Server, held: &Held, number: usize) -> Result<Writer> {
        let text = |name: &str| held.grant[name].as_str().map(str::to_owned).context("a grant");
        Ok(Writer {
            client: causeway_tests::http().build()?,
            url: format!("{}/api/v1/leases/{}/events", server.url(), text("id")?),
            token: server.token("worker")?,
            epoch: held.grant["epoch"].as_i64().context("epoch")?,
            run: text("run_id")?,
            seq: 1,
            step: 1,
            numbers: (0..1000u16)
                .map(|at| f64::from((f32::from(at) + number as f32).sin().abs() + 0.1).to_string())
                .collect(),
        })
    }

    fn number(&self, at: u64) -> &str {
        &self.numbers[(at % 997) as usize]
    }

    /// A body with so many values of these metrics.
    fn body(&mut self, form: Form, values: u64, names: &[&str]) -> String {
        let steps = self.step..self.step + values / names.len() as u64;
        let at = "\"at\":\"2026-01-01T00:00:00Z\"";
        let mut body = format!("{{\"epoch\":{},\"lines\":[", self.epoch);
        match form {
            Form::Lines => {
                for step in steps.clone() {
                    let comma = if step == steps.start { "" } else { "," };
                    let _ = write!(
                        body,
                        "{comma}{{\"seq\":{},{at},\"event\":\"metrics\",\"step\":{step},\"values\":{{",
                        self.seq
                    );
                    for (place, name) in names.iter().enumerate() {
                        let comma = if place == 0 { "" } else { "," };
                        let _ = write!(body, "{comma}\"{name}\":{}", self.number(step * 7 + place as u64));
                    }
                    body.push_str("}}");
                    self.seq += 1;
                }
            }
            Form::Columns => {
                let _ = write!(body, "{{\"seq\":{},{at},\"event\":\"values\",\"steps\":[", self.seq);
                for step in steps.clone() {
                    let comma = if step == steps.start { "" } else { "," };
                    let _ = write!(body, "{comma}{step}");
                }
                body.push_str("],\"values\":{");
                for (place, name) in names.iter().enumerate() {
                    let comma = if place == 0 { "" } else { "," };
                    let _ = write!(body, "{comma}\"{name}\":[");
                    for step in steps.clone() {
                        body.push_str(if step == steps.start { "" } else { "," });
                        body.push_str(self.number(step * 7 + place as u64));
                    }
                    body.push(']');
                }
                body.push_str("}}");
                self.seq += 1;
            }
        }
        self.step = steps.end;
        body.push_str("]}");
        body
    }

    /// Sends a batch; milliseconds until it is committed.
    async fn send(&mut self, form: Form, values: u64, names: &[&str]) -> Result<f64> {
        let body = self.body(form, values, names);
        let start = Instant::now();
        let request = self.client.post(&self.url).bearer_auth(&self.token);
        let response = request.header("content-type", "application/json").body(body).send().await?;
        let status = response.status();
        let answer = response.text().await?;
        ensure!(status.is_success(), "{answer}");
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
}

/// The part `metrics`.
pub async fn metrics() -> Result<()> {
    let server = Server::with_lease(3600.0).await?;
    let database = server.database().await?;
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        let on: String =
            sqlx::query_scalar("select current_setting($1)").bind(setting).fetch_one(&database).await?;
        ensure!(on == "on", "{setting} is {on}");
    }
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let worker = FakeWorker::register(&server, &format!("writer-{number}")).await?;
        server.submit(&spec()).await?;
        let held = worker.lease(10_000).await?.context("a lease")?;
        writers.push(Writer::new(&server, &held, number)?);
    }
    let mut values = 0;
    for (form, name) in [(Form::Lines, "lines"), (Form::Columns, "columns")] {
        values += paced(&mut writers, form, name).await?;
    }
    values += sustained(&server, &mut writers, Form::Lines, 1_000, "lines_1000").await?;
    values += sustained(&server, &mut writers, Form::Columns, 1_000, "columns_1000").await?;
    values += sustained(&server, &mut writers, Form::Columns, 10_000, "columns_10000").await?;
    bytes(&database, values, "of batches of 1,000 and 10,000, four series").await?;

    let start = Instant::now();
    let long = &mut writers[0];
    for _ in 0..LONG / LONG_BATCH {
        long.send(Form::Columns, LONG_BATCH, &["long"]).await?;
    }
    let rate = LONG as f64 / start.elapsed().as_secs_f64();
    report("metrics_one_writer", rate, "values/s", "one writer, one series, batches of 50,000");
    bytes(&database, values + LONG, "with a series of 10,000,000 values").await?;
    charts(&server, &writers[0].run).await?;
    pages(&server, &database, &writers[0].run).await
}

/// All writers as fast as they can; values a second, and what each process spends on a value.
async fn sustained(
    server: &Server,
    writers: &mut Vec<Writer>,
    form: Form,
    size: u64,
    name: &str,
) -> Result<u64> {
    let before = spent(server)?;
    let start = Instant::now();
    let tasks: Vec<_> = std::mem::take(writers)
        .into_iter()
        .map(|mut writer| {
            tokio::spawn(async move {
                let mut batches = 0;
                while start.elapsed() < SUSTAINED {
                    writer.send(form, size, &NAMES).await?;
                    batches += 1;
                }
                anyhow::Ok((writer, batches))
            })
        })
        .collect();
    let mut batches = 0;
    for task in tasks {
        let (writer, sent) = task.await??;
        writers.push(writer);
        batches += sent;
    }
    let seconds = start.elapsed().as_secs_f64();
    let after = spent(server)?;
    let values = batches * size;
    report(
        &format!("metrics_{name}"),
        values as f64 / seconds,
        "values/s",
        "eight writers over HTTP, committed with fsync",
    );
    for ((who, before), (_, after)) in before.into_iter().zip(after) {
        let nanoseconds = (after - before) * 1e9 / values as f64;
        report(&format!("metrics_{name}_cpu_{who}"), nanoseconds, "ns/value", "processor time, all threads");
    }
    Ok(values)
}

/// Batches of 1,000 at a steady pace, whatever the answers take.
async fn paced(writers: &mut Vec<Writer>, form: Form, name: &str) -> Result<u64> {
    let mut times = Vec::new();
    let start = Instant::now();
    let mut sends = Vec::new();
    for (place, mut writer) in std::mem::take(writers).into_iter().enumerate() {
        sends.push(tokio::spawn(async move {
            let mut times = Vec::new();
            let mut batch = place as u64;
            while batch < PACED_BATCHES {
                let due = start + Duration::from_millis(1000 * batch / PACE);
                tokio::time::sleep_until(due.into()).await;
                // From when it was due: a batch that waits for the one before it has waited.
                let late = due.elapsed().as_secs_f64() * 1e3;
                times.push(late + writer.send(form, 1_000, &NAMES).await?);
                batch += WRITERS as u64;
            }
            anyhow::Ok((writer, times))
        }));
    }
    for task in sends {
        let (writer, of_writer) = task.await??;
        writers.push(writer);
        times.extend(of_writer);
    }
    let values = times.len() as u64 * 1_000;
    times.sort_by(f64::total_cmp);
    let p99 = times[times.len() * 99 / 100];
    let (p50, p95) = quantiles(times);
    let what = "a batch of 1,000 values, 50 batches a second over eight writers";
    for (quantile, time) in [("p50", p50), ("p95", p95), ("p99", p99)] {
        report(&format!("metrics_paced_{name}_{quantile}"), time, "ms", what);
    }
    Ok(values)
}

/// Processor seconds of the server, of Postgres with all its backends, and of these writers.
pub fn spent(server: &Server) -> Result<Vec<(&'static str, f64)>> {
    let postmaster = server.postgres_pid()?;
    let mut postgres = seconds(postmaster)?.0;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if let Ok((spent, parent)) = seconds(pid)
            && parent == postmaster
        {
            postgres += spent;
        }
    }
    let own = seconds(std::process::id().cast_signed())?.0;
    Ok(vec![("server", seconds(server.pid()?)?.0), ("postgres", postgres), ("writers", own)])
}

/// Processor seconds of a process, and its parent.
fn seconds(pid: i32) -> Result<(f64, i32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = text.rsplit_once(')').context("the name in stat")?.1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    // SAFETY: sysconf has no preconditions.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    Ok((ticks / per_second, fields[1].parse()?))
}

async fn bytes(database: &sqlx::PgPool, values: u64, what: &str) -> Result<()> {
    let kept: i64 = sqlx::query_scalar("select sum(count)::bigint from summary").fetch_one(database).await?;
    ensure!(kept as u64 == values, "{kept} values are kept of {values}");
    let size = "select (pg_total_relation_size('chunk') + pg_total_relation_size('summary')
                        + pg_total_relation_size('series'))::float8";
    let now: f64 = sqlx::query_scalar(size).fetch_one(database).await?;
    sqlx::query("vacuum full chunk").execute(database).await?;
    let packed: f64 = sqlx::query_scalar(size).fetch_one(database).await?;
    report(
        "metrics_bytes_per_value",
        now / values as f64,
        "B",
        &format!("{what}: tables, indexes and what is dead in them"),
    );
    report(
        "metrics_bytes_per_value_packed",
        packed / values as f64,
        "B",
        &format!("{what}: after vacuum full"),
    );
    Ok(())
}

/// GETs a path so many times, each under another query; gives the last answer.
async fn timed(
    server: &Server,
    name: &str,
    what: &str,
    path: impl Fn(usize) -> String,
) -> Result<(Vec<f64>, String)> {
    let client = causeway_tests::http().build()?;
    let token = server.token("user")?;
    let (mut times, mut last) = (Vec::new(), String::new());
    for request in 0..REQUESTS {
        let start = Instant::now();
        let url = format!("{}{}", server.url(), path(request));
        last = client.get(url).bearer_auth(&token).send().await?.error_for_status()?.text().await?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let (p50, p95) = quantiles(times.clone());
    report(&format!("{name}_p50"), p50, "ms", what);
    report(&format!("{name}_p95"), p95, "ms", what);
    Ok((times, last))
}

async fn charts(server: &Server, run: &str) -> Result<()> {
    let path = format!("/api/v1/runs/{run}/metrics?names=long&resolution=1000");
    let whole = |_| path.clone();
    let (times, answer) =
        timed(server, "metrics_chart", "a chart of 10,000,000 values in 1,000 columns", whole).await?;
    report("metrics_chart_first", times[0], "ms", "the first of them");
    let chart: Value = serde_json::from_str(&answer)?;
    ensure!(chart[0]["shown"]["count"] == LONG, "{}", chart[0]["shown"]);
    let zoom = |request: usize| {
        let from = (request as u64 * 7_919 * 1_000) % (LONG - 100_000);
        format!("{path}&from_step={from}&to_step={}", from + 100_000)
    };
    timed(server, "metrics_zoom", "100,000 of its steps in 1,000 columns", zoom).await?;
    timed(server, "metrics_run_page", "the page of that run", |_| format!("/runs/{run}")).await?;
    Ok(())
}

async fn pages(server: &Server, database: &sqlx::PgPool, run: &str) -> Result<()> {
    let experiment = server.get(&format!("/runs/{run}")).await?["experiment_id"].clone();
    let experiment = experiment.as_str().context("experiment")?;
    sqlx::query(
        "insert into run (id, experiment_id, name, kind, method, seed, spec, variant, state, phase, priority,
                          max_attempts, started_at, finished_at, backbone, project_id)
         select gen_random_uuid(), experiment_id, 'copy-' || i, kind, method, i, spec, variant,
                (array['succeeded', 'failed', 'cancelled'])[1 + i % 3], phase, priority, max_attempts,
                now() - i * interval '1 minute', now() - i * interval '50 seconds', null, project_id
         from run, generate_series(1, $2) i where run.id = $1::uuid",
    )
    .bind(run)
    .bind(RUNS)
    .execute(database)
    .await?;
    let what = "of an experiment of 10,000 runs";
    let page = format!("/experiments/{experiment}");
    let (_, html) =
        timed(server, "metrics_experiment_page", &format!("the page {what}"), |_| page.clone()).await?;
    ensure!(html.contains("rel=\"next\""), "the page has a next one");
    timed(server, "metrics_home_page", &format!("the home page {what}"), |_| "/".to_owned()).await?;
    let list = format!("/api/v1/runs?experiment={experiment}&limit=100");
    let (_, answer) =
        timed(server, "metrics_run_list", &format!("100 runs {what}"), |_| list.clone()).await?;
    let mut cursor = serde_json::from_str::<Value>(&answer)?["next"].clone();
    for _ in 0..60 {
        let next = cursor.as_str().context("a next page")?;
        cursor = server.get(&format!("/runs?experiment={experiment}&limit=100&cursor={next}")).await?["next"]
            .clone();
    }
    let deep = format!("{list}&cursor={}", cursor.as_str().context("a next page")?);
    timed(server, "metrics_run_list_deep", &format!("100 runs {what}, sixty pages on"), |_| deep.clone())
        .await?;
    Ok(())
}
