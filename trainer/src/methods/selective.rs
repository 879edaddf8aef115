//! Selective-k fine-tuning (methods.md §15; after surgical fine-tuning, arXiv 2210.11466): k of the backbone's blocks are
//! trained, and nothing else. Nothing is added.
//!
//! With k = depth that is not yet `full`: patch embedding, class token, position table and the final LayerNorm stay as
//! they are, and CLIP's first LayerNorm and projection.
//!
//! Which blocks those are is known where the backbone is: `last` and `first` rest on its depth, `relative_gradient` on the
//! training data as well (`train/selection.rs`). What is trained, written down and read again has them as
//! `Selective::chosen`.

use super::{Added, Site, Tuner};
use crate::models::vit::VitConfig;
use anyhow::{Context, Result, ensure};
use causeway_protocol::{Method, Selection, Selective};

/// Blocks as a spec describes them.
pub struct Selected(pub Selective);

impl Tuner for Selected {
    /// Nothing; but this is where a choice that does not fit the backbone is found out.
    fn added(&self, site: &Site, _seed: u64) -> Result<Added> {
        let depth = depth(site.config.depth, self.0.k)?;
        let chosen = self
            .0
            .chosen
            .as_ref()
            .context("the blocks of `method.kind` = \"selective\" are not chosen yet")?;
        let sound = chosen.len() == self.0.k as usize && chosen.iter().all(|block| *block < depth);
        ensure!(sound, "`method.chosen` is {chosen:?}: it must be {} of the {depth} blocks", self.0.k);
        Ok(Added::default())
    }

    fn trains(&self, name: &str) -> bool {
        let block = block_of(name);
        block.is_some_and(|block| self.0.chosen.iter().flatten().any(|chosen| *chosen == block))
    }

    /// All: which of the weights moved is another question.
    fn untouched_blocks(&self, config: &VitConfig) -> Option<i64> {
        Some(config.depth)
    }
}

/// The method with its blocks chosen, if it chooses any. Where gradients decide and have not yet, the first k stand in
/// for them: enough to count by, since all blocks are of one size.
///
/// # Errors
/// More blocks than the backbone has.
pub fn chosen_by_depth(method: &Method, depth: i64) -> Result<Method> {
    let Method::Selective(own) = method else { return Ok(method.clone()) };
    let depth = self::depth(depth, own.k)?;
    let chosen = match (&own.chosen, own.rule) {
        (Some(chosen), _) => chosen.clone(),
        (None, Selection::Last) => (depth - own.k..depth).collect(),
        (None, Selection::First | Selection::RelativeGradient) => (0..own.k).collect(),
    };
    Ok(Method::Selective(Selective { chosen: Some(chosen), ..own.clone() }))
}

/// The k blocks with the largest values, ascending; of equal values that of the lower block counts as larger.
pub fn largest(values: &[f64], k: u32) -> Vec<u32> {
    let mut blocks: Vec<u32> = (0..).take(values.len()).collect();
    // The sort is stable.
    blocks.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]));
    blocks.truncate(k as usize);
    blocks.sort_unstable();
    blocks
}

/// The number of the block that a tensor belongs to.
pub fn block_of(name: &str) -> Option<u32> {
    name.strip_prefix("blocks.")?.split('.').next()?.parse().ok()
}

/// The backbone's depth, if it has k blocks.
fn depth(depth: i64, k: u32) -> Result<u32> {
    ensure!(i64::from(k) <= depth, "`method.k` is {k}, the backbone has {depth} blocks");
    u32::try_from(depth).context("the backbone's depth")
}

#[cfg(test)]
mod tests;
