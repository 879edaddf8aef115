use super::*;
use crate::models::vit::{tiny, tiny_clip};
use crate::weights::initial;
use crate::weights::{Backbone, bitwise_equal};

/// The canonical tensors under the names of another kind of file, query, key and value apart.
fn in_style(tensors: &Tensors, style: &str) -> Tensors {
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
                let file = in_style(&backbone.tensors, style);
                let file: Tensors = file
                    .iter()
                    .map(|(name, tensor)| (format!("{prefix}{name}"), tensor.shallow_clone()))
                    .collect();
                let named = canonical(file).unwrap();
                assert!(named.ignored.is_empty() && named.decoder.is_empty());
                let same = Backbone::new(named.encoder).unwrap();
                assert_eq!(same.digest, backbone.digest, "{style} {prefix}");
                assert_eq!(same.config, backbone.config);
            }
        }
    }
}

#[test]
fn fused_rows_are_query_key_value_in_that_order() {
    let backbone = tiny(false);
    let file = in_style(&backbone.tensors, "vit");
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
    let named = canonical(file.share()).unwrap();
    assert_eq!(named.ignored, ["head.weight", "mask_token", "module.backbone.pooler.dense.weight"]);

    file.insert("register_tokens", Tensor::from(0f32));
    file.insert("blocks.0.attn.rel_pos", Tensor::from(0f32));
    file.remove("blocks.1.mlp.fc2.bias");
    file.insert("module.norm.weight", Tensor::from(0f32));
    file.insert("layers.0.attention.q_proj.weight", Tensor::from(0f32));
    let problems = canonical(file).unwrap_err().to_string();
    for part in [
        "register_tokens is unknown",
        "blocks.0.attn.rel_pos is unknown",
        "blocks.1.mlp.fc2.bias is missing",
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

/// CLIP's canonical tensors as OpenAI and OpenCLIP name them.
fn openai(tensors: &Tensors, prefix: &str) -> Tensors {
    let mut file = Tensors::new();
    for (name, tensor) in tensors.iter() {
        let renames = [
            ("cls_token", "class_embedding"),
            ("pos_embed", "positional_embedding"),
            ("patch_embed.proj", "conv1"),
            ("norm_pre", "ln_pre"),
            (".norm1", ".ln_1"),
            (".norm2", ".ln_2"),
            ("attn.qkv.", "attn.in_proj_"),
            ("attn.proj", "attn.out_proj"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("blocks.", "transformer.resblocks."),
        ];
        let mut key = name.to_owned();
        for (from, to) in renames {
            key = key.replace(from, to);
        }
        let (key, tensor) = match name {
            "norm.weight" | "norm.bias" => (name.replace("norm", "ln_post"), tensor.shallow_clone()),
            "proj.weight" => ("proj".to_owned(), tensor.transpose(0, 1).contiguous()),
            "cls_token" => (key, tensor.reshape([-1])),
            "pos_embed" => (key, tensor.squeeze_dim(0)),
            _ => (key, tensor.shallow_clone()),
        };
        file.insert(format!("{prefix}{key}"), tensor);
    }
    file
}

/// The same as Hugging Face's CLIPModel names them.
fn hugging_face_clip(tensors: &Tensors, prefix: &str) -> Tensors {
    let mut file = Tensors::new();
    for (name, tensor) in tensors.iter() {
        let renames = [
            ("cls_token", "embeddings.class_embedding"),
            ("pos_embed", "embeddings.position_embedding.weight"),
            ("patch_embed.proj", "embeddings.patch_embedding"),
            ("norm_pre", "pre_layrnorm"),
            (".norm1", ".layer_norm1"),
            (".norm2", ".layer_norm2"),
            ("attn.proj", "self_attn.out_proj"),
            ("blocks.", "encoder.layers."),
        ];
        let mut key = name.to_owned();
        for (from, to) in renames {
            key = key.replace(from, to);
        }
        if name.starts_with("norm.") {
            key = name.replace("norm", "post_layernorm");
        }
        if let Some((before, leaf)) = key.clone().split_once("attn.qkv.") {
            for (third, part) in ["q", "k", "v"].iter().zip(tensor.chunk(3, 0)) {
                file.insert(format!("{prefix}{before}self_attn.{third}_proj.{leaf}"), part.contiguous());
            }
        } else if name == "proj.weight" {
            file.insert("visual_projection.weight", tensor.shallow_clone());
        } else {
            let tensor = match name {
                "cls_token" => tensor.reshape([-1]),
                "pos_embed" => tensor.squeeze_dim(0),
                _ => tensor.shallow_clone(),
            };
            file.insert(format!("{prefix}{key}"), tensor);
        }
    }
    file
}

#[test]
fn clip_s_image_tower_is_the_same_from_all_its_files_and_the_text_tower_is_ignored() {
    let clip = tiny_clip(Activation::QuickGelu);
    let text = [
        "text_projection",
        "transformer.resblocks.0.ln_1.weight",
        "token_embedding.weight",
        "positional_embedding",
        "ln_final.bias",
        "logit_scale",
        "input_resolution",
    ];
    let hf_text = ["text_model.final_layer_norm.bias", "text_projection.weight", "logit_scale"];
    let mut files = vec![
        (openai(&clip.tensors, "visual."), &text[..]),
        (hugging_face_clip(&clip.tensors, "vision_model."), &hf_text[..]),
        // Of towers alone: open_clip's `model.visual`, transformers 5's CLIPVisionModel.
        (openai(&clip.tensors, ""), &[]),
        (hugging_face_clip(&clip.tensors, ""), &[]),
        // timm's, and our own.
        (clip.tensors.share(), &[]),
    ];
    let wrapped = openai(&clip.tensors, "module.visual.");
    files.push((wrapped, &["module.logit_scale", "module.transformer.resblocks.0.ln_1.weight"]));
    for (mut file, ignored) in files {
        for name in ignored {
            file.insert(*name, Tensor::from(0f32));
        }
        let named = canonical(file).unwrap();
        let mut expected: Vec<&str> = ignored.to_vec();
        expected.sort_unstable();
        assert_eq!(named.ignored, expected);
        let known = Known { activation: Some(Activation::QuickGelu), ..Known::default() };
        let same = Backbone::with(named.encoder, known).unwrap();
        assert_eq!((same.digest, same.config), (clip.digest.clone(), clip.config.clone()));
    }
}

#[test]
fn a_text_tower_s_names_are_unknown_beside_anything_but_clip() {
    let mut file = tiny(false).tensors;
    file.insert("transformer.resblocks.0.ln_1.weight", Tensor::from(0f32));
    file.insert("logit_scale", Tensor::from(0f32));
    let problems = canonical(file).unwrap_err().to_string();
    assert!(
        problems.contains("logit_scale is unknown") && problems.contains("ln_1.weight is unknown"),
        "{problems}"
    );
}

#[test]
fn the_decoder_of_mae_is_kept_apart_under_its_original_names() {
    let encoder = tiny(false);
    let outside = [
        "decoder_embed.weight",
        "decoder_pos_embed",
        "decoder_norm.bias",
        "decoder_pred.weight",
        "mask_token",
    ];
    let block = ["norm1.weight", "attn.proj.bias", "mlp.fc1.weight", "mlp.fc2.bias", "norm2.bias"];
    let hf_block = [
        "layernorm_before.weight",
        "attention.output.dense.bias",
        "intermediate.dense.weight",
        "output.dense.bias",
        "layernorm_after.bias",
    ];
    let value = |name: &str| initial::normal(0, name, &[6], 1.0);
    let qkv = |third: &str| initial::normal(0, third, &[2, 3], 1.0);
    let mut original = encoder.tensors.share();
    for name in outside {
        original.insert(name, value(name));
    }
    for name in block {
        original.insert(format!("decoder_blocks.1.{name}"), value(name));
    }
    original.insert("decoder_blocks.1.attn.qkv.weight", Tensor::cat(&["query", "key", "value"].map(qkv), 0));
    let expected = canonical(original).unwrap();
    assert_eq!(expected.decoder.len(), 11);
    assert_eq!(expected.encoder.digest().unwrap(), encoder.digest);

    for layer in ["decoder_layers.", "decoder_encoder.layer."] {
        let mut file = in_style(&encoder.tensors, "vit");
        for name in outside {
            file.insert(format!("decoder.{name}"), value(name));
        }
        for (name, hf) in block.iter().zip(hf_block) {
            file.insert(format!("decoder.{layer}1.{hf}"), value(name));
        }
        for third in ["query", "key", "value"] {
            file.insert(format!("decoder.{layer}1.attention.attention.{third}.weight"), qkv(third));
        }
        let named = canonical(file).unwrap();
        assert_eq!(named.decoder.digest().unwrap(), expected.decoder.digest().unwrap(), "{layer}");
        assert_eq!(named.encoder.digest().unwrap(), encoder.digest);
        assert!(named.ignored.is_empty());
    }
}

#[test]
fn a_model_that_averages_patches_is_refused_with_the_reason() {
    let mut file = tiny(false).tensors;
    for leaf in ["weight", "bias"] {
        let norm = file.remove(&format!("norm.{leaf}")).unwrap();
        file.insert(format!("fc_norm.{leaf}"), norm);
    }
    let problems = canonical(file).unwrap_err().to_string();
    assert!(problems.contains("fc_norm.weight belongs to a model that averages patches"), "{problems}");
}
