//! Fusion: attention between the tokens of image and caption after a block, in a bottleneck and behind a gate that
//! starts closed (`attend`). Names of who attends to whom are from Hendricks et al. (arXiv 2102.00529). With V the
//! image's tokens, T the caption's and [V; T] both under one softmax:
//!
//! - merged: V and T attend to [V; T], with the same matrices.
//! - co_attention: V attends to T and T to V, each with matrices of its own.
//! - asymmetric: V attends to T, which stays as it is.
//! - joint: as merged on GELU(Down LN V) and GELU(Down LN T), then Up: one adapter that both streams share.
//!
//! With `null_text = "drop"` a missing caption leaves nothing to see: V attends to V alone, which merged and joint can.
//! T is the frozen text encoder's, projected once. What becomes of T after the last block that acts is read by nobody
//! and not computed.
//!
//! With a learned null text a missing caption is one token. Attention to one token is that token, so an asymmetric
//! fusion without captions adds the same vector to every token of every image; the others still tell images apart.

use super::attend::{self, Attention, Keys};
use super::{Added, Pass, Site, Start, Tuner, acts_in, blocks, first_block};
use crate::models::vit::VitConfig;
use crate::weights::initial;
use anyhow::{Result, ensure};
use causeway_protocol::{Fusion, FusionAttention, NullText};
use tch::Tensor;

/// The projection of caption tokens.
const TEXT: &str = "fusion.text.weight";
/// The null text.
const NULL: &str = "fusion.null";

/// Fusion as a spec describes it.
pub struct Fused(pub Fusion);

impl Tuner for Fused {
    fn added(&self, site: &Site, seed: u64) -> Result<Added> {
        let (dim, text, rank) = (site.config.dim, site.widths.text, i64::from(self.0.rank));
        ensure!(text > 0, "fusion reads captions, and no text encoder says how wide they are");
        let mut added = Added::default();
        attend::add_matrix(&mut added, TEXT, (dim, text), seed);
        if self.0.null_text == NullText::Learned {
            added.add(NULL, initial::normal(seed, NULL, &[1, text], (text as f64).powf(-0.5)));
        }
        let acting = blocks(self.0.blocks.as_deref(), site.config)?;
        for block in &acting {
            let place = place(*block);
            if self.0.attention == FusionAttention::Joint {
                for (leaf, shape) in [
                    ("down", (rank, dim)),
                    ("query", (rank, rank)),
                    ("key", (rank, rank)),
                    ("value", (rank, rank)),
                    ("up", (dim, rank)),
                ] {
                    attend::add_matrix(&mut added, &format!("{place}{leaf}.weight"), shape, seed);
                }
                added.add(format!("{place}gate"), Tensor::from(0f32));
                continue;
            }
            Attention::add(&mut added, &place, (dim, rank), seed);
            if self.0.attention == FusionAttention::CoAttention && Some(block) != acting.last() {
                Attention::add(&mut added, &format!("{place}text_"), (dim, rank), seed);
            }
        }
        Ok(added)
    }

    fn trains(&self, name: &str) -> bool {
        name.starts_with("fusion.") || name.contains(".fusion.")
    }

    /// Where the image's tokens are keys for the class token. In co-attention they are keys for the caption alone, which
    /// is not updated in the last block that acts.
    fn needs_all_tokens(&self) -> bool {
        matches!(self.0.attention, FusionAttention::Merged | FusionAttention::Joint)
    }

    fn untouched_blocks(&self, _config: &VitConfig) -> Option<i64> {
        Some(first_block(self.0.blocks.as_deref()))
    }

    fn begin<'a>(&'a self, start: Start<'a>) -> Box<dyn Pass + 'a> {
        Box::new(Fusing::new(&self.0, start))
    }
}

struct Fusing<'a> {
    own: &'a Fusion,
    start: Start<'a>,
    /// T as the blocks so far have left it.
    captions: Keys,
}

impl<'a> Fusing<'a> {
    fn new(own: &'a Fusion, start: Start<'a>) -> Fusing<'a> {
        let without = (own.null_text == NullText::Learned).then(|| &start.tensors[NULL]);
        let captions = Keys::captions(start.text, without, &start.tensors[TEXT]);
        Fusing { own, start, captions }
    }

    fn is_last(&self, block: i64) -> bool {
        let last = self.own.blocks.as_deref().and_then(|blocks| blocks.iter().max());
        block == last.map_or(self.start.config.depth - 1, |last| i64::from(*last))
    }

    /// Both streams ask `attention` for what they find among both.
    ///
    /// # Shapes
    /// [batch, tokens, dim] → the same
    fn together(
        &mut self,
        block: i64,
        x: &Tensor,
        gates: &Attention,
        attention: impl Fn(&Tensor, &Keys) -> Tensor,
    ) -> Tensor {
        let both = self.captions.behind(x);
        if self.is_last(block) {
            return gates.gated(x, attention(x, &both));
        }
        let after = gates.gated(&both.tokens, attention(&both.tokens, &both)); // [batch, tokens + text tokens, dim]
        let (image, all) = (x.size()[1], after.size()[1]);
        self.captions.tokens = after.narrow(1, image, all - image);
        after.narrow(1, 0, image)
    }
}

impl Pass for Fusing<'_> {
    fn after_block(&mut self, block: i64, _middle: &Tensor, x: Tensor) -> Tensor {
        if !acts_in(self.own.blocks.as_deref(), block) {
            return x;
        }
        let tensors = self.start.tensors;
        let attention = Attention { tensors, place: place(block) };
        match self.own.attention {
            FusionAttention::Merged => {
                self.together(block, &x, &attention, |asking, both| attention.of(asking, both))
            }
            FusionAttention::Joint => {
                self.together(block, &x, &attention, |asking, both| joint(&attention, asking, both))
            }
            FusionAttention::Asymmetric => attention.gated(&x, attention.of(&x, &self.captions)),
            FusionAttention::CoAttention => {
                let image = attention.gated(&x, attention.of(&x, &self.captions));
                if !self.is_last(block) {
                    let place = format!("{}text_", place(block));
                    let (of_text, text) = (Attention { tensors, place }, &self.captions.tokens);
                    let found = of_text.of(text, &Keys { tokens: x, open: None });
                    self.captions.tokens = of_text.gated(text, found);
                }
                image
            }
        }
    }
}

/// Up·Attention inside the bottleneck that both streams share.
///
/// # Shapes
/// [batch, asking, dim] → the same
fn joint(of: &Attention, asking: &Tensor, both: &Keys) -> Tensor {
    let down = |x: &Tensor| of.linear("down", &attend::normed(x)).gelu("none"); // [batch, …, rank]
    let (asking, tokens) = (down(asking), down(&both.tokens));
    let (query, key, value) =
        (of.linear("query", &asking), of.linear("key", &tokens), of.linear("value", &tokens));
    of.linear("up", &attend::weights(&query, &key, both.open.as_ref()).matmul(&value))
}

fn place(block: i64) -> String {
    format!("blocks.{block}.fusion.")
}

#[cfg(test)]
mod tests;
