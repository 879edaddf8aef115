//! `plan`: what a spec would train, before anything is trained. Parameters by module, steps, an estimate of memory and
//! work, and every default spelled out.

use crate::attempt::material;
use crate::data::asset::{AssetKind, Library};
use crate::data::captions::Captions;
use crate::evaluate::readout::Readouts;
use crate::methods::{self, Widths};
use crate::spec_file;
use crate::weights::Backbone;
use crate::weights::checkpoint::Recipe;
use anyhow::Result;
use causeway_protocol::{Dtype, Evaluation, Spec, WeightSource};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A spec to look at.
pub struct Plan {
    /// The spec's file.
    pub spec: PathBuf,
    /// Where assets are.
    pub data: Vec<PathBuf>,
    /// Which of the variants that submitting the spec would make, from 1.
    pub variant: usize,
    /// Instead of the spec's seed.
    pub seed: Option<u64>,
}

/// Floating point operations and bytes of one training step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Cost {
    /// Operations, a multiplication and an addition being two.
    pub operations: f64,
    /// Weights, gradients, moments and activations.
    pub bytes: f64,
}

impl Plan {
    /// The plan as text.
    ///
    /// # Errors
    /// A spec that breaks a rule, or assets that are missing or do not fit.
    pub fn text(&self) -> Result<String> {
        let document = spec_file::read(&self.spec, self.variant, self.seed)?;
        let file = theta0_file(&document, &self.spec);
        let spec = spec_file::parse(&self.spec, with_blob(document, file.is_some()))?;
        let recipe = Recipe::of(&spec)?;
        let library = Library::find(&self.data);
        let backbone = match (&spec.weights.theta0, &file) {
            (_, Some(file)) => Backbone::read(file)?,
            (WeightSource::Asset(name), None) => {
                let asset = library.get(name, AssetKind::Weights)?;
                Backbone::read(&asset.weights_file())?
            }
            (WeightSource::Fresh(architecture), None) => Backbone::fresh(architecture, spec.seed)?,
            (source, None) => anyhow::bail!("{source:?} is on the server; `plan` reads assets and files"),
        };
        let captions = library.get(&recipe.captions.asset, AssetKind::Captions)?;
        let pairs = Captions::list(captions)?.images.len();
        let widths = material::widths(&spec, &library)?;
        Readouts::check(&spec.evaluation, &library, &backbone.config)?;
        describe(&spec, &recipe, &backbone, widths, pairs)
    }
}

fn describe(
    spec: &Spec,
    recipe: &Recipe,
    backbone: &Backbone,
    widths: Widths,
    pairs: usize,
) -> Result<String> {
    let (training, config) = (&recipe.training, &backbone.config);
    let per_step = u64::from(training.batch_size) * u64::from(training.accumulate);
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}: {} of θ0 {:.12}, a ViT of {} blocks, width {}, {} heads, {} px patches",
        spec.name,
        spec.trained(),
        backbone.digest,
        config.depth,
        config.dim,
        config.heads,
        config.patch
    );
    let modules = modules(recipe, backbone, widths)?;
    let trained: u64 = modules.values().sum();
    let all = backbone.tensors.values();
    let _ =
        writeln!(text, "\ntrained: {} values beside or among the backbone's {}", count(trained), count(all));
    for (name, values) in &modules {
        let _ = writeln!(text, "  {name:<40} {:>14}", count(*values));
    }
    let epochs = (training.steps * per_step) as f64 / pairs.max(1) as f64;
    let _ = writeln!(
        text,
        "\n{} steps of {per_step} of {} images at {} px: {epochs:.1} epochs",
        count(training.steps),
        count(pairs as u64),
        training.image_size
    );
    let cost = cost(recipe, backbone, trained);
    let _ = writeln!(
        text,
        "a step: about {:.2} TFLOP; all of them {:.1}; the largest pass needs about {:.1} GB (an estimate: \
         encoder only, without decoder and language model)",
        cost.operations / 1e12,
        cost.operations * training.steps as f64 / 1e12,
        cost.bytes / 1e9
    );
    text += &evaluated(&spec.evaluation);
    text += "\nthe spec with every default:\n";
    let document = serde_json::to_value(spec).unwrap_or_default();
    leaves(&document, "", &mut |path, value| {
        let _ = writeln!(text, "  {path} = {value}");
    });
    Ok(text)
}

/// What is measured, in a line.
fn evaluated(evaluation: &Evaluation) -> String {
    let datasets = match evaluation.datasets.len() {
        1 => "1 dataset".to_owned(),
        several => format!("{several} datasets"),
    };
    let refined = match evaluation.refine {
        0 => String::new(),
        rounds => format!(" and up to {} more around the best", 2 * rounds),
    };
    let readouts: Vec<String> =
        evaluation.protocols().iter().map(|protocol| protocol.readout.label()).collect();
    let arithmetic = match evaluation.dtype {
        Dtype::F32 => "",
        Dtype::Bf16 => ", in bf16",
        Dtype::F16 => ", in f16, which is slow on a CPU",
    };
    format!(
        "evaluation: {datasets} at {} α{refined} by {}{arithmetic}\n",
        evaluation.alphas.len(),
        readouts.join(", ")
    )
}

/// Values that are trained in the encoder, by the part of the name that blocks share.
fn modules(recipe: &Recipe, backbone: &Backbone, widths: Widths) -> Result<BTreeMap<String, u64>> {
    let mut modules = BTreeMap::new();
    for (name, values) in methods::trainable(recipe, backbone, widths)? {
        let parts: Vec<&str> =
            name.split('.').map(|part| if part.parse::<u32>().is_ok() { "*" } else { part }).collect();
        *modules.entry(parts.join(".")).or_default() += values;
    }
    Ok(modules)
}

/// What a step costs. The forward pass of a token through a block is 2 (4 dim² + 2 dim · mlp) operations and its share
/// of attention 4 · tokens · dim; backwards through the activations once more, and once more for weights that are
/// trained. A block keeps about 16 values of each token's width for the way back, attention's own excepted.
fn cost(recipe: &Recipe, backbone: &Backbone, trained: u64) -> Cost {
    let (training, config) = (&recipe.training, &backbone.config);
    let side = f64::from(training.image_size) / config.patch as f64;
    let visible = match &recipe.objective.reconstruction {
        Some(reconstruction) if recipe.objective.contrastive.is_none() => 1.0 - reconstruction.mask_ratio,
        _ => 1.0,
    };
    let (tokens, dim) = (1.0 + side * side * visible, config.dim as f64);
    let (depth, mlp) = (config.depth as f64, config.mlp_dim as f64);
    let batch = f64::from(training.batch_size);
    let block = 2.0 * (4.0 * dim * dim + 2.0 * dim * mlp) * tokens + 4.0 * tokens * tokens * dim;
    let forward = block * depth * batch * f64::from(training.accumulate);
    let share = trained as f64 / backbone.tensors.values().max(1) as f64;
    let width = if training.dtype == Dtype::F32 { 4.0 } else { 2.0 };
    let state = 4.0 * backbone.tensors.values() as f64 + 12.0 * trained as f64;
    Cost {
        operations: forward * (2.0 + share.min(1.0)),
        bytes: state + width * batch * depth * tokens * (12.0 * dim + 2.0 * mlp),
    }
}

/// Digits in groups of three.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn theta0_file(document: &Value, spec: &Path) -> Option<PathBuf> {
    let file = document["weights"]["theta0"]["file"].as_str()?;
    Some(spec.parent().unwrap_or(Path::new("")).join(file))
}

/// A file on this machine takes the place of a blob, so that the rules of a spec hold.
fn with_blob(mut document: Value, is_file: bool) -> Value {
    if is_file {
        document["weights"]["theta0"] = serde_json::json!({"blob": "0".repeat(64)});
    }
    document
}

/// Visits the leaves of a document, each with its dotted path; lists are leaves.
fn leaves(value: &Value, path: &str, visit: &mut dyn FnMut(&str, &Value)) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(value, &path, visit);
            }
        }
        leaf => visit(path, leaf),
    }
}

#[cfg(test)]
mod configs;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::vit::{VitConfig, tiny};
    use serde_json::json;

    fn planned(method: Value) -> String {
        let spec = causeway_protocol::parse_spec(json!({
            "experiment": "e", "kind": "finetune", "weights": {"theta0": {"asset": "tiny"}}, "method": method,
            "captions": {"asset": "pairs", "text_encoder": "minilm"}, "objective": {"contrastive": {}},
            "training": {"steps": 10, "batch_size": 4, "learning_rate": 1e-3, "image_size": 28},
            "evaluation": {"datasets": [{"asset": "d", "role": "ood"}], "image_size": 28}
        }))
        .unwrap();
        describe(&spec, &Recipe::of(&spec).unwrap(), &tiny(true), Widths::default(), 20).unwrap()
    }

    #[test]
    fn a_plan_tells_modules_steps_and_every_default() {
        let text = planned(json!({"kind": "adapter", "rank": 4}));
        for part in [
            "trained: 1,288 values",
            "blocks.*.adapter.down.weight                        512",
            "10 steps of 4 of 20 images at 28 px: 2.0 epochs",
            "training.divergence.lower = 0.5",
            "method.learned_scale = true",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("attn.qkv"), "{text}");
        assert!(planned(json!({"kind": "full"})).contains("blocks.*.attn.qkv.weight"));
    }

    #[test]
    fn a_plan_tells_what_is_measured_and_in_which_arithmetic() {
        let told = |document: Value| {
            let mut evaluation = json!({"datasets": [{"asset": "d", "role": "ood"}], "k": [5]});
            evaluation.as_object_mut().unwrap().extend(document.as_object().unwrap().clone());
            evaluated(&serde_json::from_value(evaluation).unwrap())
        };
        assert_eq!(told(json!({})), "evaluation: 1 dataset at 11 α by k 5\n");
        let text = told(json!({"refine": 3, "dtype": "f16"}));
        assert_eq!(
            text,
            "evaluation: 1 dataset at 11 α and up to 6 more around the best by k 5, in f16, which is slow on a CPU\n"
        );
    }

    #[test]
    fn the_work_of_a_vit_b_16_is_the_published_one() {
        // 17.56 GMAC an image (methods.md §1), patch embedding included, which the estimate leaves out: 0.12.
        let spec = causeway_protocol::parse_spec(json!({
            "experiment": "e", "kind": "finetune", "weights": {"theta0": {"asset": "vit"}}, "method": {"kind": "film"},
            "captions": {"asset": "pairs", "text_encoder": "minilm"}, "objective": {"contrastive": {}},
            "training": {"steps": 1, "batch_size": 2, "learning_rate": 1e-3},
            "evaluation": {"datasets": [{"asset": "d", "role": "ood"}]}
        }))
        .unwrap();
        let backbone = Backbone { config: VitConfig::default(), ..tiny(false) };
        let cost = cost(&Recipe::of(&spec).unwrap(), &backbone, 0);
        assert!((cost.operations / 2.0 / 2.0 / 2e9 - 17.44).abs() < 0.1, "{}", cost.operations);
    }
}
