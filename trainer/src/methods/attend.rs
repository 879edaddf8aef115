//! What fusion and token replay share: attention of one head in a narrow bottleneck behind a gate, and the caption
//! tokens that it reads.
//!
//! x + tanh(g)·O·softmax(Q x̂ (K ŷ)ᵀ / √r) V ŷ, where x̂ and ŷ are LayerNorms without weights. The gate is Flamingo's
//! (arXiv 2204.14198, §2.2): g = 0 at the start, the exact identity whatever the matrices hold.

use super::{Added, Text};
use crate::weights::{Tensors, initial};
use tch::{Kind, Tensor};

/// ε of the LayerNorms without weights.
const EPS: f64 = 1e-6;

/// Tokens that are attended to.
#[derive(Debug)]
pub struct Keys {
    /// [batch, tokens, dim]; [1, tokens, dim] where every image has the same.
    pub tokens: Tensor,
    /// Which of them may be seen, bool [batch, tokens]; all, where it is left out.
    pub open: Option<Tensor>,
}

impl Keys {
    /// The tokens of captions, projected to the encoder's width. In the place of a caption that is missing there is
    /// `without`, or nothing that may be seen. No gradient flows into the text encoder.
    ///
    /// Whatever the batch shows, the projection and `without` are in the graph: an optimiser that is given a tensor
    /// must find it there.
    ///
    /// # Shapes
    /// `projection` [dim, text], `without` [stand-ins, text] → tokens [batch, tokens, dim]
    pub fn captions(text: Option<&Text>, without: Option<&Tensor>, projection: &Tensor) -> Keys {
        let (kind, width) = (projection.kind(), projection.size()[1]);
        let own = text.map(|text| (text.tokens.detach().to_kind(kind), text.real.shallow_clone()));
        let (tokens, open) = match (own, without) {
            (None, Some(without)) => (without.unsqueeze(0), None),
            (None, None) => {
                // One token that nobody may see.
                let at = projection.device();
                (Tensor::zeros([1, 1, width], (kind, at)), Some(Tensor::zeros([1, 1], (Kind::Bool, at))))
            }
            (Some((tokens, real)), None) => (tokens, Some(real)),
            (Some((tokens, real)), Some(without)) => {
                let missing = real.any_dim(1, true).logical_not(); // [batch, 1]
                let stand_ins = without.unsqueeze(0).expand([real.size()[0], -1, -1], false);
                let seen = missing.expand([-1, without.size()[0]], false);
                (Tensor::cat(&[tokens, stand_ins], 1), Some(Tensor::cat(&[real, seen], 1)))
            }
        };
        Keys { tokens: tokens.linear(projection, None::<&Tensor>), open }
    }

    /// The image's tokens, all of which may be seen, and these behind them.
    ///
    /// # Shapes
    /// [batch, image tokens, dim] → tokens [batch, image tokens + tokens, dim]
    pub fn behind(&self, image: &Tensor) -> Keys {
        let (batch, count) = (image.size()[0], image.size()[1]);
        let tokens = Tensor::cat(&[image.shallow_clone(), self.tokens.expand([batch, -1, -1], false)], 1);
        let open = self.open.as_ref().map(|open| {
            let all = Tensor::ones([batch, count], (Kind::Bool, open.device()));
            Tensor::cat(&[all, open.expand([batch, -1], false)], 1)
        });
        Keys { tokens, open }
    }
}

/// Query, key, value and out of one attention, and its gate. Their names begin with `place`.
#[derive(Debug)]
pub struct Attention<'a> {
    /// All tensors.
    pub tensors: &'a Tensors,
    /// `blocks.3.fusion.`, for example.
    pub place: String,
}

impl Attention<'_> {
    /// Adds the tensors: the matrices normal with variance 1 / (width of their input), the gate 0.
    pub fn add(added: &mut Added, place: &str, (dim, rank): (i64, i64), seed: u64) {
        for leaf in ["query", "key", "value"] {
            add_matrix(added, &format!("{place}{leaf}.weight"), (rank, dim), seed);
        }
        add_matrix(added, &format!("{place}out.weight"), (dim, rank), seed);
        added.add(format!("{place}gate"), Tensor::from(0f32));
    }

    /// What `asking` finds among the keys, before the gate.
    ///
    /// # Shapes
    /// [batch, asking, dim] → the same
    pub fn of(&self, asking: &Tensor, keys: &Keys) -> Tensor {
        let (asking, tokens) = (normed(asking), normed(&keys.tokens));
        let (query, key, value) =
            (self.linear("query", &asking), self.linear("key", &tokens), self.linear("value", &tokens));
        let found = weights(&query, &key, keys.open.as_ref()).matmul(&value); // [batch, asking, rank]
        self.linear("out", &found)
    }

    /// x + tanh(g)·y.
    pub fn gated(&self, x: &Tensor, y: Tensor) -> Tensor {
        x + y * self.tensors[&format!("{}gate", self.place)].tanh()
    }

    /// x·Wᵀ with the weight of that name.
    pub fn linear(&self, leaf: &str, x: &Tensor) -> Tensor {
        x.linear(&self.tensors[&format!("{}{leaf}.weight", self.place)], None::<&Tensor>)
    }
}

/// A matrix [rows, columns] of normal values with variance 1 / columns: inputs of variance 1 keep it.
pub fn add_matrix(added: &mut Added, name: &str, (rows, columns): (i64, i64), seed: u64) {
    added.add(name, initial::normal(seed, name, &[rows, columns], (columns as f64).powf(-0.5)));
}

/// LayerNorm without weights.
pub fn normed(x: &Tensor) -> Tensor {
    let dim = x.size().last().copied().unwrap_or_default();
    x.layer_norm([dim], None::<&Tensor>, None::<&Tensor>, EPS, false)
}

/// softmax(q kᵀ / √r) over the keys that are open. What may see no key at all sees 0.
///
/// # Shapes
/// `query` [batch, asking, r], `key` [batch, keys, r], `open` [batch, keys] → [batch, asking, keys]; a batch of 1
/// among them is the same for all
pub fn weights(query: &Tensor, key: &Tensor, open: Option<&Tensor>) -> Tensor {
    let rank = query.size().last().copied().unwrap_or(1) as f64;
    let scores = query.matmul(&key.transpose(1, 2)) * rank.powf(-0.5); // [batch, asking, keys]
    let Some(open) = open else { return scores.softmax(-1, None) };
    let shut = open.logical_not().unsqueeze(1); // [batch, 1, keys]
    // Only −∞ in a row would give NaN, and NaN as a gradient too, so such a row keeps its scores and is blanked after.
    let nothing = shut.all_dim(-1, true); // [batch, 1, 1]
    let hidden = shut.logical_and(&nothing.logical_not());
    scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, None).masked_fill(&nothing, 0.0)
}

#[cfg(test)]
mod tests;
