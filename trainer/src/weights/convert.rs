//! `convert`: weights as others publish them become an asset of ours. What a file tells only by what lies beside it, or
//! by its format, is in the new file's metadata, so the asset is complete by itself.

use super::source::{self, Hints};
use super::{Backbone, Tensors, safetensors};
use crate::models::mae::DecoderConfig;
use crate::models::vit::VitConfig;
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::BlobRef;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// Names the format of a file in its metadata.
const FORMAT: &str = "causeway weights 1";
/// The file of tensors in the new asset.
const MODEL: &str = "model.safetensors";
/// Ignored keys that are printed; a full CLIP has 150.
const IGNORED_SHOWN: usize = 6;

/// One conversion.
#[derive(Clone, Debug)]
pub struct Convert {
    /// The file to read.
    pub file: PathBuf,
    /// The asset's folder, which must not exist yet.
    pub out: PathBuf,
    /// The asset's name.
    pub name: String,
    /// Its title in figures; the name if none is given.
    pub title: Option<String>,
    /// The licence of the weights.
    pub licence: Option<String>,
    /// Where they come from.
    pub source: Option<String>,
    /// What the file does not tell.
    pub hints: Hints,
}

/// The manifest, in the order in which it is written; [`Manifest`](crate::data::asset::Manifest) reads it.
#[derive(Serialize)]
struct Manifest<'a> {
    name: &'a str,
    kind: &'a str,
    format: &'a str,
    title: &'a str,
    licence: &'a str,
    source: &'a str,
    files: [ListedFile<'a>; 1],
}

#[derive(Serialize)]
struct ListedFile<'a> {
    path: &'a str,
    sha256: &'a str,
    bytes: u64,
}

impl Convert {
    /// Reads the file, writes the asset and prints what it is.
    ///
    /// # Errors
    /// A file that cannot be read or whose keys are not all accounted for; a folder that is there already.
    pub fn run(&self) -> Result<()> {
        ensure!(!self.name.trim().is_empty(), "the asset needs a name");
        ensure!(
            !self.out.exists(),
            "{} is there already; choose another folder, or remove it first",
            self.out.display()
        );
        let source = source::read(&self.file, &self.hints)?;
        let context = || format!("reading weights {}", self.file.display());
        if super::checkpoint::is_checkpoint(&source.contents.metadata) {
            bail!("{} is a checkpoint of Causeway's, which holds no whole encoder", self.file.display());
        }
        let sha256 = source.contents.sha256.clone();
        let backbone = Backbone::of(source).with_context(context)?;
        let decoder = match backbone.decoder.is_empty() {
            true => None,
            false => Some(
                DecoderConfig::infer(&backbone.config, &backbone.decoder, backbone.decoder_heads)
                    .with_context(context)?,
            ),
        };

        let mut metadata = metadata(&backbone.config, decoder.as_ref());
        metadata.insert("converted_from".to_owned(), sha256);
        let all: Tensors = backbone
            .tensors
            .iter()
            .chain(backbone.decoder.iter())
            .map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()))
            .collect();
        if let Some(parent) = self.out.parent() {
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        fs::create_dir(&self.out).with_context(|| format!("creating {}", self.out.display()))?;
        if let Err(error) = self.write(&all, &metadata) {
            // The folder is ours, and half an asset is none.
            let _ = fs::remove_dir_all(&self.out);
            return Err(error);
        }
        self.report(&backbone, decoder.as_ref());
        Ok(())
    }

    fn write(&self, tensors: &Tensors, metadata: &BTreeMap<String, String>) -> Result<()> {
        let BlobRef { sha256, bytes, .. } = safetensors::write(&self.out.join(MODEL), tensors, metadata)?;
        let file = self.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let manifest = Manifest {
            name: &self.name,
            kind: "weights",
            format: "vit",
            title: self.title.as_ref().unwrap_or(&self.name),
            licence: self.licence.as_deref().unwrap_or("unknown"),
            source: self.source.as_ref().unwrap_or(&file),
            files: [ListedFile { path: MODEL, sha256: &sha256, bytes }],
        };
        let path = self.out.join("asset.toml");
        fs::write(&path, toml::to_string(&manifest)?).with_context(|| format!("writing {}", path.display()))
    }

    fn report(&self, backbone: &Backbone, decoder: Option<&DecoderConfig>) {
        println!("{}", describe(&backbone.config));
        println!("values    {}", backbone.tensors.values());
        if let Some(DecoderConfig { depth, dim, heads, .. }) = decoder {
            let values = backbone.decoder.values();
            println!("decoder   MAE's, {depth} blocks of {dim}, {heads} heads, {values} values");
        }
        if !backbone.ignored.is_empty() {
            let shown: Vec<&str> = backbone.ignored.iter().take(IGNORED_SHOWN).map(String::as_str).collect();
            let more = backbone.ignored.len() - shown.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            println!("ignored   {}{more}", shown.join(", "));
        }
        println!("digest    {}", backbone.digest);
        println!("written   {}", self.out.display());
        println!("Name it `{}` in a spec and give its folder, or one above it, as --data.", self.name);
    }
}

/// An encoder in a few lines.
fn describe(config: &VitConfig) -> String {
    let VitConfig { dim, depth, heads, patch, grid, eps, activation, pixels, .. } = config;
    let family = match (config.pre_norm, config.layer_scale) {
        (true, _) => "CLIP's image tower",
        (false, true) => "vision transformer with LayerScale (DINOv2)",
        (false, false) => "vision transformer (DINO, MAE)",
    };
    let projection = match config.projection {
        Some(out) => format!("projected to {out}"),
        None => format!("its {dim} values"),
    };
    format!(
        "encoder   {family}\n\
         shape     {depth} blocks of {dim}, {heads} heads, patches of {patch} px, positions {grid} × {grid}\n\
         function  {}, ε = {eps:e}, pixels of {}\n\
         feature   the class token, {projection}",
        activation.as_str(),
        pixels.as_str()
    )
}

/// What a file of weights says of an encoder and its decoder that their shapes do not show.
pub fn metadata(config: &VitConfig, decoder: Option<&DecoderConfig>) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("activation".to_owned(), config.activation.as_str().to_owned()),
        ("heads".to_owned(), config.heads.to_string()),
    ]);
    metadata.extend(decoder.map(|decoder| ("decoder_heads".to_owned(), decoder.heads.to_string())));
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::asset::{Asset, AssetKind, Library};
    use crate::models::vit::{Activation, tiny, tiny_clip};
    use std::path::Path;

    fn convert(file: &Path, out: &Path) -> Convert {
        Convert {
            file: file.to_owned(),
            out: out.to_owned(),
            name: "mine".to_owned(),
            title: Some("ViT \"tiny\"".to_owned()),
            licence: None,
            source: None,
            hints: Hints::default(),
        }
    }

    #[test]
    fn a_converted_file_is_an_asset_with_the_same_encoder() {
        let folder = tempfile::tempdir().unwrap();
        let (file, out) = (folder.path().join("clip.safetensors"), folder.path().join("assets/mine"));
        let clip = tiny_clip(Activation::QuickGelu);
        safetensors::write(&file, &clip.tensors, &BTreeMap::new()).unwrap();
        let error = format!("{:#}", convert(&file, &out).run().unwrap_err());
        assert!(error.contains("--activation quick_gelu") && !out.exists(), "{error}");

        let hints = Hints { activation: Some(Activation::QuickGelu), ..Hints::default() };
        Convert { hints, ..convert(&file, &out) }.run().unwrap();
        let library = Library::find(&[folder.path().to_owned()]);
        let asset: &Asset = library.get("mine", AssetKind::Weights).unwrap();
        asset.verify().unwrap();
        assert_eq!(
            (asset.manifest.title.as_str(), asset.manifest.licence.as_str()),
            ("ViT \"tiny\"", "unknown")
        );
        assert_eq!(asset.manifest.source, "clip.safetensors");
        // Complete by itself: no hint is needed any more.
        let backbone = Backbone::read(&asset.weights_file()).unwrap();
        assert_eq!((backbone.digest, backbone.config), (clip.digest, clip.config));
    }

    #[test]
    fn an_autoencoder_keeps_its_decoder() {
        let folder = tempfile::tempdir().unwrap();
        let (file, out) = (folder.path().join("mae.safetensors"), folder.path().join("mae"));
        let encoder = tiny(false);
        let decoder = DecoderConfig::new(&encoder.config, 32, 1, 16).unwrap().fresh(1);
        let mut all = encoder.tensors.share();
        all.extend(decoder.iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())));
        safetensors::write(&file, &all, &BTreeMap::new()).unwrap();
        convert(&file, &out).run().unwrap();
        let backbone = Backbone::read(&out.join(MODEL)).unwrap();
        assert_eq!(backbone.digest, encoder.digest, "the decoder is no part of the encoder's identity");
        assert_eq!(backbone.decoder.digest().unwrap(), decoder.digest().unwrap());
    }

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights.safetensors");
        safetensors::write(&file, &tiny(true).tensors, &BTreeMap::new()).unwrap();
        let error = convert(&file, folder.path()).run().unwrap_err().to_string();
        assert!(error.contains("is there already"), "{error}");
    }
}
