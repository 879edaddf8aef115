//! Spectra of whole encoders beside weightwatcher, in one run: random weights of a ViT-B/16's sizes and the demo's ViT-S.
//! Ours is the whole command, start and reading of the file included; theirs is `analyze` alone, on weights in memory, and
//! beside it the whole command.

use super::{binary, report};
use anyhow::{Context, Result, ensure};
use causeway_tests::{demo_data, repository};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    process::Command,
    time::Instant,
};

/// Times that each is repeated, in turns.
const ROUNDS: usize = 3;

/// Measures both files; weightwatcher only where `PYTHON_WITH_WEIGHTWATCHER` names a Python that has it.
pub fn spectrum() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let base = folder.path().join("vit-b16.safetensors");
    write_vit_b(&base)?;
    let small = demo_data().join("vit-s14-imgfocus/model.safetensors");
    one("vit_s", &small, folder.path(), ROUNDS)?;
    // weightwatcher takes minutes for this one.
    one("vit_b", &base, folder.path(), 1)
}

fn one(name: &str, weights: &Path, folder: &Path, rounds: usize) -> Result<()> {
    let python = std::env::var_os("PYTHON_WITH_WEIGHTWATCHER");
    let (mut ours, mut theirs, mut theirs_whole) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
    let (mut own, mut answer) = (Value::Null, Value::Null);
    for _ in 0..rounds {
        let json = folder.join("report.json");
        let start = Instant::now();
        let output = Command::new(binary("causeway-trainer"))
            .arg("spectrum")
            .arg(weights)
            .args(["--split-qkv", "--json"])
            .arg(&json)
            .output()?;
        ours = ours.min(start.elapsed().as_secs_f64());
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        own = serde_json::from_slice(&std::fs::read(&json)?)?;
        if let Some(python) = &python {
            let script = repository().join("tests/benches/spectrum.py");
            let start = Instant::now();
            let output = Command::new(python).arg(script).arg(weights).output()?;
            theirs_whole = theirs_whole.min(start.elapsed().as_secs_f64());
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            answer = serde_json::from_slice(&output.stdout).context("what spectrum.py printed")?;
            theirs = theirs.min(answer["seconds"].as_f64().context("seconds")?);
        }
    }
    let layers = own["layers"].as_array().context("layers")?;
    let what = format!("{} layers, query, key and value apart; the whole command", layers.len());
    report(&format!("spectrum_{name}"), ours, "s", &what);
    if python.is_none() {
        eprintln!("PYTHON_WITH_WEIGHTWATCHER names no Python that has it: nothing is compared with it");
        return Ok(());
    }
    let version = answer["version"].as_str().unwrap_or("?");
    report(&format!("spectrum_{name}_weightwatcher"), theirs, "s", &format!("{version}'s analyze alone"));
    report(
        &format!("spectrum_{name}_ratio"),
        theirs / ours,
        "x",
        "weightwatcher's time over ours, in one run: its analyze alone, our whole command",
    );
    report(
        &format!("spectrum_{name}_ratio_whole"),
        theirs_whole / ours,
        "x",
        "the same, its whole command too: starting Python, reading the file",
    );
    // Files differ in names and order; sorted, the exponents have to be the same ones.
    let sorted = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values
    };
    let exponents = layers.iter().filter_map(|layer| layer["values"][0]["tail"]["ww_alpha"].as_f64());
    let expected = answer["alphas"].as_array().into_iter().flatten().filter_map(Value::as_f64);
    let (exponents, expected) = (sorted(exponents.collect()), sorted(expected.collect()));
    ensure!(exponents.len() == expected.len(), "{} layers against {}", exponents.len(), expected.len());
    let apart = exponents.iter().zip(&expected).map(|(one, other)| (one - other).abs() / other);
    let what = "the largest relative difference between any exponent and weightwatcher's";
    println!(
        "{}",
        json!({"bench": format!("spectrum_{name}_difference"), "value": apart.fold(0.0, f64::max), "unit": "", "what": what})
    );
    Ok(())
}

/// A ViT-B/16 of uniform random weights, under DINO's names.
fn write_vit_b(path: &Path) -> Result<()> {
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("cls_token".into(), vec![1, 1, 768]),
        ("pos_embed".into(), vec![1, 197, 768]),
        ("patch_embed.proj.weight".into(), vec![768, 3, 16, 16]),
        ("patch_embed.proj.bias".into(), vec![768]),
        ("norm.weight".into(), vec![768]),
        ("norm.bias".into(), vec![768]),
    ];
    for block in 0..12 {
        for (layer, rows, columns) in
            [("attn.qkv", 2304, 768), ("attn.proj", 768, 768), ("mlp.fc1", 3072, 768), ("mlp.fc2", 768, 3072)]
        {
            tensors.push((format!("blocks.{block}.{layer}.weight"), vec![rows, columns]));
            tensors.push((format!("blocks.{block}.{layer}.bias"), vec![rows]));
        }
        for norm in ["norm1", "norm2"] {
            tensors.push((format!("blocks.{block}.{norm}.weight"), vec![768]));
            tensors.push((format!("blocks.{block}.{norm}.bias"), vec![768]));
        }
    }
    let (mut header, mut begin) = (serde_json::Map::new(), 0);
    for (name, shape) in &tensors {
        let end = begin + 4 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}));
        begin = end;
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut state = 0u64;
    for _ in 0..begin / 4 {
        // SplitMix64; uniform with the deviation 0.02.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32;
        file.write_all(&(0.0693 * (share - 0.5)).to_le_bytes())?;
    }
    file.flush()?;
    Ok(())
}
