//! Model soups (arXiv 2203.05482): the mean of the weights of several checkpoints of one backbone and one method, which
//! costs no more to ask than one of them. Uniform takes all; greedy tries them from the best to the worst on a dataset
//! and keeps those with which the soup is no worse (the paper's recipe 1).

use super::checkpoint::{self, Checkpoint};
use super::source::{self, Hints};
use super::{Backbone, Tensors};
use anyhow::{Context, Result, ensure};
use causeway_protocol::BlobRef;
use serde_json::json;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// A uniform soup of files, without any server.
pub struct Soup {
    /// The checkpoints.
    pub checkpoints: Vec<PathBuf>,
    /// The backbone that they were made from.
    pub theta0: PathBuf,
    /// The new checkpoint.
    pub out: PathBuf,
}

impl Soup {
    /// Writes the soup, and says what it is.
    ///
    /// # Errors
    /// Files that cannot be read, or checkpoints that do not belong together.
    pub fn run(&self) -> Result<()> {
        let backbone = Backbone::read(&self.theta0)?;
        let checkpoints = read(&backbone, &self.checkpoints)?;
        let all: Vec<usize> = (0..checkpoints.len()).collect();
        let blob = write(&self.out, &backbone, &checkpoints, &all)?;
        println!("{}  {}, the mean of {} checkpoints", blob.sha256, self.out.display(), checkpoints.len());
        Ok(())
    }
}

/// Reads checkpoints of one backbone.
///
/// # Errors
/// A file that is damaged, no checkpoint, or of another backbone.
pub fn read(backbone: &Backbone, files: &[PathBuf]) -> Result<Vec<Checkpoint>> {
    let one = |path: &PathBuf| {
        let hints = Hints { activation: Some(backbone.config.activation), ..Hints::default() };
        let contents = source::read(path, &hints)?.contents;
        let context = || format!("reading the checkpoint {}", path.display());
        let ours = checkpoint::is_checkpoint(&contents.metadata);
        let read = || {
            ensure!(
                ours,
                "it is a full set of weights; a soup is made of checkpoints, which tell their method"
            );
            checkpoint::parse(contents, backbone)
        };
        read().with_context(context)
    };
    files.iter().map(one).collect()
}

/// The mean of some of the checkpoints, with the recipe of the first of them.
///
/// # Errors
/// None of them, or checkpoints of different methods.
pub fn mean(backbone: &Backbone, checkpoints: &[Checkpoint], which: &[usize]) -> Result<Checkpoint> {
    let chosen: Vec<&Checkpoint> = which.iter().filter_map(|at| checkpoints.get(*at)).collect();
    let first = *chosen.first().context("a soup needs a checkpoint")?;
    for other in &chosen {
        let [one, two] = [first, other].map(|checkpoint| &checkpoint.recipe.method);
        ensure!(
            one == two && first.widths == other.widths,
            "a soup is made of checkpoints of one method: {} is {}, {} is {}",
            short(first),
            serde_json::to_string(one)?,
            short(other),
            serde_json::to_string(two)?
        );
    }
    let of = |end: fn(&Checkpoint) -> &Tensors| {
        let names: BTreeSet<&str> = chosen.iter().flat_map(|checkpoint| end(checkpoint).names()).collect();
        let mean = |name: &str| {
            let values = chosen.iter().map(|checkpoint| {
                // What a checkpoint leaves out is the backbone's.
                let value = end(checkpoint).get(name).or_else(|| backbone.tensors.get(name));
                value.with_context(|| format!("{name} is in no more than some of the checkpoints"))
            });
            anyhow::Ok((name.to_owned(), mean_of(&values.collect::<Result<Vec<_>>>()?)?))
        };
        names.into_iter().map(mean).collect::<Result<Tensors>>()
    };
    Ok(Checkpoint {
        recipe: first.recipe.clone(),
        step: first.step,
        widths: first.widths,
        theta1: of(|checkpoint| &checkpoint.theta1)?,
        theta0: of(|checkpoint| &checkpoint.theta0)?,
        digest: String::new(),
    })
}

/// The mean of tensors of one shape, summed in f64 and rounded once: equal tensors are their own mean, bit for bit.
fn mean_of(tensors: &[&Tensor]) -> Result<Tensor> {
    let (first, others) = tensors.split_first().context("nothing has no mean")?;
    let mut sum = first.to_kind(Kind::Double);
    for other in others {
        ensure!(other.size() == first.size(), "shapes differ: {:?} and {:?}", first.size(), other.size());
        sum += other.to_kind(Kind::Double);
    }
    Ok((sum / tensors.len() as f64).to_kind(first.kind()))
}

/// Writes the soup of some of the checkpoints as a checkpoint, which tells what it was made of.
///
/// # Errors
/// As [`mean`], and a failure of the file system.
pub fn write(
    path: &Path,
    backbone: &Backbone,
    checkpoints: &[Checkpoint],
    which: &[usize],
) -> Result<BlobRef> {
    let soup = mean(backbone, checkpoints, which)?;
    let digest = |checkpoint: &Checkpoint| checkpoint.digest.clone();
    let stayed: Vec<String> = which.iter().filter_map(|at| checkpoints.get(*at)).map(digest).collect();
    let made_of = json!({
        "checkpoints": checkpoints.iter().map(digest).collect::<Vec<_>>(),
        "stayed": stayed,
    });
    let notes = [("soup".to_owned(), made_of.to_string())];
    let ends = (&soup.theta1, &soup.theta0);
    checkpoint::write_with(path, backbone, &soup.recipe, soup.step, ends, soup.widths, notes)
}

/// What a greedy soup did with a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Place of the checkpoint.
    pub at: usize,
    /// Right answers of the soup before it; of none, 0.
    pub without: u32,
    /// Right answers of the soup with it.
    pub with: u32,
}

impl Decision {
    /// Whether the checkpoint stays.
    pub fn stays(self) -> bool {
        self.with >= self.without
    }
}

/// Chooses checkpoints from the right answers of each `alone` and of means of several, which `correct` measures. They
/// are tried from the best to the worst, equal ones in their order. Returns the places that stay, ascending, and every
/// decision in turn.
///
/// # Errors
/// Whatever `correct` fails with.
pub fn greedy(
    alone: &[u32],
    correct: &mut dyn FnMut(&[usize]) -> Result<u32>,
) -> Result<(Vec<usize>, Vec<Decision>)> {
    let mut order: Vec<usize> = (0..alone.len()).collect();
    // Stable, so that equal ones stay in their order.
    order.sort_by_key(|at| Reverse(alone[*at]));
    let (mut stay, mut best, mut decisions) = (Vec::<usize>::new(), 0, Vec::new());
    for at in order {
        let mut tried = stay.clone();
        tried.push(at);
        tried.sort_unstable();
        let with = if stay.is_empty() { alone[at] } else { correct(&tried)? };
        let decision = Decision { at, without: best, with };
        decisions.push(decision);
        if decision.stays() {
            (stay, best) = (tried, with);
        }
    }
    Ok((stay, decisions))
}

/// As messages name a checkpoint.
pub fn short(checkpoint: &Checkpoint) -> &str {
    checkpoint.digest.get(..12).unwrap_or(&checkpoint.digest)
}

#[cfg(test)]
mod tests;
