//! The tiny text and language models of `goldens/language.py`: seeded weights, and vocabularies of single characters.

use super::{LanguageModel, Model};
use crate::data::asset::Format;
use crate::models::gpt2::{Gpt2, Gpt2Config};
use crate::models::llama::{Llama, LlamaConfig};
use crate::reference;
use crate::weights::{Tensors, initial, safetensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tch::{Kind, Tensor};
use tempfile::TempDir;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// As in `goldens/language.py`.
const SCALE: f64 = 0.5;

/// The numbers of `goldens/language.json` under a path such as `gpt2.loss`.
pub fn numbers(path: &str) -> Vec<f64> {
    reference::numbers_in(include_str!("../../../goldens/language.json"), path)
}

/// Values in ±`scale` / 2, drawn as `goldens/language.py` draws them.
pub fn values(seed: u64, name: &str, shape: &[i64], scale: f64) -> Tensor {
    let mut draws = initial::stream(seed, name);
    let count = shape.iter().product::<i64>();
    let draw = |_| (((draws.next_u64() >> 40) as f64 / f64::from(1 << 24) - 0.5) * scale) as f32;
    Tensor::from_slice(&(0..count).map(draw).collect::<Vec<f32>>()).reshape(shape)
}

/// Seeded weights of a model; gains lie around one.
pub fn weights(seed: u64, shapes: &BTreeMap<String, Vec<i64>>) -> Tensors {
    let is_gain = |name: &str| name.ends_with("weight") && (name.contains("norm") || name.contains("ln_"));
    let tensor = |(name, shape): (&String, &Vec<i64>)| {
        let values = values(seed, name, shape, SCALE);
        (name.clone(), if is_gain(name) { values + 1.0 } else { values })
    };
    shapes.iter().map(tensor).collect()
}

/// The tiny GPT-2's config.json.
pub fn gpt2_config() -> Value {
    json!({
        "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 257, "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new", "eos_token_id": 256,
    })
}

/// The tiny Llama's config.json: four query heads in two groups.
pub fn llama_config() -> Value {
    json!({
        "hidden_act": "silu", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 24, "vocab_size": 257, "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5, "rope_theta": 1000.0, "eos_token_id": 256,
    })
}

/// The shapes of the tiny Llama.
pub fn llama_shapes(own_head: bool) -> BTreeMap<String, Vec<i64>> {
    LlamaConfig::from_json(&llama_config()).unwrap().shapes(own_head)
}

/// The shapes of the tiny GPT-2.
pub fn gpt2_shapes() -> BTreeMap<String, Vec<i64>> {
    serde_json::from_value::<Gpt2Config>(gpt2_config()).unwrap().shapes()
}

/// The tiny GPT-2, opened from a folder as any other.
pub fn gpt2() -> LanguageModel {
    let folder = folder(&gpt2_config(), &weights(8, &gpt2_shapes()));
    LanguageModel::open(folder.path(), Format::Gpt2).unwrap()
}

/// The tiny Llama, its head its own or the embedding table.
pub fn llama(own_head: bool) -> LanguageModel {
    let folder = folder(&llama_config(), &weights(9, &llama_shapes(own_head)));
    LanguageModel::open(folder.path(), Format::Llama).unwrap()
}

/// The same model in f64, for finite differences.
pub fn in_f64(model: LanguageModel) -> LanguageModel {
    let double = |tensors: &Tensors| -> Tensors {
        tensors.iter().map(|(name, tensor)| (name.to_owned(), tensor.to_kind(Kind::Double))).collect()
    };
    let inner = match model.model {
        Model::Gpt2(gpt2) => Model::Gpt2(Gpt2 { tensors: double(gpt2.tensors()), ..gpt2 }),
        Model::Llama(llama) => Model::Llama(Llama { tensors: double(llama.tensors()), ..llama }),
    };
    LanguageModel { model: inner, ..model }
}

/// A folder with a model whose ids are the 256 bytes and an end.
pub fn folder(config: &Value, tensors: &Tensors) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    safetensors::write(&folder.path().join("model.safetensors"), tensors, &BTreeMap::new()).unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let bytes = crate::data::tokenizer::byte_characters().map(String::from);
    let vocabulary: BTreeMap<String, u32> = bytes.chain(["<|endoftext|>".to_owned()]).zip(0..).collect();
    fs::write(folder.path().join("vocab.json"), serde_json::to_string(&vocabulary).unwrap()).unwrap();
    fs::write(folder.path().join("merges.txt"), "#version: 0.2\n").unwrap();
    folder
}

/// The shapes of the tiny CLIP text tower under Hugging Face's names.
pub fn clip_shapes() -> BTreeMap<String, Vec<i64>> {
    let mut shapes = BTreeMap::from([
        ("text_model.embeddings.token_embedding.weight".to_owned(), vec![18, 8]),
        ("text_model.embeddings.position_embedding.weight".to_owned(), vec![12, 8]),
        ("text_model.final_layer_norm.weight".to_owned(), vec![8]),
        ("text_model.final_layer_norm.bias".to_owned(), vec![8]),
        ("text_projection.weight".to_owned(), vec![6, 8]),
    ]);
    for layer in 0..2 {
        for (part, rows, columns) in [
            ("self_attn.q_proj", 8, Some(8)),
            ("self_attn.k_proj", 8, Some(8)),
            ("self_attn.v_proj", 8, Some(8)),
            ("self_attn.out_proj", 8, Some(8)),
            ("mlp.fc1", 16, Some(8)),
            ("mlp.fc2", 8, Some(16)),
            ("layer_norm1", 8, None),
            ("layer_norm2", 8, None),
        ] {
            let name = format!("text_model.encoder.layers.{layer}.{part}");
            shapes.insert(format!("{name}.weight"), [rows].into_iter().chain(columns).collect());
            shapes.insert(format!("{name}.bias"), vec![rows]);
        }
    }
    shapes
}

/// The tiny CLIP text tower under OpenAI's names, beside what else such a file holds.
pub fn clip_in_openai_names(tensors: &Tensors) -> Tensors {
    let hugging_face = |name: &str| &tensors[&format!("text_model.{name}")];
    let mut openai = Tensors::new();
    openai.insert("token_embedding.weight", hugging_face("embeddings.token_embedding.weight").copy());
    openai.insert("positional_embedding", hugging_face("embeddings.position_embedding.weight").copy());
    openai.insert("text_projection", tensors["text_projection.weight"].tr().contiguous());
    openai.insert("logit_scale", Tensor::from(4.6f32));
    openai.insert("visual.conv1.weight", Tensor::from(1f32));
    for leaf in ["weight", "bias"] {
        openai.insert(format!("ln_final.{leaf}"), hugging_face(&format!("final_layer_norm.{leaf}")).copy());
        for layer in 0..2 {
            let of = |part: &str| hugging_face(&format!("encoder.layers.{layer}.{part}.{leaf}")).copy();
            let block = format!("transformer.resblocks.{layer}");
            let [query, key, value] = ["q", "k", "v"].map(|part| of(&format!("self_attn.{part}_proj")));
            openai.insert(format!("{block}.attn.in_proj_{leaf}"), Tensor::cat(&[query, key, value], 0));
            for (to, from) in [
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ] {
                openai.insert(format!("{block}.{to}.{leaf}"), of(from));
            }
        }
    }
    openai
}

/// A `tokenizer.json` in CLIP's manner with eight letters, alone and at the end of a word.
pub fn write_clip_tokenizer(folder: &Path) {
    let letters = || "acdgot&.".chars().map(String::from);
    let ends = letters().map(|letter| letter + "</w>");
    let marks = ["<|startoftext|>", "<|endoftext|>"];
    let vocabulary: Vocab = letters().chain(ends).chain(marks.map(str::to_owned)).zip(0..).collect();
    let model = BPE::builder().vocab_and_merges(vocabulary, vec![]).end_of_word_suffix("</w>".to_owned());
    let mut tokenizer = Tokenizer::new(model.build().unwrap());
    let words = SplitPattern::Regex(r"\w+|[^\s\w]+".to_owned());
    tokenizer.with_pre_tokenizer(Some(Split::new(words, SplitDelimiterBehavior::Removed, true).unwrap()));
    tokenizer.add_special_tokens(marks.map(|mark| AddedToken::from(mark, true))).unwrap();
    tokenizer.save(folder.join("tokenizer.json"), false).unwrap();
}
