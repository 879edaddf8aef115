//! Block expansion (LLaMA Pro, arXiv 2401.02415, §3.2; on ViTs methods.md §15): the blocks are cut into equal groups, and
//! behind the last block of each group comes a copy of it, of which alone is trained. In a copy the last linear layer of
//! both branches, weight and bias, starts at 0, so that both add exact zeros:
//!
//! x + LS1·(0·attn(LN1 x) + 0), then the same with the MLP, is x.

use super::{Added, Pass, Site, Start, Tuner, Untouched};
use crate::models::vit::VitConfig;
use anyhow::{Result, ensure};
use causeway_protocol::BlockExpansion;
use tch::Tensor;

/// The layers that end a branch of a block.
const LAST: [&str; 2] = ["attn.proj.", "mlp.fc2."];

/// Copies as a spec describes them.
pub struct Copies(pub BlockExpansion);

impl Tuner for Copies {
    /// Every tensor of the copied blocks; θ0 is the start.
    fn added(&self, site: &Site, _seed: u64) -> Result<Added> {
        let (copies, depth) = (i64::from(self.0.copies), site.config.depth);
        ensure!(
            copies > 0 && depth % copies == 0,
            "`method.copies` is {copies}: it must divide the backbone's {depth} blocks into equal groups"
        );
        let mut added = Added::default();
        for block in (0..depth).filter(|block| self.follows(*block, site.config)) {
            let prefix = format!("blocks.{block}.");
            for (name, tensor) in site.tensors.iter() {
                let Some(leaf) = name.strip_prefix(&prefix) else { continue };
                let ends_branch = LAST.iter().any(|last| leaf.starts_with(last));
                let value = if ends_branch { tensor.zeros_like() } else { tensor.copy() };
                added.add(format!("{prefix}copy.{leaf}"), value);
            }
        }
        Ok(added)
    }

    fn trains(&self, name: &str) -> bool {
        name.contains(".copy.")
    }

    /// The last group ends with the last block, whose copy mixes what all its tokens became.
    fn needs_all_tokens(&self) -> bool {
        true
    }

    /// Up to the first block that has a copy behind it.
    fn untouched_blocks(&self, config: &VitConfig) -> Option<i64> {
        Some(config.depth / i64::from(self.0.copies.max(1)) - 1)
    }

    fn begin<'a>(&'a self, start: Start<'a>) -> Box<dyn Pass + 'a> {
        Box::new(Expanding { own: self, start })
    }
}

impl Copies {
    /// Whether a copy follows a block.
    fn follows(&self, block: i64, config: &VitConfig) -> bool {
        (block + 1) % (config.depth / i64::from(self.0.copies)) == 0
    }
}

struct Expanding<'a> {
    own: &'a Copies,
    start: Start<'a>,
}

impl Pass for Expanding<'_> {
    fn after_block(&mut self, block: i64, _middle: &Tensor, x: Tensor) -> Tensor {
        let Start { config, tensors, .. } = self.start;
        if !self.own.follows(block, config) {
            return x;
        }
        let asking = x.size()[1];
        config.block(tensors, &format!("blocks.{block}.copy"), (block, &mut Untouched), &x, asking)
    }
}

#[cfg(test)]
mod tests;
