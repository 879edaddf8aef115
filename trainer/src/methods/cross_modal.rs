//! Cross-modal reprogramming, after R2DL (arXiv 2012.03460, 2301.02120): to each visual token is added what a few words of
//! a language model say. The words are rows of its embedding table and never change; the token chooses among them:
//!
//! x + O·z, z = Σᵢ wᵢ·wordᵢ, w = softmax over the `sparsity` largest of (Q x)·(K wordᵢ) / (√r · temperature)
//!
//! R2DL alternates gradient steps with a sparse coding of its map; here the choice itself is differentiable, and a token
//! stands for a convex combination of at most `sparsity` words. With a sparsity of 1 the weight is always 1, and Q and K
//! are never trained.
//!
//! Reprogrammed input is noise at first, to which adapters behind it cannot adapt. So O = 0 at the start, the adapters,
//! Adapter+ of the same rank, may stand still for a while (`alone_steps`), and `reprogrammed_share` is told:
//! ‖O·z‖ / ‖x‖ over the visual tokens of a batch.

use super::adapter::Adapters;
use super::{Added, Pass, Site, Start, Tuner};
use crate::models::language::LanguageModel;
use crate::weights::initial;
use anyhow::{Result, ensure};
use causeway_protocol::{Adapter, AdapterForm, AdapterInit, CrossModal};
use tch::{Device, Kind, Tensor};

/// Name of the dictionary, [words, word]. Frozen, and given.
pub const TABLE: &str = "words.table";
const QUERY: &str = "words.query.weight";
const KEY: &str = "words.key.weight";
const OUT: &str = "words.out.weight";

/// The reprogramming that a spec describes, and the adapters behind it.
pub struct Rewording {
    spec: CrossModal,
    adapters: Adapters,
}

impl Rewording {
    /// As the spec says.
    pub fn new(spec: &CrossModal) -> Rewording {
        let adapter = Adapter {
            form: AdapterForm::AdapterPlus,
            rank: spec.rank,
            init: AdapterInit::Zero,
            learned_scale: None,
            scale: None,
            blocks: None,
        };
        Rewording { spec: spec.clone(), adapters: Adapters(adapter) }
    }

    /// w of each token: a row of at most `sparsity` values that are not 0, which sum to 1.
    ///
    /// # Shapes
    /// [batch, tokens, dim] → [batch, tokens, words]
    fn choice(&self, start: Start, x: &Tensor) -> Tensor {
        let of = |name: &str| &start.tensors[name];
        let query = x.linear(of(QUERY), None::<&Tensor>); // [batch, tokens, rank]
        let key = of(TABLE).linear(of(KEY), None::<&Tensor>); // [words, rank]
        let scale = f64::from(self.spec.rank).powf(-0.5) / self.spec.temperature;
        let scores = query.linear(&key, None::<&Tensor>) * scale; // [batch, tokens, words]
        let (largest, words) = scores.topk(i64::from(self.spec.sparsity), -1, true, false);
        scores.zeros_like().scatter(-1, &words, &largest.softmax(-1, largest.kind()))
    }

    /// O·z of each token.
    ///
    /// # Shapes
    /// [batch, tokens, dim] → [batch, tokens, dim]
    fn reprogrammed(&self, start: Start, x: &Tensor) -> Tensor {
        let words = self.choice(start, x).matmul(&start.tensors[TABLE]); // [batch, tokens, word]
        words.linear(&start.tensors[OUT], None::<&Tensor>)
    }
}

/// `words` rows of a language model's embedding table, evenly from the first id to the last, each of length 1.
///
/// # Shapes
/// → [words, width of a word], f32
///
/// # Errors
/// More rows than the model has.
pub fn dictionary(model: &LanguageModel, words: u32) -> Result<Tensor> {
    let (words, vocabulary) = (i64::from(words), model.vocab());
    ensure!(
        words <= vocabulary,
        "`method.words` = {words}, but the language model has {vocabulary}; take as many at most"
    );
    let ids: Vec<i64> = (0..words).map(|at| at * vocabulary / words).collect();
    let device = model.tensors().iter().next().map_or(Device::Cpu, |(_, tensor)| tensor.device());
    let rows = model.embed_tokens(&Tensor::from_slice(&ids).to_device(device));
    let rows = rows.detach().to_device(Device::Cpu).to_kind(Kind::Float);
    // A row of zeros, which some vocabularies are filled up with, stays one.
    let length = rows.square().sum_dim_intlist(-1, true, Kind::Float).sqrt().clamp_min(1e-12);
    Ok(rows / length)
}

impl Tuner for Rewording {
    fn added(&self, site: &Site, seed: u64) -> Result<Added> {
        let (dim, rank, word) = (site.config.dim, i64::from(self.spec.rank), site.widths.word);
        ensure!(
            word > 0,
            "the language model `{}` has not said how wide its words are",
            self.spec.language_model
        );
        let mut added = self.adapters.added(site, seed)?;
        let mut normal = |name: &str, fan_in: i64| {
            let sigma = (fan_in as f64).powf(-0.5);
            added.add(name, initial::normal(seed, name, &[rank, fan_in], sigma));
        };
        normal(QUERY, dim);
        normal(KEY, word);
        added.add(OUT, Tensor::zeros([dim, word], (Kind::Float, Device::Cpu)));
        added.await_values(TABLE, &[i64::from(self.spec.words), word]);
        Ok(added)
    }

    fn trains(&self, name: &str) -> bool {
        [QUERY, KEY, OUT].contains(&name) || self.adapters.trains(name)
    }

    fn stands_still(&self, name: &str) -> u64 {
        if self.adapters.trains(name) { self.spec.alone_steps } else { 0 }
    }

    fn tells(&self, start: Start, embedded: &Tensor) -> Vec<(&'static str, f64)> {
        let visual = embedded.narrow(1, 1, embedded.size()[1] - 1);
        let norm = |tensor: &Tensor| tensor.to_kind(Kind::Float).norm().double_value(&[]);
        vec![("reprogrammed_share", norm(&self.reprogrammed(start, &visual)) / norm(&visual))]
    }

    fn begin<'a>(&'a self, start: Start<'a>) -> Box<dyn Pass + 'a> {
        Box::new(Speaking { own: self, start, adapters: self.adapters.begin(start) })
    }
}

struct Speaking<'a> {
    own: &'a Rewording,
    start: Start<'a>,
    adapters: Box<dyn Pass + 'a>,
}

impl Pass for Speaking<'_> {
    /// The class token is no visual token and stays as it is.
    fn embedded(&mut self, x: Tensor) -> Tensor {
        let class = x.narrow(1, 0, 1);
        let visual = x.narrow(1, 1, x.size()[1] - 1);
        let reprogrammed = self.own.reprogrammed(self.start, &visual);
        Tensor::cat(&[class, visual + reprogrammed], 1) // [batch, tokens, dim]
    }

    fn after_block(&mut self, block: i64, middle: &Tensor, x: Tensor) -> Tensor {
        self.adapters.after_block(block, middle, x)
    }
}

#[cfg(test)]
mod tests;
