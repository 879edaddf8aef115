//! A CLIP from its published form to its accuracies: `convert` takes the image tower, the text tower is read from the
//! same file with CLIP's own vocabulary, and an evaluation scores both by neighbours and by the names of the classes.
//! The weights are random; what they are worth is the goldens' business, that all of it fits together is this test's.

use anyhow::{Context, Result, ensure};
use causeway_tests::{Server, Trainer, binary, demo_data, repository};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::{fmt::Write, fs, path::Path, process::Command};

/// Width of both towers: one head, as wide as CLIP's are.
const DIM: usize = 64;
/// Width of the space they share.
const SHARED: usize = 32;
/// Tokens of CLIP's vocabulary.
const TOKENS: usize = 49_408;

/// The tensors of a CLIP with one block in each tower, under Hugging Face's names.
fn shapes() -> BTreeMap<String, Vec<usize>> {
    let mut shapes: BTreeMap<String, Vec<usize>> = [
        ("logit_scale", vec![]),
        ("text_projection.weight", vec![SHARED, DIM]),
        ("visual_projection.weight", vec![SHARED, DIM]),
        ("text_model.embeddings.token_embedding.weight", vec![TOKENS, DIM]),
        ("text_model.embeddings.position_embedding.weight", vec![77, DIM]),
        ("vision_model.embeddings.class_embedding", vec![DIM]),
        ("vision_model.embeddings.patch_embedding.weight", vec![DIM, 3, 14, 14]),
        ("vision_model.embeddings.position_embedding.weight", vec![1 + 4 * 4, DIM]),
    ]
    .into_iter()
    .map(|(name, shape)| (name.to_owned(), shape))
    .collect();
    let mut linear = |name: String, rows: usize, columns: Option<usize>| {
        shapes.insert(format!("{name}.bias"), vec![rows]);
        shapes.insert(format!("{name}.weight"), [rows].into_iter().chain(columns).collect());
    };
    for (tower, norms) in
        [("text_model", &["final_layer_norm"][..]), ("vision_model", &["pre_layrnorm", "post_layernorm"])]
    {
        for norm in norms {
            linear(format!("{tower}.{norm}"), DIM, None);
        }
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            linear(format!("{tower}.encoder.layers.0.self_attn.{part}"), DIM, Some(DIM));
        }
        linear(format!("{tower}.encoder.layers.0.layer_norm1"), DIM, None);
        linear(format!("{tower}.encoder.layers.0.layer_norm2"), DIM, None);
        linear(format!("{tower}.encoder.layers.0.mlp.fc1"), 2 * DIM, Some(DIM));
        linear(format!("{tower}.encoder.layers.0.mlp.fc2"), DIM, Some(2 * DIM));
    }
    shapes
}

/// Writes the file as the safetensors format has it: the length of a JSON header, the header, the values.
fn write_clip(path: &Path, seed: u64) -> Result<()> {
    let (mut header, mut values, mut random) = (serde_json::Map::new(), Vec::new(), seed);
    for (name, shape) in shapes() {
        let begin = values.len();
        // LayerNorms scale by about 1.
        let around = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        for _ in 0..shape.iter().product() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = around + 0.4 * ((random >> 40) as f32 / (1u64 << 24) as f32 - 0.5);
            values.extend_from_slice(&value.to_le_bytes());
        }
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, values.len()]});
        header.insert(name, entry);
    }
    let header = serde_json::to_vec(&header)?;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &values].concat();
    fs::write(path, bytes)?;
    let config = json!({"model_type": "clip",
                        "text_config": {"hidden_act": "quick_gelu", "num_attention_heads": 1},
                        "vision_config": {"hidden_size": DIM, "patch_size": 14, "hidden_act": "quick_gelu",
                                          "num_attention_heads": 1}});
    fs::write(path.with_file_name("config.json"), config.to_string())?;
    Ok(())
}

/// Makes an asset of the image tower of a file.
fn convert(file: &Path, data: &Path, name: &str) -> Result<()> {
    let converted = Command::new(binary("causeway-trainer"))
        .arg("convert")
        .arg(file)
        .args(["--name", name, "--out"])
        .arg(data.join(name))
        .output()?;
    ensure!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
    Ok(())
}

/// Makes the asset `clip-text` of a file; gives the digest that a spec names.
fn text_tower(file: &Path, data: &Path) -> Result<String> {
    let text = data.join("clip-text");
    fs::create_dir_all(&text)?;
    let manifest = "name = 'clip-text'\nkind = 'text_encoder'\nformat = 'clip-text'\n\
                    title = 'random'\nlicence = 'none'\nsource = 'a test'\n";
    fs::write(text.join("asset.toml"), manifest)?;
    fs::copy(file, text.join("model.safetensors"))?;
    fs::copy(file.with_file_name("config.json"), text.join("config.json"))?;
    let vocabulary = "bpe_simple_vocab_16e6.txt.gz";
    fs::copy(repository().join(".deps/vocabularies/clip").join(vocabulary), text.join(vocabulary))
        .context("CLIP's vocabulary, which `make test` fetches")?;
    let digest = Sha256::digest(fs::read(file)?);
    Ok(digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

fn spec(digest: &str, data: &Path) -> Value {
    json!({
        "experiment": "names", "kind": "evaluate",
        "weights": {"theta0": {"asset": "clip-image"},
                    "theta1": {"file": data.join("clip-tuned/model.safetensors")}},
        "evaluation": {
            "datasets": [{"asset": "digits-200", "role": "ood"}], "alphas": [0, 0.5, 1], "k": [5],
            "image_size": 56,
            "zero_shot": {"text_encoder": "clip-text", "digest": digest,
                          "templates": ["a photo of the number {}.", "the digit {}"]},
        }
    })
}

/// `causeway-trainer evaluate`; gives what it printed, or its error.
fn evaluate(folder: &Path, name: &str, spec: &Value, data: &Path) -> Result<String> {
    let file = folder.join(format!("{name}.toml"));
    fs::write(&file, toml::to_string(spec)?)?;
    let output = Command::new(binary("causeway-trainer"))
        .arg("evaluate")
        .arg(&file)
        .args(["--threads", "1", "--out"])
        .arg(folder.join(name))
        .arg("--data")
        .arg(data)
        .arg("--data")
        .arg(demo_data())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// (protocol, α, right answers) of points.
fn scores<'a>(points: impl Iterator<Item = (&'a Value, &'a Value)>) -> Vec<(String, String, i64)> {
    let mut scores: Vec<_> = points
        .map(|(protocol, point)| {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (text(protocol), text(&point["alpha"]), point["correct"].as_i64().unwrap())
        })
        .collect();
    scores.sort();
    scores
}

#[tokio::test]
async fn a_clip_is_scored_by_the_names_of_the_classes_with_and_without_a_server() -> Result<()> {
    let server = Server::start().await?;
    let data = server.folder().join("data");
    for (seed, name) in [(1, "clip-image"), (2, "clip-tuned")] {
        let folder = server.folder().join(name);
        fs::create_dir_all(&folder)?;
        write_clip(&folder.join("clip.safetensors"), seed)?;
        convert(&folder.join("clip.safetensors"), &data, name)?;
    }
    let digest = text_tower(&server.folder().join("clip-image/clip.safetensors"), &data)?;

    let table = evaluate(server.folder(), "alone", &spec(&digest, &data), &data)?;
    assert!(table.contains("zero-shot"), "{table}");
    let summary: Value = serde_json::from_slice(&fs::read(server.folder().join("alone/summary.json"))?)?;
    let points = summary["points"].as_array().context("points")?;
    let alone = scores(points.iter().map(|point| (&point["protocol"], point)));
    let named = alone.iter().filter(|(protocol, ..)| protocol.starts_with("zeroshot-clip-text-")).count();
    assert_eq!((named, alone.len()), (3, 6), "three α by neighbours and by names: {alone:?}");

    let _trainer = Trainer::start(&server, &[&data])?;
    let submitted = Command::new(binary("causeway"))
        .args(["submit", "--wait", "--server", &server.url(), "--token-file"])
        .arg(server.state().join("user.token"))
        .arg(server.folder().join("alone.toml"))
        .output()?;
    assert!(submitted.status.success(), "{}", String::from_utf8_lossy(&submitted.stderr));
    let runs = server.get("/runs?method=evaluate").await?;
    let id = runs["items"][0]["id"].as_str().context("the run")?;
    let curves = server.get(&format!("/runs/{id}/curves")).await?;
    let curves = curves["curves"].as_array().context("curves")?.iter();
    let served = scores(curves.flat_map(|curve| {
        let points = curve["points"].as_array().unwrap().iter();
        points.map(|point| (&curve["protocol"], point))
    }));
    assert_eq!(served, alone, "the same with a server");

    // Other weights under the same name are another protocol, and are not passed off as this one.
    let other = spec(&"0".repeat(64), &data);
    let error = evaluate(server.folder(), "other", &other, &data).unwrap_err().to_string();
    assert!(error.contains("evaluation.zero_shot.digest") && error.contains(&digest), "{error}");
    Ok(())
}
