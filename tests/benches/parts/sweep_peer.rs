//! The α sweep beside PyTorch's, the usual way, in one run: the ViT-S with two θ1 made of seeded noise (every tensor; the
//! last three blocks), eleven α, three real datasets. Ours is the whole command in f32 and bf16, theirs `sweep.py` in f32,
//! each with its start and its reading; they take turns.

use super::report;
use anyhow::{Context, Result, ensure};
use causeway_protocol::Hits;
use causeway_tests::{binary, demo_data, repository};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Times that each is repeated, in turns.
const ROUNDS: usize = 2;
/// Images of each bank, and as many queries, of each of ten classes where a dataset is in folders.
const SIDE: usize = 60;
/// Images in a batch: the product's usual.
const BATCH: usize = 32;
const SIZE: usize = 98;
const K: [u64; 2] = [1, 20];
const NAMES: [&str; 3] = ["cifar10", "dtd10", "fashion_mnist"];
/// Tokens, width, width of the MLP, blocks, patch.
const SHAPE: (f64, f64, f64, f64, f64) = (50.0, 384.0, 1536.0, 12.0, 14.0);

/// One run: seconds on the clock and of the processors, and of the sweep alone; which queries are right, by α, dataset, k.
struct Timed {
    clock: f64,
    processors: f64,
    sweep: f64,
    hits: Vec<Vec<bool>>,
    leads: Vec<Vec<f64>>,
}

/// Measures where `data` holds the three datasets and `python` has PyTorch, safetensors and Pillow.
pub fn sweep_peer(data: &Path, python: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (folder, threads) = (folder.path(), std::thread::available_parallelism()?.get());
    let datasets = write_datasets(data, &folder.join("data"))?;
    let alphas: Vec<f64> = (0..=10).map(|tenth| f64::from(tenth) / 10.0).collect();
    let backbone = demo_data().join("vit-s14-imgfocus/model.safetensors");
    let script = repository().join("tests/benches/sweep.py");
    let output = Command::new(python)
        .arg(&script)
        .args(["parts", &threads.to_string(), &BATCH.to_string()])
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let parts: Value = serde_json::from_slice(&output.stdout)?;
    for dtype in ["f32", "bf16"] {
        for part in ["gemm", "gemm_onednn", "attention", "norm", "gelu", "residual"] {
            let milliseconds = 1e3 * parts[dtype][part].as_f64().context("a part")?;
            let what = "of an image in a block, timed alone in PyTorch at the shapes of a batch of 32";
            report(&format!("sweep_part_{dtype}_{part}"), milliseconds, "ms", what);
        }
        for (product, by) in [("gemm", "PyTorch's linear"), ("gemm_onednn", "oneDNN")] {
            let rate = parts[dtype][format!("{product}_gflops")].as_f64().context("gflops")?;
            let what = format!("the MLP's first product alone, by {by}");
            report(&format!("{product}_{dtype}"), rate, "GFLOP/s", &what);
        }
    }
    for (cell, blocks) in [("full", None), ("last3", Some(9))] {
        let theta1 = folder.join(format!("{cell}.safetensors"));
        write_noisy(&backbone, &theta1, blocks)?;
        let config = json!({"theta0": backbone, "theta1": theta1, "alphas": alphas, "batch": BATCH, "size": SIZE, "k": K,
                            "temperature": 0.07, "threads": threads, "datasets": datasets});
        let peer = folder.join(format!("{cell}.json"));
        fs::write(&peer, config.to_string())?;
        let mut runs: [Vec<Timed>; 3] = Default::default();
        for round in 0..ROUNDS {
            runs[0].push(theirs(python, &script, &peer)?);
            for (at, dtype) in ["f32", "bf16"].into_iter().enumerate() {
                let out = folder.join(format!("{cell}-{dtype}-{round}"));
                runs[at + 1].push(ours(&theta1, dtype, &alphas, folder, &out)?);
            }
        }
        tell(cell, blocks, &runs, &parts)?;
    }
    Ok(())
}

/// Ratios beside their bounds, and whether the answers are the same.
fn tell(cell: &str, blocks: Option<usize>, runs: &[Vec<Timed>; 3], parts: &Value) -> Result<()> {
    let middle = |runs: &[Timed], of: fn(&Timed) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
    };
    let [peer, ours @ ..] = runs;
    let (clock, processors) = (middle(peer, |run| run.clock), middle(peer, |run| run.processors));
    report(&format!("sweep_{cell}_peer"), clock, "s", "PyTorch, f32, every α a full pass; start included");
    report(&format!("sweep_{cell}_peer_cpu"), processors, "s", "of the processors, for that");
    let (usual, shared_work) = work(blocks);
    let rate = |dtype: &str, product: &str| parts[dtype][product].as_f64().context("gflops");
    let usual_rate = rate("f32", "gemm_gflops")?;
    let images = (NAMES.len() * 2 * SIDE) as f64;
    for (dtype, runs) in ["f32", "bf16"].into_iter().zip(ours) {
        let name = format!("sweep_{cell}_{dtype}");
        let (own, own_processors) = (middle(runs, |run| run.clock), middle(runs, |run| run.processors));
        let alone = middle(runs, |run| run.sweep);
        report(&name, own, "s", "ours, the whole command");
        report(&format!("{name}_cpu"), own_processors, "s", "of the processors, for that");
        report(
            &format!("{name}_alone"),
            alone,
            "s",
            "the sweep by its journal, start and first reading left out",
        );
        report(&format!("{name}_ratio"), clock / own, "x", "PyTorch's time in f32 over ours");
        report(&format!("{name}_ratio_cpu"), processors / own_processors, "x", "the same in processor time");
        let machine = rate(dtype, "gemm_onednn_gflops")?;
        let bound = usual / shared_work * machine / usual_rate;
        let what = "of that ratio: operations, and the rates of oneDNN's products and of PyTorch's in f32";
        report(&format!("{name}_bound"), bound, "x", what);
        let share = images * shared_work / alone / 1e9 / machine;
        report(&format!("{name}_gemm_share"), share, "x", "of oneDNN's rate that the sweep reaches");
    }
    let (theirs, own, rounded) = (&peer[0], &ours[0][0], &ours[1][0]);
    let mut apart = 0;
    for (at, (one, other)) in theirs.hits.iter().zip(&own.hits).enumerate() {
        for query in (0..one.len()).filter(|query| one[*query] != other[*query]) {
            apart += 1;
            let (alpha, dataset, k) = (at / 6, NAMES[at / 2 % 3], K[at % 2]);
            let lead = theirs.leads[at][query];
            println!(
                "{}",
                json!({"bench": format!("sweep_{cell}_apart"), "alpha": alpha as f64 / 10.0,
                                  "dataset": dataset, "k": k, "query": query, "lead": lead})
            );
        }
    }
    let all: usize = own.hits.iter().map(Vec::len).sum();
    let what = format!("of {all} predictions in f32 (α, dataset, k, query) that are not PyTorch's");
    report(&format!("sweep_{cell}_f32_differ"), apart as f64, "", &what);
    let pairs = || own.hits.iter().flatten().zip(rounded.hits.iter().flatten());
    let same = pairs().filter(|(one, other)| one == other).count();
    report(
        &format!("sweep_{cell}_bf16_agree"),
        100.0 * same as f64 / all as f64,
        "%",
        "of the same predictions in bf16",
    );
    let [one, other] = [own, rounded].map(|run| run.hits.iter().flatten().filter(|hit| **hit).count() as f64);
    report(
        &format!("sweep_{cell}_bf16_change"),
        100.0 * (other - one) / all as f64,
        "%",
        "change of the mean top-1 from f32 to bf16",
    );
    ensure!(apart == 0, "{apart} predictions in f32 are not PyTorch's: their leads stand above");
    Ok(())
}

/// Operations of an image at eleven α: the usual way, and with what is shared computed once.
fn work(blocks: Option<usize>) -> (f64, f64) {
    let (tokens, dim, mlp, depth, patch) = SHAPE;
    let embedding = 6.0 * patch * patch * dim * (tokens - 1.0);
    let block = 2.0 * (4.0 * dim * dim + 2.0 * dim * mlp) * tokens + 4.0 * tokens * tokens * dim;
    let last = 4.0 * dim * dim * tokens + 4.0 * tokens * dim + 4.0 * dim * dim + 4.0 * dim * mlp;
    let whole = embedding + (depth - 1.0) * block + last;
    let shared = blocks.map_or(0.0, |blocks| embedding + blocks as f64 * block);
    (11.0 * (embedding + depth * block), shared + 11.0 * (whole - shared))
}

fn ours(theta1: &Path, dtype: &str, alphas: &[f64], folder: &Path, out: &Path) -> Result<Timed> {
    let datasets: Vec<Value> = NAMES.iter().map(|name| json!({"asset": name, "role": "ood"})).collect();
    let spec = json!({
        "experiment": "bench", "name": "sweep", "kind": "evaluate",
        "weights": {"theta0": {"asset": "vit-s14-imgfocus"}, "theta1": {"file": theta1}},
        "evaluation": {"datasets": datasets, "alphas": alphas, "k": K, "image_size": SIZE, "dtype": dtype,
                       "batch_size": BATCH}
    });
    let file = folder.join("sweep.toml");
    fs::write(&file, toml::to_string(&spec)?)?;
    let mut command = Command::new(binary("causeway-trainer"));
    command.arg("evaluate").arg(&file).arg("--data").arg(demo_data()).arg("--data").arg(folder.join("data"));
    let (clock, processors, _) = run(command.arg("--out").arg(out))?;
    let lines = super::journal(out, |line| line["event"] == "dataset" || line["event"] == "point");
    let at = |line: &Value| -> Result<OffsetDateTime> {
        Ok(OffsetDateTime::parse(line["at"].as_str().context("at")?, &Rfc3339)?)
    };
    let (first, last) = (lines.first().context("no lines")?, lines.last().context("no lines")?);
    let sweep = (at(last)? - at(first)?).as_seconds_f64();
    let mut hits = vec![Vec::new(); alphas.len() * NAMES.len() * K.len()];
    let (mut dataset, mut point) = (0, 0);
    for line in &lines {
        if line["event"] == "dataset" {
            (dataset, point) = (NAMES.iter().position(|name| line["asset"] == *name).context("which?")?, 0);
            continue;
        }
        let (alpha, k) = (point / K.len(), line["protocol"]["readout"]["k"].as_u64().context("k")?);
        let k = K.iter().position(|asked| *asked == k).context("another k")?;
        let packed: Hits = serde_json::from_value(line["hits"].clone())?;
        let queries = line["n"].as_u64().context("n")? as usize;
        hits[(alpha * NAMES.len() + dataset) * K.len() + k] =
            (0..queries).map(|query| packed.get(query)).collect();
        point += 1;
    }
    ensure!(hits.iter().all(|hits| !hits.is_empty()), "points are missing");
    Ok(Timed { clock, processors, sweep, hits, leads: Vec::new() })
}

fn theirs(python: &Path, script: &Path, config: &Path) -> Result<Timed> {
    let (clock, processors, answer) = run(Command::new(python).arg(script).arg("sweep").arg(config))?;
    let mut answer: Value = serde_json::from_slice(&answer).context("what sweep.py printed")?;
    let sweep = answer["seconds"].as_f64().context("seconds")?;
    let hits = serde_json::from_value(answer["hits"].take())?;
    let leads = serde_json::from_value(answer["leads"].take())?;
    Ok(Timed { clock, processors, sweep, hits, leads })
}

/// Seconds on the clock, seconds of processors, and what it printed.
fn run(command: &mut Command) -> Result<(f64, f64, Vec<u8>)> {
    let (before, start) = (children_seconds(), Instant::now());
    let output = command.output()?;
    let clock = start.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok((clock, children_seconds() - before, output.stdout))
}

/// Processor time of all children that have ended.
fn children_seconds() -> f64 {
    // SAFETY: a struct of numbers, which the call fills in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    [usage.ru_utime, usage.ru_stime].iter().map(|time| time.tv_sec as f64 + time.tv_usec as f64 / 1e6).sum()
}

/// Subsets of the three datasets in their official formats, as assets; and what the peer needs to find them.
fn write_datasets(data: &Path, to: &Path) -> Result<Vec<Value>> {
    let asset = |name: &str, format: &str, table: &str| -> Result<PathBuf> {
        let folder = to.join(name);
        fs::create_dir_all(&folder)?;
        let text = format!(
            "name = '{name}'\nkind = 'dataset'\nformat = '{format}'\ntitle = '{name}'\nlicence = 'research'\n\
             source = 'DATA'\n{table}\n"
        );
        fs::write(folder.join("asset.toml"), text)?;
        Ok(folder)
    };
    let cifar = asset(
        NAMES[0],
        "cifar10-binary",
        "[dataset.bank]\nparts = ['bank.bin']\n[dataset.query]\nparts = ['query.bin']",
    )?;
    for (from, to) in [("train_5000.bin", "bank.bin"), ("test_1000.bin", "query.bin")] {
        fs::write(cifar.join(to), &fs::read(data.join("cifar10").join(from))?[..SIDE * 3073])?;
    }
    let dtd =
        asset(NAMES[1], "class-folder", "[dataset.bank]\npath = 'bank'\n[dataset.query]\npath = 'query'")?;
    for class in fs::read_dir(data.join("dtd10"))?.collect::<Result<Vec<_>, _>>()? {
        if !class.path().is_dir() {
            continue;
        }
        let mut images =
            fs::read_dir(class.path())?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        images.sort();
        for (at, image) in images.iter().take(2 * SIDE / 10).enumerate() {
            let part = if at < SIDE / 10 { "bank" } else { "query" };
            let folder = dtd.join(part).join(class.file_name());
            fs::create_dir_all(&folder)?;
            fs::copy(image, folder.join(image.file_name().context("a name")?))?;
        }
    }
    let fashion = asset(
        NAMES[2],
        "idx",
        "[dataset]\nclasses = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']\n[dataset.bank]\npath = 'bank.gz'\n\
         labels = 'bank-labels.gz'\n[dataset.query]\npath = 'query.gz'\nlabels = 'query-labels.gz'",
    )?;
    for (from, ending, header, bytes) in [("images-idx3", "", 16, 784), ("labels-idx1", "-labels", 8, 1)] {
        let mut all = Vec::new();
        let file = data.join("fashion_mnist").join(format!("t10k-{from}-ubyte.gz"));
        GzDecoder::new(fs::File::open(file)?).read_to_end(&mut all)?;
        for (part, begin) in [("bank", 0), ("query", SIDE)] {
            let mut packed = GzEncoder::new(
                fs::File::create(fashion.join(format!("{part}{ending}.gz")))?,
                Compression::fast(),
            );
            packed.write_all(&all[..4])?;
            packed.write_all(&(SIDE as u32).to_be_bytes())?;
            packed.write_all(&all[8..header])?;
            packed.write_all(&all[header + begin * bytes..header + (begin + SIDE) * bytes])?;
            packed.finish()?;
        }
    }
    Ok(vec![
        json!({"bank": {"format": "cifar10-binary", "path": cifar.join("bank.bin")},
               "query": {"format": "cifar10-binary", "path": cifar.join("query.bin")}}),
        json!({"bank": {"format": "class-folder", "path": dtd.join("bank")},
               "query": {"format": "class-folder", "path": dtd.join("query")}}),
        json!({"bank": {"format": "idx", "path": fashion.join("bank.gz"), "labels": fashion.join("bank-labels.gz")},
               "query": {"format": "idx", "path": fashion.join("query.gz"), "labels": fashion.join("query-labels.gz")}}),
    ])
}

/// θ0 with noise of a tenth of each tensor's deviation, in every tensor or in the blocks from one on.
fn write_noisy(theta0: &Path, to: &Path, from_block: Option<usize>) -> Result<()> {
    let mut bytes = fs::read(theta0)?;
    let length = u64::from_le_bytes(bytes[..8].try_into()?) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length])?;
    let mut state = 5u64;
    for (name, about) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let block = name.strip_prefix("encoder.layer.").and_then(|rest| rest.split('.').next()?.parse().ok());
        if from_block.is_some_and(|from| block.is_none_or(|block: usize| block < from)) {
            continue;
        }
        ensure!(about["dtype"] == "F32", "{name} is {}", about["dtype"]);
        let [begin, end] =
            [0, 1].map(|at| 8 + length + about["data_offsets"][at].as_u64().unwrap_or(0) as usize);
        let values: Vec<f32> = bytes[begin..end]
            .as_chunks()
            .0
            .iter()
            .map(|bytes: &[u8; 4]| f32::from_le_bytes(*bytes))
            .collect();
        let count = values.len() as f64;
        let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
        let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
        for (value, place) in values.iter().zip(bytes[begin..end].chunks_exact_mut(4)) {
            // Steele, Lea and Flood's SplitMix64; uniform with a deviation of 1.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let uniform = ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
            let noise = 0.1 * variance.sqrt() * 12f64.sqrt() * (uniform - 0.5);
            place.copy_from_slice(&((f64::from(*value) + noise) as f32).to_le_bytes());
        }
    }
    fs::write(to, bytes)?;
    Ok(())
}
