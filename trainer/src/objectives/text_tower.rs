//! The text encoder in training: FLYP (arXiv 2212.00638) fine-tunes both encoders against the loss that they were
//! pretrained with, so the captions of each batch are embedded anew, in the graph. It is trained as what reads the image
//! encoder is, at the image encoder's rate, in f32, and also while the image encoder stands still. No feature that is
//! evaluated rests on it, so it is no part of the checkpoint; a resume state holds it.

use crate::models::text::TextEncoder;
use crate::weights::Tensors;
use anyhow::{Context, Result};
use tch::Tensor;

/// What begins the names of its tensors in the optimiser.
pub const NAMES: &str = "text_encoder/";

/// A text encoder before its training, and the captions that it will read.
pub struct Untrained {
    encoder: TextEncoder,
    /// Token ids of each distinct caption.
    ids: Vec<Vec<i64>>,
}

impl Untrained {
    /// A text encoder and the distinct captions.
    ///
    /// # Errors
    /// A caption that the tokenizer refuses.
    pub fn new<S: AsRef<str>>(encoder: TextEncoder, captions: &[S]) -> Result<Untrained> {
        let ids = encoder.token_ids(captions).context("reading the captions")?;
        Ok(Untrained { encoder, ids })
    }

    /// Width of an embedding.
    pub fn dim(&self) -> i64 {
        self.encoder.dim()
    }

    /// Number of distinct captions.
    pub fn captions(&self) -> usize {
        self.ids.len()
    }

    /// The tower whose tensors `train` has taken into the optimiser.
    pub fn train(&self, train: &mut dyn FnMut(&str, &Tensor) -> Tensor) -> TextTower<'_> {
        let tensors = self.encoder.tensors();
        let tensors =
            tensors.iter().map(|(name, start)| (name.to_owned(), train(&format!("{NAMES}{name}"), start)));
        TextTower { encoder: &self.encoder, ids: &self.ids, tensors: tensors.collect() }
    }
}

/// The text encoder with the tensors that are trained.
pub struct TextTower<'a> {
    encoder: &'a TextEncoder,
    ids: &'a [Vec<i64>],
    tensors: Tensors,
}

impl TextTower<'_> {
    /// Unit-length embeddings of captions, with their graph.
    ///
    /// # Shapes
    /// `captions` i64 [batch], places among the distinct ones → [batch, dim]
    ///
    /// # Errors
    /// A place beyond the captions.
    pub fn embed(&self, captions: &Tensor) -> Result<Tensor> {
        let places = Vec::<i64>::try_from(captions)?;
        let ids = places.iter().map(|place| self.ids.get(*place as usize).context("a caption has no tokens"));
        self.encoder.embed_with(&self.tensors, &ids.collect::<Result<Vec<_>>>()?)
    }
}

#[cfg(test)]
mod tests;
