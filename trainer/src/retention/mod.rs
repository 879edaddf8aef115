//! What holds a fine-tuned encoder near what it could do before (methods.md §15): terms of the loss beside the
//! objective's, one a file. What they compare with is always θ0: the bare backbone's features, asked without a graph, or
//! its weights. Whatever is made before training is a function of seed and data, so a resumed run makes it again with
//! the same bits. While the encoder stands still there is nothing to hold, and all but the rehearsal, whose decoder
//! learns on, give nothing.

pub mod buffer;
pub mod ewc;
pub mod feature_distillation;
pub mod l2_sp;
pub mod lwf;
pub mod prototypes;
pub mod rehearsal;
pub mod replay;

use crate::models::vit::{Vit, VitConfig};
use crate::objectives::reconstruction::Autoencoder;
use crate::objectives::{Seen, Term, Wanted};
use crate::weights::checkpoint::Recipe;
use crate::weights::{Backbone, Tensors, kind};
use anyhow::{Context, Result};
use buffer::Pool;
use causeway_protocol::{Buffer, Method, Reading, Retention, TokenReplay};
use replay::Replay;
use tch::{Device, Kind, Tensor};

/// Images that the terms look at besides the batch's, as training is given them: u8 [images, 3, side, side].
#[derive(Debug, Default)]
pub struct Kept {
    /// Training images whose features under θ0 are prototypes; a term that asks for fewer takes the first.
    pub prototypes: Option<Tensor>,
    /// Training images over which the Fisher information is averaged.
    pub fisher: Option<Tensor>,
    /// Images of the rehearsal's buffer.
    pub rehearsal: Option<Tensor>,
    /// Images of the token replay's buffer.
    pub replay: Option<Tensor>,
}

/// The buffer of a method that replays θ0's tokens (methods.md §10, reading C).
pub fn replayed(method: &Method) -> Option<&Buffer> {
    match method {
        Method::TokenReplay(TokenReplay { reading: Reading::C, buffer, .. }) => buffer.as_ref(),
        _ => None,
    }
}

/// The encoder at its beginning.
pub struct Beginning<'a> {
    /// The encoder with the method in it.
    pub vit: &'a Vit,
    /// All its tensors, f32; those that need a gradient are trained.
    pub tensors: &'a Tensors,
    /// θ0 of the trained tensors, and of all added ones.
    pub origin: &'a Tensors,
    /// Where to compute.
    pub device: Device,
}

/// The encoder in a step.
pub struct Now<'a> {
    /// The encoder with the method in it.
    pub vit: &'a Vit,
    /// All its tensors, f32.
    pub tensors: &'a Tensors,
    /// All its tensors in the arithmetic of the forward pass.
    pub encoder: &'a Tensors,
    /// What it made of the batch.
    pub seen: &'a Seen,
    /// The run's own decoder, if it has one.
    pub autoencoder: Option<&'a Autoencoder>,
    /// Number of the batch, counted over all steps.
    pub place: u64,
    /// Whether the encoder stands still.
    pub standing: bool,
}

/// The bare backbone, asked without a graph in the arithmetic of its tensors.
pub struct Bare {
    vit: Vit,
    tensors: Tensors,
}

impl Bare {
    /// θ0 in some arithmetic.
    pub fn new(backbone: &Backbone, kind: Kind, device: Device) -> Bare {
        let tensors = backbone.tensors.to_device(device).to_kind(kind);
        Bare { vit: Vit::bare(&backbone.config), tensors }
    }

    /// The architecture.
    pub fn config(&self) -> &VitConfig {
        &self.vit.config
    }

    /// The tokens of whole images.
    ///
    /// # Shapes
    /// `pixels` f32 [batch, 3, height, width], normalised → f32 [batch, tokens, dim]
    pub fn tokens(&self, pixels: &Tensor) -> Tensor {
        tch::no_grad(|| self.vit.tokens(&self.tensors, &self.input(pixels), None, None).to_kind(Kind::Float))
    }

    /// The features of whole images; with `all`, by way of all tokens of the last block, which rounds otherwise.
    ///
    /// # Shapes
    /// `pixels` as for [`Bare::tokens`] → f32 [batch, feature_dim]
    pub fn features(&self, pixels: &Tensor, all: bool) -> Tensor {
        let (vit, input) = (&self.vit, self.input(pixels));
        let features = || match all {
            true => vit.feature_of(&self.tensors, &vit.tokens(&self.tensors, &input, None, None)),
            false => vit.features(&self.tensors, &input),
        };
        tch::no_grad(features).to_kind(Kind::Float)
    }

    fn input(&self, pixels: &Tensor) -> Tensor {
        pixels.to_kind(self.tensors["cls_token"].kind())
    }
}

/// The terms of a run that hold its encoder.
pub struct Retainer {
    spec: Retention,
    bare: Bare,
    /// θ0 of the trained tensors, by name.
    origin: Tensors,
    /// The Fisher information of the trained tensors, for EWC.
    fisher: Tensors,
    /// θ0's features of some training images, for learning without forgetting. [prototypes, feature_dim]
    prototypes: Option<Tensor>,
    rehearsal: Option<Pool>,
    replay: Option<Replay>,
}

impl Retainer {
    /// The terms of a recipe; what they compare with is made now.
    ///
    /// # Errors
    /// Images that a term needs and that were not kept.
    pub fn new(recipe: &Recipe, backbone: &Backbone, kept: &Kept, beginning: &Beginning) -> Result<Retainer> {
        let spec = recipe.retention.clone().unwrap_or_default();
        let Beginning { vit, tensors, origin, device } = *beginning;
        let trained = tensors.iter().filter(|(_, tensor)| tensor.requires_grad());
        let origin: Tensors =
            trained.map(|(name, _)| (name.to_owned(), origin[name].shallow_clone())).collect();
        let bare = Bare::new(backbone, kind(recipe.training.dtype), device);
        let batch = i64::from(recipe.training.batch_size);
        let first = |count: u32| {
            let images = kept.prototypes.as_ref().context("no images were kept for prototypes")?;
            let images = images.narrow(0, 0, images.size()[0].min(count.into()));
            let exact = Bare::new(backbone, Kind::Float, device);
            anyhow::Ok(prototypes::prototypes(&exact, &images, batch, device))
        };
        let fisher = match &spec.ewc {
            None => Tensors::new(),
            Some(ewc) => {
                let images = kept.fisher.as_ref().context("no images were kept for `retention.ewc`")?;
                let theta0 = tensors.iter().map(|(name, tensor)| {
                    (name.to_owned(), origin.get(name).unwrap_or(tensor).shallow_clone())
                });
                ewc::fisher(
                    vit,
                    &theta0.collect(),
                    &origin,
                    &images.to_device(device),
                    &first(ewc.prototypes)?,
                )?
            }
        };
        let prototypes = spec.lwf.as_ref().map(|lwf| first(lwf.prototypes)).transpose()?;
        let rehearsal = spec.rehearsal.as_ref().map(|buffer| {
            let images = kept.rehearsal.as_ref().context("no images were kept for `retention.rehearsal`")?;
            anyhow::Ok(Pool::new(recipe.seed, "rehearsal", images, buffer, device))
        });
        let replay = replayed(&recipe.method).map(|buffer| {
            let images = kept.replay.as_ref().context("no images were kept for `method.buffer`")?;
            anyhow::Ok(Replay::new(Pool::new(recipe.seed, "replay", images, buffer, device), &bare))
        });
        let (rehearsal, replay) = (rehearsal.transpose()?, replay.transpose()?);
        Ok(Retainer { spec, bare, origin, fisher, prototypes, rehearsal, replay })
    }

    /// What the terms look at in a batch.
    pub fn wants(&self, standing: bool) -> Wanted {
        let distilled = self.spec.feature_distillation.as_ref().map(|term| term.tokens);
        Wanted {
            tokens: !standing && distilled == Some(true),
            feature: !standing && (distilled == Some(false) || self.spec.lwf.is_some()),
        }
    }

    /// The terms of a batch.
    pub fn terms(&self, now: &Now) -> Vec<Term> {
        let mut terms = Vec::new();
        let mut add = |name, weight, loss| terms.push(Term { name, weight, loss });
        if let (Some(pool), Some(autoencoder)) = (&self.rehearsal, now.autoencoder) {
            add("rehearsal", pool.weight, rehearsal::loss(pool, autoencoder, now));
        }
        if now.standing {
            return terms;
        }
        if let Some(term) = &self.spec.l2_sp {
            add("l2_sp", term.weight, l2_sp::distance(now.tensors, &self.origin));
        }
        if let Some(term) = &self.spec.ewc {
            add("ewc", term.weight, ewc::distance(now.tensors, &self.origin, &self.fisher));
        }
        let seen = now.seen;
        if let (Some(term), Some(tokens)) = (&self.spec.feature_distillation, &seen.plain_tokens)
            && term.tokens
        {
            let loss = feature_distillation::loss(tokens, &self.bare.tokens(&seen.pixels));
            add("feature_distillation", term.weight, loss);
        }
        if let Some(feature) = &seen.plain_feature {
            // By the way that the encoder's own was computed, so that one that has not moved differs by rounding at most.
            let before = self.bare.features(&seen.pixels, seen.by_all_tokens);
            if let Some(term) = &self.spec.feature_distillation
                && !term.tokens
            {
                add("feature_distillation", term.weight, feature_distillation::loss(feature, &before));
            }
            if let (Some(term), Some(prototypes)) = (&self.spec.lwf, &self.prototypes) {
                add("lwf", term.weight, lwf::loss(feature, &before, prototypes, term.temperature));
            }
        }
        if let Some(replay) = &self.replay {
            add("replay", replay.weight(), replay.loss(now));
        }
        terms
    }
}

#[cfg(test)]
mod tests;
