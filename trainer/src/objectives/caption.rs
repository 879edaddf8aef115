//! The captioning loss (LiMBeR, arXiv 2209.15162; MAGMA, arXiv 2112.05253): an image's tokens, mapped linearly into
//! the embeddings of a frozen language model, stand before its caption, and the loss is what the model then finds
//! surprising about the caption: L = −mean log p(c_t | W·f(x) + b, c_<t) over the caption's tokens and its end.

use crate::models::language::LanguageModel;
use crate::random::SplitMix64;
use crate::weights::initial;
use anyhow::{Result, ensure};
use tch::{Kind, Reduction, Tensor};

/// What the loss learns besides the encoder: W and b of image tokens to prefix.
#[derive(Debug)]
pub struct LinearMap {
    /// W [dim of the language model, dim of the encoder].
    pub weight: Tensor,
    /// b [dim of the language model].
    pub bias: Tensor,
}

impl LinearMap {
    /// A map from tokens of width `dim` into a language model of width `dim_lm`: weights with the standard
    /// deviation that torch's `Linear` starts with, 1 / √(3 · dim), and no bias.
    pub fn new(dim: i64, dim_lm: i64, seed: u64) -> LinearMap {
        let sigma = (3.0 * dim as f64).powf(-0.5);
        LinearMap {
            weight: initial::normal(seed, "heads/caption.weight", &[dim_lm, dim], sigma),
            bias: Tensor::zeros([dim_lm], (Kind::Float, tch::Device::Cpu)),
        }
    }

    /// The prefix of a batch of images.
    ///
    /// # Shapes
    /// `tokens` [batch, tokens, dim] → [batch, tokens, dim_lm]
    pub fn forward(&self, tokens: &Tensor) -> Tensor {
        tokens.linear(&self.weight, Some(&self.bias))
    }
}

/// The prefix with this share of its values 0 and the others the larger for it, so that their mean stays.
///
/// # Shapes
/// [batch, tokens, dim_lm] → the same
pub fn drop_values(prefix: Tensor, share: f64, mut draws: SplitMix64) -> Tensor {
    if share == 0.0 {
        return prefix;
    }
    let kept = (1.0 / (1.0 - share)) as f32;
    let factors: Vec<f32> =
        (0..prefix.numel()).map(|_| if draws.uniform() < share { 0.0 } else { kept }).collect();
    let factors = Tensor::from_slice(&factors).reshape(prefix.size()).to_device(prefix.device());
    prefix * factors
}

/// The loss of a batch. What is scored is each caption's tokens up to its first end of text, and that end, which
/// needs not be given; the prefix gets no label, and what follows the end is neither scored nor seen. The mean runs
/// over the scored tokens of the whole batch.
///
/// The prefix takes the positions 0 … prefix_len − 1, the caption those that follow. Shorter captions are filled up
/// behind their end, where under the causal mask nothing scored sees the filling.
///
/// # Shapes
/// `prefix` [batch, prefix_len, dim of the language model] → scalar
///
/// # Errors
/// No prefix, another number of captions than of prefixes, an id that is none, more positions than the model takes.
pub fn loss(lm: &LanguageModel, prefix: &Tensor, captions: &[Vec<i64>]) -> Result<Tensor> {
    let (batch, prefix_len, dim) = prefix.size3()?;
    ensure!(prefix_len > 0, "a caption's first token can only be told from a prefix");
    ensure!(
        batch as usize == captions.len() && batch > 0,
        "there are {batch} prefixes and {} captions",
        captions.len()
    );
    let vocabulary = 0..lm.vocab();
    let scored: Vec<&[i64]> = captions
        .iter()
        .map(|caption| caption.split(|id| *id == lm.eos()).next().unwrap_or_default())
        .collect();
    ensure!(
        scored.iter().all(|caption| caption.iter().all(|id| vocabulary.contains(id))),
        "a caption holds an id beyond the {} of the language model",
        lm.vocab()
    );
    let longest = scored.iter().map(|caption| caption.len()).max().unwrap_or_default();
    let length = prefix_len + longest as i64;

    // The last state of the prefix foretells the first token, and each token's state the next; the end is never put
    // in.
    let (mut inputs, mut places, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    for (row, caption) in scored.iter().enumerate() {
        inputs.extend(caption.iter().copied().chain(std::iter::repeat_n(lm.eos(), longest - caption.len())));
        let first = row as i64 * length + prefix_len - 1;
        places.extend((0..=caption.len() as i64).map(|at| first + at));
        targets.extend(caption.iter().copied().chain([lm.eos()]));
    }
    let device = prefix.device();
    let ids = Tensor::from_slice(&inputs).reshape([batch, longest as i64]).to_device(device);
    let embeddings = Tensor::cat(&[prefix.shallow_clone(), lm.embed_tokens(&ids)], 1); // [batch, length, dim]
    let hidden = lm.hidden(&embeddings, None)?.reshape([batch * length, dim]);
    // Logits of scored positions alone: those of the prefix would take most of the memory.
    let logits = lm.head(&hidden.index_select(0, &Tensor::from_slice(&places).to_device(device))); // [scored, vocab]
    let targets = Tensor::from_slice(&targets).to_device(device);
    Ok(logits.cross_entropy_loss(&targets, None::<&Tensor>, Reduction::Mean, -100, 0.0))
}

#[cfg(test)]
mod tests;
