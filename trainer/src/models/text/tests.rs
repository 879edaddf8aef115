use super::*;
use crate::models::language::tiny;
use crate::reference::{assert_near, model, numbers};
use crate::weights::{bitwise_equal, safetensors};
use std::collections::BTreeMap;
use std::fs;

/// As in `goldens/reference.py`.
const CAPTIONS: [&str; 5] =
    ["A squirrel.", "a cat", "a kitten", "a lorry", "Two children fly a red kite over the dunes, naïvely."];

fn minilm() -> TextEncoder {
    TextEncoder::open(&model("minilm-l6"), Format::Bert).unwrap()
}

#[test]
fn embeddings_are_those_of_sentence_transformers() {
    let embeddings = minilm().embed(&CAPTIONS).unwrap();
    // The reference pads to the longest and masks; ours never pads. f32 rounding over six layers.
    assert_near(&embeddings.narrow(1, 0, 6), &numbers("sentences.first"), 1e-5);
    let similarity = embeddings.matmul(&embeddings.transpose(0, 1));
    assert_near(&similarity, &numbers("sentences.similarity"), 1e-5);
    let of = |a: i64, b: i64| similarity.double_value(&[a, b]);
    assert!(of(1, 2) > of(1, 3), "a cat is nearer to a kitten than to a lorry");
}

#[test]
fn a_caption_has_its_embedding_whatever_its_company() {
    let encoder = minilm();
    let together = encoder.embed(&CAPTIONS).unwrap();
    for (at, caption) in CAPTIONS.iter().enumerate() {
        let alone = encoder.embed(&[caption]).unwrap();
        assert!(alone.allclose(&together.narrow(0, at as i64, 1), 1e-5, 1e-6, false), "{caption}");
    }
    let long = "word ".repeat(1000);
    assert_eq!(encoder.tokenize(&long).unwrap().len(), 256);
    assert_eq!(encoder.embed(&[long.as_str(), ""]).unwrap().size(), [2, encoder.dim()]);
}

#[test]
fn the_tokens_of_a_caption_are_what_its_embedding_is_the_mean_of() {
    let encoder = minilm();
    let (states, mask) = encoder.tokens(&CAPTIONS).unwrap();
    let weights = mask.to_kind(Kind::Float).unsqueeze(-1);
    assert_eq!(states.size(), [5, mask.size()[1], encoder.token_dim()]);
    let sums = (&states * &weights).sum_dim_intlist(1, false, Kind::Float);
    let means = sums / weights.sum_dim_intlist(1, false, Kind::Float);
    let unit = &means / means.norm_scalaropt_dim(2.0, [-1], true);
    assert!(unit.allclose(&encoder.embed(&CAPTIONS).unwrap(), 1e-5, 1e-6, false));
    let filled = states.masked_select(&mask.logical_not().unsqueeze(-1));
    assert_eq!(filled.count_nonzero(None).int64_value(&[]), 0, "what is no token is zero");
}

#[test]
fn a_folder_without_a_model_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::Bert, Format::ClipText] {
        let error = format!("{:#}", TextEncoder::open(folder.path(), format).err().unwrap());
        assert!(
            error.contains(&folder.path().display().to_string()) && error.contains("config.json"),
            "{error}"
        );
    }
    let error = TextEncoder::open(folder.path(), Format::Vit).err().unwrap().to_string();
    assert!(error.contains("Vit is no format of text encoders"), "{error}");
}

/// The captions of `goldens/language.py` for CLIP's text tower: one of each length, one twice, one too long.
const CLIP_CAPTIONS: [&str; 5] = ["a cat", "", "a dog & a cat", "a cat", "a cat a dog a cat a dog a cat"];

/// A folder with the tiny text tower of `goldens/language.py`, in Hugging Face's or in OpenAI's names.
fn clip(activation: &str, openai: bool) -> (tempfile::TempDir, TextEncoder) {
    let folder = tempfile::tempdir().unwrap();
    let shapes = tiny::clip_shapes();
    let mut tensors = tiny::weights(7, &shapes);
    if openai {
        tensors = tiny::clip_in_openai_names(&tensors);
    }
    safetensors::write(&folder.path().join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let config = serde_json::json!({"hidden_act": activation, "num_attention_heads": 2});
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    tiny::write_clip_tokenizer(folder.path());
    let encoder = TextEncoder::open(folder.path(), Format::ClipText).unwrap();
    (folder, encoder)
}

#[test]
fn clip_s_text_embeddings_are_those_of_hugging_face() {
    for activation in ["quick_gelu", "gelu"] {
        let (_folder, encoder) = clip(activation, false);
        let embeddings = encoder.embed(&CLIP_CAPTIONS).unwrap();
        let of = |what: &str| tiny::numbers(&format!("clip.{activation}.{what}"));
        // f32 rounding over two blocks.
        assert_near(&embeddings, &of("embeddings"), 1e-5);
        let (states, _) = encoder.tokens(&CLIP_CAPTIONS[..1]).unwrap();
        assert_near(&states, &of("hidden"), 1e-5);
        assert_eq!((encoder.dim(), encoder.token_dim()), (6, 8));
    }
}

#[test]
fn clip_s_text_tower_is_the_same_in_openai_s_names() {
    let (_here, hugging_face) = clip("quick_gelu", false);
    let (_there, openai) = clip("quick_gelu", true);
    let one = hugging_face.embed(&CLIP_CAPTIONS).unwrap();
    assert!(bitwise_equal(&one, &openai.embed(&CLIP_CAPTIONS).unwrap()));
    assert_ne!(hugging_face.digest(), openai.digest());
    let lengths = one.norm_scalaropt_dim(2.0, [-1], false);
    assert_near(&lengths, &[1.0; 5], 1e-6);
    assert!(one.select(0, 0).allclose(&one.select(0, 3), 1e-6, 1e-6, false), "the same caption twice");
}

#[test]
fn clip_weights_that_do_not_fit_are_listed() {
    let (folder, _) = clip("gelu", false);
    let path = folder.path().join("model.safetensors");
    let mut tensors = safetensors::read(&path).unwrap().tensors;
    tensors.remove("text_model.encoder.layers.1.mlp.fc1.bias");
    tensors.insert("text_model.final_layer_norm.gain", Tensor::from(1f32));
    tensors.insert("vision_model.anything", Tensor::from(1f32));
    safetensors::write(&path, &tensors, &BTreeMap::new()).unwrap();
    let error = format!("{:#}", TextEncoder::open(folder.path(), Format::ClipText).err().unwrap());
    let expected = "transformer.resblocks.1.mlp.c_fc.bias is missing; ln_final.gain is unknown";
    assert!(error.ends_with(expected), "{error}");

    fs::write(folder.path().join("config.json"), "{}").unwrap();
    let error = format!("{:#}", TextEncoder::open(folder.path(), Format::ClipText).err().unwrap());
    assert!(error.contains("config.json does not say `hidden_act`"), "{error}");
}
