//! CLIP's zero-shot classification (arXiv 2103.00020, §3.1.4, and open_clip's `build_zero_shot_classifier`): each class
//! is a sentence or several, `templates` with its name in the place of `{}`; its embedding is the normalised mean of
//! their normalised embeddings, and an image is of the class whose embedding is most similar.

use super::rows::Rows;
use super::standing::{Score, standings};
use crate::data::asset::{Asset, AssetKind, Format, Library};
use crate::models::text::TextEncoder;
use crate::models::vit::VitConfig;
use anyhow::{Context, Result, ensure};
use causeway_protocol::ZeroShot;
use tch::{Kind, Tensor};

/// Sentences that are embedded together.
const SENTENCES: usize = 512;

/// The text encoder that a spec names, after it has been found to be the one it means and to go with the encoder.
///
/// # Errors
/// An asset that is missing, damaged or another one; embeddings that share no space with the encoder's features.
pub fn text_encoder(zero_shot: &ZeroShot, library: &Library, encoder: &VitConfig) -> Result<TextEncoder> {
    let name = &zero_shot.text_encoder;
    let asset = library.get(name, AssetKind::TextEncoder)?;
    asset.verify()?;
    goes_with(asset, encoder)?;
    let text = TextEncoder::open(&asset.folder, asset.manifest.format)?;
    ensure!(
        text.digest() == zero_shot.digest,
        "`evaluation.zero_shot.digest` is {}, but the weights of the text encoder `{name}` here have the sha256 {}; \
         points rest on the weights, so correct the one or fetch the other",
        zero_shot.digest,
        text.digest()
    );
    ensure!(
        text.dim() == encoder.feature_dim(),
        "the embeddings of the text encoder `{name}` are {} wide, the encoder's features {}: they are not of one CLIP",
        text.dim(),
        encoder.feature_dim()
    );
    Ok(text)
}

fn goes_with(asset: &Asset, encoder: &VitConfig) -> Result<()> {
    ensure!(
        encoder.projection.is_some(),
        "zero-shot needs an image tower of CLIP, whose features share a space with texts; this encoder has no \
         projection into one. Leave `evaluation.zero_shot` out, or take a CLIP as θ0"
    );
    ensure!(
        asset.manifest.format == Format::ClipText,
        "zero-shot needs the text tower of the CLIP that θ0 is from; `{}` is of the format {:?}, whose embeddings \
         share no space with images",
        asset.manifest.name,
        asset.manifest.format
    );
    Ok(())
}

/// An embedding for each class, of unit length.
///
/// # Shapes
/// → f32 [classes, dim]
///
/// # Errors
/// A sentence that the tokenizer refuses.
pub fn class_embeddings(text: &TextEncoder, zero_shot: &ZeroShot, classes: &[String]) -> Result<Tensor> {
    let templates = &zero_shot.templates;
    let at_once = (SENTENCES / templates.len().max(1)).max(1);
    let mut rows = Vec::new();
    for classes in classes.chunks(at_once) {
        let sentences: Vec<String> = classes
            .iter()
            .flat_map(|class| templates.iter().map(|template| sentence(template, class)))
            .collect();
        let embeddings = text.embed(&sentences).context("embedding the names of classes")?;
        let of_class = embeddings.view([classes.len() as i64, templates.len() as i64, -1]);
        let means = of_class.mean_dim(1, false, Kind::Float); // [classes, dim]
        rows.push(&means / means.norm_scalaropt_dim(2.0, [-1], true).clamp_min(1e-12));
    }
    Ok(Tensor::f_cat(&rows, 0)?)
}

/// A template with a class's name, whose underscores are spaces: names of folders have no others.
fn sentence(template: &str, class: &str) -> String {
    template.replacen("{}", &class.replace('_', " "), 1)
}

/// Scores queries against the classes.
///
/// # Shapes
/// `features` [queries, dim], `classes` f32 [classes, dim]
///
/// # Errors
/// Features that are not finite, or of another width.
pub fn score(features: &Tensor, labels: &[u32], classes: &Tensor) -> Result<Score> {
    let queries = Rows::of(features, "query", "", tch::get_num_threads().max(1) as usize)?;
    let similarities = queries.in_f64().f_matmul(&classes.to_kind(Kind::Double).tr())?; // [queries, classes]
    Ok(Score::of(standings(&similarities.to_kind(Kind::Float), labels)))
}

#[cfg(test)]
pub(super) mod tests;
