//! Token replay: tokens that are made once and fed in again at every block. The talk that named it does not define it,
//! and there is no public definition; these are three readings of the words.
//!
//! - A, the caption's tokens: x + tanh(g)·Attention(x, T) after every block, T the frozen text encoder's tokens behind
//!   one projection that all blocks share, the same T at each (`attend`). Where there is no caption a frozen replay
//!   memory stands in for it: prototypes of the training captions' tokens (`memory`).
//! - B, the image's own tokens: x + Up(GELU(Down [x; x₀])) after every block, x₀ as they entered the first one. Up = 0
//!   at the start.
//! - C, θ0's tokens of a few images from elsewhere: Adapter+ (`adapter`), trained to leave those as they were. The term
//!   of the loss that does so is not the encoder's affair.

pub mod memory;

use super::adapter::Adapters;
use super::attend::{self, Attention, Keys};
use super::{Added, Pass, Site, Start, Tuner, acts_in, blocks, first_block};
use crate::models::vit::VitConfig;
use crate::weights::initial;
use anyhow::{Result, ensure};
use causeway_protocol::{Adapter, AdapterForm, AdapterInit, Reading, TokenReplay};
use tch::{Device, Kind, Tensor};

/// The memory of reading A, which is given and stands still.
pub const MEMORY: &str = "replay.memory";
/// The projection of reading A.
const TEXT: &str = "replay.text.weight";
/// Standard deviation of B's Down at the start, before values beyond 2σ are drawn again: the adapters'.
const SIGMA: f64 = 0.01;

/// How a reading is done.
pub fn tuner(spec: &TokenReplay) -> Box<dyn Tuner> {
    match spec.reading {
        Reading::A => Box::new(Captions(spec.clone())),
        Reading::B => Box::new(Beginnings(spec.clone())),
        Reading::C => Box::new(Adapters(Adapter {
            form: AdapterForm::AdapterPlus,
            rank: spec.rank,
            init: AdapterInit::Zero,
            learned_scale: None,
            scale: None,
            blocks: spec.blocks.clone(),
        })),
    }
}

/// Reading A as a spec describes it.
struct Captions(TokenReplay);

impl Tuner for Captions {
    fn added(&self, site: &Site, seed: u64) -> Result<Added> {
        let (dim, text, rank) = (site.config.dim, site.widths.text, i64::from(self.0.rank));
        ensure!(text > 0, "token replay reads captions, and no text encoder says how wide they are");
        let mut added = Added::default();
        attend::add_matrix(&mut added, TEXT, (dim, text), seed);
        added.await_values(MEMORY, &[self.0.memory.into(), text]);
        for block in blocks(self.0.blocks.as_deref(), site.config)? {
            Attention::add(&mut added, &place(block), (dim, rank), seed);
        }
        Ok(added)
    }

    fn trains(&self, name: &str) -> bool {
        name == TEXT || name.contains(".replay.")
    }

    fn untouched_blocks(&self, _config: &VitConfig) -> Option<i64> {
        Some(first_block(self.0.blocks.as_deref()))
    }

    fn begin<'a>(&'a self, start: Start<'a>) -> Box<dyn Pass + 'a> {
        Box::new(ReplayingCaptions::new(&self.0, start))
    }
}

struct ReplayingCaptions<'a> {
    own: &'a TokenReplay,
    start: Start<'a>,
    /// T.
    replayed: Keys,
}

impl<'a> ReplayingCaptions<'a> {
    fn new(own: &'a TokenReplay, start: Start<'a>) -> ReplayingCaptions<'a> {
        let replayed = Keys::captions(start.text, Some(&start.tensors[MEMORY]), &start.tensors[TEXT]);
        ReplayingCaptions { own, start, replayed }
    }
}

impl Pass for ReplayingCaptions<'_> {
    fn after_block(&mut self, block: i64, _middle: &Tensor, x: Tensor) -> Tensor {
        if !acts_in(self.own.blocks.as_deref(), block) {
            return x;
        }
        let attention = Attention { tensors: self.start.tensors, place: place(block) };
        attention.gated(&x, attention.of(&x, &self.replayed))
    }
}

/// Reading B as a spec describes it.
struct Beginnings(TokenReplay);

impl Tuner for Beginnings {
    fn added(&self, site: &Site, seed: u64) -> Result<Added> {
        let (dim, rank, float) = (site.config.dim, i64::from(self.0.rank), (Kind::Float, Device::Cpu));
        let mut added = Added::default();
        for block in blocks(self.0.blocks.as_deref(), site.config)? {
            let name = |leaf: &str| format!("{}{leaf}", place(block));
            let down = name("down.weight");
            let values = initial::truncated_normal(seed, &down, &[rank, 2 * dim], SIGMA);
            added.add(down, values);
            added.add(name("down.bias"), Tensor::zeros([rank], float));
            added.add(name("up.weight"), Tensor::zeros([dim, rank], float));
            added.add(name("up.bias"), Tensor::zeros([dim], float));
        }
        Ok(added)
    }

    fn trains(&self, name: &str) -> bool {
        name.contains(".replay.")
    }

    fn untouched_blocks(&self, _config: &VitConfig) -> Option<i64> {
        Some(first_block(self.0.blocks.as_deref()))
    }

    fn begin<'a>(&'a self, start: Start<'a>) -> Box<dyn Pass + 'a> {
        Box::new(ReplayingBeginnings { own: &self.0, start, entered: None })
    }
}

struct ReplayingBeginnings<'a> {
    own: &'a TokenReplay,
    start: Start<'a>,
    /// x₀ [batch, tokens, dim].
    entered: Option<Tensor>,
}

impl Pass for ReplayingBeginnings<'_> {
    fn embedded(&mut self, x: Tensor) -> Tensor {
        self.entered = Some(x.shallow_clone());
        x
    }

    fn after_block(&mut self, block: i64, _middle: &Tensor, x: Tensor) -> Tensor {
        let Some(entered) = &self.entered else { return x };
        if !acts_in(self.own.blocks.as_deref(), block) {
            return x;
        }
        let at = |leaf: &str| &self.start.tensors[&format!("{}{leaf}", place(block))];
        // The last block may give the class token alone.
        let beside = Tensor::cat(&[x.shallow_clone(), entered.narrow(1, 0, x.size()[1])], -1); // [batch, tokens, 2 dim]
        let hidden = beside.linear(at("down.weight"), Some(at("down.bias"))).gelu("none"); // [batch, tokens, rank]
        x + hidden.linear(at("up.weight"), Some(at("up.bias")))
    }
}

fn place(block: i64) -> String {
    format!("blocks.{block}.replay.")
}

#[cfg(test)]
mod tests;
