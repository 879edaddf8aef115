//! Every spec file that the project ships can be planned: it breaks no rule, and its method goes with an encoder. The
//! assets are stand-ins of the right kind under the names that the files use: an encoder of twelve narrow blocks, a
//! tiny text tower and a tiny language model, two captions.

use super::Plan;
use crate::models::language::tiny;
use crate::models::vit::{VitConfig, random};
use crate::spec_file;
use crate::weights::{Tensors, safetensors};
use causeway_protocol::{Method, Spec, WeightSource};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn every_spec_file_can_be_planned() {
    let files = spec_files();
    assert!(files.iter().any(|file| file.ends_with("configs/talk/mae-language.toml")), "{files:?}");
    for file in files {
        for variant in 1..=variants(&file) {
            let document = spec_file::read(&file, variant, None).unwrap();
            // Nothing is trained, or θ0 is on a server, where the client puts files too.
            let theta0 = &document["weights"]["theta0"];
            if document["kind"] == "evaluate" || !theta0["blob"].is_null() || !theta0["file"].is_null() {
                continue;
            }
            let spec = spec_file::parse(&file, document).unwrap();
            if spec.command.is_some() {
                continue; // of a command its program knows the work
            }
            let data = stand_ins(&spec);
            let plan = Plan { spec: file.clone(), data: vec![data.path().to_owned()], variant, seed: None };
            let text = plan.text().unwrap_or_else(|error| panic!("{}: {error:#}", file.display()));
            assert!(text.contains("\ntrained: "), "{text}");
        }
    }
}

/// The spec files under `configs/`, manifests of assets aside.
fn spec_files() -> Vec<PathBuf> {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut folders = vec![configs];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            // A search is a document of its own, and the protocol's test.
            if entry_name(&path).starts_with("search-") {
                continue;
            }
            match path.is_dir() {
                true if !path.ends_with("assets") => folders.push(path),
                false if path.extension().is_some_and(|ending| ending == "toml") => files.push(path),
                _ => {}
            }
        }
    }
    files.sort();
    files
}

fn entry_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn variants(file: &Path) -> usize {
    let document: toml::Table = fs::read_to_string(file).unwrap().parse().unwrap();
    let variants = document.get("submit").and_then(|submit| submit.get("variants")?.as_array());
    variants.map_or(1, |variants| variants.len().max(1))
}

/// A data folder with an asset for each that a plan opens.
fn stand_ins(spec: &Spec) -> tempfile::TempDir {
    let data = tempfile::tempdir().unwrap();
    if let WeightSource::Asset(name) = &spec.weights.theta0 {
        let config = VitConfig {
            dim: 128,
            depth: 12,
            heads: 2,
            mlp_dim: 128,
            patch: 14,
            grid: 4,
            ..VitConfig::default()
        };
        write_model(&asset(data.path(), name, "weights", "vit"), &random(&config));
    }
    if let Some(captions) = &spec.captions {
        let folder = asset(data.path(), &captions.asset, "captions", "jsonl");
        let line = |name| json!({"image": name, "caption": format!("Image {name}.")}).to_string();
        fs::write(folder.join("images.jsonl"), format!("{}\n{}\n", line("a.png"), line("b.png"))).unwrap();
        for name in ["a.png", "b.png"] {
            fs::write(folder.join(name), name).unwrap();
        }
        if let Some(name) = &captions.text_encoder {
            let folder = asset(data.path(), name, "text_encoder", "clip-text");
            write_model(&folder, &tiny::weights(7, &tiny::clip_shapes()));
            let config = json!({"hidden_act": "gelu", "num_attention_heads": 2});
            fs::write(folder.join("config.json"), config.to_string()).unwrap();
            tiny::write_clip_tokenizer(&folder);
        }
    }
    if let Some(Method::CrossModal(own)) = &spec.method {
        let model = tiny::folder(&tiny::llama_config(), &tiny::weights(9, &tiny::llama_shapes(true)));
        let folder = asset(data.path(), &own.language_model, "language_model", "llama");
        for entry in fs::read_dir(model.path()).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    data
}

fn asset(data: &Path, name: &str, kind: &str, format: &str) -> PathBuf {
    let folder = data.join(name);
    fs::create_dir_all(&folder).unwrap();
    let manifest = format!(
        "name = '{name}'\nkind = '{kind}'\nformat = '{format}'\ntitle = '{name}'\nlicence = 'none'\nsource = 'a test'\n"
    );
    fs::write(folder.join("asset.toml"), manifest).unwrap();
    folder
}

fn write_model(folder: &Path, tensors: &Tensors) {
    safetensors::write(&folder.join("model.safetensors"), tensors, &BTreeMap::new()).unwrap();
}
