//! The benchmark of k-NN, `BENCH=knn make bench`: 10,000 queries in a bank of 50,000 rows of 384, top 20, as CIFAR-10
//! makes it with a ViT-S. With `PYTHON_WITH_FAISS` beside faiss's flat index, in turns, and beside libtorch's products
//! alone. One JSON line a figure, as `causeway.rs`; it is a bench of the trainer's package, whose library it times.

use anyhow::{Context, Result, ensure};
use causeway_trainer::evaluate::knn;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

const BANK: i64 = 50_000;
const QUERIES: i64 = 10_000;
const DIM: i64 = 384;
const K: usize = 20;
/// Classes around whose centres the rows lie.
const CENTRES: i64 = 100;
/// Times that each is measured.
const ROUNDS: usize = 5;
/// Side of the square product that the machine's rate is measured with.
const SIDE: i64 = 2048;

fn main() -> Result<()> {
    if std::env::var("BENCH").is_ok_and(|parts| parts.split(',').all(|part| part != "knn")) {
        return Ok(());
    }
    let threads = std::thread::available_parallelism()?.get();
    tch::set_num_threads(threads as i32);
    tch::manual_seed(7);
    let centres = Tensor::randn([CENTRES, DIM], (Kind::Float, Device::Cpu));
    let of = Tensor::randint(CENTRES, [BANK + QUERIES], (Kind::Int64, Device::Cpu));
    let noise = Tensor::randn([BANK + QUERIES, DIM], (Kind::Float, Device::Cpu));
    let rows = centres.index_select(0, &of) + noise * 2.0;
    let (bank, queries) = (rows.narrow(0, 0, BANK), rows.narrow(0, BANK, QUERIES));

    let folder = tempfile::tempdir()?;
    let mut faiss = match std::env::var_os("PYTHON_WITH_FAISS") {
        Some(python) => Some(Faiss::start(&python, &rows, folder.path(), threads)?),
        None => {
            eprintln!("PYTHON_WITH_FAISS names no Python that has faiss-cpu: nothing is compared with it");
            None
        }
    };
    let (mut ours, mut theirs, mut products, mut square) = (vec![], vec![], vec![], vec![]);
    let mut found = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        found = knn::neighbours(&bank, Some(&queries), K)?;
        ours.push(start.elapsed().as_secs_f64());
        if let Some(faiss) = &mut faiss {
            theirs.push(faiss.search()?);
        }
        let start = Instant::now();
        let out = Tensor::zeros([1000, BANK], (Kind::Float, Device::Cpu));
        for begin in (0..QUERIES).step_by(1000) {
            let _ = queries.narrow(0, begin, 1000).f_matmul_out(&out, &bank.tr())?;
        }
        products.push(start.elapsed().as_secs_f64());
        let side = Tensor::randn([SIDE, SIDE], (Kind::Float, Device::Cpu));
        let start = Instant::now();
        for _ in 0..4 {
            let _ = side.matmul(&side);
        }
        square.push(start.elapsed().as_secs_f64() / 4.0);
    }
    let best = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    let what = "10,000 queries in 50,000 rows of 384, top 20, exact, normalising included: best of 5";
    report("knn_seconds", best(&ours), "s", what);
    report("knn_products_seconds", best(&products), "s", "libtorch's f32 products of the same size alone");
    let rate = |count: i64, seconds: f64| 2.0 * count as f64 / seconds / 1e9;
    let gemm = rate(SIDE * SIDE * SIDE, best(&square));
    report("knn_gemm", gemm, "GFLOP/s", "this machine in a square f32 product of 2,048");
    let share = rate(BANK * QUERIES * DIM, best(&ours)) / gemm;
    report("knn_gemm_share", share, "x", "of that rate; above 1 where the rough products are bf16's");
    if let Some(faiss) = faiss {
        let theirs = best(&theirs);
        report("knn_faiss_seconds", theirs, "s", "faiss-cpu's IndexFlatIP.search of the same rows, in turns");
        report("knn_faiss_ratio", theirs / best(&ours), "x", "faiss's search against all of ours");
        let places = faiss.places()?;
        let same = found.iter().zip(&places).filter(|(found, places)| {
            found.iter().map(|neighbour| neighbour.place as u64).eq(places.iter().copied())
        });
        let same = same.count() as f64 / found.len() as f64;
        report("knn_faiss_same", same, "", "share of queries whose 20 places are faiss's, in its order");
    }
    Ok(())
}

fn report(name: &str, value: f64, unit: &str, what: &str) {
    println!(
        "{}",
        json!({"bench": name, "value": (value * 1000.0).round() / 1000.0, "unit": unit, "what": what})
    );
}

/// faiss in a process of its own, which searches when it is told.
struct Faiss {
    child: Child,
    /// Closed at the end.
    ask: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Faiss {
    fn start(
        python: &std::ffi::OsStr,
        rows: &Tensor,
        folder: &std::path::Path,
        threads: usize,
    ) -> Result<Faiss> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/benches/knn.py");
        let file = folder.join("rows.f32");
        let values = Vec::<f32>::try_from(rows.contiguous().view(-1))?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(&file, bytes)?;
        let numbers = [DIM, BANK, QUERIES, K as i64, threads as i64].map(|number| number.to_string());
        let mut command = Command::new(python);
        command.arg(script).arg(&file).args(numbers).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting faiss")?;
        let (ask, answers) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        let mut faiss = Faiss { child, ask: Some(ask), answers: BufReader::new(answers) };
        eprintln!("beside faiss {}", faiss.line()?["faiss"]);
        Ok(faiss)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line)? > 0, "faiss has ended without an answer");
        Ok(serde_json::from_str(&line)?)
    }

    /// Seconds of one search, the rows normalised and added before.
    fn search(&mut self) -> Result<f64> {
        writeln!(self.ask.as_mut().context("faiss has been asked for the last time")?, "go")?;
        self.line()?["search"].as_f64().context("its seconds")
    }

    /// What it found.
    fn places(mut self) -> Result<Vec<Vec<u64>>> {
        self.ask = None;
        let places = self.line()?;
        self.child.wait()?;
        Ok(serde_json::from_value(places)?)
    }
}
