//! GPT-2 (Radford et al. 2019): pre-LN blocks under a causal mask, learned positions, GELU by its tanh approximation,
//! the embedding table for a head. Files have Hugging Face's names, which are those of OpenAI's release; their layers
//! keep weights [in, out], the transpose of everything else here.

use super::{causal_attention, check_shapes, layer_norm, linear, split_heads};
use crate::weights::Tensors;
use anyhow::{Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use tch::Tensor;

/// The fields of config.json that decide the function.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct Gpt2Config {
    /// Width of a token.
    #[serde(rename = "n_embd")]
    pub dim: i64,
    /// Number of blocks.
    #[serde(rename = "n_layer")]
    pub depth: i64,
    /// Heads of a block.
    #[serde(rename = "n_head")]
    pub heads: i64,
    /// Width of the MLP's hidden layer; four times `dim` unless given.
    #[serde(rename = "n_inner")]
    mlp_dim: Option<i64>,
    /// Positions.
    #[serde(rename = "n_positions")]
    pub context: i64,
    /// Tokens.
    #[serde(rename = "vocab_size")]
    pub vocabulary: i64,
    /// LayerNorm's ε.
    #[serde(rename = "layer_norm_epsilon")]
    pub eps: f64,
    activation_function: String,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    /// The id that ends a text.
    pub eos_token_id: Option<i64>,
}

/// The weights and their architecture.
#[derive(Debug)]
pub struct Gpt2 {
    /// The architecture.
    pub config: Gpt2Config,
    pub(super) tensors: Tensors,
}

impl Gpt2 {
    /// Takes the tensors of a file, with or without the prefix `transformer.`.
    ///
    /// # Errors
    /// An architecture that is not GPT-2's; tensors that are missing, misshapen or unknown.
    pub fn new(config: Gpt2Config, file: &Tensors) -> Result<Gpt2> {
        let activation = config.activation_function.as_str();
        ensure!(
            ["gelu_new", "gelu_pytorch_tanh"].contains(&activation),
            "its activation is {activation}; only gelu_new is known"
        );
        ensure!(!config.scale_attn_by_inverse_layer_idx, "attention scaled by layer is not known");
        ensure!(
            config.heads > 0 && config.dim % config.heads == 0,
            "its {} heads do not divide its width {}",
            config.heads,
            config.dim
        );
        let named = |(name, tensor): (&str, &Tensor)| {
            (name.strip_prefix("transformer.").unwrap_or(name).to_owned(), tensor.shallow_clone())
        };
        // The causal mask, kept by old files; and the head, which is the embedding table.
        let is_buffer = |name: &str| {
            name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") || name == "lm_head.weight"
        };
        let mut tensors: Tensors = file.iter().map(named).filter(|(name, _)| !is_buffer(name)).collect();
        if let (Some(head), Some(table)) = (file.get("lm_head.weight"), tensors.get("wte.weight")) {
            ensure!(head.equal(table), "its head differs from its embedding table; GPT-2 shares them");
        }
        check_shapes(&tensors, &config.shapes())?;
        for block in 0..config.depth {
            for layer in ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"] {
                let name = format!("h.{block}.{layer}.weight");
                let turned = tensors[&name].f_tr()?.f_contiguous()?;
                tensors.insert(name, turned);
            }
        }
        Ok(Gpt2 { config, tensors })
    }

    /// The embedding table, which is the head too.
    ///
    /// # Shapes
    /// [vocabulary, dim]
    pub fn table(&self) -> &Tensor {
        &self.tensors["wte.weight"]
    }

    /// All of its tensors, weights [out, in].
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// Hidden states after the final LayerNorm. Positions count from 0.
    ///
    /// # Shapes
    /// `embeddings` [batch, length, dim], `mask` bool [batch, 1, length, length] or none for causal → [batch, length,
    /// dim]
    pub fn hidden(&self, embeddings: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let (config, tensors) = (&self.config, &self.tensors);
        let mut x = embeddings + tensors["wpe.weight"].narrow(0, 0, embeddings.size()[1]);
        for block in 0..config.depth {
            let name = |part: &str| format!("h.{block}.{part}");
            let normed = layer_norm(&x, tensors, &name("ln_1"), config.eps);
            let qkv = linear(&normed, tensors, &name("attn.c_attn")).chunk(3, -1);
            let [query, key, value] = [0, 1, 2].map(|part| split_heads(&qkv[part], config.heads));
            let attended = causal_attention(&query, &key, &value, mask);
            x = &x + linear(&attended, tensors, &name("attn.c_proj"));
            let normed = layer_norm(&x, tensors, &name("ln_2"), config.eps);
            let hidden = linear(&normed, tensors, &name("mlp.c_fc")).gelu("tanh");
            x = &x + linear(&hidden, tensors, &name("mlp.c_proj"));
        }
        layer_norm(&x, tensors, "ln_f", config.eps)
    }
}

impl Gpt2Config {
    /// Name and shape of every tensor as files have them.
    pub fn shapes(&self) -> BTreeMap<String, Vec<i64>> {
        let (dim, mlp) = (self.dim, self.mlp_dim.unwrap_or(4 * self.dim));
        let mut shapes = BTreeMap::from([
            ("wte.weight".to_owned(), vec![self.vocabulary, dim]),
            ("wpe.weight".to_owned(), vec![self.context, dim]),
            ("ln_f.weight".to_owned(), vec![dim]),
            ("ln_f.bias".to_owned(), vec![dim]),
        ]);
        for block in 0..self.depth {
            for (layer, input, output) in [
                ("attn.c_attn", dim, 3 * dim),
                ("attn.c_proj", dim, dim),
                ("mlp.c_fc", dim, mlp),
                ("mlp.c_proj", mlp, dim),
            ] {
                shapes.insert(format!("h.{block}.{layer}.weight"), vec![input, output]);
                shapes.insert(format!("h.{block}.{layer}.bias"), vec![output]);
            }
            for norm in ["ln_1", "ln_2"] {
                shapes.insert(format!("h.{block}.{norm}.weight"), vec![dim]);
                shapes.insert(format!("h.{block}.{norm}.bias"), vec![dim]);
            }
        }
        shapes
    }
}
