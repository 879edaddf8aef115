//! Frozen language models behind one type: what a captioning objective needs of one is its embedding table, its
//! logits as a differentiable function of embeddings, and its tokenizer. Its weights never get gradients; those of
//! a loss flow through it to what was put in front of the caption.

use super::affine;
use super::gpt2::{Gpt2, Gpt2Config};
use super::llama::{Llama, LlamaConfig};
use crate::data::asset::Format;
use crate::data::tokenizer::{END_OF_TEXT, LanguageTokenizer};
use crate::weights::{Tensors, gguf, safetensors};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// A frozen causal language model with its tokenizer.
pub struct LanguageModel {
    model: Model,
    tokenizer: LanguageTokenizer,
    eos: i64,
    digest: String,
}

#[derive(Debug)]
enum Model {
    Gpt2(Gpt2),
    Llama(Llama),
}

impl LanguageModel {
    /// Opens an asset's folder: `LanguageModel::open(&asset.folder, asset.manifest.format)`. It holds
    /// `model.safetensors`, `config.json` and a tokenizer (`tokenizer.json`, or GPT-2's two files), or, for
    /// `llama`, one `.gguf` file that has all three.
    ///
    /// # Errors
    /// A missing or damaged file, another architecture, tensors that are missing, misshapen or unknown, a vocabulary
    /// of another size.
    pub fn open(folder: &Path, format: Format) -> Result<LanguageModel> {
        let model = match format {
            Format::Gpt2 => LanguageModel::open_gpt2(folder),
            Format::Llama if folder.join("config.json").is_file() => LanguageModel::open_llama(folder),
            Format::Llama => LanguageModel::open_gguf(folder),
            other => bail!("{other:?} is no format of language models"),
        };
        let model = model.and_then(LanguageModel::checked);
        model.with_context(|| format!("opening the language model in {}", folder.display()))
    }

    fn open_gpt2(folder: &Path) -> Result<LanguageModel> {
        let config = fs::read(folder.join("config.json")).context("config.json")?;
        let config: Gpt2Config = serde_json::from_slice(&config).context("config.json")?;
        let tokenizer = LanguageTokenizer::open(folder)?;
        let eos = config.eos_token_id.or_else(|| tokenizer.id(END_OF_TEXT));
        let eos = eos.context("neither config.json nor the tokenizer says which id ends a text")?;
        let file = safetensors::read(&folder.join("model.safetensors"))?;
        let model = Model::Gpt2(Gpt2::new(config, &file.tensors)?);
        Ok(LanguageModel { model, tokenizer, eos, digest: file.sha256 })
    }

    fn open_llama(folder: &Path) -> Result<LanguageModel> {
        let config = fs::read(folder.join("config.json")).context("config.json")?;
        let config = LlamaConfig::from_json(&serde_json::from_slice(&config).context("config.json")?)?;
        let tokenizer = LanguageTokenizer::open(folder)?;
        let eos = config.eos;
        let file = safetensors::read(&folder.join("model.safetensors"))?;
        let model = Model::Llama(Llama::new(config, &file.tensors)?);
        Ok(LanguageModel { model, tokenizer, eos, digest: file.sha256 })
    }

    fn open_gguf(folder: &Path) -> Result<LanguageModel> {
        let path = only_gguf(folder)?;
        let file = gguf::read(&path)?;
        let context = || path.display().to_string();
        let llama = Llama::from_gguf(&file.metadata, &file.tensors).with_context(context)?;
        let tokenizer = LanguageTokenizer::from_gguf(&file.metadata).with_context(context)?;
        let eos = llama.config.eos;
        Ok(LanguageModel { model: Model::Llama(llama), tokenizer, eos, digest: file.sha256 })
    }

    fn checked(self) -> Result<LanguageModel> {
        let (vocabulary, tokens) = (self.vocab(), self.tokenizer.vocabulary() as i64);
        ensure!(tokens <= vocabulary, "its tokenizer has {tokens} tokens, the model {vocabulary}");
        ensure!((0..vocabulary).contains(&self.eos), "the end of a text, {}, is no id of its", self.eos);
        Ok(self)
    }

    /// Width of a token.
    pub fn dim(&self) -> i64 {
        match &self.model {
            Model::Gpt2(gpt2) => gpt2.config.dim,
            Model::Llama(llama) => llama.config.dim,
        }
    }

    /// Number of ids.
    pub fn vocab(&self) -> i64 {
        match &self.model {
            Model::Gpt2(gpt2) => gpt2.config.vocabulary,
            Model::Llama(llama) => llama.config.vocabulary,
        }
    }

    /// Most positions that it takes.
    pub fn context(&self) -> i64 {
        match &self.model {
            Model::Gpt2(gpt2) => gpt2.config.context,
            Model::Llama(llama) => llama.config.context,
        }
    }

    /// The id that ends a text.
    pub fn eos(&self) -> i64 {
        self.eos
    }

    /// sha256 of the weights' file.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The same model with its weights on a device.
    pub fn to_device(mut self, device: Device) -> LanguageModel {
        let tensors = match &mut self.model {
            Model::Gpt2(gpt2) => &mut gpt2.tensors,
            Model::Llama(llama) => &mut llama.tensors,
        };
        *tensors = tensors.to_device(device);
        self
    }

    /// Its frozen weights.
    pub fn tensors(&self) -> &Tensors {
        match &self.model {
            Model::Gpt2(gpt2) => gpt2.tensors(),
            Model::Llama(llama) => llama.tensors(),
        }
    }

    /// The ids of a text, nothing added.
    ///
    /// # Errors
    /// A text that the tokenizer refuses.
    pub fn tokenize(&self, text: &str) -> Result<Vec<i64>> {
        self.tokenizer.encode(text)
    }

    /// The text of ids, marks such as the end left out.
    ///
    /// # Errors
    /// An id that is none.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        self.tokenizer.decode(ids)
    }

    /// The embeddings of ids.
    ///
    /// # Shapes
    /// […] → […, dim]
    pub fn embed_tokens(&self, ids: &Tensor) -> Tensor {
        let table = match &self.model {
            Model::Gpt2(gpt2) => gpt2.table(),
            Model::Llama(llama) => llama.table(),
        };
        Tensor::embedding(table, ids, -1, false, false)
    }

    /// The last hidden states. A position sees itself and the kept ones before it; positions count from 0, dropped
    /// ones included.
    ///
    /// # Shapes
    /// `embeddings` [batch, length, dim], `keep` bool [batch, length] → [batch, length, dim]
    ///
    /// # Errors
    /// More positions than the model takes.
    pub fn hidden(&self, embeddings: &Tensor, keep: Option<&Tensor>) -> Result<Tensor> {
        let (_, length, dim) = embeddings.size3()?;
        ensure!(
            length <= self.context() && dim == self.dim(),
            "the language model takes up to {} positions {} wide; these are {length}, {dim} wide",
            self.context(),
            self.dim()
        );
        let mask = keep.map(|keep| {
            let square = Tensor::ones([length, length], (Kind::Bool, embeddings.device()));
            let itself = Tensor::eye(length, (Kind::Bool, embeddings.device()));
            let seen = square.tril(0).logical_and(&keep.unsqueeze(1).unsqueeze(1)); // [batch, 1, length, length]
            // A row that saw nothing would be NaN.
            seen.logical_or(&itself)
        });
        Ok(match &self.model {
            Model::Gpt2(gpt2) => gpt2.hidden(embeddings, mask.as_ref()),
            Model::Llama(llama) => llama.hidden(embeddings, mask.as_ref()),
        })
    }

    /// The logits of hidden states.
    ///
    /// # Shapes
    /// […, dim] → […, vocab]
    pub fn head(&self, hidden: &Tensor) -> Tensor {
        let weight = match &self.model {
            Model::Gpt2(gpt2) => gpt2.table(),
            Model::Llama(llama) => llama.head(),
        };
        affine(hidden, weight, None)
    }

    /// The logits of the token after each position; see [`LanguageModel::hidden`].
    ///
    /// # Shapes
    /// `embeddings` [batch, length, dim], `keep` bool [batch, length] → [batch, length, vocab]
    ///
    /// # Errors
    /// More positions than the model takes.
    pub fn logits(&self, embeddings: &Tensor, keep: Option<&Tensor>) -> Result<Tensor> {
        Ok(self.head(&self.hidden(embeddings, keep)?))
    }

    /// The ids that go on from embeddings, the likeliest each time, up to the end of the text, which is not among
    /// them, or `max_tokens`.
    ///
    /// # Shapes
    /// `embeddings` [1, length, dim]
    ///
    /// # Errors
    /// More positions than the model takes.
    pub fn continue_from(&self, embeddings: &Tensor, max_tokens: usize) -> Result<Vec<i64>> {
        let _frozen = tch::no_grad_guard();
        let mut embeddings = embeddings.shallow_clone();
        let mut ids = Vec::new();
        while ids.len() < max_tokens {
            let last = self.hidden(&embeddings, None)?.select(1, -1); // [1, dim]
            let id = self.head(&last).argmax(-1, false); // [1]
            let number = id.int64_value(&[0]);
            if number == self.eos {
                break;
            }
            ids.push(number);
            embeddings = Tensor::cat(&[embeddings, self.embed_tokens(&id).unsqueeze(0)], 1);
        }
        Ok(ids)
    }

    /// The text that goes on from a prompt, the likeliest token each time.
    ///
    /// # Errors
    /// A prompt without tokens, more positions than the model takes.
    pub fn generate(&self, prompt: &str, max_tokens: usize) -> Result<String> {
        let ids = self.tokenize(prompt)?;
        ensure!(!ids.is_empty(), "an empty prompt cannot be continued");
        let embeddings = self.embed_tokens(&Tensor::from_slice(&ids)).unsqueeze(0);
        self.decode(&self.continue_from(&embeddings, max_tokens)?)
    }
}

fn only_gguf(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    let paths = entries.into_iter().map(|entry| entry.path());
    let mut found: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|ending| ending == "gguf")).collect();
    ensure!(found.len() < 2, "there are {} .gguf files; one is expected", found.len());
    found.pop().context("there is neither config.json with model.safetensors nor a .gguf file")
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub mod tiny;
