//! FiLM (arXiv 1709.07871): after both LayerNorms of a block, (1 + Δγ) ⊙ LN(x) + β. Nothing else is trained.

use super::{Added, Norm, Pass, Site, Start, Tuner, acts_in, blocks, first_block};
use crate::models::vit::VitConfig;
use anyhow::Result;
use causeway_protocol::Film;
use tch::{Device, Kind, Tensor};

/// FiLM as a spec describes it.
pub struct Modulation(pub Film);

impl Tuner for Modulation {
    /// Δγ and β of every site, all 0: the exact identity.
    fn added(&self, site: &Site, _seed: u64) -> Result<Added> {
        let mut added = Added::default();
        for block in blocks(self.0.blocks.as_deref(), site.config)? {
            for norm in [Norm::First, Norm::Second] {
                for leaf in ["delta_gamma", "beta"] {
                    let zero = Tensor::zeros([site.config.dim], (Kind::Float, Device::Cpu));
                    added.add(name(block, norm, leaf), zero);
                }
            }
        }
        Ok(added)
    }

    fn trains(&self, name: &str) -> bool {
        name.contains(".film1.") || name.contains(".film2.")
    }

    fn untouched_blocks(&self, _config: &VitConfig) -> Option<i64> {
        Some(first_block(self.0.blocks.as_deref()))
    }

    fn begin<'a>(&'a self, start: Start<'a>) -> Box<dyn Pass + 'a> {
        Box::new(Modulating { own: &self.0, start })
    }
}

struct Modulating<'a> {
    own: &'a Film,
    start: Start<'a>,
}

impl Pass for Modulating<'_> {
    /// Folded in: (1 + Δγ) ⊙ (w ⊙ x̂ + b) + β is ((1 + Δγ) ⊙ w) ⊙ x̂ + ((1 + Δγ) ⊙ b + β). The same function, the same
    /// gradients, and no pass over the tokens.
    fn norm(&mut self, block: i64, norm: Norm, weight: &Tensor, bias: &Tensor) -> (Tensor, Tensor) {
        if !acts_in(self.own.blocks.as_deref(), block) {
            return (weight.shallow_clone(), bias.shallow_clone());
        }
        let gamma = &self.start.tensors[&name(block, norm, "delta_gamma")] + 1.0;
        let beta = &self.start.tensors[&name(block, norm, "beta")];
        (&gamma * weight, &gamma * bias + beta)
    }
}

fn name(block: i64, norm: Norm, leaf: &str) -> String {
    let site = match norm {
        Norm::First => "film1",
        Norm::Second => "film2",
    };
    format!("blocks.{block}.{site}.{leaf}")
}

#[cfg(test)]
mod tests;
