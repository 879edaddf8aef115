//! Ladder side-tuning (arXiv 2206.06522): a narrow transformer of width d = dim / reduction beside the frozen backbone.
//! It reads what the backbone's blocks say and adds its own answer behind the last LayerNorm:
//!
//! s₀ = Down₀(x₀), sᵢ₊₁ = Blockᵢ(μᵢ·sᵢ + (1 − μᵢ)·Downᵢ₊₁(hᵢ₊₁)), μᵢ = sigmoid(aᵢ / 0.1), tokens + γ·Up(LN s)
//!
//! with x₀ the tokens that enter the first block and hᵢ₊₁ those that leave block i. No gradient goes into the backbone
//! and none of its activations are kept for one: the graph begins at the Downs. γ = 0 at the start. The paper prunes
//! the backbone for the side network's first weights; here they are random.

use super::{Added, Pass, Site, Start, Tuner, Untouched};
use crate::models::vit::config::block_shapes;
use crate::models::vit::{Activation, VitConfig};
use crate::weights::initial;
use anyhow::{Result, ensure};
use causeway_protocol::Ladder;
use tch::{Device, Kind, Tensor};

/// Standard deviation of the linear layers at the start, before values beyond 2σ are drawn again.
const SIGMA: f64 = 0.02;
/// Temperature of the mixing gates.
const TEMPERATURE: f64 = 0.1;
/// ε of the side network's LayerNorms.
const EPS: f64 = 1e-6;

/// The side network that a spec describes.
pub struct SideNetwork(pub Ladder);

impl SideNetwork {
    /// Width of the side network. The widths divide: `added` has seen to it.
    fn width(&self, backbone: &VitConfig) -> i64 {
        backbone.dim / i64::from(self.0.reduction)
    }

    /// The architecture of the side blocks: heads as wide as the backbone's where they divide the width, else one.
    fn config(&self, backbone: &VitConfig) -> VitConfig {
        let (width, head) = (self.width(backbone), backbone.dim / backbone.heads);
        VitConfig {
            dim: width,
            heads: if width % head == 0 { width / head } else { 1 },
            mlp_dim: 4 * width,
            layer_scale: false,
            eps: EPS,
            activation: Activation::Gelu,
            ..backbone.clone()
        }
    }
}

impl Tuner for SideNetwork {
    fn added(&self, site: &Site, seed: u64) -> Result<Added> {
        let (dim, reduction) = (site.config.dim, i64::from(self.0.reduction));
        ensure!(
            dim % reduction == 0,
            "`method.reduction` = {reduction} does not divide the backbone's width of {dim}; take one that does"
        );
        let width = self.width(site.config);
        let mut added = Added::default();
        let mut add = |name: String, shape: &[i64]| {
            let float = (Kind::Float, Device::Cpu);
            let is_gain = name.contains("norm") && name.ends_with("weight");
            let value = match shape.len() {
                2 => initial::truncated_normal(seed, &name, shape, SIGMA),
                _ if is_gain => Tensor::ones(shape, float),
                _ => Tensor::zeros(shape, float),
            };
            added.add(name, value);
        };
        for place in 0..=site.config.depth {
            add(format!("ladder.down.{place}.weight"), &[width, dim]);
            add(format!("ladder.down.{place}.bias"), &[width]);
        }
        for block in 0..site.config.depth {
            add(format!("ladder.mix.{block}"), &[]);
            for (name, shape) in block_shapes(&format!("ladder.blocks.{block}"), width, 4 * width) {
                add(name, &shape);
            }
        }
        add("ladder.norm.weight".into(), &[width]);
        add("ladder.norm.bias".into(), &[width]);
        add("ladder.up.weight".into(), &[dim, width]);
        add("ladder.up.bias".into(), &[dim]);
        add("ladder.gate".into(), &[]);
        Ok(added)
    }

    fn trains(&self, name: &str) -> bool {
        name.starts_with("ladder.")
    }

    /// The last side block's class token attends to all tokens, and into each of them the backbone's last state of that
    /// token is mixed.
    fn needs_all_tokens(&self) -> bool {
        true
    }

    /// All: the side network looks at their states and answers behind them.
    fn untouched_blocks(&self, config: &VitConfig) -> Option<i64> {
        Some(config.depth)
    }

    fn looks_at_states(&self) -> bool {
        true
    }

    fn begin<'a>(&'a self, start: Start<'a>) -> Box<dyn Pass + 'a> {
        Box::new(Climbing { config: self.config(start.config), start, side: None })
    }
}

struct Climbing<'a> {
    /// Of the side blocks.
    config: VitConfig,
    start: Start<'a>,
    /// s. [batch, tokens, width]
    side: Option<Tensor>,
}

impl Climbing<'_> {
    fn at(&self, name: &str) -> &Tensor {
        &self.start.tensors[&format!("ladder.{name}")]
    }

    fn layer(&self, x: &Tensor, name: &str) -> Tensor {
        x.linear(self.at(&format!("{name}.weight")), Some(self.at(&format!("{name}.bias"))))
    }
}

impl Pass for Climbing<'_> {
    fn embedded(&mut self, x: Tensor) -> Tensor {
        self.side = Some(self.layer(&x, "down.0")); // [batch, tokens, width]
        x
    }

    fn after_block(&mut self, block: i64, _middle: &Tensor, x: Tensor) -> Tensor {
        if let Some(side) = self.side.take() {
            let seen = self.layer(&x, &format!("down.{}", block + 1)); // [batch, tokens, width]
            let stay = (self.at(&format!("mix.{block}")) / TEMPERATURE).sigmoid();
            // μ·s + (1 − μ)·seen
            let mixed = seen.lerp_tensor(&side, &stay);
            let (name, tokens) = (format!("ladder.blocks.{block}"), mixed.size()[1]);
            let acting = (block, &mut Untouched as &mut dyn Pass);
            self.side = Some(self.config.block(self.start.tensors, &name, acting, &mixed, tokens));
        }
        x
    }

    fn finish(&mut self, x: Tensor) -> Tensor {
        let Some(side) = &self.side else { return x };
        let (weight, bias) = (self.at("norm.weight"), self.at("norm.bias"));
        let normed = side.layer_norm([self.config.dim], Some(weight), Some(bias), EPS, false);
        x.addcmul(&self.layer(&normed, "up"), self.at("gate"))
    }
}

#[cfg(test)]
mod tests;
