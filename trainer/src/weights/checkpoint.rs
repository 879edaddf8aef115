//! The checkpoint: what training changed and nothing else, in one safetensors file. `theta1/…` are the tensors that
//! differ from the backbone, `theta0/…` the values that added tensors have at α = 0. The rest of θ1 is the backbone,
//! named by its digest. An adapter's checkpoint is a few megabytes, whatever the backbone.

use super::{Backbone, Tensors, bitwise_equal, safetensors};
use crate::methods::Widths;
use crate::models::vit::VitConfig;
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::{BlobRef, Captions, Kind, Method, Objective, Retention, Spec, Training};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Names the format of a file in its metadata.
const FORMAT: &str = "causeway checkpoint 1";
/// What begins the names of θ1's tensors.
const THETA1: &str = "theta1/";
/// What begins the names of θ0's added tensors.
const THETA0: &str = "theta0/";

/// Everything besides backbone and data that decides what training ends with. No name, note or time, so that equal
/// training makes equal bytes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Recipe {
    /// Seeds order, initial values and augmentation.
    pub seed: u64,
    /// What is trained.
    pub method: Method,
    /// The position table stays as it is: MAE's is computed, not learned.
    #[serde(default)]
    pub fixed_positions: bool,
    /// The pairs.
    pub captions: Captions,
    /// The loss.
    pub objective: Objective,
    /// What holds the encoder near θ0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// The loop.
    pub training: Training,
}

impl Recipe {
    /// The recipe in a spec.
    ///
    /// # Errors
    /// A spec that trains nothing.
    pub fn of(spec: &Spec) -> Result<Recipe> {
        let method = match spec.kind {
            Kind::Pretrain => Some(Method::Full {}),
            Kind::Finetune | Kind::Evaluate | Kind::Command => spec.method.clone(),
        };
        let (Some(method), Some(captions), Some(objective), Some(training)) =
            (method, &spec.captions, &spec.objective, &spec.training)
        else {
            bail!("a spec of kind {} has nothing to train", spec.kind.as_str());
        };
        Ok(Recipe {
            seed: spec.seed,
            fixed_positions: spec.kind == Kind::Pretrain,
            method,
            captions: captions.clone(),
            objective: objective.clone(),
            retention: spec.retention.clone(),
            training: training.clone(),
        })
    }

    /// Whether a tensor of the encoder is left alone, whatever the method says.
    pub fn fixes(&self, name: &str) -> bool {
        self.fixed_positions && name == "pos_embed"
    }
}

/// A checkpoint as read.
#[derive(Debug)]
pub struct Checkpoint {
    /// What it was made with.
    pub recipe: Recipe,
    /// Steps done.
    pub step: u64,
    /// Widths of what the method takes from other models.
    pub widths: Widths,
    /// The tensors of θ1 that differ from the backbone's, added ones included.
    pub theta1: Tensors,
    /// Values of the added tensors at α = 0.
    pub theta0: Tensors,
    /// sha256 of the file: the checkpoint's digest.
    pub digest: String,
}

/// Writes a checkpoint. `theta1` may hold all tensors: those equal to the backbone's are left out.
///
/// # Errors
/// A failure of the file system.
pub fn write(
    path: &Path,
    backbone: &Backbone,
    recipe: &Recipe,
    step: u64,
    ends: (&Tensors, &Tensors),
    widths: Widths,
) -> Result<BlobRef> {
    write_with(path, backbone, recipe, step, ends, widths, [])
}

/// The same with more metadata.
///
/// # Errors
/// A failure of the file system.
pub fn write_with(
    path: &Path,
    backbone: &Backbone,
    recipe: &Recipe,
    step: u64,
    (theta1, added_theta0): (&Tensors, &Tensors),
    widths: Widths,
    notes: impl IntoIterator<Item = (String, String)>,
) -> Result<BlobRef> {
    let moved = theta1.iter().filter(|(name, tensor)| {
        let before = backbone.tensors.get(name);
        before.is_none_or(|before| !bitwise_equal(before, tensor))
    });
    let moved = moved.map(|(name, tensor)| (format!("{THETA1}{name}"), tensor.shallow_clone()));
    let start = added_theta0.iter().map(|(name, tensor)| (format!("{THETA0}{name}"), tensor.shallow_clone()));
    let mut metadata = BTreeMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("backbone".to_owned(), backbone.digest.clone()),
        ("encoder".to_owned(), serde_json::to_string(&backbone.config)?),
        ("recipe".to_owned(), serde_json::to_string(recipe)?),
        ("step".to_owned(), step.to_string()),
        ("widths".to_owned(), serde_json::to_string(&widths)?),
    ]);
    metadata.extend(notes);
    safetensors::write(path, &moved.chain(start).collect(), &metadata)
}

/// Whether a file's metadata say that it is a checkpoint of ours rather than a full set of weights.
pub fn is_checkpoint(metadata: &BTreeMap<String, String>) -> bool {
    metadata.get("format").is_some_and(|format| format.starts_with("causeway checkpoint"))
}

/// Takes apart what was read from a checkpoint's file.
///
/// # Errors
/// A newer format, another backbone, or tensors that do not belong.
pub fn parse(file: safetensors::Contents, backbone: &Backbone) -> Result<Checkpoint> {
    let field = |name: &str| file.metadata.get(name).with_context(|| format!("its metadata lack {name}"));
    let format = field("format")?;
    ensure!(format == FORMAT, "its format is {format:?}, this trainer reads {FORMAT:?}");
    let made_from = field("backbone")?;
    ensure!(
        *made_from == backbone.digest,
        "it was made from backbone {made_from}, given {}",
        backbone.digest
    );
    let encoder: VitConfig = serde_json::from_str(field("encoder")?).context("its encoder")?;
    ensure!(encoder == backbone.config, "its encoder is {encoder:?}, the backbone {:?}", backbone.config);
    let recipe = serde_json::from_str(field("recipe")?).context("its recipe")?;
    let step = field("step")?.parse().context("its step")?;
    // Older checkpoints take nothing from other models and do not say so.
    let widths = file.metadata.get("widths").map(|widths| serde_json::from_str(widths)).transpose();
    let widths = widths.context("its widths")?.unwrap_or_default();
    let (mut theta0, mut theta1) = (Tensors::new(), Tensors::new());
    for (name, tensor) in file.tensors.iter() {
        if let Some(name) = name.strip_prefix(THETA1) {
            theta1.insert(name, tensor.shallow_clone());
        } else if let Some(name) = name.strip_prefix(THETA0) {
            theta0.insert(name, tensor.shallow_clone());
        } else {
            bail!("{name} is neither in {THETA0} nor in {THETA1}");
        }
    }
    Ok(Checkpoint { recipe, step, widths, theta1, theta0, digest: file.sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::{self, testing};
    use crate::models::vit::tiny;
    use crate::weights::interpolate::Line;
    use causeway_protocol::Alpha;
    use serde_json::json;
    use std::fs;
    use tch::Tensor;

    fn recipe(method: Method) -> Recipe {
        Recipe {
            seed: 4,
            method,
            fixed_positions: false,
            captions: serde_json::from_value(json!({"asset": "pairs", "text_encoder": "minilm"})).unwrap(),
            objective: serde_json::from_value(json!({"contrastive": {}})).unwrap(),
            retention: None,
            training: serde_json::from_value(json!({"steps": 9, "learning_rate": 1e-3})).unwrap(),
        }
    }

    /// An adapter's checkpoint whose Up moved, in `folder`.
    fn adapter_checkpoint(folder: &Path, backbone: &Backbone) -> BlobRef {
        let recipe = recipe(testing::method(json!({"kind": "adapter", "rank": 4, "learned_scale": false})));
        let added = methods::added(&recipe, backbone, Widths::default()).unwrap();
        let mut theta1 = backbone.tensors.share();
        theta1.extend(added.start.iter().map(|(name, start)| {
            let moved = if name.contains(".up.") { start + 0.25 } else { start.shallow_clone() };
            (name.to_owned(), moved)
        }));
        let ends = (&theta1, &added.theta0);
        let path = folder.join("checkpoint.safetensors");
        write(&path, backbone, &recipe, 9, ends, Widths::default()).unwrap()
    }

    #[test]
    fn a_checkpoint_holds_what_moved_and_where_added_tensors_began() {
        let folder = tempfile::tempdir().unwrap();
        let backbone = tiny(true);
        let blob = adapter_checkpoint(folder.path(), &backbone);
        let file = safetensors::read(&folder.path().join(&blob.file)).unwrap();
        assert!(is_checkpoint(&file.metadata));
        let mut names: Vec<&str> = file.tensors.names().filter(|name| name.contains("blocks.0.")).collect();
        names.sort_unstable();
        let leaves = ["down.bias", "down.weight", "up.bias", "up.weight"];
        let expected: Vec<String> = ["theta0", "theta1"]
            .iter()
            .flat_map(|end| leaves.map(|leaf| format!("{end}/blocks.0.adapter.{leaf}")))
            .collect();
        assert_eq!(names, expected, "nothing of the backbone");
        assert_eq!(file.tensors.len(), 16);

        let checkpoint = parse(file, &backbone).unwrap();
        assert_eq!((checkpoint.step, checkpoint.recipe.seed), (9, 4));
        assert_eq!(checkpoint.digest, blob.sha256);
        let line = Line::open(&backbone, &folder.path().join(&blob.file)).unwrap();
        assert_eq!(line.method().as_str(), "adapter");
        assert_eq!(line.moved().len(), 4, "Up's weights and biases of two blocks");
        let up = &line.at(Alpha::ONE)["blocks.1.adapter.up.bias"];
        assert_eq!(*up, Tensor::full([64], 0.25, (tch::Kind::Float, tch::Device::Cpu)));
    }

    #[test]
    fn equal_training_makes_equal_bytes() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let backbone = tiny(true);
        assert_eq!(adapter_checkpoint(one.path(), &backbone), adapter_checkpoint(two.path(), &backbone));
    }

    #[test]
    fn a_checkpoint_of_another_backbone_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let backbone = tiny(true);
        let blob = adapter_checkpoint(folder.path(), &backbone);
        let mut tensors = backbone.tensors.share();
        tensors.insert("norm.bias", &backbone.tensors["norm.bias"] + 1e-3);
        let other = Backbone::new(tensors).unwrap();
        let error = format!("{:#}", Line::open(&other, &folder.path().join(&blob.file)).unwrap_err());
        let expected = format!("it was made from backbone {}, given {}", backbone.digest, other.digest);
        assert!(error.contains(&expected), "{error}");
    }

    #[test]
    fn a_damaged_checkpoint_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let backbone = tiny(true);
        let path = folder.path().join(adapter_checkpoint(folder.path(), &backbone).file);
        let file = safetensors::read(&path).unwrap();
        let mut lacking = file.tensors.share();
        lacking.remove("theta0/blocks.1.adapter.up.weight");
        safetensors::write(&path, &lacking, &file.metadata).unwrap();
        let error = format!("{:#}", Line::open(&backbone, &path).unwrap_err());
        assert!(error.contains("theta0/blocks.1.adapter.up.weight is missing"), "{error}");

        let mut metadata = file.metadata.clone();
        metadata.insert("format".to_owned(), "causeway checkpoint 2".to_owned());
        safetensors::write(&path, &file.tensors, &metadata).unwrap();
        let error = format!("{:#}", Line::open(&backbone, &path).unwrap_err());
        assert!(error.contains("causeway checkpoint 2"), "{error}");

        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = format!("{:#}", Line::open(&backbone, &path).unwrap_err());
        assert!(error.contains("checkpoint.safetensors is not a sound safetensors file"), "{error}");
    }
}
