//! The resume state: what a stopped attempt needs to go on bit for bit. The trained tensors, their AdamW moments, what
//! reads the encoder, and the step. No generator state: every step draws from streams of its own.

use super::checkpoint::Recipe;
use super::{Tensors, safetensors};
use anyhow::{Context, Result, ensure};
use causeway_protocol::BlobRef;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Names the format of a file in its metadata.
const FORMAT: &str = "causeway resume state 2";
/// States kept in a folder: the newest, and the one before in case the newest never reached the server.
const KEPT: usize = 2;

/// What a loop keeps.
pub struct Progress {
    /// Trained tensors, moments, averages.
    pub tensors: Tensors,
    /// What is no tensor, as JSON.
    pub text: String,
}

/// A state as read.
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Trained tensors, moments, averages.
    pub tensors: Tensors,
    /// What is no tensor, as JSON.
    pub progress: String,
}

/// Writes the state after `step` steps into `folder` and removes all but the last two there.
///
/// # Errors
/// A failure of the file system.
pub fn write(
    folder: &Path,
    backbone: &str,
    recipe: &Recipe,
    step: u64,
    progress: &Progress,
) -> Result<BlobRef> {
    let metadata = BTreeMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("backbone".to_owned(), backbone.to_owned()),
        ("recipe".to_owned(), serde_json::to_string(recipe)?),
        ("step".to_owned(), step.to_string()),
        ("progress".to_owned(), progress.text.clone()),
    ]);
    // Ten digits, so that the order of names is the order of steps.
    let path = folder.join(format!("resume-{step:010}.safetensors"));
    let blob = safetensors::write(&path, &progress.tensors, &metadata)?;
    let states = states_in(folder)?;
    for old in &states[..states.len().saturating_sub(KEPT)] {
        fs::remove_file(old).with_context(|| format!("removing {}", old.display()))?;
    }
    Ok(blob)
}

/// The states in a folder, oldest first.
fn states_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut states = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("resume-") && name.ends_with(".safetensors") {
            states.push(entry.path());
        }
    }
    states.sort();
    Ok(states)
}

/// The recipe that a state belongs to.
///
/// # Errors
/// A damaged file.
pub fn recipe(path: &Path) -> Result<Recipe> {
    let file = safetensors::read(path)?;
    let read = || -> Result<Recipe> {
        let recipe = file.metadata.get("recipe").context("its metadata lack recipe")?;
        serde_json::from_str(recipe).context("its recipe")
    };
    read().with_context(|| format!("resuming from {}", path.display()))
}

/// Reads a state.
///
/// # Errors
/// A damaged file, or a state of another backbone or recipe.
pub fn read(path: &Path, backbone: &str, recipe: &Recipe) -> Result<State> {
    let file = safetensors::read(path)?;
    let read = || -> Result<(u64, String)> {
        let field = |name: &str| file.metadata.get(name).with_context(|| format!("its metadata lack {name}"));
        let format = field("format")?;
        ensure!(format == FORMAT, "its format is {format:?}, this trainer reads {FORMAT:?}");
        let made_from = field("backbone")?;
        ensure!(made_from == backbone, "it was made from backbone {made_from}, given {backbone}");
        let of: Recipe = serde_json::from_str(field("recipe")?).context("its recipe")?;
        ensure!(of == *recipe, "it belongs to another spec: {of:?} instead of {recipe:?}");
        Ok((field("step")?.parse().context("its step")?, field("progress")?.clone()))
    };
    let (step, progress) = read().with_context(|| format!("resuming from {}", path.display()))?;
    Ok(State { step, tensors: file.tensors, progress })
}
