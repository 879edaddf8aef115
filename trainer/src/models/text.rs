//! Text encoders: what turns captions into vectors, each distinct caption once, before training, or in training with
//! tensors that move. One type for all of them, opened by the format that the asset's manifest names.

use super::bert::Bert;
use super::clip_text::ClipText;
use crate::data::asset::Format;
use crate::weights::Tensors;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Captions per forward pass.
const BATCH: usize = 64;

/// A text encoder with its tokenizer.
pub struct TextEncoder {
    model: Model,
}

enum Model {
    Bert(Bert),
    ClipText(ClipText),
}

impl TextEncoder {
    /// Opens an asset's folder: `TextEncoder::open(&asset.folder, asset.manifest.format)`.
    ///
    /// # Errors
    /// A missing or damaged file, another architecture, tensors that are missing or misshapen.
    pub fn open(folder: &Path, format: Format) -> Result<TextEncoder> {
        let model = match format {
            Format::Bert => Bert::open(folder).map(Model::Bert),
            Format::ClipText => ClipText::open(folder).map(Model::ClipText),
            other => bail!("{other:?} is no format of text encoders"),
        };
        let model = model.with_context(|| format!("opening the text encoder in {}", folder.display()))?;
        Ok(TextEncoder { model })
    }

    /// sha256 of the weights' file.
    pub fn digest(&self) -> &str {
        match &self.model {
            Model::Bert(bert) => bert.digest(),
            Model::ClipText(clip) => clip.digest(),
        }
    }

    /// Width of a caption's embedding.
    pub fn dim(&self) -> i64 {
        match &self.model {
            Model::Bert(bert) => bert.dim(),
            Model::ClipText(clip) => clip.config().projection,
        }
    }

    /// Width of a token's hidden state.
    pub fn token_dim(&self) -> i64 {
        match &self.model {
            Model::Bert(bert) => bert.dim(),
            Model::ClipText(clip) => clip.config().dim,
        }
    }

    /// Unit-length embeddings of captions. Those of equal length in tokens go through together, so that nothing is
    /// ever padded and a caption's embedding rests on its own tokens alone.
    ///
    /// # Shapes
    /// → [captions, dim]
    ///
    /// # Errors
    /// A caption that the tokenizer refuses.
    pub fn embed<S: AsRef<str>>(&self, captions: &[S]) -> Result<Tensor> {
        let ids = self.token_ids(captions)?;
        let tensors = self.tensors();
        tch::no_grad(|| self.embed_with(&tensors, &ids.iter().collect::<Vec<_>>()))
    }

    /// The same with other values of the encoder's tensors, whose graph it keeps, for captions that are tokens already.
    ///
    /// # Shapes
    /// → [captions, dim]
    ///
    /// # Errors
    /// No captions.
    pub fn embed_with(&self, tensors: &Tensors, captions: &[&Vec<i64>]) -> Result<Tensor> {
        let device = tensors.iter().next().map_or(Device::Cpu, |(_, tensor)| tensor.device());
        let rows = in_groups(captions, |ids| {
            let ids = &ids.to_device(device);
            let pooled = match &self.model {
                Model::Bert(bert) => bert.hidden(tensors, ids).mean_dim(1, false, Kind::Float),
                Model::ClipText(clip) => clip.pool(tensors, &clip.hidden(tensors, ids)),
            }; // [batch, dim]
            &pooled / pooled.norm_scalaropt_dim(2.0, [-1], true).clamp_min(1e-12)
        })?;
        Ok(Tensor::f_stack(&rows, 0)?)
    }

    /// The tensors that embeddings rest on, by their names in the file or the canonical ones.
    pub fn tensors(&self) -> Tensors {
        match &self.model {
            Model::Bert(bert) => bert.tensors(),
            Model::ClipText(clip) => clip.tensors(),
        }
    }

    /// The last hidden states of every token, before any pooling or projection, and which of them are real: shorter
    /// captions are filled up with zeros behind their tokens. All captions' tokens take captions · tokens ·
    /// token_dim · 4 bytes, so hand over a batch at a time where there are many.
    ///
    /// # Shapes
    /// → [captions, tokens, token_dim], bool [captions, tokens]
    ///
    /// # Errors
    /// A caption that the tokenizer refuses.
    pub fn tokens<S: AsRef<str>>(&self, captions: &[S]) -> Result<(Tensor, Tensor)> {
        let rows = self.token_rows(captions)?;
        let lengths: Vec<i64> = rows.iter().map(|row| row.size()[0]).collect();
        let lengths = Tensor::from_slice(&lengths);
        let states = Tensor::f_pad_sequence(&rows, true, 0.0, "right")?;
        let positions = Tensor::arange(states.size()[1], (Kind::Int64, states.device()));
        Ok((states, positions.unsqueeze(0).less_tensor(&lengths.unsqueeze(1))))
    }

    /// The same, each caption by itself.
    ///
    /// # Shapes
    /// → for each caption [its tokens, token_dim]
    ///
    /// # Errors
    /// A caption that the tokenizer refuses.
    pub fn token_rows<S: AsRef<str>>(&self, captions: &[S]) -> Result<Vec<Tensor>> {
        let ids = self.token_ids(captions)?;
        let tensors = self.tensors();
        let hidden = |ids: &Tensor| match &self.model {
            Model::Bert(bert) => bert.hidden(&tensors, ids),
            Model::ClipText(clip) => clip.hidden(&tensors, ids),
        };
        tch::no_grad(|| in_groups(&ids.iter().collect::<Vec<_>>(), hidden))
    }

    /// The token ids of captions.
    ///
    /// # Errors
    /// A caption that the tokenizer refuses.
    pub fn token_ids<S: AsRef<str>>(&self, captions: &[S]) -> Result<Vec<Vec<i64>>> {
        captions.iter().map(|caption| self.tokenize(caption.as_ref())).collect()
    }

    fn tokenize(&self, caption: &str) -> Result<Vec<i64>> {
        match &self.model {
            Model::Bert(bert) => bert.tokenize(caption),
            Model::ClipText(clip) => clip.tokenize(caption),
        }
    }
}

/// What `pass` makes of each caption, in the captions' order. It is given ids [batch, tokens] of equal length.
fn in_groups(captions: &[&Vec<i64>], pass: impl Fn(&Tensor) -> Tensor) -> Result<Vec<Tensor>> {
    ensure!(!captions.is_empty(), "there are no captions to embed");
    let mut by_length = BTreeMap::<usize, Vec<usize>>::new();
    for (at, ids) in captions.iter().enumerate() {
        by_length.entry(ids.len()).or_default().push(at);
    }
    let mut rows: Vec<Option<Tensor>> = captions.iter().map(|_| None).collect();
    for group in by_length.values().flat_map(|group| group.chunks(BATCH)) {
        let ids: Vec<Tensor> = group.iter().map(|at| Tensor::from_slice(captions[*at])).collect();
        let made = pass(&Tensor::stack(&ids, 0));
        for (at, row) in group.iter().zip(made.unbind(0)) {
            rows[*at] = Some(row);
        }
    }
    Ok(rows.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests;
