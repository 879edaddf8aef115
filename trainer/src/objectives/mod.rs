//! The objective: the weighted sum of the terms that a spec names. Each view of an image goes through the encoder once,
//! whichever terms look at it. An encoder that reads captions is shown one by the reconstruction alone: what is scored
//! against a caption has not seen it, unless the spec says `leak = true` (methods.md §9).

pub mod caption;
pub mod contrastive;
pub mod reconstruction;
pub mod text_tower;

use crate::methods::Text;
use crate::models::language::LanguageModel;
use crate::models::mae::Mask;
use crate::models::vit::Vit;
use crate::random::SplitMix64;
use crate::weights::checkpoint::Recipe;
use crate::weights::{Backbone, Tensors};
use anyhow::{Context, Result};
use caption::LinearMap;
use causeway_protocol::{Captioning, Contrastive, View};
use contrastive::Heads;
use reconstruction::Autoencoder;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};
use text_tower::{TextTower, Untrained};

/// The terms of an objective, with what each learns besides the encoder.
pub struct Objectives<'a> {
    contrastive: Option<(Contrastive, Heads)>,
    /// What embeds the captions, where that is trained too.
    text_tower: Option<TextTower<'a>>,
    reconstruction: Option<Autoencoder>,
    caption: Option<(Captioning, LinearMap, &'a LanguageModel)>,
}

/// Who reads the captions, and where.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    /// Width of their embeddings, if they are embedded.
    pub text_dim: Option<i64>,
    /// What embeds them in training, if it is trained too.
    pub text_encoder: Option<&'a Untrained>,
    /// What the caption loss asks.
    pub language_model: Option<&'a LanguageModel>,
    /// Where to compute.
    pub device: Device,
}

/// What a forward pass is given.
pub struct Batch {
    /// u8 [batch, 3, height, width].
    pub pixels: Tensor,
    /// The captions as the method reads them, if it does.
    pub text: Option<Text>,
    /// The captions' embeddings, [batch, text]; for the contrastive loss.
    pub embeddings: Option<Tensor>,
    /// The captions' token ids; for the caption loss.
    pub ids: Vec<Vec<i64>>,
    /// Equal numbers for equal captions, [batch].
    pub captions: Tensor,
    /// What the masks are drawn from; for the reconstruction.
    pub noise: Option<SplitMix64>,
    /// What the caption loss draws from which values of its prefix are dropped.
    pub dropout: SplitMix64,
}

/// What an encoder makes of a batch: each view that some term looks at, once.
pub struct Seen {
    /// The images as the encoder is given them. f32 [batch, 3, height, width]
    pub pixels: Tensor,
    /// What is hidden from the reconstruction.
    pub mask: Option<Mask>,
    /// Tokens of the visible patches, for the reconstruction; under a method that reads captions, with the caption.
    pub rebuilt: Option<Tensor>,
    /// The same to be compared with the caption, and so without it.
    pub visible: Option<Tensor>,
    /// Tokens of the whole image. [batch, tokens, dim]
    pub whole: Option<Tensor>,
    /// The feature that is compared with the caption. [batch, feature_dim]
    pub feature: Option<Tensor>,
    /// Tokens of the whole image that was shown no caption. [batch, tokens, dim]
    pub plain_tokens: Option<Tensor>,
    /// The feature of the whole image that was shown no caption. [batch, feature_dim]
    pub plain_feature: Option<Tensor>,
    /// Whether that feature was computed by way of all tokens of the last block.
    pub by_all_tokens: bool,
}

/// What others than the objective want to see of a batch: the whole image, without its caption.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// All tokens.
    pub tokens: bool,
    /// The feature.
    pub feature: bool,
}

/// One term of the loss.
pub struct Term {
    /// The word in specs and metrics.
    pub name: &'static str,
    /// Its weight in the sum.
    pub weight: f64,
    /// Its value, a scalar with its graph.
    pub loss: Tensor,
}

impl<'a> Objectives<'a> {
    /// The terms of a recipe at their start. `train` takes a named tensor into the optimiser and returns it.
    ///
    /// # Errors
    /// A term that lacks what it compares with, or a decoder that does not fit.
    pub fn new(
        recipe: &Recipe,
        backbone: &Backbone,
        reader: Reader<'a>,
        train: &mut dyn FnMut(&str, &Tensor) -> Tensor,
    ) -> Result<Objectives<'a>> {
        let (objective, config, seed) = (&recipe.objective, &backbone.config, recipe.seed);
        let contrastive = objective.contrastive.as_ref().map(|spec| {
            let text_dim = reader.text_encoder.map(Untrained::dim).or(reader.text_dim);
            let text_dim = text_dim.context("the contrastive loss needs embedded captions")?;
            let start = Heads::new(config.feature_dim(), text_dim, spec, seed)?;
            let mut project = |name, start: &Option<Tensor>| start.as_ref().map(|start| train(name, start));
            let heads = Heads {
                image: project("heads/image", &start.image),
                text: project("heads/text", &start.text),
                logit_scale: train("heads/logit_scale", &start.logit_scale),
            };
            anyhow::Ok((spec.clone(), heads))
        });
        let contrastive = contrastive.transpose()?;
        let text_tower = reader.text_encoder.map(|untrained| untrained.train(train));
        let reconstruction = objective
            .reconstruction
            .as_ref()
            .map(|spec| Autoencoder::new(spec, backbone, &recipe.training, seed, reader.device, train));
        let caption = objective.caption.as_ref().map(|spec| {
            let model = reader.language_model.context("the caption loss needs a language model")?;
            let start = LinearMap::new(config.dim, model.dim(), seed);
            let map = LinearMap {
                weight: train("linear_map/weight", &start.weight),
                bias: train("linear_map/bias", &start.bias),
            };
            anyhow::Ok((spec.clone(), map, model))
        });
        Ok(Objectives {
            contrastive,
            text_tower,
            reconstruction: reconstruction.transpose()?,
            caption: caption.transpose()?,
        })
    }

    /// What the encoder makes of a batch, for the terms and for what else is `wanted`. With `standing`, no graph goes into
    /// it: only what reads it learns.
    pub fn see(&self, vit: &Vit, encoder: &Tensors, batch: &Batch, wanted: Wanted, standing: bool) -> Seen {
        let pixels = vit.config.normalise(&batch.pixels); // f32 [batch, 3, height, width]
        let mask = self.reconstruction.as_ref().zip(batch.noise.clone());
        let mask = mask.map(|(autoencoder, noise)| autoencoder.mask(&pixels, noise));
        let encode = || {
            let input = pixels.to_kind(encoder["cls_token"].kind());
            let text = batch.text.as_ref();
            // What is compared with a caption must not have seen it, unless the spec permits that.
            let shown = text.filter(|_| vit.method.reads().is_some_and(|reads| reads.leak));
            let visible = |text| {
                let mask = mask.as_ref()?;
                Some(vit.tokens(encoder, &input, Some(&mask.visible), text))
            };
            let rebuilt = visible(text);
            let compared = match self.compares_visible() {
                false => None,
                true if text.is_none() || shown.is_some() => rebuilt.as_ref().map(Tensor::shallow_clone),
                true => visible(None),
            };
            let for_all = shown.is_none() && wanted.tokens;
            let whole = (for_all || self.caption_view() == Some(View::Full))
                .then(|| vit.tokens(encoder, &input, None, shown));
            let feature = self.contrastive.as_ref().map(|(spec, _)| match (spec.view, &compared, &whole) {
                (View::Visible, Some(visible), _) => vit.feature_of(encoder, visible),
                (View::Full, _, Some(whole)) => vit.feature_of(encoder, whole),
                _ if shown.is_some() => vit.feature_of(encoder, &vit.tokens(encoder, &input, None, shown)),
                _ => vit.features(encoder, &input),
            });
            let plain = whole.as_ref().filter(|_| shown.is_none());
            let plain_tokens = wanted.tokens.then(|| match plain {
                Some(whole) => whole.shallow_clone(),
                None => vit.tokens(encoder, &input, None, None),
            });
            let compared_whole = self.contrastive.as_ref().is_some_and(|(spec, _)| spec.view == View::Full);
            let plain_feature = wanted.feature.then(|| match (&feature, plain.or(plain_tokens.as_ref())) {
                (Some(feature), _) if compared_whole && shown.is_none() => feature.shallow_clone(),
                (_, Some(tokens)) => vit.feature_of(encoder, tokens),
                _ => vit.features(encoder, &input),
            });
            let by_all_tokens = plain.is_some() || plain_tokens.is_some() || vit.needs_all_tokens();
            Seen {
                pixels,
                mask,
                rebuilt,
                visible: compared,
                whole,
                feature,
                plain_tokens,
                plain_feature,
                by_all_tokens,
            }
        };
        if standing { tch::no_grad(encode) } else { encode() }
    }

    /// The terms of a batch.
    ///
    /// # Errors
    /// A caption that the language model cannot be given.
    pub fn terms(&self, seen: &Seen, batch: &Batch) -> Result<Vec<Term>> {
        let mut terms = Vec::new();
        if let (Some((spec, heads)), Some(feature)) = (&self.contrastive, &seen.feature)
            && let Some(embeddings) = self.embeddings(batch)?
        {
            let loss = heads.loss(&feature.to_kind(Kind::Float), &embeddings, &batch.captions);
            terms.push(Term { name: "contrastive", weight: spec.weight, loss });
        }
        if let (Some(autoencoder), Some(mask), Some(rebuilt)) =
            (&self.reconstruction, &seen.mask, &seen.rebuilt)
        {
            let loss = autoencoder.loss(&seen.pixels, rebuilt, mask);
            terms.push(Term { name: "reconstruction", weight: autoencoder.weight(), loss });
        }
        if let Some((spec, map, model)) = &self.caption
            && let Some(tokens) = if spec.view == View::Full { &seen.whole } else { &seen.visible }
        {
            let patches = tokens.narrow(1, 1, tokens.size()[1] - 1).to_kind(Kind::Float);
            let prefix = caption::drop_values(map.forward(&patches), spec.dropout, batch.dropout.clone());
            let loss = caption::loss(model, &prefix, &batch.ids)?;
            terms.push(Term { name: "caption", weight: spec.weight, loss });
        }
        Ok(terms)
    }

    /// The captions of a batch, embedded now or before training. [batch, text]
    fn embeddings(&self, batch: &Batch) -> Result<Option<Tensor>> {
        let beforehand = || batch.embeddings.as_ref().map(Tensor::shallow_clone);
        match &self.text_tower {
            Some(tower) => tower.embed(&batch.captions).map(Some),
            None => Ok(beforehand()),
        }
    }

    /// Whether a term compares the visible patches with the caption.
    fn compares_visible(&self) -> bool {
        let contrastive = self.contrastive.as_ref().map(|(spec, _)| spec.view);
        [contrastive, self.caption_view()].contains(&Some(View::Visible))
    }

    fn caption_view(&self) -> Option<View> {
        self.caption.as_ref().map(|(spec, ..)| spec.view)
    }

    /// Keeps what is learned within its bounds; called after each step.
    pub fn after_step(&mut self) {
        if let Some((_, heads)) = &mut self.contrastive {
            heads.clamp();
        }
    }

    /// Metrics of what is learned besides the encoder.
    pub fn values(&self) -> BTreeMap<String, f64> {
        let heads = self.contrastive.iter();
        heads.map(|(_, heads)| ("temperature".to_owned(), heads.temperature())).collect()
    }

    /// Whether the decoder, if there is one, starts from random values.
    pub fn has_fresh_decoder(&self) -> bool {
        self.reconstruction.as_ref().is_some_and(Autoencoder::has_fresh_decoder)
    }

    /// The decoder, if there is one.
    pub fn autoencoder(&self) -> Option<&Autoencoder> {
        self.reconstruction.as_ref()
    }
}

#[cfg(test)]
mod tests;
