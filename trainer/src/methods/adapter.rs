//! Bottleneck adapters: A(x) = s ⊙ Up(act(Down x)), added at one of six places (`AdapterForm`). The backbone stays
//! frozen, its LayerNorms too.
//!
//! Sources: Houlsby et al. (arXiv 1902.00751), Pfeiffer et al. (arXiv 2005.00247), AdaptFormer (arXiv 2205.13535),
//! Adapter+ (arXiv 2406.06820).

use super::{Added, Pass, Site, Start, Tuner, acts_in, blocks, first_block};
use crate::models::vit::VitConfig;
use crate::weights::initial;
use anyhow::Result;
use causeway_protocol::{Adapter, AdapterForm, AdapterInit};
use tch::{Device, Kind, Tensor};

/// Standard deviation of the matrices at the start, before values beyond 2σ are drawn again (Houlsby, as Adapter+ uses
/// it).
const SIGMA: f64 = 0.01;
/// ε of Pfeiffer's own LayerNorm.
const EPS: f64 = 1e-6;

/// Adapters as a spec describes them.
pub struct Adapters(pub Adapter);

impl Adapters {
    /// The names of a block's adapters: Houlsby has two, the others one.
    fn modules(&self) -> &'static [&'static str] {
        match self.0.form {
            AdapterForm::Houlsby => &["adapter_attn", "adapter_mlp"],
            _ => &["adapter"],
        }
    }
}

impl Tuner for Adapters {
    /// θ0 has Up = 0 whatever the start, and Down as at the start: were Down 0 as well, the adapter's output would
    /// vanish with α² instead of α.
    fn added(&self, site: &Site, seed: u64) -> Result<Added> {
        let float = (Kind::Float, Device::Cpu);
        let (dim, rank) = (site.config.dim, i64::from(self.0.rank));
        let mut added = Added::default();
        for block in blocks(self.0.blocks.as_deref(), site.config)? {
            for module in self.modules() {
                let name = |leaf: &str| format!("blocks.{block}.{module}.{leaf}");
                let normal =
                    |leaf: &str, shape: &[i64]| initial::truncated_normal(seed, &name(leaf), shape, SIGMA);
                let down = match self.0.init {
                    AdapterInit::Zero | AdapterInit::Houlsby => normal("down.weight", &[rank, dim]),
                    AdapterInit::Lora => {
                        initial::uniform(seed, &name("down.weight"), &[rank, dim], (dim as f64).powf(-0.5))
                    }
                };
                added.add(name("down.weight"), down);
                added.add(name("down.bias"), Tensor::zeros([rank], float));
                added.add(name("up.bias"), Tensor::zeros([dim], float));
                if self.0.has_learned_scale() {
                    added.add(name("scale"), Tensor::ones([dim], float));
                }
                if self.0.form == AdapterForm::Pfeiffer {
                    added.add(name("norm.weight"), Tensor::ones([dim], float));
                    added.add(name("norm.bias"), Tensor::zeros([dim], float));
                }
                let zero = Tensor::zeros([dim, rank], float);
                let up = match self.0.init {
                    AdapterInit::Zero | AdapterInit::Lora => zero.shallow_clone(),
                    AdapterInit::Houlsby => normal("up.weight", &[dim, rank]),
                };
                added.add_from(name("up.weight"), up, zero);
            }
        }
        Ok(added)
    }

    fn trains(&self, name: &str) -> bool {
        name.contains(".adapter")
    }

    fn untouched_blocks(&self, _config: &VitConfig) -> Option<i64> {
        Some(first_block(self.0.blocks.as_deref()))
    }

    fn begin<'a>(&'a self, start: Start<'a>) -> Box<dyn Pass + 'a> {
        Box::new(Adapting { own: self, start })
    }
}

struct Adapting<'a> {
    own: &'a Adapters,
    start: Start<'a>,
}

impl Adapting<'_> {
    /// `to` + A(x) of the block's module, if the adapters have this form and sit in this block.
    ///
    /// # Shapes
    /// [batch, tokens, dim] → the same
    fn add(&self, form: AdapterForm, block: i64, module: &str, x: &Tensor, to: Tensor) -> Tensor {
        let Adapter { form: own, blocks, .. } = &self.own.0;
        if *own != form || !acts_in(blocks.as_deref(), block) {
            return to;
        }
        let at = |leaf: &str| &self.start.tensors[&format!("blocks.{block}.{module}.{leaf}")];
        let hidden = x.linear(at("down.weight"), Some(at("down.bias"))); // [batch, tokens, rank]
        let hidden = match form {
            AdapterForm::Parallel => hidden.relu(),
            _ => hidden.gelu("none"),
        };
        let y = hidden.linear(at("up.weight"), Some(at("up.bias")));
        let scale = self.own.0.fixed_scale();
        let y = if scale == 1.0 { y } else { y * scale };
        match self.own.0.has_learned_scale() {
            true => to.addcmul(&y, at("scale")),
            false => to + y,
        }
    }
}

impl Pass for Adapting<'_> {
    fn attended(&mut self, block: i64, y: Tensor) -> Tensor {
        self.add(AdapterForm::Houlsby, block, "adapter_attn", &y.shallow_clone(), y)
    }

    fn between(&mut self, block: i64, x: Tensor) -> Tensor {
        self.add(AdapterForm::Pre, block, "adapter", &x.shallow_clone(), x)
    }

    fn mlp(&mut self, block: i64, y: Tensor) -> Tensor {
        let y = self.add(AdapterForm::Houlsby, block, "adapter_mlp", &y.shallow_clone(), y);
        self.add(AdapterForm::Intermediate, block, "adapter", &y.shallow_clone(), y)
    }

    fn after_block(&mut self, block: i64, middle: &Tensor, x: Tensor) -> Tensor {
        let x = self.add(AdapterForm::AdapterPlus, block, "adapter", &x.shallow_clone(), x);
        let x = self.add(AdapterForm::Parallel, block, "adapter", middle, x);
        if self.own.0.form != AdapterForm::Pfeiffer || !acts_in(self.own.0.blocks.as_deref(), block) {
            return x;
        }
        let at = |leaf: &str| &self.start.tensors[&format!("blocks.{block}.adapter.norm.{leaf}")];
        let normed = x.layer_norm([self.start.config.dim], Some(at("weight")), Some(at("bias")), EPS, false);
        self.add(AdapterForm::Pfeiffer, block, "adapter", &normed, x)
    }
}

#[cfg(test)]
mod tests;
