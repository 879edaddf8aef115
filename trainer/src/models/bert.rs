//! BERT (arXiv 1810.04805) as a sentence encoder: MiniLM-L6 and its like. A caption's embedding is the mean of
//! its tokens' last hidden states.

use super::{all_told, lacking, layer_norm, linear};
use crate::data::tokenizer;
use crate::weights::{Tensors, safetensors};
use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use std::fs;
use std::path::Path;
use tch::Tensor;
use tokenizers::{Tokenizer, TruncationParams};

/// Longest caption, tokens; the rest is cut off. sentence-transformers' limit for MiniLM-L6.
const TOKENS_MAX: usize = 256;
/// The fields of config.json that decide the function.
#[derive(Deserialize)]
struct Config {
    hidden_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    intermediate_size: i64,
    layer_norm_eps: f64,
    hidden_act: String,
    max_position_embeddings: i64,
    vocab_size: i64,
}

/// A sentence encoder with its tokenizer.
pub struct Bert {
    config: Config,
    tensors: Tensors,
    tokenizer: Tokenizer,
    digest: String,
}

impl Bert {
    /// Opens a folder with `model.safetensors`, `tokenizer.json` and `config.json` as Hugging Face writes them.
    ///
    /// # Errors
    /// A missing or damaged file, another architecture, tensors that are missing or misshapen.
    pub fn open(folder: &Path) -> Result<Bert> {
        let config = fs::read(folder.join("config.json")).context("config.json")?;
        let config: Config = serde_json::from_slice(&config).context("config.json")?;
        ensure!(config.hidden_act == "gelu", "its activation is {}, only gelu is known", config.hidden_act);
        ensure!(config.hidden_size % config.num_attention_heads == 0, "its heads do not divide its width");
        let contents = safetensors::read(&folder.join("model.safetensors"))?;
        let tensors: Tensors = contents
            .tensors
            .iter()
            .map(|(name, tensor)| (name.trim_start_matches("bert.").to_owned(), tensor.shallow_clone()))
            .collect();
        config.check(&tensors)?;
        // The file's own settings pad every caption to 128 tokens and cut there.
        let mut tokenizer = tokenizer::read(&folder.join("tokenizer.json"))?;
        let max_length = TOKENS_MAX.min(config.max_position_embeddings as usize);
        tokenizer
            .with_truncation(Some(TruncationParams { max_length, ..TruncationParams::default() }))
            .map_err(|error| anyhow!("tokenizer.json: {error}"))?;
        Ok(Bert { config, tensors, tokenizer, digest: contents.sha256 })
    }

    /// sha256 of the weights' file.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Width of a token.
    pub fn dim(&self) -> i64 {
        self.config.hidden_size
    }

    /// The tensors that hidden states rest on: no pooler, no position ids.
    pub fn tensors(&self) -> Tensors {
        let names = self.config.shapes().into_iter().map(|(name, _)| name);
        let names = names.chain(["embeddings.token_type_embeddings.weight".to_owned()]);
        names.filter_map(|name| Some((name.clone(), self.tensors.get(&name)?.shallow_clone()))).collect()
    }

    /// Token ids of a caption, between [CLS] and [SEP].
    ///
    /// # Errors
    /// A caption that the tokenizer refuses.
    pub fn tokenize(&self, caption: &str) -> Result<Vec<i64>> {
        tokenizer::ids(&self.tokenizer, caption, true)
    }

    /// The last hidden states.
    ///
    /// # Shapes
    /// `ids` [batch, tokens] → [batch, tokens, dim]
    pub fn hidden(&self, tensors: &Tensors, ids: &Tensor) -> Tensor {
        let at = |name: &str| &tensors[name];
        let norm = |x: &Tensor, name: &str| layer_norm(x, tensors, name, self.config.layer_norm_eps);
        let words = Tensor::embedding(at("embeddings.word_embeddings.weight"), ids, -1, false, false);
        let positions = at("embeddings.position_embeddings.weight").narrow(0, 0, ids.size()[1]);
        let kind = at("embeddings.token_type_embeddings.weight").select(0, 0);
        let mut x = norm(&(words + positions + kind), "embeddings.LayerNorm"); // [batch, tokens, dim]
        for layer in 0..self.config.num_hidden_layers {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            let attended =
                linear(&self.attention(tensors, &x, layer), tensors, &name("attention.output.dense"));
            x = norm(&(x + attended), &name("attention.output.LayerNorm"));
            let hidden = linear(&x, tensors, &name("intermediate.dense")).gelu("none");
            let out = linear(&hidden, tensors, &name("output.dense"));
            x = norm(&(x + out), &name("output.LayerNorm"));
        }
        x
    }

    fn attention(&self, tensors: &Tensors, x: &Tensor, layer: i64) -> Tensor {
        let (batch, tokens, dim) = (x.size()[0], x.size()[1], x.size()[2]);
        let heads = self.config.num_attention_heads;
        let part = |name: &str| {
            let part = linear(x, tensors, &format!("encoder.layer.{layer}.attention.self.{name}"));
            part.reshape([batch, tokens, heads, dim / heads]).transpose(1, 2) // [batch, heads, tokens, head]
        };
        let (query, key, value) = (part("query"), part("key"), part("value"));
        let mixed = Tensor::scaled_dot_product_attention(
            &query,
            &key,
            &value,
            None::<&Tensor>,
            0.0,
            false,
            None,
            false,
        );
        mixed.transpose(1, 2).reshape([batch, tokens, dim])
    }
}

impl Config {
    fn check(&self, tensors: &Tensors) -> Result<()> {
        // Beside these, files hold poolers and position ids, which no embedding depends on.
        all_told(&lacking(tensors, self.shapes().iter().map(|(name, shape)| (name, shape))))
    }

    fn shapes(&self) -> Vec<(String, Vec<i64>)> {
        let dim = self.hidden_size;
        let mut shapes = vec![
            ("embeddings.word_embeddings.weight".to_owned(), vec![self.vocab_size, dim]),
            ("embeddings.position_embeddings.weight".to_owned(), vec![self.max_position_embeddings, dim]),
        ];
        let norms = |shapes: &mut Vec<(String, Vec<i64>)>, name: &str| {
            shapes.extend(["weight", "bias"].map(|leaf| (format!("{name}.{leaf}"), vec![dim])));
        };
        norms(&mut shapes, "embeddings.LayerNorm");
        for layer in 0..self.num_hidden_layers {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            for (part, rows, columns) in [
                ("attention.self.query", dim, dim),
                ("attention.self.key", dim, dim),
                ("attention.self.value", dim, dim),
                ("attention.output.dense", dim, dim),
                ("intermediate.dense", self.intermediate_size, dim),
                ("output.dense", dim, self.intermediate_size),
            ] {
                shapes.push((format!("{}.weight", name(part)), vec![rows, columns]));
                shapes.push((format!("{}.bias", name(part)), vec![rows]));
            }
            norms(&mut shapes, &name("attention.output.LayerNorm"));
            norms(&mut shapes, &name("output.LayerNorm"));
        }
        shapes
    }
}
