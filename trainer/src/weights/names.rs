//! The names of an encoder's tensors. Inside, they are those of DINO's, MAE's and timm's files; Hugging Face's (ViT, and
//! with it DINO's first version; ViTMAE; Dinov2; CLIP; each in both generations of transformers), OpenAI's and
//! OpenCLIP's are turned into them. Every key of a file is accounted for: used, ignored on purpose, or an error.
//!
//! timm's models that average patches have `fc_norm` instead of `norm`. They are refused: nothing ever trained their
//! class token, so they have no feature that could be compared.

use super::Tensors;
use crate::models::vit::{Activation, Known, VitConfig};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use tch::Tensor;

/// What wrappers put before every name: DistributedDataParallel, torch.compile, DINO's training checkpoints, models with
/// a head, CLIP's two towers.
const PREFIXES: [&str; 6] = ["module.", "_orig_mod.", "backbone.", "vit.", "dinov2.", "vision_model."];

/// What files hold beside the encoder: classifiers, DINO's projection head, untrained poolers, the token that
/// replaced masked patches in pretraining. No feature depends on them.
const IGNORED: [&str; 6] =
    ["head.", "classifier.", "pooler.", "mask_token", "embeddings.mask_token", "embeddings.position_ids"];

/// What a full CLIP holds beside its image tower: the text tower, and numbers of both. OpenAI's text tower has no prefix.
const CLIP_TEXT: [&str; 12] = [
    "text_model.",
    "text_projection",
    "text.",
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "attn_mask",
    "logit_",
    "input_resolution",
    "context_length",
    "vocab_size",
];

/// What precedes the number of a block: (file's, canonical).
const BLOCKS: [(&str, &str); 8] = [
    ("blocks.", "blocks."),
    ("encoder.layer.", "blocks."),
    ("encoder.layers.", "blocks."),
    ("layers.", "blocks."),
    ("decoder_blocks.", "decoder_blocks."),
    ("decoder.decoder_layers.", "decoder_blocks."),
    // As transformers 5.23 writes what it reads as decoder_layers.
    ("decoder.decoder_encoder.layer.", "decoder_blocks."),
    ("visual.transformer.resblocks.", "blocks."),
];

/// The two ends of a tensor's name outside of blocks: (file's, canonical).
const OUTSIDE: [(&str, &str); 22] = [
    ("patch_embed.proj.", "patch_embed.proj."),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.patch_embedding.", "patch_embed.proj."),
    ("visual.conv1.", "patch_embed.proj."),
    ("norm_pre.", "norm_pre."),
    ("pre_layrnorm.", "norm_pre."),
    ("visual.ln_pre.", "norm_pre."),
    ("norm.", "norm."),
    ("layernorm.", "norm."),
    ("post_layernorm.", "norm."),
    ("visual.ln_post.", "norm."),
    ("proj.", "proj."),
    ("visual_projection.", "proj."),
    ("decoder_embed.", "decoder_embed."),
    ("decoder_norm.", "decoder_norm."),
    ("decoder_pred.", "decoder_pred."),
    ("decoder_pos_embed", "decoder_pos_embed"),
    ("decoder.decoder_embed.", "decoder_embed."),
    ("decoder.decoder_norm.", "decoder_norm."),
    ("decoder.decoder_pred.", "decoder_pred."),
    ("decoder.decoder_pos_embed", "decoder_pos_embed"),
    ("decoder.mask_token", "mask_token"),
];

/// The two ends of a tensor's name, its block and what is left: (file's, canonical).
const BLOCK_NAMES: [(&str, &str); 25] = [
    ("ln_1.", "norm1."),
    ("ln_2.", "norm2."),
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj.", "attn.proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
    ("layer_norm1.", "norm1."),
    ("layer_norm2.", "norm2."),
    ("self_attn.out_proj.", "attn.proj."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("attention.output.dense.", "attn.proj."),
    ("attention.o_proj.", "attn.proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("norm1.", "norm1."),
    ("norm2.", "norm2."),
    ("attn.qkv.", "attn.qkv."),
    ("attn.proj.", "attn.proj."),
    ("mlp.fc1.", "mlp.fc1."),
    ("mlp.fc2.", "mlp.fc2."),
    ("ls1.", "ls1."),
    ("ls2.", "ls2."),
];

/// Query, key and value as files with three projections name them, in the order of the fused one's rows.
const SPLIT: [[&str; 3]; 3] = [
    ["attention.attention.query.", "attention.q_proj.", "self_attn.q_proj."],
    ["attention.attention.key.", "attention.k_proj.", "self_attn.k_proj."],
    ["attention.attention.value.", "attention.v_proj.", "self_attn.v_proj."],
];

/// Where a key of a file belongs.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Place {
    /// The tensor of this canonical name.
    Whole(String),
    /// The tensor of this canonical name, rows for columns.
    Transposed(String),
    /// A third of the rows of this canonical name: 0 query, 1 key, 2 value.
    Part(String, usize),
    /// Nowhere, on purpose.
    Ignored,
    /// Nobody knows.
    Unknown,
}

/// A file's tensors under canonical names.
#[derive(Debug)]
pub struct Named {
    /// The encoder.
    pub encoder: Tensors,
    /// MAE's decoder, where there is one.
    pub decoder: Tensors,
    /// The keys that were ignored on purpose.
    pub ignored: Vec<String>,
}

/// The tensors of a file under canonical names.
///
/// # Errors
/// Unknown keys, two keys for one tensor, an incomplete query, key, value; all are listed, and with them what is missing
/// or misshapen.
pub fn canonical(file: Tensors) -> Result<Named> {
    let context = Context::of(&file);
    let mut tensors = Tensors::new();
    let mut parts = BTreeMap::<String, [Option<Tensor>; 3]>::new();
    let (mut ignored, mut problems) = (Vec::new(), Vec::new());
    for (key, tensor) in file.iter() {
        let tensor = tensor.shallow_clone();
        let earlier = match context.place(key) {
            Place::Whole(name) => {
                let tensor = with_batch(&name, tensor);
                tensors.insert(name, tensor)
            }
            Place::Transposed(name) if tensor.dim() == 2 => {
                tensors.insert(name, tensor.transpose(0, 1).contiguous())
            }
            Place::Transposed(_) => {
                problems.push(format!("{key} is {:?}, must have 2 dimensions", tensor.size()));
                None
            }
            Place::Part(name, third) => parts.entry(name).or_default()[third].replace(tensor),
            Place::Ignored => {
                ignored.push(key.to_owned());
                None
            }
            Place::Unknown if key.contains("fc_norm.") => {
                problems.push(format!(
                    "{key} belongs to a model that averages patches and has no class token's feature"
                ));
                None
            }
            Place::Unknown => {
                problems.push(format!("{key} is unknown"));
                None
            }
        };
        if earlier.is_some() {
            problems.push(format!("{key} is there twice, under two names"));
        }
    }
    for (name, thirds) in parts {
        match thirds {
            [Some(query), Some(key), Some(value)]
                if query.size() == key.size() && key.size() == value.size() =>
            {
                if tensors.insert(name.clone(), Tensor::cat(&[query, key, value], 0)).is_some() {
                    problems.push(format!("{name} is there both fused and split"));
                }
            }
            [Some(_), Some(_), Some(_)] => {
                problems.push(format!("query, key and value of {name} differ in shape"))
            }
            _ => problems.push(format!("{name} lacks its query, key or value")),
        }
    }
    let is_decoder = |name: &str| name.starts_with("decoder_") || name == "mask_token";
    let (mut encoder, mut decoder) = (Tensors::new(), Tensors::new());
    for (name, tensor) in tensors.iter() {
        let part = if is_decoder(name) { &mut decoder } else { &mut encoder };
        part.insert(name, tensor.shallow_clone());
    }
    if !problems.is_empty() {
        // What else is wrong, so that one reading tells all of it.
        let known = Known { activation: Some(Activation::default()), ..Known::default() };
        problems.extend(VitConfig::infer(&encoder, known).err().map(|error| format!("{error:#}")));
        bail!("{}", problems.join("; "));
    }
    Ok(Named { encoder, decoder, ignored })
}

/// CLIP keeps its class token and its position table without a dimension for the batch.
fn with_batch(name: &str, tensor: Tensor) -> Tensor {
    match (name, tensor.dim()) {
        ("cls_token", 1) => tensor.reshape([1, 1, -1]),
        ("pos_embed", 2) => tensor.unsqueeze(0),
        _ => tensor,
    }
}

/// What the keys of a file say together.
struct Context {
    /// It holds CLIP's image tower, so a text tower beside it is no surprise.
    clip: bool,
    /// It holds nothing but the image tower of OpenAI's kind, whose names then lack their prefix.
    bare_tower: bool,
    /// It holds MAE's decoder, so the mask token is part of that.
    mae: bool,
}

impl Context {
    fn of(file: &Tensors) -> Context {
        let holds = |name: &str| file.names().any(|key| unwrapped(key) == name);
        Context {
            clip: holds("visual.class_embedding") || holds("embeddings.class_embedding"),
            bare_tower: holds("class_embedding"),
            mae: holds("decoder_embed.weight"),
        }
    }

    fn place(&self, key: &str) -> Place {
        let bare = unwrapped(key);
        let visual = format!("visual.{bare}");
        let key = if self.bare_tower { visual.as_str() } else { bare };
        if key == "mask_token" && self.mae {
            return Place::Whole(key.to_owned());
        }
        let one_of = |prefixes: &[&str]| prefixes.iter().any(|prefix| key.starts_with(prefix));
        if one_of(&IGNORED) || self.clip && one_of(&CLIP_TEXT) {
            return Place::Ignored;
        }
        let whole = |name: &str| Place::Whole(name.to_owned());
        match key {
            "cls_token"
            | "embeddings.cls_token"
            | "embeddings.class_embedding"
            | "visual.class_embedding" => whole("cls_token"),
            "pos_embed"
            | "embeddings.position_embeddings"
            | "embeddings.position_embedding.weight"
            | "visual.positional_embedding" => whole("pos_embed"),
            "visual.proj" => Place::Transposed("proj.weight".to_owned()),
            _ => match renamed(&OUTSIDE, key) {
                Some(name) => Place::Whole(name),
                None => place_in_block(key).unwrap_or(Place::Unknown),
            },
        }
    }
}

/// A key without what wrappers put before it.
fn unwrapped(mut key: &str) -> &str {
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| key.strip_prefix(prefix)) {
        key = rest;
    }
    key
}

/// The canonical name of a key whose beginning is one of a table's.
fn renamed(table: &[(&str, &str)], key: &str) -> Option<String> {
    let (to, leaf) = table.iter().find_map(|(from, to)| Some((to, key.strip_prefix(from)?)))?;
    Some(format!("{to}{leaf}"))
}

fn place_in_block(key: &str) -> Option<Place> {
    let (blocks, rest) = BLOCKS.iter().find_map(|(from, to)| Some((to, key.strip_prefix(from)?)))?;
    let (block, rest) = rest.split_once('.')?;
    let block: u32 = block.parse().ok()?;
    for (third, names) in SPLIT.iter().enumerate() {
        if let Some(leaf) = names.iter().find_map(|name| rest.strip_prefix(name)) {
            return Some(Place::Part(format!("{blocks}{block}.attn.qkv.{leaf}"), third));
        }
    }
    let name = renamed(&BLOCK_NAMES, rest)?;
    Some(Place::Whole(format!("{blocks}{block}.{name}")))
}

#[cfg(test)]
mod tests;
