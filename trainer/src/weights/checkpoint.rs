//! The checkpoint: what training changed and nothing else, in one safetensors file. `theta1/…` are the tensors that
//! differ from the backbone, `theta0/…` the values that added tensors have at α = 0. The rest of θ1 is the backbone,
//! named by its digest. An adapter's checkpoint is a few megabytes, whatever the backbone.

use super::{Backbone, Tensors, bitwise_equal, safetensors};
use crate::models::vit::VitConfig;
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::{BlobRef, Captions, Method, Objective, Spec, Training};
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
    /// The pairs.
    pub captions: Captions,
    /// The loss.
    pub objective: Objective,
    /// The loop.
    pub training: Training,
}

impl Recipe {
    /// The recipe in a spec.
    ///
    /// # Errors
    /// A spec that trains nothing.
    pub fn of(spec: &Spec) -> Result<Recipe> {
        let (Some(method), Some(captions), Some(objective), Some(training)) =
            (&spec.method, &spec.captions, &spec.objective, &spec.training)
        else {
            bail!("a spec of kind {} has nothing to train", spec.kind.as_str());
        };
        Ok(Recipe {
            seed: spec.seed,
            method: method.clone(),
            captions: captions.clone(),
            objective: objective.clone(),
            training: training.clone(),
        })
    }
}

/// A checkpoint as read.
#[derive(Debug)]
pub struct Checkpoint {
    /// What it was made with.
    pub recipe: Recipe,
    /// Steps done.
    pub step: u64,
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
    theta1: &Tensors,
    added_theta0: &Tensors,
) -> Result<BlobRef> {
    let moved = theta1.iter().filter(|(name, tensor)| {
        let before = backbone.tensors.get(name);
        before.is_none_or(|before| !bitwise_equal(before, tensor))
    });
    let moved = moved.map(|(name, tensor)| (format!("{THETA1}{name}"), tensor.shallow_clone()));
    let start = added_theta0.iter().map(|(name, tensor)| (format!("{THETA0}{name}"), tensor.shallow_clone()));
    let metadata = BTreeMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("backbone".to_owned(), backbone.digest.clone()),
        ("encoder".to_owned(), serde_json::to_string(&backbone.config)?),
        ("recipe".to_owned(), serde_json::to_string(recipe)?),
        ("step".to_owned(), step.to_string()),
    ]);
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
    Ok(Checkpoint { recipe, step, theta1, theta0, digest: file.sha256 })
}
