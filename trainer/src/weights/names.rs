//! The names of an encoder's tensors. Inside, they are those of DINO's and timm's files; Hugging Face's (ViT, and with
//! it DINO's first version; Dinov2; both generations of transformers) are turned into them. Every key of a file is
//! accounted for: used, ignored on purpose, or an error.

use super::Tensors;
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use tch::Tensor;

/// What wrappers put before every name: DistributedDataParallel, DINO's training checkpoints, models with a head.
const PREFIXES: [&str; 4] = ["module.", "backbone.", "vit.", "dinov2."];

/// What files hold beside the encoder: classifiers, DINO's projection head, untrained poolers, the token that
/// replaced masked patches in pretraining. No feature depends on them.
const IGNORED: [&str; 5] = ["head.", "classifier.", "pooler.", "mask_token", "embeddings.mask_token"];

/// The two ends of a tensor's name, its block and what is left: (file's, canonical).
const BLOCK_NAMES: [(&str, &str); 16] = [
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
const SPLIT: [[&str; 2]; 3] = [
    ["attention.attention.query.", "attention.q_proj."],
    ["attention.attention.key.", "attention.k_proj."],
    ["attention.attention.value.", "attention.v_proj."],
];

/// Where a key of a file belongs.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Place {
    /// The tensor of this canonical name.
    Whole(String),
    /// A third of the rows of this canonical name: 0 query, 1 key, 2 value.
    Part(String, usize),
    /// Nowhere, on purpose.
    Ignored,
    /// Nobody knows.
    Unknown,
}

/// The tensors under canonical names, and the keys that were ignored on purpose.
///
/// # Errors
/// Unknown keys, two keys for one tensor, an incomplete query, key, value; all are listed.
pub fn canonical(file: Tensors) -> Result<(Tensors, Vec<String>)> {
    let mut tensors = Tensors::new();
    let mut parts = BTreeMap::<String, [Option<Tensor>; 3]>::new();
    let (mut ignored, mut problems) = (Vec::new(), Vec::new());
    for (key, tensor) in file.iter() {
        let tensor = tensor.shallow_clone();
        let earlier = match place(key) {
            Place::Whole(name) => tensors.insert(name, tensor),
            Place::Part(name, third) => parts.entry(name).or_default()[third].replace(tensor),
            Place::Ignored => {
                ignored.push(key.to_owned());
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
    if !problems.is_empty() {
        bail!("{}", problems.join("; "));
    }
    Ok((tensors, ignored))
}

fn place(key: &str) -> Place {
    let mut key = key;
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| key.strip_prefix(prefix)) {
        key = rest;
    }
    if IGNORED.iter().any(|prefix| key.starts_with(prefix)) {
        return Place::Ignored;
    }
    let whole = |name: &str| Place::Whole(name.to_owned());
    match key {
        "cls_token" | "embeddings.cls_token" => whole("cls_token"),
        "pos_embed" | "embeddings.position_embeddings" => whole("pos_embed"),
        _ => {
            let outside = [
                ("patch_embed.proj.", "patch_embed.proj."),
                ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
                ("norm.", "norm."),
                ("layernorm.", "norm."),
            ];
            if let Some((end, leaf)) =
                outside.iter().find_map(|(from, to)| Some((to, key.strip_prefix(from)?)))
            {
                return whole(&format!("{end}{leaf}"));
            }
            place_in_block(key).unwrap_or(Place::Unknown)
        }
    }
}

fn place_in_block(key: &str) -> Option<Place> {
    let rest = ["blocks.", "encoder.layer.", "encoder.layers.", "layers."]
        .iter()
        .find_map(|prefix| key.strip_prefix(prefix))?;
    let (block, rest) = rest.split_once('.')?;
    let block: u32 = block.parse().ok()?;
    for (third, names) in SPLIT.iter().enumerate() {
        if let Some(leaf) = names.iter().find_map(|name| rest.strip_prefix(name)) {
            return Some(Place::Part(format!("blocks.{block}.attn.qkv.{leaf}"), third));
        }
    }
    let (end, leaf) = BLOCK_NAMES.iter().find_map(|(from, to)| Some((to, rest.strip_prefix(from)?)))?;
    Some(Place::Whole(format!("blocks.{block}.{end}{leaf}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::vit::tiny;
    use crate::weights::{Backbone, bitwise_equal};

    /// The canonical tensors under the names of another kind of file, query, key and value apart.
    fn renamed(tensors: &Tensors, style: &str) -> Tensors {
        let mut file = Tensors::new();
        for (name, tensor) in tensors.iter() {
            let mut name = name.to_owned();
            if style == "timm" {
                file.insert(name, tensor.shallow_clone());
                continue;
            }
            let dinov2 = style == "dinov2";
            let layer = if style == "transformers 5" { "layers." } else { "encoder.layer." };
            let renames = [
                ("cls_token", "embeddings.cls_token"),
                ("pos_embed", "embeddings.position_embeddings"),
                ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
                (
                    ".attn.proj",
                    if style == "transformers 5" { ".attention.o_proj" } else { ".attention.output.dense" },
                ),
                (".norm1", if dinov2 { ".norm1" } else { ".layernorm_before" }),
                (".norm2", if dinov2 { ".norm2" } else { ".layernorm_after" }),
                (".mlp.fc1", if style == "vit" { ".intermediate.dense" } else { ".mlp.fc1" }),
                (".mlp.fc2", if style == "vit" { ".output.dense" } else { ".mlp.fc2" }),
                (".ls1.gamma", ".layer_scale1.lambda1"),
                (".ls2.gamma", ".layer_scale2.lambda1"),
                ("blocks.", layer),
            ];
            for (from, to) in renames {
                name = name.replace(from, to);
            }
            if name.starts_with("norm.") {
                name = name.replace("norm.", "layernorm.");
            }
            if let Some((before, leaf)) = name.clone().split_once("attn.qkv.") {
                let names = if style == "transformers 5" {
                    ["attention.q_proj", "attention.k_proj", "attention.v_proj"]
                } else {
                    ["attention.attention.query", "attention.attention.key", "attention.attention.value"]
                };
                for (third, part) in names.iter().zip(tensor.chunk(3, 0)) {
                    file.insert(format!("{before}{third}.{leaf}"), part.contiguous());
                }
            } else {
                file.insert(name, tensor.shallow_clone());
            }
        }
        file
    }

    #[test]
    fn all_namings_give_the_same_weights() {
        for layer_scale in [false, true] {
            let backbone = tiny(layer_scale);
            for style in ["timm", "vit", "dinov2", "transformers 5"] {
                for prefix in ["", "vit.", "dinov2.", "backbone.", "module.backbone."] {
                    let file = renamed(&backbone.tensors, style);
                    let file: Tensors = file
                        .iter()
                        .map(|(name, tensor)| (format!("{prefix}{name}"), tensor.shallow_clone()))
                        .collect();
                    let (tensors, ignored) = canonical(file).unwrap();
                    assert!(ignored.is_empty());
                    let same = Backbone::new(tensors).unwrap();
                    assert_eq!(same.digest, backbone.digest, "{style} {prefix}");
                    assert_eq!(same.config, backbone.config);
                }
            }
        }
    }

    #[test]
    fn fused_rows_are_query_key_value_in_that_order() {
        let backbone = tiny(false);
        let file = renamed(&backbone.tensors, "vit");
        let key = &file["encoder.layer.1.attention.attention.key.weight"];
        let rows = backbone.tensors["blocks.1.attn.qkv.weight"].narrow(0, 64, 64);
        assert!(bitwise_equal(key, &rows));
    }

    #[test]
    fn every_key_is_accounted_for() {
        let mut file = tiny(true).tensors;
        for name in ["head.weight", "mask_token", "module.backbone.pooler.dense.weight"] {
            file.insert(name, Tensor::from(0f32));
        }
        let (_, ignored) = canonical(file.share()).unwrap();
        assert_eq!(ignored, ["head.weight", "mask_token", "module.backbone.pooler.dense.weight"]);

        file.insert("register_tokens", Tensor::from(0f32));
        file.insert("blocks.0.attn.rel_pos", Tensor::from(0f32));
        file.insert("module.norm.weight", Tensor::from(0f32));
        file.insert("layers.0.attention.q_proj.weight", Tensor::from(0f32));
        let problems = canonical(file).unwrap_err().to_string();
        for part in [
            "register_tokens is unknown",
            "blocks.0.attn.rel_pos is unknown",
            "norm.weight is there twice",
            "blocks.0.attn.qkv.weight lacks its query, key or value",
        ] {
            assert!(problems.contains(part), "{problems}");
        }
    }

    #[test]
    fn missing_and_misshapen_tensors_are_listed() {
        let mut tensors = tiny(true).tensors;
        tensors.remove("blocks.0.mlp.fc1.bias");
        tensors.insert("blocks.1.norm1.weight", Tensor::zeros([3], (tch::Kind::Float, tch::Device::Cpu)));
        tensors.insert("blocks.1.norm1.gamma", Tensor::from(0f32));
        let problems = format!("{:#}", Backbone::new(tensors).unwrap_err());
        for part in [
            "blocks.0.mlp.fc1.bias is missing",
            "blocks.1.norm1.weight is [3], must be [64]",
            "blocks.1.norm1.gamma is unknown",
        ] {
            assert!(problems.contains(part), "{problems}");
        }
    }
}
