//! A file of weights, whichever of the formats it is in, and what it or the files beside it tell of the encoder that
//! shapes do not show. The format is told by the first bytes, not by the name.

use super::{safetensors, torch};
use crate::models::vit::{Activation, Known};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// Endings that torch's files have; one of these that is no zip archive gets torch's explanation.
const TORCH_ENDINGS: [&str; 4] = ["pth", "pt", "bin", "ckpt"];

/// What a reader knows of a file that the file does not tell.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hints {
    /// The key of the state dict in a checkpoint that holds several.
    pub key: Option<String>,
    /// The activation of CLIP's weights.
    pub activation: Option<Activation>,
}

/// A file of weights under its own names.
#[derive(Debug)]
pub struct Source {
    /// Its tensors, metadata and sha256.
    pub contents: safetensors::Contents,
    /// What it tells of the encoder besides shapes.
    pub known: Known,
    /// Its entries that are no tensors.
    pub others: Vec<String>,
}

/// Reads a safetensors file, a checkpoint of `torch.save` or a TorchScript archive.
///
/// # Errors
/// A file that is none of these or is damaged; hints that contradict it.
pub fn read(path: &Path, hints: &Hints) -> Result<Source> {
    let mut first = Vec::new();
    let file = File::open(path).with_context(|| format!("reading {}", path.display()))?;
    file.take(4).read_to_end(&mut first).with_context(|| format!("reading {}", path.display()))?;
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let (contents, torchscript, others) = if torch::is_zip(&first) || TORCH_ENDINGS.contains(&ending) {
        let file = torch::read(path, hints.key.as_deref())?;
        (file.contents, file.torchscript, file.others)
    } else {
        ensure!(
            hints.key.is_none(),
            "{} is a safetensors file, which holds one set of weights; leave the key out",
            path.display()
        );
        (safetensors::read(path)?, false, Vec::new())
    };
    let known = known(path, &contents, torchscript, hints)
        .with_context(|| format!("reading weights {}", path.display()))?;
    Ok(Source { contents, known, others })
}

/// The first that tells: the file's own metadata, its being OpenAI's, what Hugging Face or OpenCLIP put beside it, the
/// hints.
fn known(path: &Path, contents: &safetensors::Contents, torchscript: bool, hints: &Hints) -> Result<Known> {
    let mut known = Known::default();
    if let Some(activation) = contents.metadata.get("activation") {
        known.activation = Some(Activation::parse(activation)?);
    }
    for (name, value) in [("heads", &mut known.heads), ("decoder_heads", &mut known.decoder_heads)] {
        if let Some(heads) = contents.metadata.get(name) {
            let heads = heads.parse().with_context(|| format!("its metadata say {name} = {heads:?}"))?;
            *value = Some(heads);
        }
    }
    // OpenAI alone publishes CLIP as TorchScript, always with QuickGELU.
    let clip = contents.tensors.get("visual.ln_pre.weight").is_some();
    if torchscript && clip && known.activation.is_none() {
        known.activation = Some(Activation::QuickGelu);
    }
    let beside = path.parent().unwrap_or(Path::new(""));
    for (name, tells) in [
        ("config.json", hugging_face as fn(&Value) -> Result<Option<Told>>),
        ("open_clip_config.json", open_clip),
    ] {
        let Ok(text) = fs::read(beside.join(name)) else { continue };
        // Whatever else lies there under that name tells nothing.
        let Ok(config) = serde_json::from_slice(&text) else { continue };
        let Some(told) = tells(&config).with_context(|| format!("the {name} beside it"))? else { continue };
        // Another model's, if there is more than one in the folder.
        if width(contents) == Some(told.dim) {
            known.activation = known.activation.or(Some(told.activation));
            known.heads = known.heads.or(told.heads);
        }
    }
    match (known.activation, hints.activation) {
        (Some(told), Some(hint)) => ensure!(
            told == hint,
            "its activation is {}, not {}; leave the argument out",
            told.as_str(),
            hint.as_str()
        ),
        (None, hint) => known.activation = hint,
        (Some(_), None) => {}
    }
    Ok(known)
}

/// What a configuration tells.
struct Told {
    dim: i64,
    heads: Option<i64>,
    activation: Activation,
}

/// transformers' config.json. CLIP's nests the vision part, whose activation is QuickGELU where it is not written.
fn hugging_face(config: &Value) -> Result<Option<Told>> {
    let model = config["model_type"].as_str().unwrap_or_default();
    let (part, usual) = match model {
        "clip" => (&config["vision_config"], "quick_gelu"),
        "clip_vision_model" => (config, "quick_gelu"),
        _ => (config, "gelu"),
    };
    let (Some(dim), true) = (part["hidden_size"].as_i64(), part["patch_size"].is_i64()) else {
        return Ok(None);
    };
    let activation = match part["hidden_act"].as_str().unwrap_or(usual) {
        // Both compute x·Φ(x).
        "gelu" | "gelu_python" => Activation::Gelu,
        "quick_gelu" => Activation::QuickGelu,
        other => bail!("says that the activation is {other:?}; gelu and quick_gelu are known"),
    };
    Ok(Some(Told { dim, heads: part["num_attention_heads"].as_i64(), activation }))
}

/// OpenCLIP's open_clip_config.json.
fn open_clip(config: &Value) -> Result<Option<Told>> {
    let (model, vision) = (&config["model_cfg"], &config["model_cfg"]["vision_cfg"]);
    let Some(dim) = vision["width"].as_i64() else { return Ok(None) };
    let quick = model["quick_gelu"].as_bool().unwrap_or(false);
    let heads = vision["head_width"].as_i64().filter(|width| *width > 0).map(|width| dim / width);
    Ok(Some(Told { dim, heads, activation: if quick { Activation::QuickGelu } else { Activation::Gelu } }))
}

/// Width of the encoder: that of its patch projection, under whichever name.
fn width(contents: &safetensors::Contents) -> Option<i64> {
    let patches = |name: &str| {
        [
            "patch_embed.proj.weight",
            "patch_embeddings.projection.weight",
            "patch_embedding.weight",
            "conv1.weight",
        ]
        .iter()
        .any(|end| name.ends_with(end))
    };
    contents
        .tensors
        .iter()
        .find(|(name, _)| patches(name))
        .and_then(|(_, tensor)| tensor.size().first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::vit::{tiny, tiny_clip};
    use crate::weights::{Backbone, Tensors};
    use serde_json::json;
    use std::collections::BTreeMap;

    fn write(folder: &Path, tensors: &Tensors, metadata: &[(&str, &str)]) -> std::path::PathBuf {
        let path = folder.join("model.safetensors");
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        safetensors::write(&path, tensors, &metadata.collect::<BTreeMap<_, _>>()).unwrap();
        path
    }

    #[test]
    fn the_activation_of_clip_comes_from_what_tells_it() {
        let folder = tempfile::tempdir().unwrap();
        let clip = tiny_clip(Activation::QuickGelu);
        let path = write(folder.path(), &clip.tensors, &[]);
        assert!(Backbone::read(&path).is_err(), "nothing tells");
        let hint = |activation| Hints { activation: Some(activation), ..Hints::default() };
        let hinted = Backbone::read_with(&path, &hint(Activation::QuickGelu)).unwrap();
        assert_eq!(hinted.digest, clip.digest);

        let vision =
            json!({"hidden_size": 128, "patch_size": 14, "num_attention_heads": 2, "hidden_act": "gelu"});
        let beside = folder.path().join("config.json");
        for (config, expected) in [
            (json!({"model_type": "clip", "vision_config": vision}), Activation::Gelu),
            (
                json!({"model_type": "clip_vision_model", "hidden_size": 128, "patch_size": 14}),
                Activation::QuickGelu,
            ),
        ] {
            fs::write(&beside, config.to_string()).unwrap();
            assert_eq!(Backbone::read(&path).unwrap().config.activation, expected, "{config}");
        }
        let error = format!("{:#}", Backbone::read_with(&path, &hint(Activation::Gelu)).unwrap_err());
        assert!(error.contains("its activation is quick_gelu, not gelu"), "{error}");
        // The configuration of a model of another width is another model's.
        fs::write(
            &beside,
            json!({"model_type": "clip_vision_model", "hidden_size": 768, "patch_size": 14}).to_string(),
        )
        .unwrap();
        assert!(Backbone::read(&path).is_err());
        let config = json!({"model_cfg": {"quick_gelu": true, "vision_cfg": {"width": 128}}});
        fs::write(folder.path().join("open_clip_config.json"), config.to_string()).unwrap();
        assert_eq!(Backbone::read(&path).unwrap().config.activation, Activation::QuickGelu);

        let path = write(folder.path(), &clip.tensors, &[("activation", "gelu")]);
        assert_eq!(
            Backbone::read(&path).unwrap().config.activation,
            Activation::Gelu,
            "its own metadata come first"
        );
    }

    #[test]
    fn the_number_of_heads_comes_from_the_configuration_where_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), &tiny(true).tensors, &[]);
        assert_eq!(Backbone::read(&path).unwrap().config.heads, 1);
        let config = json!({"model_type": "vit", "hidden_size": 64, "patch_size": 14, "num_attention_heads": 4, "hidden_act": "gelu"});
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        assert_eq!(Backbone::read(&path).unwrap().config.heads, 4);
        fs::write(folder.path().join("config.json"), config.to_string().replace("gelu", "relu")).unwrap();
        let error = format!("{:#}", Backbone::read(&path).unwrap_err());
        assert!(error.contains("config.json beside it") && error.contains("relu"), "{error}");
    }
}
