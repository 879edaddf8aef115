//! CLIP's text transformer (arXiv 2103.00020, §2.4): pre-LN blocks under a causal mask; the caption's feature is the
//! hidden state at its end mark, after the final LayerNorm, projected into the space it shares with images. Files of
//! OpenAI and OpenCLIP and those of Hugging Face are read.

use super::{affine, causal_attention, check_shapes, layer_norm, linear, split_heads};
use crate::data::tokenizer::ClipTokenizer;
use crate::weights::{Tensors, safetensors};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tch::Tensor;

/// Width of an attention head in all of OpenAI's and OpenCLIP's text towers.
const HEAD_DIM: i64 = 64;

/// The names of a block's layers: Hugging Face's, and the canonical ones of OpenAI.
const BLOCK_NAMES: [(&str, &str); 5] = [
    ("layer_norm1.", "ln_1."),
    ("layer_norm2.", "ln_2."),
    ("self_attn.out_proj.", "attn.out_proj."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
];

/// What files hold beside the text tower: the image tower, the contrastive loss's scale, buffers.
const IGNORED: [&str; 8] = [
    "visual.",
    "vision_model.",
    "visual_projection.",
    "logit_scale",
    "logit_bias",
    "attn_mask",
    "embeddings.position_ids",
    "input_resolution",
];

/// What config.json says that the tensors do not. Hugging Face keeps it under `text_config` where the file describes
/// both towers.
#[derive(Deserialize)]
struct ConfigFile {
    text_config: Option<TextConfigFile>,
    #[serde(flatten)]
    flat: TextConfigFile,
}

#[derive(Deserialize)]
struct TextConfigFile {
    hidden_act: Option<String>,
    num_attention_heads: Option<i64>,
    layer_norm_eps: Option<f64>,
}

/// The architecture: what config.json says, and what is read off the shapes.
#[derive(Clone, PartialEq, Debug)]
pub struct ClipTextConfig {
    /// Width of a token.
    pub dim: i64,
    /// Width of the space that captions and images share.
    pub projection: i64,
    /// Number of blocks.
    pub depth: i64,
    /// Heads of a block.
    pub heads: i64,
    /// Width of the MLP's hidden layer.
    pub mlp_dim: i64,
    /// Positions.
    pub context: i64,
    /// Tokens.
    pub vocabulary: i64,
    /// x · σ(1.702 x), OpenAI's approximation, where the exact GELU stands otherwise.
    pub quick_gelu: bool,
    /// LayerNorm's ε.
    pub eps: f64,
}

/// The text tower with its tokenizer.
pub struct ClipText {
    config: ClipTextConfig,
    tensors: Tensors,
    tokenizer: ClipTokenizer,
    digest: String,
}

impl ClipText {
    /// Opens a folder with `model.safetensors`, `config.json` (at least its `hidden_act`: `quick_gelu` for OpenAI's
    /// weights, `gelu` for most of LAION's) and `tokenizer.json` or `bpe_simple_vocab_16e6.txt.gz`.
    ///
    /// # Errors
    /// A missing or damaged file, tensors that are unknown, missing or misshapen, a vocabulary of another size.
    pub fn open(folder: &Path) -> Result<ClipText> {
        let file = fs::read(folder.join("config.json")).context("config.json")?;
        let file: ConfigFile = serde_json::from_slice(&file).context("config.json")?;
        let contents = safetensors::read(&folder.join("model.safetensors"))?;
        let tensors = canonical(contents.tensors)?;
        let config = ClipTextConfig::new(file.text_config.unwrap_or(file.flat), &tensors)?;
        let tokenizer = ClipTokenizer::open(folder)?;
        ensure!(
            tokenizer.vocabulary() as i64 <= config.vocabulary,
            "its tokenizer has {} tokens, the model {}",
            tokenizer.vocabulary(),
            config.vocabulary
        );
        Ok(ClipText { config, tensors, tokenizer, digest: contents.sha256 })
    }

    /// The architecture.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// sha256 of the weights' file.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Ids of a caption from its start to its first end: what comes after has no part in the feature, since no token
    /// sees those behind it. (Files differ in what they pad with; nothing is padded here.)
    ///
    /// # Errors
    /// A caption that the tokenizer refuses.
    pub fn tokenize(&self, caption: &str) -> Result<Vec<i64>> {
        let mut ids = self.tokenizer.encode(caption, self.config.context as usize)?;
        let first = ids.iter().position(|id| *id == self.tokenizer.end());
        ids.truncate(first.map_or(ids.len(), |end| end + 1));
        Ok(ids)
    }

    /// Hidden states after the final LayerNorm.
    ///
    /// # Shapes
    /// `ids` [batch, tokens] → [batch, tokens, dim]
    pub fn hidden(&self, tensors: &Tensors, ids: &Tensor) -> Tensor {
        forward(&self.config, tensors, ids)
    }

    /// All its tensors, under OpenAI's names.
    pub fn tensors(&self) -> Tensors {
        self.tensors.share()
    }

    /// The feature of captions that end with their end mark, projected, not yet of unit length.
    ///
    /// # Shapes
    /// `hidden` [batch, tokens, dim] → [batch, projection]
    pub fn pool(&self, tensors: &Tensors, hidden: &Tensor) -> Tensor {
        hidden.select(1, -1).matmul(&tensors["text_projection"])
    }
}

fn forward(config: &ClipTextConfig, tensors: &Tensors, ids: &Tensor) -> Tensor {
    let words = Tensor::embedding(&tensors["token_embedding.weight"], ids, -1, false, false);
    let mut x = words + tensors["positional_embedding"].narrow(0, 0, ids.size()[1]); // [batch, tokens, dim]
    for block in 0..config.depth {
        let name = |part: &str| format!("transformer.resblocks.{block}.{part}");
        let normed = layer_norm(&x, tensors, &name("ln_1"), config.eps);
        let (weight, bias) = (&tensors[&name("attn.in_proj_weight")], &tensors[&name("attn.in_proj_bias")]);
        let qkv = affine(&normed, weight, Some(bias)).chunk(3, -1); // rows q, k, v
        let [query, key, value] = [0, 1, 2].map(|part| split_heads(&qkv[part], config.heads));
        let attended = causal_attention(&query, &key, &value, None);
        x = &x + linear(&attended, tensors, &name("attn.out_proj"));
        let normed = layer_norm(&x, tensors, &name("ln_2"), config.eps);
        let hidden = linear(&normed, tensors, &name("mlp.c_fc"));
        let hidden =
            if config.quick_gelu { (&hidden * 1.702).sigmoid() * hidden } else { hidden.gelu("none") };
        x = &x + linear(&hidden, tensors, &name("mlp.c_proj"));
    }
    layer_norm(&x, tensors, "ln_final", config.eps)
}

impl ClipTextConfig {
    fn new(file: TextConfigFile, tensors: &Tensors) -> Result<ClipTextConfig> {
        let quick_gelu = match file.hidden_act.as_deref() {
            Some("quick_gelu") => true,
            Some("gelu") => false,
            Some(other) => bail!("its activation is {other}; only quick_gelu and gelu are known"),
            // Both kinds of weights have the same shapes, and the wrong one costs accuracy without a word.
            None => bail!(
                "config.json does not say `hidden_act`: \"quick_gelu\" for OpenAI's weights, \"gelu\" for most others"
            ),
        };
        let size = |name: &str| -> Result<(i64, i64)> {
            let size = tensors.get(name).with_context(|| format!("{name} is missing"))?.size2();
            size.with_context(|| format!("{name} must have two dimensions"))
        };
        let (vocabulary, dim) = size("token_embedding.weight")?;
        let blocks = tensors.names().filter_map(|name| {
            name.strip_prefix("transformer.resblocks.")?.split('.').next()?.parse::<i64>().ok()
        });
        let config = ClipTextConfig {
            dim,
            projection: size("text_projection")?.1,
            depth: blocks.max().map_or(0, |last| last + 1),
            heads: file.num_attention_heads.unwrap_or(dim / HEAD_DIM),
            mlp_dim: size("transformer.resblocks.0.mlp.c_fc.weight")?.0,
            context: size("positional_embedding")?.0,
            vocabulary,
            quick_gelu,
            eps: file.layer_norm_eps.unwrap_or(1e-5),
        };
        ensure!(
            config.heads > 0 && dim % config.heads == 0,
            "its {} heads do not divide its width {dim}",
            config.heads
        );
        ensure!(config.context >= 2, "{} positions do not even hold a start and an end", config.context);
        check_shapes(tensors, &config.shapes())?;
        Ok(config)
    }

    /// Name and shape of every tensor.
    pub fn shapes(&self) -> BTreeMap<String, Vec<i64>> {
        let (dim, mlp) = (self.dim, self.mlp_dim);
        let mut shapes = BTreeMap::from([
            ("token_embedding.weight".to_owned(), vec![self.vocabulary, dim]),
            ("positional_embedding".to_owned(), vec![self.context, dim]),
            ("ln_final.weight".to_owned(), vec![dim]),
            ("ln_final.bias".to_owned(), vec![dim]),
            ("text_projection".to_owned(), vec![dim, self.projection]),
        ]);
        for block in 0..self.depth {
            for (part, shape) in [
                ("ln_1.weight", vec![dim]),
                ("ln_1.bias", vec![dim]),
                ("attn.in_proj_weight", vec![3 * dim, dim]),
                ("attn.in_proj_bias", vec![3 * dim]),
                ("attn.out_proj.weight", vec![dim, dim]),
                ("attn.out_proj.bias", vec![dim]),
                ("ln_2.weight", vec![dim]),
                ("ln_2.bias", vec![dim]),
                ("mlp.c_fc.weight", vec![mlp, dim]),
                ("mlp.c_fc.bias", vec![mlp]),
                ("mlp.c_proj.weight", vec![dim, mlp]),
                ("mlp.c_proj.bias", vec![dim]),
            ] {
                shapes.insert(format!("transformer.resblocks.{block}.{part}"), shape);
            }
        }
        shapes
    }
}

/// The tensors of the text tower under OpenAI's names. Query, key and value of Hugging Face's files are joined, their
/// projection [projection, dim] is turned into OpenAI's [dim, projection].
fn canonical(file: Tensors) -> Result<Tensors> {
    let mut tensors = Tensors::new();
    let mut thirds = BTreeMap::<String, [Option<Tensor>; 3]>::new();
    let mut twice = Vec::new();
    for (key, tensor) in file.iter() {
        let mut name = key;
        while let Some(rest) =
            ["module.", "text_model.", "text."].iter().find_map(|prefix| name.strip_prefix(prefix))
        {
            name = rest;
        }
        if IGNORED.iter().any(|prefix| name.starts_with(prefix))
            || ["context_length", "vocab_size"].contains(&name)
        {
            continue;
        }
        let earlier = match name {
            "embeddings.token_embedding.weight" => {
                tensors.insert("token_embedding.weight", tensor.shallow_clone())
            }
            "embeddings.position_embedding.weight" => {
                tensors.insert("positional_embedding", tensor.shallow_clone())
            }
            "text_projection.weight" => tensors.insert("text_projection", tensor.f_tr()?.contiguous()),
            _ => match place_in_layer(name) {
                Some((name, Some(third))) => {
                    thirds.entry(name).or_default()[third].replace(tensor.shallow_clone())
                }
                Some((name, None)) => tensors.insert(name, tensor.shallow_clone()),
                None => {
                    tensors.insert(name.replace("final_layer_norm.", "ln_final."), tensor.shallow_clone())
                }
            },
        };
        if earlier.is_some() {
            twice.push(format!("{key} is there twice, under two names"));
        }
    }
    for (name, parts) in thirds {
        let parts: Vec<Tensor> = parts.into_iter().flatten().collect();
        ensure!(parts.len() == 3, "{name} lacks its query, key or value");
        tensors.insert(name, Tensor::f_cat(&parts, 0)?);
    }
    ensure!(twice.is_empty(), "{}", twice.join("; "));
    Ok(tensors)
}

/// The canonical name of a tensor in one of Hugging Face's layers, and which third of it the tensor is.
fn place_in_layer(name: &str) -> Option<(String, Option<usize>)> {
    let (layer, rest) = name.strip_prefix("encoder.layers.")?.split_once('.')?;
    let block = format!("transformer.resblocks.{layer}");
    for (third, part) in ["self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."].iter().enumerate() {
        if let Some(leaf) = rest.strip_prefix(part) {
            return Some((format!("{block}.attn.in_proj_{leaf}"), Some(third)));
        }
    }
    let (part, leaf) = BLOCK_NAMES.iter().find_map(|(from, to)| Some((to, rest.strip_prefix(from)?)))?;
    Some((format!("{block}.{part}{leaf}"), None))
}
