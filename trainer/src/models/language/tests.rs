use super::*;
use crate::data::asset::{AssetKind, Library};
use crate::reference::{assert_near, model};
use crate::weights::{bitwise_equal, initial};
use std::collections::BTreeMap;

/// SmolLM2 as a run opens it: by its name.
fn smollm2() -> LanguageModel {
    let library = Library::find(&[model("smollm2-135m")]);
    let asset = library.get("smollm2-135m", AssetKind::LanguageModel).unwrap();
    LanguageModel::open(&asset.folder, asset.manifest.format).unwrap()
}

/// The logits of `goldens/language.py`'s embeddings, all kept and with one dropped.
fn check_logits(lm: &LanguageModel, path: &str) {
    let embeddings = tiny::values(11, "embeddings", &[2, 5, lm.dim()], 2.0);
    let check = |logits: &Tensor, what: &str| {
        let of = |part: &str| tiny::numbers(&format!("{path}.{what}.{part}"));
        // Of the order of one; f32 rounding over two blocks.
        assert_near(&logits.flatten(0, -1).narrow(0, 0, 12), &of("first"), 1e-5);
        assert_near(&logits.norm(), &of("norm"), 1e-4);
    };
    check(&lm.logits(&embeddings, None).unwrap(), "logits");
    let mut keep = Tensor::ones([2, 5], (Kind::Bool, tch::Device::Cpu));
    let _ = keep.get(1).get(2).fill_(0);
    let logits = lm.logits(&embeddings, Some(&keep)).unwrap();
    check(&logits.masked_select(&keep.unsqueeze(-1)), "kept");
    keep = keep.fill_(1);
    let all = lm.logits(&embeddings, Some(&keep)).unwrap();
    assert!(all.allclose(&lm.logits(&embeddings, None).unwrap(), 1e-5, 1e-6, false));
}

#[test]
fn logits_are_those_of_hugging_face() {
    check_logits(&tiny::gpt2(), "gpt2");
    check_logits(&tiny::llama(false), "llama.tied");
    check_logits(&tiny::llama(true), "llama.untied");
}

#[test]
fn no_position_sees_what_comes_after_it() {
    for lm in [tiny::gpt2(), tiny::llama(false)] {
        let embeddings = tiny::values(1, "embeddings", &[1, 6, lm.dim()], 2.0);
        let other = Tensor::cat(&[embeddings.narrow(1, 0, 4), embeddings.narrow(1, 4, 2).neg()], 1);
        let (one, two) = (lm.logits(&embeddings, None).unwrap(), lm.logits(&other, None).unwrap());
        assert!(one.narrow(1, 0, 4).allclose(&two.narrow(1, 0, 4), 1e-5, 1e-6, false));
        assert!(!one.narrow(1, 4, 2).allclose(&two.narrow(1, 4, 2), 1e-3, 1e-3, false));
    }
}

#[test]
fn gradients_pass_through_the_frozen_model_and_leave_it_alone() {
    for lm in [tiny::gpt2(), tiny::llama(true)] {
        let before = lm.tensors().digest().unwrap();
        let embeddings = tiny::values(1, "embeddings", &[1, 3, lm.dim()], 2.0).set_requires_grad(true);
        let loss = lm.logits(&embeddings, None).unwrap().square().mean(Kind::Float);
        loss.backward();
        assert!(embeddings.grad().abs().min().double_value(&[]) > 0.0);
        assert!(lm.tensors().iter().all(|(_, tensor)| !tensor.requires_grad() && !tensor.grad().defined()));
        assert_eq!(lm.tensors().digest().unwrap(), before);
    }
}

#[test]
fn rotary_positions_matter_by_their_distance_alone() {
    let lm = tiny::llama(false);
    let Model::Llama(llama) = &lm.model else { panic!("a llama") };
    let (cos, sin) = llama.rotation(&Tensor::zeros([1, 9, 16], (Kind::Float, tch::Device::Cpu)));
    let vectors = initial::normal(1, "q and k", &[2, 4], 1.0);
    let at = |vector: i64, position: i64| {
        let (cos, sin) = (cos.narrow(0, position, 1), sin.narrow(0, position, 1));
        crate::models::llama::rotate(&vectors.narrow(0, vector, 1).reshape([1, 1, 1, 4]), &cos, &sin)
    };
    let score = |query: i64, key: i64| (at(0, query) * at(1, key)).sum(Kind::Float).double_value(&[]);
    assert!((score(5, 3) - score(8, 6)).abs() < 1e-5);
    assert!((score(5, 3) - score(5, 4)).abs() > 1e-3);
    assert!(bitwise_equal(&at(0, 0).flatten(0, -1), &vectors.get(0)), "position 0 does not turn");
}

#[test]
fn smollm2_knows_the_capital_of_france_and_its_own_tokens() {
    // Threads that spin beside other tests' would take many times longer.
    tch::set_num_threads(1);
    let lm = smollm2();
    assert_eq!((lm.dim(), lm.vocab(), lm.eos(), lm.context()), (576, 49_152, 2, 8192));
    let text = lm.generate("The capital of France is", 3).unwrap();
    assert!(text.starts_with(" Paris"), "{text:?}");
    let ids = lm.tokenize("The capital of France is").unwrap();
    assert_eq!(ids.iter().map(|id| *id as f64).collect::<Vec<f64>>(), tiny::numbers("smollm2.ids"));
    let embeddings = lm.embed_tokens(&Tensor::from_slice(&ids)).unsqueeze(0);
    let logits = tch::no_grad(|| lm.logits(&embeddings, None).unwrap()).select(1, -1); // [1, vocab]
    // Logits go up to 40; f32 rounding over thirty blocks.
    assert_near(&logits.narrow(1, 0, 12), &tiny::numbers("smollm2.first"), 1e-3);
    assert_near(&(logits.norm() / 1e3), &[tiny::numbers("smollm2.norm")[0] / 1e3], 1e-4);
    // By the model's own tokenizer.json: digits stand alone, a mark is one token.
    assert_eq!(lm.tokenize("In 1984, it's").unwrap(), [788, 216, 33, 41, 40, 36, 28, 357, 506]);
    assert_eq!(lm.tokenize("<|im_end|>").unwrap(), [2]);
    assert_eq!(lm.decode(&lm.tokenize("Zürich – 北京 🐱").unwrap()).unwrap(), "Zürich – 北京 🐱");
}

#[test]
fn generation_is_the_likeliest_token_each_time_and_so_the_same_again() {
    for lm in [tiny::gpt2(), tiny::llama(true)] {
        let ids = lm.tokenize("a cat").unwrap();
        let embeddings = lm.embed_tokens(&Tensor::from_slice(&ids)).unsqueeze(0);
        let made = lm.continue_from(&embeddings, 4).unwrap();
        assert_eq!(lm.continue_from(&embeddings, 4).unwrap(), made);
        // All at once, each token is the likeliest after those before it.
        let all: Vec<i64> = ids.iter().chain(&made).copied().collect();
        let logits = lm.logits(&lm.embed_tokens(&Tensor::from_slice(&all)).unsqueeze(0), None).unwrap();
        let likeliest = logits.argmax(-1, false);
        let told = likeliest.narrow(1, ids.len() as i64 - 1, made.len() as i64);
        assert_eq!(Vec::<i64>::try_from(told.flatten(0, -1)).unwrap(), made);
    }
}

#[test]
fn what_does_not_fit_is_told() {
    let lm = tiny::gpt2();
    let error = lm.logits(&Tensor::zeros([1, 17, 8], (Kind::Float, tch::Device::Cpu)), None);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("takes up to 16 positions 8 wide; these are 17, 8 wide"), "{error}");
    assert!(lm.generate("", 1).is_err());

    let open = |config: &serde_json::Value, tensors: &Tensors, format| {
        format!("{:#}", LanguageModel::open(tiny::folder(config, tensors).path(), format).err().unwrap())
    };
    let mut tensors = tiny::weights(9, &tiny::llama_shapes(false));
    tensors.remove("layers.1.mlp.up_proj.weight");
    tensors.insert("layers.0.self_attn.q_proj.bias", Tensor::from(1f32));
    let error = open(&tiny::llama_config(), &tensors, Format::Llama);
    let expected = "layers.1.mlp.up_proj.weight is missing; layers.0.self_attn.q_proj.bias is unknown";
    assert!(error.ends_with(expected), "{error}");

    let mut config = tiny::llama_config();
    config["rope_scaling"] = serde_json::json!({"rope_type": "llama3"});
    let error = open(&config, &tensors, Format::Llama);
    assert!(error.contains("rotary positions scaled by \"llama3\" are not known"), "{error}");

    let mut tensors = tiny::weights(8, &tiny::gpt2_shapes());
    tensors.insert("lm_head.weight", Tensor::zeros([257, 8], (Kind::Float, tch::Device::Cpu)));
    let error = open(&tiny::gpt2_config(), &tensors, Format::Gpt2);
    assert!(error.contains("its head differs from its embedding table"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let error = format!("{:#}", LanguageModel::open(folder.path(), Format::Llama).err().unwrap());
    assert!(error.contains("neither config.json with model.safetensors nor a .gguf file"), "{error}");
}

#[test]
fn files_may_carry_prefixes_and_buffers() {
    let plain = tiny::weights(8, &tiny::gpt2_shapes());
    let mut file: Tensors =
        plain.iter().map(|(name, tensor)| (format!("transformer.{name}"), tensor.copy())).collect();
    file.insert("transformer.h.0.attn.bias", Tensor::ones([1, 1, 16, 16], (Kind::Float, tch::Device::Cpu)));
    file.insert("lm_head.weight", plain["wte.weight"].copy());
    let lm = LanguageModel::open(tiny::folder(&tiny::gpt2_config(), &file).path(), Format::Gpt2).unwrap();
    assert_eq!(lm.tensors().digest().unwrap(), tiny::gpt2().tensors().digest().unwrap());

    let shapes: BTreeMap<String, Vec<i64>> = tiny::llama_shapes(false);
    let file: Tensors = tiny::weights(9, &shapes)
        .iter()
        .map(|(name, tensor)| (format!("model.{name}"), tensor.copy()))
        .collect();
    let lm = LanguageModel::open(tiny::folder(&tiny::llama_config(), &file).path(), Format::Llama).unwrap();
    assert_eq!(lm.tensors().digest().unwrap(), tiny::llama(false).tensors().digest().unwrap());
}
