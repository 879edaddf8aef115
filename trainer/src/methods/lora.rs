//! LoRA: a linear layer W of a block becomes W + (alpha / rank)·B·A, W frozen, A [rank, in], B [out, rank]
//! (Hu et al., arXiv 2106.09685, §4.1).
//!
//! In training nothing is merged into W: y = x Wᵀ + s·(x Aᵀ)Bᵀ. A merged weight would be a new [out, in] tensor at every
//! step, whose whole gradient is computed only to be reduced to those of A and B.

use super::{Added, Pass, Site, Start, Tuner, acts_in, blocks, first_block};
use crate::models::vit::VitConfig;
use crate::weights::initial;
use anyhow::Result;
use causeway_protocol::{Lora, LoraTarget};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Low-rank updates as a spec describes them.
pub struct Updates(pub Lora);

impl Tuner for Updates {
    /// A as torch's `Linear` begins, uniform within ±1/√in (kaiming with a = √5), B = 0: the exact identity. θ0 keeps A:
    /// were it 0 as well, the update would vanish with α² instead of α.
    fn added(&self, site: &Site, seed: u64) -> Result<Added> {
        let (mut added, rank) = (Added::default(), i64::from(self.0.rank));
        for block in blocks(self.0.blocks.as_deref(), site.config)? {
            for target in &self.0.targets {
                let (inputs, outputs) = shape(*target, site.config);
                let name = name(block, *target, "a");
                let a = initial::uniform(seed, &name, &[rank, inputs], (inputs as f64).powf(-0.5));
                added.add(name, a);
                let b = Tensor::zeros([outputs, rank], (Kind::Float, Device::Cpu));
                added.add(self::name(block, *target, "b"), b);
            }
        }
        Ok(added)
    }

    fn trains(&self, name: &str) -> bool {
        name.contains(".lora.")
    }

    fn untouched_blocks(&self, _config: &VitConfig) -> Option<i64> {
        Some(first_block(self.0.blocks.as_deref()))
    }

    fn begin<'a>(&'a self, start: Start<'a>) -> Box<dyn Pass + 'a> {
        Box::new(Updating { own: &self.0, start })
    }
}

struct Updating<'a> {
    own: &'a Lora,
    start: Start<'a>,
}

impl Updating<'_> {
    fn at(&self, block: i64, target: LoraTarget, leaf: &str) -> &Tensor {
        &self.start.tensors[&name(block, target, leaf)]
    }
}

impl Pass for Updating<'_> {
    /// One pair of products, however many of query, key and value are updated: their A stand on top of each other, and
    /// B has a block for each, where its rows are, and is 0 elsewhere.
    fn linear(&mut self, block: i64, layer: &str, rows: Range<i64>, x: &Tensor, y: Tensor) -> Tensor {
        if !acts_in(self.own.blocks.as_deref(), block) {
            return y;
        }
        let places = places(layer, rows, self.start.config);
        let updated: Vec<LoraTarget> = places
            .iter()
            .map(|(target, _)| *target)
            .filter(|target| self.own.targets.contains(target))
            .collect();
        if updated.is_empty() {
            return y;
        }
        let a: Vec<&Tensor> = updated.iter().map(|target| self.at(block, *target, "a")).collect();
        let a = Tensor::cat(&a, 0); // [updated · rank, in]
        let b: Vec<Tensor> = places
            .iter()
            .map(|(target, rows)| {
                let Some(place) = updated.iter().position(|own| own == target) else {
                    return Tensor::zeros([*rows, a.size()[0]], (a.kind(), a.device()));
                };
                let (before, rank) = (place as i64 * i64::from(self.own.rank), i64::from(self.own.rank));
                let behind = a.size()[0] - before - rank;
                self.at(block, *target, "b").constant_pad_nd([before, behind])
            })
            .collect();
        let b = Tensor::cat(&b, 0); // [rows, updated · rank]
        let hidden = x.linear(&a, None::<&Tensor>); // [batch, tokens, updated · rank]
        let scale = factor(self.own);
        let hidden = if scale == 1.0 { hidden } else { hidden * scale };
        y + hidden.linear(&b, None::<&Tensor>)
    }
}

/// What B·A is multiplied by.
fn factor(lora: &Lora) -> f64 {
    lora.numerator() / f64::from(lora.rank)
}

/// The parts of a layer that the asked rows cover, in order, each with its number of rows. Query, key and value stand in
/// this order in the fused weight, and are never asked in part.
fn places(layer: &str, rows: Range<i64>, config: &VitConfig) -> Vec<(LoraTarget, i64)> {
    match layer {
        "attn.qkv" => [LoraTarget::Query, LoraTarget::Key, LoraTarget::Value]
            .into_iter()
            .zip((0..).map(|part| part * config.dim))
            .filter(|(_, first)| rows.contains(first))
            .map(|(target, _)| (target, config.dim))
            .collect(),
        "attn.proj" => vec![(LoraTarget::Proj, rows.end)],
        "mlp.fc1" => vec![(LoraTarget::Fc1, rows.end)],
        "mlp.fc2" => vec![(LoraTarget::Fc2, rows.end)],
        _ => Vec::new(),
    }
}

/// Inputs and outputs of a layer.
fn shape(target: LoraTarget, config: &VitConfig) -> (i64, i64) {
    match target {
        LoraTarget::Query | LoraTarget::Key | LoraTarget::Value | LoraTarget::Proj => {
            (config.dim, config.dim)
        }
        LoraTarget::Fc1 => (config.dim, config.mlp_dim),
        LoraTarget::Fc2 => (config.mlp_dim, config.dim),
    }
}

fn name(block: i64, target: LoraTarget, leaf: &str) -> String {
    let target = match target {
        LoraTarget::Query => "query",
        LoraTarget::Key => "key",
        LoraTarget::Value => "value",
        LoraTarget::Proj => "proj",
        LoraTarget::Fc1 => "fc1",
        LoraTarget::Fc2 => "fc2",
    };
    format!("blocks.{block}.lora.{target}.{leaf}")
}

#[cfg(test)]
mod tests;
