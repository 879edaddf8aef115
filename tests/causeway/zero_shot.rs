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
fn write_clip(path: &Path) -> Result<()> {
    let (mut header, mut values, mut random) = (serde_json::Map::new(), Vec::new(), 1u64);
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

/// Makes the assets `clip-image` and `clip-text` of the file; gives the digest that a spec names.
fn assets(file: &Path, data: &Path) -> Result<String> {
    let converted = Command::new(binary("causeway-trainer"))
        .arg("convert")
        .arg(file)
        .args(["--name", "clip-image", "--out"])
        .arg(data.join("clip-image"))
        .output()?;
    ensure!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
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

fn spec(digest: &str) -> Value {
    json!({
        "experiment": "names", "kind": "evaluate", "weights": {"theta0": {"asset": "clip-image"}},
        "evaluation": {
            "datasets": [{"asset": "digits-200", "role": "ood"}], "alphas": [0], "k": [5], "image_size": 56,
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

#[tokio::test]
async fn a_clip_is_scored_by_the_names_of_the_classes_with_and_without_a_server() -> Result<()> {
    let server = Server::start().await?;
    let (file, data) = (server.folder().join("clip.safetensors"), server.folder().join("data"));
    write_clip(&file)?;
    let digest = assets(&file, &data)?;

    let table = evaluate(server.folder(), "alone", &spec(&digest), &data)?;
    assert!(table.contains("zero-shot"), "{table}");
    let summary: Value = serde_json::from_slice(&fs::read(server.folder().join("alone/summary.json"))?)?;
    let alone = |prefix: &str| {
        let points = summary["points"].as_array().unwrap().iter();
        let mut of = points.filter(|point| point["protocol"].as_str().unwrap().starts_with(prefix));
        let point = of.next().unwrap();
        (point["n"].as_i64().unwrap(), point["correct"].as_i64().unwrap(), point["correct_per_class"].clone())
    };
    let named = alone("zeroshot-clip-text-");
    assert!(named.0 > 0 && named.1 <= named.0, "{named:?}");

    let _trainer = Trainer::start(&server, &[&data])?;
    let id = server.submit(&spec(&digest)).await?;
    server.wait_for_run(&id, &["succeeded"], 120).await?;
    let curves = server.get(&format!("/runs/{id}/curves")).await?;
    for prefix in ["zeroshot-clip-text-", "knn5-"] {
        let found = curves["curves"]
            .as_array()
            .unwrap()
            .iter()
            .find(|curve| curve["protocol"].as_str().unwrap().starts_with(prefix));
        let point = &found.with_context(|| format!("a curve of {prefix} in {curves}"))?["points"][0];
        assert_eq!(point["correct"].as_i64(), Some(alone(prefix).1), "{prefix}: the same with a server");
    }

    // Other weights under the same name are another protocol, and are not passed off as this one.
    let error = evaluate(server.folder(), "other", &spec(&"0".repeat(64)), &data).unwrap_err().to_string();
    assert!(error.contains("evaluation.zero_shot.digest") && error.contains(&digest), "{error}");
    Ok(())
}
