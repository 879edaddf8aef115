//! The product's benchmarks: `make bench`. One JSON line a figure; ratios come from one run, since machines are noisy.

use anyhow::{Context, Result, ensure};
use causeway_tests::{FakeWorker, Server, Trainer, binary, demo_data, small_finetune, spec};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command, time::Instant};

#[path = "parts/bloat.rs"]
mod bloat;
#[path = "parts/metrics.rs"]
mod metrics;
#[path = "parts/queue.rs"]
mod queue;
#[path = "parts/results.rs"]
mod results;
#[path = "parts/simulate.rs"]
mod simulate;
#[path = "parts/spectrum.rs"]
mod spectrum;
#[path = "parts/sweep_peer.rs"]
mod sweep_peer;

/// Requests of one kind that are timed.
const REQUESTS: usize = 200;
/// Times that a step's benchmark is repeated, in turns with PyTorch.
const ROUNDS: usize = 2;
/// Training steps of each.
const STEPS: u64 = 10;
/// The methods and dtypes of those steps.
const CELLS: [(&str, &str); 7] = [
    ("full", "f32"),
    ("adapter", "f32"),
    ("full", "bf16"),
    ("adapter", "bf16"),
    ("lora", "f32"),
    ("film", "f32"),
    ("ladder", "f32"),
];
/// Images of the step whose memory is measured: so many that the rest hardly counts.
const MEMORY_BATCH: u32 = 128;
/// A ViT-S/14's forward pass of one image at 98 px: 12 blocks of 50 tokens, 2 (12 dim² + 2 · 50 dim) operations each.
const GFLOP_FORWARD: f64 = 12.0 * 50.0 * 2.0 * (12.0 * 384.0 * 384.0 + 100.0 * 384.0) / 1e9;
/// Values in one metric batch.
const VALUES: u64 = 1000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    if asked("server") {
        server().await?;
    }
    if asked("metrics") {
        metrics::metrics().await?;
    }
    if asked("results") {
        results::results().await?;
    }
    if asked("queue") {
        queue::queue().await?;
    }
    if asked("simulate") {
        simulate::simulate().await?;
    }
    if asked("bloat") {
        bloat::bloat().await?;
    }
    if asked("sweep") {
        sweep()?;
    }
    if asked("memory") {
        memory()?;
    }
    if asked("spectrum") {
        spectrum::spectrum()?;
    }
    if let Some(folder) = std::env::var_os("DATA").filter(|_| asked("data")) {
        real_data(Path::new(&folder))?;
    }
    let python = std::env::var_os("PYTHON_WITH_TORCH");
    if let (Some(data), Some(python)) = (std::env::var_os("DATA").filter(|_| asked("sweep_peer")), &python) {
        sweep_peer::sweep_peer(Path::new(&data), Path::new(python))?;
    }
    match python {
        Some(python) => beside_torch(Path::new(&python)),
        None => {
            eprintln!("PYTHON_WITH_TORCH names no Python that has PyTorch: nothing is compared with it");
            Ok(())
        }
    }
}

/// Whether a part is to run: all, or those that `BENCH` names, such as `BENCH=memory,lora`.
fn asked(part: &str) -> bool {
    std::env::var("BENCH").map_or(true, |parts| parts.split(',').any(|named| named == part))
}

fn report(name: &str, value: f64, unit: &str, what: &str) {
    println!(
        "{}",
        json!({"bench": name, "value": (value * 1000.0).round() / 1000.0, "unit": unit, "what": what})
    );
}

/// Middle and 95th of a hundred, milliseconds.
fn quantiles(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 95 / 100])
}

async fn server() -> Result<()> {
    let server = Server::start().await?;
    report(
        "server_rss_idle",
        rss_megabytes(server.pid()?)?,
        "MB",
        "the server alone, its Postgres not counted",
    );
    {
        let worker = FakeWorker::register(&server, "bench").await?;
        server.submit(&spec()).await?;
        let held = worker.lease(5000).await?.context("a lease")?;
        let mut times = Vec::new();
        for batch in 0..REQUESTS as u64 {
            // 250 steps of four metrics: what an agent ships of a fast run in one go.
            let events: Vec<Value> = (0..VALUES / 4)
                .map(|step| {
                    let values = json!({"loss": 1.5, "learning_rate": 1e-3, "gradient_norm": 2.5, "temperature": 0.07});
                    json!({"event": "metrics", "step": batch * (VALUES / 4) + step + 1, "values": values})
                })
                .collect();
            let start = Instant::now();
            let (status, answer) = worker.ship(&held, batch * (VALUES / 4) + 1, &events).await?;
            ensure!(status.is_success(), "{answer}");
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let (p50, p95) = quantiles(times);
        report("metric_batch_p50", p50, "ms", "POST of 1,000 values, committed with fsync");
        report("metric_batch_p95", p95, "ms", "POST of 1,000 values, committed with fsync");
        worker.finish(&held, "failed", "the benchmark is over").await?;
    }
    let _trainer = Trainer::start(&server, &[])?;
    let mut small = small_finetune();
    small["training"]["steps"] = json!(2);
    let id = server.submit(&small).await?;
    let run = server.wait_for_run(&id, &["succeeded"], 300).await?;
    let page =
        format!("{}/experiments/{}", server.url(), run["experiment_id"].as_str().context("experiment")?);
    let mut times = Vec::new();
    for _ in 0..REQUESTS {
        let start = Instant::now();
        let answer =
            server.client.get(&page).bearer_auth(server.token("user")?).send().await?.error_for_status()?;
        answer.bytes().await?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let (p50, p95) = quantiles(times);
    report("experiment_page_p50", p50, "ms", "GET of an experiment's page, a new connection each");
    report("experiment_page_p95", p95, "ms", "GET of an experiment's page, a new connection each");
    report("server_rss_after", rss_megabytes(server.pid()?)?, "MB", "the server after this load");
    Ok(())
}

fn rss_megabytes(pid: i32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1024.0)
}

/// Training of each method, and one sweep of eleven α against eleven evaluations of one α.
fn sweep() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut checkpoint = None;
    for method in ["adapter", "film", "full"] {
        let out = folder.path().join(method);
        let mut spec = small_finetune();
        (spec["name"], spec["method"]) = (json!(method), json!({ "kind": method }));
        spec["training"] = json!({"steps": 8, "batch_size": 32, "learning_rate": 1e-4, "image_size": 98});
        spec["evaluation"] = json!({"datasets": [{"asset": "digits-200", "role": "ood"}], "alphas": [0], "k": [1],
                                    "image_size": 56});
        trainer("train", &spec, folder.path(), &out, None)?;
        let rates = journal(&out, |line| line["phase"] == "train" && line["event"] == "progress");
        let mut rates: Vec<f64> =
            rates.iter().filter_map(|line| line["images_per_second"].as_f64()).collect();
        rates.sort_by(f64::total_cmp);
        ensure!(!rates.is_empty(), "no progress was reported");
        let what = "ViT-S/14, 98 px, batch 32, f32: median of the reported rates";
        report(&format!("train_{method}"), rates[rates.len() / 2], "images/s", what);
        checkpoint = Some(out.join("checkpoint.safetensors"));
    }
    let checkpoint = checkpoint.context("a checkpoint")?;
    let evaluate = |alphas: Value, out: &Path| -> Result<f64> {
        let spec = json!({
            "experiment": "bench", "name": "sweep", "kind": "evaluate",
            "weights": {"theta0": {"asset": "vit-s14-imgfocus"}, "theta1": {"file": checkpoint}},
            "evaluation": {"datasets": [{"asset": "digits-200", "role": "ood"}], "alphas": alphas, "k": [1, 20],
                           "image_size": 98}
        });
        let start = Instant::now();
        trainer("evaluate", &spec, folder.path(), out, Some(&checkpoint))?;
        Ok(start.elapsed().as_secs_f64())
    };
    let grid: Vec<f64> = (0..=10).map(|tenth| f64::from(tenth) / 10.0).collect();
    let together = evaluate(json!(grid), &folder.path().join("together"))?;
    let mut apart = 0.0;
    for alpha in &grid {
        apart += evaluate(json!([alpha]), &folder.path().join(format!("alpha-{alpha}")))?;
    }
    report("sweep_seconds", together, "s", "11 α of a full checkpoint on 200 images at 98 px, one process");
    report(
        "sweep_rate",
        2200.0 / together,
        "images/s",
        "forward passes of that sweep, start-up and k-NN included",
    );
    report("single_alpha_seconds", apart, "s", "eleven processes of one α each");
    report("sweep_speedup", apart / together, "x", "eleven single evaluations against one sweep");
    Ok(())
}

/// k-NN accuracy of the demo's backbone on data that is there and may not be passed on, and training on real captions.
/// `DATA` holds `cifar10/` (binary records), `dtd10/` (class folders) and `coco_mini/` (a jsonl list), or some of them.
fn real_data(data: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let assets = [
        (
            "cifar10",
            "dataset",
            "cifar10-binary",
            "[dataset.bank]\nparts = ['train_5000.bin']\n[dataset.query]\nparts = ['test_1000.bin']",
        ),
        ("dtd10", "dataset", "class-folder", "[dataset]\nleave_one_out = true\n[dataset.bank]\npath = '.'"),
        (
            "coco_mini",
            "captions",
            "jsonl",
            "[captions]\npaths = ['captions.jsonl']\nsplits = ['train', 'val']\ncaption = 'random'",
        ),
    ];
    for (name, kind, format, table) in assets {
        if !data.join(name).is_dir() {
            continue;
        }
        let asset = folder.path().join("data").join(name);
        fs::create_dir_all(&asset)?;
        for entry in fs::read_dir(data.join(name))? {
            let entry = entry?;
            std::os::unix::fs::symlink(entry.path(), asset.join(entry.file_name()))?;
        }
        let about = format!("name = '{name}'\nkind = '{kind}'\nformat = '{format}'\ntitle = '{name}'");
        fs::write(
            asset.join("asset.toml"),
            format!("{about}\nlicence = 'research'\nsource = 'DATA'\n{table}\n"),
        )?;
        let out = folder.path().join(format!("out-{name}"));
        let mut spec = small_finetune();
        if kind == "captions" {
            spec["captions"]["asset"] = json!(name);
            spec["training"] = json!({"steps": 20, "batch_size": 16, "learning_rate": 3e-3, "image_size": 98,
                                      "crop_scale": [0.5, 1.0]});
            spec["evaluation"] = json!({"datasets": [{"asset": "digits-200", "role": "ood"}], "alphas": [0],
                                        "k": [1], "image_size": 14});
        } else {
            let theta = json!({"asset": "vit-s14-imgfocus"});
            let evaluation = json!({"datasets": [{"asset": name, "role": "id"}], "alphas": [0], "k": [1, 10, 20],
                                    "image_size": 98});
            spec = json!({"experiment": "bench", "kind": "evaluate", "weights": {"theta0": theta, "theta1": theta},
                          "evaluation": evaluation});
        }
        let command = if kind == "captions" { "train" } else { "evaluate" };
        let start = Instant::now();
        trainer(command, &spec, folder.path(), &out, Some(&folder.path().join("data")))?;
        report(&format!("{name}_seconds"), start.elapsed().as_secs_f64(), "s", "the whole command");
        for line in journal(&out, |line| line["event"] == "point" && kind == "dataset") {
            let (k, n) =
                (line["protocol"]["readout"]["k"].as_u64().context("k")?, line["n"].as_f64().context("n")?);
            let accuracy = 100.0 * line["correct"].as_f64().context("correct")? / n;
            report(
                &format!("{name}_k{k}"),
                accuracy,
                "%",
                &format!("top-1 at α = 0 over {n} images, 98 px direct, f32"),
            );
        }
        let losses = journal(&out, |line| line["event"] == "metrics" && kind == "captions");
        if let (Some(first), Some(last)) = (losses.first(), losses.last()) {
            let loss = |line: &Value| line["values"]["loss"].as_f64().unwrap_or(f64::NAN);
            report(
                &format!("{name}_loss"),
                loss(last),
                "nats",
                &format!("contrastive, after 20 steps; {} at the first", loss(first)),
            );
        }
    }
    Ok(())
}

/// A training step beside the same step in eager PyTorch, in turns, and beside the machine's rate in one product.
fn beside_torch(python: &Path) -> Result<()> {
    let script = causeway_tests::repository().join("tests/benches/step.py");
    let threads = std::thread::available_parallelism()?.get().to_string();
    let folder = tempfile::tempdir()?;
    for (method, dtype) in CELLS.into_iter().filter(|(method, _)| asked("torch") || asked(method)) {
        let (mut ours, mut theirs, mut gemm) = (Vec::new(), Vec::new(), 0.0f64);
        for round in 0..ROUNDS {
            let out = folder.path().join(format!("{method}-{dtype}-{round}"));
            trainer("train", &step_spec(method, dtype, 32, STEPS), folder.path(), &out, None)?;
            let lines = journal(&out, |line| line["phase"] == "train" && line["event"] == "progress");
            ours.extend(lines.iter().filter_map(|line| line["images_per_second"].as_f64()));
            let output = Command::new(python)
                .arg(&script)
                .args([method, dtype, &STEPS.to_string(), &threads])
                .output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let answer: Value = serde_json::from_slice(&output.stdout)?;
            theirs.extend(
                answer["images_per_second"].as_array().into_iter().flatten().filter_map(Value::as_f64),
            );
            gemm = gemm.max(answer["gemm_gflops"].as_f64().unwrap_or(0.0));
        }
        let best = |rates: &[f64]| rates.iter().copied().fold(0.0, f64::max);
        let (ours, theirs) = (best(&ours), best(&theirs));
        let cell = format!("{method}_{dtype}");
        report(&format!("step_{cell}"), ours, "images/s", "ViT-S/14, 98 px, batch 32: the best second");
        report(
            &format!("step_{cell}_torch"),
            theirs,
            "images/s",
            "the same step in eager PyTorch: the best step",
        );
        report(&format!("step_{cell}_ratio"), ours / theirs, "x", "ours against PyTorch's, in turns");
        // Forward, back through the activations, and for `full` through the weights: 2.2 GFLOP each an image. A ladder
        // only goes forward through the backbone; its own few percent are not counted.
        let passes = match method {
            "full" => 3.0,
            "ladder" => 1.0,
            _ => 2.0,
        };
        let share = ours * passes * GFLOP_FORWARD / gemm;
        report(&format!("step_{cell}_gemm_share"), share, "x", "of the rate of the MLP's own product here");
    }
    Ok(())
}

/// The most memory that two training steps take, and what of it is the batch's: a ladder keeps none of the backbone's
/// activations, an adapter those of all blocks.
fn memory() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for method in ["full", "adapter", "ladder"] {
        let peak = |batch: u32| -> Result<f64> {
            let out = folder.path().join(format!("{method}-{batch}"));
            trainer("train", &step_spec(method, "f32", batch, 2), folder.path(), &out, None)?;
            let values = journal(&out, |line| line["event"] == "metrics");
            let bytes = values
                .iter()
                .filter_map(|line| line["values"]["system/memory_peak_bytes"].as_f64())
                .next_back();
            Ok(bytes.context("the memory of training")? / 1e6)
        };
        let (large, small) = (peak(MEMORY_BATCH)?, peak(2)?);
        let what =
            "the process at its most by the end of two training steps, ViT-S/14, 98 px, batch 128, f32";
        report(&format!("memory_{method}"), large, "MB", what);
        report(
            &format!("memory_{method}_batch"),
            large - small,
            "MB",
            "that, less the same with batches of 2",
        );
    }
    Ok(())
}

/// A training on the demo's captions, and as good as no evaluation after it.
fn step_spec(method: &str, dtype: &str, batch: u32, steps: u64) -> Value {
    let mut spec = small_finetune();
    (spec["name"], spec["method"]) = (json!(method), json!({ "kind": method }));
    spec["training"] = json!({"steps": steps, "batch_size": batch, "learning_rate": 1e-4, "image_size": 98,
                              "dtype": dtype});
    spec["evaluation"] = json!({"datasets": [{"asset": "digits-200", "role": "ood"}], "alphas": [0],
                                "k": [1], "image_size": 14});
    spec
}

fn trainer(command: &str, spec: &Value, folder: &Path, out: &Path, more: Option<&Path>) -> Result<()> {
    let file = folder.join("spec.toml");
    fs::write(&file, toml::to_string(spec)?)?;
    let mut run = Command::new(binary("causeway-trainer"));
    run.arg(command).arg(&file).arg("--data").arg(demo_data()).arg("--out").arg(out);
    match more {
        Some(more) if more.is_dir() => drop(run.arg("--data").arg(more)),
        Some(theta1) => drop(run.arg("--theta1").arg(theta1)),
        None => {}
    }
    let output = run.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn journal(out: &Path, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    let text = fs::read_to_string(out.join("journal.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(|line| wanted(line)).collect()
}
