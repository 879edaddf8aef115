//! Llama (arXiv 2302.13971) and what is built like it, SmolLM2 among them: RMSNorm before each half of a block,
//! rotary positions (arXiv 2104.09864), grouped queries (arXiv 2305.13245), a SwiGLU MLP, no biases. Read from
//! Hugging Face's safetensors with their config.json and from llama.cpp's GGUF with its metadata.

use super::{affine, causal_attention, check_shapes, split_heads};
use crate::weights::Tensors;
use crate::weights::gguf::{Metadata, Value};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// The names of a block's tensors: llama.cpp's and Hugging Face's.
const BLOCK_NAMES: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The architecture.
#[derive(Clone, PartialEq, Debug)]
pub struct LlamaConfig {
    /// Width of a token.
    pub dim: i64,
    /// Number of blocks.
    pub depth: i64,
    /// Query heads of a block.
    pub heads: i64,
    /// Key and value heads; each serves heads / groups queries.
    pub groups: i64,
    /// Width of a head.
    pub head_dim: i64,
    /// Width of the MLP's hidden layer.
    pub mlp_dim: i64,
    /// Tokens.
    pub vocabulary: i64,
    /// Positions that it was trained with.
    pub context: i64,
    /// RMSNorm's ε.
    pub eps: f64,
    /// Base of the rotary frequencies.
    pub rope_base: f64,
    /// The id that ends a text.
    pub eos: i64,
}

/// The weights and their architecture.
#[derive(Debug)]
pub struct Llama {
    /// The architecture.
    pub config: LlamaConfig,
    pub(super) tensors: Tensors,
}

impl Llama {
    /// Takes the tensors of a Hugging Face file, with or without the prefix `model.`. A file without `lm_head.weight`
    /// has the embedding table for a head.
    ///
    /// # Errors
    /// Tensors that are missing, misshapen or unknown.
    pub fn new(config: LlamaConfig, file: &Tensors) -> Result<Llama> {
        config.check()?;
        let named = |(name, tensor): (&str, &Tensor)| {
            (name.strip_prefix("model.").unwrap_or(name).to_owned(), tensor.shallow_clone())
        };
        // Frequencies kept by old files; they follow from the base.
        let is_buffer = |name: &str| name.ends_with("rotary_emb.inv_freq");
        let tensors: Tensors = file.iter().map(named).filter(|(name, _)| !is_buffer(name)).collect();
        check_shapes(&tensors, &config.shapes(tensors.get("lm_head.weight").is_some()))?;
        Ok(Llama { config, tensors })
    }

    /// Takes the tensors of a GGUF file.
    ///
    /// # Errors
    /// Another architecture; tensors that are missing, misshapen or unknown.
    pub fn from_gguf(metadata: &Metadata, file: &Tensors) -> Result<Llama> {
        let config = LlamaConfig::from_gguf(metadata, file)?;
        config.check()?;
        let mut tensors = Tensors::new();
        for (name, tensor) in file.iter() {
            let (key, tensor) = match name {
                "token_embd.weight" => ("embed_tokens.weight".to_owned(), tensor.shallow_clone()),
                "output_norm.weight" => ("norm.weight".to_owned(), tensor.shallow_clone()),
                "output.weight" => ("lm_head.weight".to_owned(), tensor.shallow_clone()),
                _ => config.place_in_block(name, tensor)?,
            };
            tensors.insert(key, tensor);
        }
        Llama::new(config, &tensors)
    }

    /// The embedding table.
    ///
    /// # Shapes
    /// [vocabulary, dim]
    pub fn table(&self) -> &Tensor {
        &self.tensors["embed_tokens.weight"]
    }

    /// What hidden states are compared with to give logits.
    ///
    /// # Shapes
    /// [vocabulary, dim]
    pub fn head(&self) -> &Tensor {
        self.tensors.get("lm_head.weight").unwrap_or_else(|| self.table())
    }

    /// All of its tensors.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// Hidden states after the final RMSNorm. Positions count from 0.
    ///
    /// # Shapes
    /// `embeddings` [batch, length, dim], `mask` bool [batch, 1, length, length] or none for causal → [batch, length,
    /// dim]
    pub fn hidden(&self, embeddings: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let LlamaConfig { depth, heads, groups, .. } = self.config;
        let (cos, sin) = self.rotation(embeddings); // [length, head]
        let mut x = embeddings.shallow_clone();
        for block in 0..depth {
            let project = |x: &Tensor, part: &str| {
                affine(x, &self.tensors[&format!("layers.{block}.{part}.weight")], None)
            };
            let normed = self.norm(&x, &format!("layers.{block}.input_layernorm"));
            let query = rotate(&split_heads(&project(&normed, "self_attn.q_proj"), heads), &cos, &sin);
            let key = rotate(&split_heads(&project(&normed, "self_attn.k_proj"), groups), &cos, &sin);
            let value = split_heads(&project(&normed, "self_attn.v_proj"), groups);
            let spread = |x: &Tensor| x.repeat_interleave_self_int(heads / groups, 1, None); // [batch, heads, …]
            let attended = causal_attention(&query, &spread(&key), &spread(&value), mask);
            x = &x + project(&attended, "self_attn.o_proj");
            let normed = self.norm(&x, &format!("layers.{block}.post_attention_layernorm"));
            let hidden = project(&normed, "mlp.gate_proj").silu() * project(&normed, "mlp.up_proj");
            x = &x + project(&hidden, "mlp.down_proj");
        }
        self.norm(&x, "norm")
    }

    /// x / √(mean x² + ε), times a gain.
    fn norm(&self, x: &Tensor, name: &str) -> Tensor {
        let mean = x.square().mean_dim(-1, true, x.kind());
        x * (mean + self.config.eps).rsqrt() * &self.tensors[&format!("{name}.weight")]
    }

    /// Cosine and sine of every position's angles: position · base^(−2i / head) for the i-th pair, pairs being one
    /// value of the first half of a head and one of the second (Hugging Face's order).
    pub(super) fn rotation(&self, embeddings: &Tensor) -> (Tensor, Tensor) {
        let (head, device) = (self.config.head_dim, embeddings.device());
        // In f32 as the reference has it: at position 8,000 an f64 angle differs in the fourth digit.
        let even = Tensor::arange(head / 2, (Kind::Int64, device)) * 2;
        let exponents = even.to_kind(Kind::Float) / head as f64;
        let frequencies = Tensor::pow_scalar(self.config.rope_base, &exponents).reciprocal();
        let positions = Tensor::arange(embeddings.size()[1], (Kind::Float, device));
        let angles = positions.outer(&frequencies); // [length, head / 2]
        let angles = Tensor::cat(&[&angles, &angles], -1);
        (angles.cos().to_kind(embeddings.kind()), angles.sin().to_kind(embeddings.kind()))
    }
}

/// Turns each pair (a, b) of a head's halves to (a cos − b sin, b cos + a sin).
///
/// # Shapes
/// [batch, heads, length, head], [length, head] → [batch, heads, length, head]
pub(super) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let halves = x.chunk(2, -1);
    let turned = Tensor::cat(&[&halves[1].neg(), &halves[0]], -1);
    x * cos + turned * sin
}

impl LlamaConfig {
    /// Reads Hugging Face's config.json, of either generation.
    ///
    /// # Errors
    /// A field that is missing, or an architecture that is not this one.
    pub fn from_json(json: &Json) -> Result<LlamaConfig> {
        let whole =
            |key: &str| json[key].as_i64().with_context(|| format!("config.json does not say `{key}`"));
        ensure!(json["hidden_act"] == "silu", "its activation is {}; only silu is known", json["hidden_act"]);
        for flag in ["attention_bias", "mlp_bias"] {
            ensure!(json[flag] != true, "`{flag}` is not known");
        }
        let rope = &json["rope_parameters"];
        for scaling in [&json["rope_scaling"], rope] {
            let kind = scaling.get("rope_type").or(scaling.get("type")).unwrap_or(&Json::Null);
            ensure!(
                scaling.is_null() || kind == "default",
                "rotary positions scaled by {kind} are not known"
            );
        }
        let heads = whole("num_attention_heads")?;
        let eos = match &json["eos_token_id"] {
            Json::Array(ids) => ids.first().and_then(Json::as_i64),
            id => id.as_i64(),
        };
        Ok(LlamaConfig {
            dim: whole("hidden_size")?,
            depth: whole("num_hidden_layers")?,
            heads,
            groups: json["num_key_value_heads"].as_i64().unwrap_or(heads),
            head_dim: json["head_dim"].as_i64().unwrap_or(whole("hidden_size")? / heads.max(1)),
            mlp_dim: whole("intermediate_size")?,
            vocabulary: whole("vocab_size")?,
            context: whole("max_position_embeddings")?,
            eps: json["rms_norm_eps"].as_f64().context("config.json does not say `rms_norm_eps`")?,
            rope_base: rope["rope_theta"].as_f64().or(json["rope_theta"].as_f64()).unwrap_or(1e4),
            eos: eos.context("config.json does not say `eos_token_id`")?,
        })
    }

    fn from_gguf(metadata: &Metadata, tensors: &Tensors) -> Result<LlamaConfig> {
        let architecture = metadata.text("general.architecture")?;
        ensure!(architecture == "llama", "its architecture is {architecture}; only llama is read from GGUF");
        if let Some(Value::Text(scaling)) = metadata.get("llama.rope.scaling.type") {
            ensure!(scaling == "none", "rotary positions scaled by {scaling} are not known");
        }
        let whole = |key: &str| metadata.integer(&format!("llama.{key}"));
        let optional = |key: &str| metadata.get(&format!("llama.{key}")).map(|_| whole(key)).transpose();
        let (dim, heads) = (whole("embedding_length")?, whole("attention.head_count")?);
        let table = tensors.get("token_embd.weight").context("token_embd.weight is missing")?;
        let base = "llama.rope.freq_base";
        Ok(LlamaConfig {
            dim,
            depth: whole("block_count")?,
            heads,
            groups: optional("attention.head_count_kv")?.unwrap_or(heads),
            head_dim: optional("attention.key_length")?.unwrap_or(dim / heads.max(1)),
            mlp_dim: whole("feed_forward_length")?,
            vocabulary: *table.size().first().context("token_embd.weight is a scalar")?,
            context: whole("context_length")?,
            eps: metadata.float("llama.attention.layer_norm_rms_epsilon")?,
            rope_base: metadata.get(base).map(|_| metadata.float(base)).transpose()?.unwrap_or(1e4),
            eos: metadata.integer("tokenizer.ggml.eos_token_id")?,
        })
    }

    /// A block's tensor under Hugging Face's name. llama.cpp keeps the rows of query and key so that the pairs that
    /// turn together lie side by side; here they lie half a head apart.
    fn place_in_block(&self, name: &str, tensor: &Tensor) -> Result<(String, Tensor)> {
        let place = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let layer = place.and_then(|(block, rest)| Some((block, rest.strip_suffix(".weight")?)));
        let known = layer.and_then(|(block, part)| {
            let (_, to) = BLOCK_NAMES.iter().find(|(from, _)| *from == part)?;
            Some((format!("layers.{block}.{to}.weight"), part))
        });
        let Some((key, part)) = known else { bail!("{name} is unknown") };
        let heads = match part {
            "attn_q" => self.heads,
            "attn_k" => self.groups,
            _ => return Ok((key, tensor.shallow_clone())),
        };
        let (rows, columns) = tensor.size2().with_context(|| name.to_owned())?;
        ensure!(rows == heads * self.head_dim, "{name} has {rows} rows, must have {}", heads * self.head_dim);
        let pairs = tensor.reshape([heads, self.head_dim / 2, 2, columns]);
        Ok((key, pairs.transpose(1, 2).reshape([rows, columns])))
    }

    fn check(&self) -> Result<()> {
        let LlamaConfig { dim, heads, groups, head_dim, .. } = *self;
        ensure!(
            dim > 0 && heads > 0 && groups > 0 && heads % groups == 0 && head_dim > 0 && head_dim % 2 == 0,
            "{heads} heads of {head_dim} in {groups} groups do not make an attention"
        );
        Ok(())
    }

    /// Name and shape of every tensor.
    pub fn shapes(&self, own_head: bool) -> BTreeMap<String, Vec<i64>> {
        let LlamaConfig { dim, mlp_dim: mlp, .. } = *self;
        let (queries, keys) = (self.heads * self.head_dim, self.groups * self.head_dim);
        let mut shapes = BTreeMap::from([
            ("embed_tokens.weight".to_owned(), vec![self.vocabulary, dim]),
            ("norm.weight".to_owned(), vec![dim]),
        ]);
        if own_head {
            shapes.insert("lm_head.weight".to_owned(), vec![self.vocabulary, dim]);
        }
        for block in 0..self.depth {
            for (part, shape) in [
                ("input_layernorm", vec![dim]),
                ("self_attn.q_proj", vec![queries, dim]),
                ("self_attn.k_proj", vec![keys, dim]),
                ("self_attn.v_proj", vec![keys, dim]),
                ("self_attn.o_proj", vec![dim, queries]),
                ("post_attention_layernorm", vec![dim]),
                ("mlp.gate_proj", vec![mlp, dim]),
                ("mlp.up_proj", vec![mlp, dim]),
                ("mlp.down_proj", vec![dim, mlp]),
            ] {
                shapes.insert(format!("layers.{block}.{part}.weight"), shape);
            }
        }
        shapes
    }
}
