//! BERT (arXiv 1810.04805) as a sentence encoder: MiniLM-L6 and its like. Frozen; each distinct caption is embedded
//! once, before training.

use crate::weights::{Tensors, safetensors};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tch::{Kind, Tensor};
use tokenizers::{Tokenizer, TruncationParams};

/// Longest caption, tokens; the rest is cut off. sentence-transformers' limit for MiniLM-L6.
const TOKENS_MAX: usize = 256;
/// Captions per forward pass.
const BATCH: usize = 64;

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
pub struct TextEncoder {
    config: Config,
    tensors: Tensors,
    tokenizer: Tokenizer,
    digest: String,
}

impl TextEncoder {
    /// Opens a folder with `model.safetensors`, `tokenizer.json` and `config.json` as Hugging Face writes them.
    ///
    /// # Errors
    /// A missing or damaged file, another architecture, tensors that are missing or misshapen.
    pub fn open(folder: &Path) -> Result<TextEncoder> {
        let context = || format!("opening the text encoder in {}", folder.display());
        TextEncoder::open_files(folder).with_context(context)
    }

    fn open_files(folder: &Path) -> Result<TextEncoder> {
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
        let mut tokenizer = Tokenizer::from_file(folder.join("tokenizer.json"))
            .map_err(|error| anyhow!("tokenizer.json: {error}"))?;
        // The file's own settings pad every caption to 128 tokens and cut there.
        tokenizer.with_padding(None);
        let max_length = TOKENS_MAX.min(config.max_position_embeddings as usize);
        tokenizer
            .with_truncation(Some(TruncationParams { max_length, ..TruncationParams::default() }))
            .map_err(|error| anyhow!("tokenizer.json: {error}"))?;
        Ok(TextEncoder { config, tensors, tokenizer, digest: contents.sha256 })
    }

    /// sha256 of the weights' file.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Unit-length embeddings of captions. Those of equal length in tokens go through together, so that nothing is
    /// ever padded and a caption's mean runs over its own tokens alone.
    ///
    /// # Shapes
    /// → [captions, hidden_size]
    ///
    /// # Errors
    /// A caption that the tokenizer refuses.
    pub fn embed<S: AsRef<str>>(&self, captions: &[S]) -> Result<Tensor> {
        ensure!(!captions.is_empty(), "there are no captions to embed");
        let mut by_length = BTreeMap::<usize, Vec<(usize, Vec<i64>)>>::new();
        for (at, caption) in captions.iter().enumerate() {
            let ids = self.tokenize(caption.as_ref())?;
            by_length.entry(ids.len()).or_default().push((at, ids));
        }
        let mut rows: Vec<Option<Tensor>> = captions.iter().map(|_| None).collect();
        for group in by_length.values().flat_map(|group| group.chunks(BATCH)) {
            let ids: Vec<Tensor> = group.iter().map(|(_, ids)| Tensor::from_slice(ids)).collect();
            let embeddings = tch::no_grad(|| self.forward(&Tensor::stack(&ids, 0))); // [batch, dim]
            for ((at, _), row) in group.iter().zip(embeddings.unbind(0)) {
                rows[*at] = Some(row);
            }
        }
        let rows: Vec<Tensor> = rows.into_iter().flatten().collect();
        Ok(Tensor::f_stack(&rows, 0)?)
    }

    /// Token ids of a caption, between [CLS] and [SEP].
    fn tokenize(&self, caption: &str) -> Result<Vec<i64>> {
        let encoding = self
            .tokenizer
            .encode(caption, true)
            .map_err(|error| anyhow!("tokenizing {caption:?}: {error}"))?;
        Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
    }

    /// # Shapes
    /// `ids` [batch, tokens] → [batch, dim], rows of length 1
    fn forward(&self, ids: &Tensor) -> Tensor {
        let at = |name: &str| &self.tensors[name];
        let words = Tensor::embedding(at("embeddings.word_embeddings.weight"), ids, -1, false, false);
        let positions = at("embeddings.position_embeddings.weight").narrow(0, 0, ids.size()[1]);
        let kind = at("embeddings.token_type_embeddings.weight").select(0, 0);
        let mut x = self.layer_norm(&(words + positions + kind), "embeddings.LayerNorm"); // [batch, tokens, dim]
        for layer in 0..self.config.num_hidden_layers {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            let attended = self.linear(&self.attention(&x, layer), &name("attention.output.dense"));
            x = self.layer_norm(&(x + attended), &name("attention.output.LayerNorm"));
            let hidden = self.linear(&x, &name("intermediate.dense")).gelu("none");
            let out = self.linear(&hidden, &name("output.dense"));
            x = self.layer_norm(&(x + out), &name("output.LayerNorm"));
        }
        let mean = x.mean_dim(1, false, Kind::Float); // [batch, dim]
        &mean / mean.norm_scalaropt_dim(2.0, [-1], true).clamp_min(1e-12)
    }

    fn attention(&self, x: &Tensor, layer: i64) -> Tensor {
        let (batch, tokens, dim) = (x.size()[0], x.size()[1], x.size()[2]);
        let heads = self.config.num_attention_heads;
        let part = |name: &str| {
            let part = self.linear(x, &format!("encoder.layer.{layer}.attention.self.{name}"));
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

    fn linear(&self, x: &Tensor, name: &str) -> Tensor {
        x.linear(&self.tensors[&format!("{name}.weight")], Some(&self.tensors[&format!("{name}.bias")]))
    }

    fn layer_norm(&self, x: &Tensor, name: &str) -> Tensor {
        let weight = &self.tensors[&format!("{name}.weight")];
        let bias = &self.tensors[&format!("{name}.bias")];
        x.layer_norm(weight.size(), Some(weight), Some(bias), self.config.layer_norm_eps, false)
    }
}

impl Config {
    fn check(&self, tensors: &Tensors) -> Result<()> {
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
        let problems: Vec<String> = shapes
            .iter()
            .filter_map(|(name, shape)| match tensors.get(name) {
                None => Some(format!("{name} is missing")),
                Some(tensor) if tensor.size() != *shape => {
                    Some(format!("{name} is {:?}, must be {shape:?}", tensor.size()))
                }
                Some(_) => None,
            })
            .collect();
        if !problems.is_empty() {
            bail!("{}", problems.join("; "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{assert_near, model, numbers};

    /// As in `goldens/reference.py`.
    const CAPTIONS: [&str; 5] = [
        "A squirrel.",
        "a cat",
        "a kitten",
        "a lorry",
        "Two children fly a red kite over the dunes, naïvely.",
    ];

    #[test]
    fn embeddings_are_those_of_sentence_transformers() {
        let encoder = TextEncoder::open(&model("minilm-l6")).unwrap();
        let embeddings = encoder.embed(&CAPTIONS).unwrap();
        // The reference pads to the longest and masks; ours never pads. f32 rounding over six layers.
        assert_near(&embeddings.narrow(1, 0, 6), &numbers("sentences.first"), 1e-5);
        let similarity = embeddings.matmul(&embeddings.transpose(0, 1));
        assert_near(&similarity, &numbers("sentences.similarity"), 1e-5);
        let of = |a: i64, b: i64| similarity.double_value(&[a, b]);
        assert!(of(1, 2) > of(1, 3), "a cat is nearer to a kitten than to a lorry");
    }

    #[test]
    fn a_caption_has_its_embedding_whatever_its_company() {
        let encoder = TextEncoder::open(&model("minilm-l6")).unwrap();
        let together = encoder.embed(&CAPTIONS).unwrap();
        for (at, caption) in CAPTIONS.iter().enumerate() {
            let alone = encoder.embed(&[caption]).unwrap();
            assert!(alone.allclose(&together.narrow(0, at as i64, 1), 1e-5, 1e-6, false), "{caption}");
        }
        let long = "word ".repeat(1000);
        assert_eq!(encoder.tokenize(&long).unwrap().len(), TOKENS_MAX);
        assert_eq!(encoder.embed(&[long.as_str(), ""]).unwrap().size(), [2, 384]);
    }

    #[test]
    fn a_folder_without_a_model_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let error = format!("{:#}", TextEncoder::open(folder.path()).err().unwrap());
        assert!(
            error.contains(&folder.path().display().to_string()) && error.contains("config.json"),
            "{error}"
        );
    }
}
