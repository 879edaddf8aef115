//! What changes from step to step: weights, moments, averages, and what watches over them.

use super::divergence::{Diverged, Watch};
use super::scale::LossScale;
use super::{Losses, TrainRun};
use crate::methods;
use crate::models::vit::Vit;
use crate::objectives::{Batch, Objectives, Reader, text_tower};
use crate::optim::{self, AdamW, Group, Part};
use crate::retention::{Beginning, Now, Retainer};
use crate::weights::checkpoint::Recipe;
use crate::weights::{Tensors, convert, kind, resume};
use anyhow::{Context, Result};
use causeway_protocol::{Dtype, Training};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// Names of the averaged weights in a resume state.
const EMA: &str = "ema/";

/// Weights and optimiser in the middle of a training.
pub struct Learner<'a> {
    vit: Vit,
    /// All tensors of the encoder, f32: the trained ones are the optimiser's, the frozen ones the backbone's.
    pub tensors: Tensors,
    /// The frozen tensors in the arithmetic of the forward pass.
    frozen: Tensors,
    objectives: Objectives<'a>,
    retention: Retainer,
    /// What takes the steps.
    pub optimiser: AdamW,
    /// Exponential moving average of the encoder's trained tensors.
    average: Option<Tensors>,
    /// Watches for divergence.
    pub watch: Watch,
    scale: Option<LossScale>,
    /// θ0 of the tensors that the method adds.
    pub added_theta0: Tensors,
    /// θ0 of the trained tensors.
    origin: Tensors,
    training: Training,
    /// Steps at the beginning in which the encoder stands still.
    pub encoder_frozen_steps: u64,
}

/// The part of the resume state that is no tensor.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Loop {
    watch: Watch,
    scale: Option<LossScale>,
}

impl<'a> Learner<'a> {
    /// The state before the first step, or the one to resume from; and the number of steps done.
    pub fn new(run: &TrainRun<'a>, recipe: &Recipe, resume: Option<&Path>) -> Result<(Learner<'a>, u64)> {
        let (training, method, config) = (&recipe.training, &recipe.method, &run.backbone.config);
        let device = run.device;
        let tuner = methods::tuner(method);
        let mut added = methods::added(recipe, run.backbone, run.given.widths)?;
        added.take(&run.given.tensors)?;
        let mut optimiser = AdamW::new(training.betas);
        let mut tensors = run.backbone.tensors.to_device(device);
        let mut origin = added.theta0.to_device(device);
        tensors.extend(added.start.to_device(device));
        let trained: Vec<String> = tensors
            .names()
            .filter(|name| tuner.trains(name) && !recipe.fixes(name))
            .map(str::to_owned)
            .collect();
        for name in trained {
            let start = &tensors[&name];
            if added.theta0.get(&name).is_none() {
                origin.insert(name.clone(), start.shallow_clone());
            }
            let rate =
                training.learning_rate * optim::layer_factor(&name, config.depth, training.layer_decay);
            let group = Group { part: Part::Encoder, rate, decay: training.weight_decay };
            let value = optimiser.train(&format!("encoder/{name}"), start, group);
            optimiser.hold(&format!("encoder/{name}"), tuner.stands_still(&name));
            tensors.insert(name, value);
        }
        let head =
            Group { part: Part::Head, rate: training.head_learning_rate, decay: training.weight_decay };
        let reader = Reader {
            text_dim: run.pairs.embeddings.map(|embeddings| embeddings.size()[1]),
            text_encoder: run.text_encoder,
            language_model: run.language_model,
            device,
        };
        let objectives = Objectives::new(recipe, run.backbone, reader, &mut |name, start| {
            let encodes = name.starts_with(text_tower::NAMES);
            let rate = if encodes { training.learning_rate } else { head.rate };
            optimiser.train(name, &start.to_device(device), Group { rate, ..head })
        })?;
        let vit = Vit::new(config, method);
        let beginning = Beginning { vit: &vit, tensors: &tensors, origin: &origin, device };
        let retention = Retainer::new(recipe, run.backbone, run.kept, &beginning)
            .context("what holds the encoder near θ0")?;
        let fresh_decoder = objectives.has_fresh_decoder() && !run.backbone.is_fresh;
        let default_frozen_steps = if fresh_decoder { training.steps / 10 } else { 0 };
        let mut learner = Learner {
            vit,
            frozen: tensors.iter().filter(|(_, tensor)| !tensor.requires_grad()).map(owned).collect(),
            average: training.ema.map(|_| Tensors::new()),
            tensors,
            objectives,
            retention,
            optimiser,
            watch: Watch::default(),
            scale: (training.dtype == Dtype::F16).then(LossScale::default),
            added_theta0: added.theta0,
            origin,
            training: training.clone(),
            encoder_frozen_steps: training.encoder_frozen_steps.unwrap_or(default_frozen_steps),
        };
        learner.frozen = learner.frozen.to_kind(kind(training.dtype));
        if learner.average.is_some() {
            learner.average =
                Some(learner.trained().map(|(name, tensor)| (name, tensor.detach().copy())).collect());
        }
        let begin = match resume {
            None => 0,
            Some(path) => {
                let state = resume::read(path, &run.backbone.digest, recipe)?;
                learner.restore(&state).with_context(|| format!("resuming from {}", path.display()))?;
                state.step
            }
        };
        Ok((learner, begin))
    }

    fn restore(&mut self, state: &resume::State) -> Result<()> {
        self.optimiser.restore(&state.tensors)?;
        let kept: Loop = serde_json::from_str(&state.progress).context("the state of the loop")?;
        (self.watch, self.scale) = (kept.watch, kept.scale);
        if let Some(average) = &mut self.average {
            for (name, tensor) in average.iter() {
                let kept = state.tensors.get(&format!("{EMA}{name}"));
                tensor.shallow_clone().f_copy_(kept.with_context(|| format!("no {EMA}{name}"))?)?;
            }
        }
        Ok(())
    }

    /// What a resumed training needs.
    pub fn state(&self) -> Result<resume::Progress> {
        let mut tensors = self.optimiser.state();
        if let Some(average) = &self.average {
            tensors.extend(
                average.iter().map(|(name, tensor)| (format!("{EMA}{name}"), tensor.shallow_clone())),
            );
        }
        let kept = Loop { watch: self.watch.clone(), scale: self.scale };
        Ok(resume::Progress { tensors, text: serde_json::to_string(&kept)? })
    }

    /// The losses of a step and the gradient of their weighted sum, averaged over its batches.
    pub fn gradients(&self, batches: &[Batch], step: u64) -> Result<(Losses, Vec<Tensor>)> {
        let standing = step < self.encoder_frozen_steps;
        let parts = self.parts(step);
        let share = 1.0 / batches.len() as f64;
        let scale = self.scale.map_or(1.0, LossScale::factor);
        let mut losses = Losses::default();
        let mut sum: Vec<Tensor> = Vec::new();
        for (at, batch) in batches.iter().enumerate() {
            let encoder = self.encoder();
            let wanted = self.retention.wants(standing);
            let seen = self.objectives.see(&self.vit, &encoder, batch, wanted, standing);
            let mut terms = self.objectives.terms(&seen, batch)?;
            terms.extend(self.retention.terms(&Now {
                vit: &self.vit,
                tensors: &self.tensors,
                encoder: &encoder,
                seen: &seen,
                autoencoder: self.objectives.autoencoder(),
                place: step * u64::from(self.training.accumulate) + at as u64,
                standing,
            }));
            let weighted: Vec<Tensor> = terms.iter().map(|term| &term.loss * term.weight).collect();
            let loss = match weighted.as_slice() {
                [alone] => alone.shallow_clone(),
                several => Tensor::stack(several, 0).sum(tch::Kind::Float),
            };
            losses.total += share * loss.double_value(&[]);
            for term in &terms {
                *losses.terms.entry(term.name).or_default() += share * term.loss.double_value(&[]);
            }
            let factor = share * scale;
            let loss = if factor == 1.0 { loss } else { loss * factor };
            let gradients = self.optimiser.gradients(&loss, &parts)?;
            if sum.is_empty() {
                sum = gradients;
            } else {
                sum = sum.iter().zip(&gradients).map(|(sum, gradient)| sum + gradient).collect();
            }
        }
        if scale != 1.0 {
            sum = sum.iter().map(|gradient| gradient / scale).collect();
        }
        Ok((losses, sum))
    }

    /// Whether the gradients are to be left out because f16 overflowed; adapts the scale.
    ///
    /// # Errors
    /// [`Diverged`] where no scale helps.
    pub fn overflowed(&mut self, norm: f64, step: u64) -> Result<bool> {
        let Some(scale) = &mut self.scale else { return Ok(false) };
        scale.update(norm.is_finite());
        if scale.is_hopeless() {
            return Err(Diverged::not_finite("gradient norm", norm, step + 1).into());
        }
        Ok(!norm.is_finite())
    }

    /// One step against the gradients, with every peak rate times `factor`.
    pub fn step(&mut self, gradients: &[Tensor], factor: f64, step: u64) {
        let parts = self.parts(step);
        self.optimiser.step(gradients, &parts, factor);
        self.objectives.after_step();
        if let (Some(average), Some(decay)) = (&self.average, self.training.ema) {
            tch::no_grad(|| {
                for (name, average) in average.iter() {
                    let _ = average.shallow_clone().lerp_(&self.tensors[name], 1.0 - decay);
                }
            });
        }
    }

    fn parts(&self, step: u64) -> Vec<Part> {
        if step < self.encoder_frozen_steps { vec![Part::Head] } else { vec![Part::Encoder, Part::Head] }
    }

    /// All tensors of the encoder in the arithmetic of the forward pass; the graph goes through the cast.
    fn encoder(&self) -> Tensors {
        let mut encoder = self.frozen.share();
        let kind = kind(self.training.dtype);
        encoder.extend(self.trained().map(|(name, tensor)| (name, tensor.to_kind(kind))));
        encoder
    }

    /// The encoder's trained tensors.
    fn trained(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.tensors
            .iter()
            .filter(|(_, tensor)| tensor.requires_grad())
            .map(|(name, tensor)| (name.to_owned(), tensor))
    }

    /// θ1: the weights, or their average.
    pub fn theta1(&self) -> Tensors {
        let mut theta1: Tensors = self.tensors.iter().map(owned).collect();
        if let Some(average) = &self.average {
            theta1.extend(average.iter().map(owned));
        }
        theta1
    }

    /// Encoder and decoder under the names of MAE's files, and what their shapes do not show.
    pub fn autoencoder(&self) -> (Tensors, BTreeMap<String, String>) {
        let mut all = self.theta1();
        let autoencoder = self.objectives.autoencoder();
        all.extend(autoencoder.into_iter().flat_map(|own| own.decoder().iter()).map(owned));
        (all, convert::metadata(&self.vit.config, autoencoder.map(|own| own.config())))
    }

    /// Metrics that are known at every step.
    pub fn values(&self) -> BTreeMap<String, f64> {
        let mut values = self.objectives.values();
        if let Some(scale) = self.scale {
            values.insert("loss_scale".to_owned(), scale.factor());
        }
        values
    }

    /// What the method tells of a batch.
    pub fn tells(&self, batch: &Batch) -> Vec<(String, f64)> {
        let told = tch::no_grad(|| {
            let encoder = self.encoder();
            let pixels = self.vit.config.normalise(&batch.pixels).to_kind(encoder["cls_token"].kind());
            self.vit.tells(&encoder, &pixels)
        });
        told.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// ‖θ − θ0‖ and ‖θ‖ over the trained tensors of the encoder, and the root mean square of what the method adds and
    /// trains, over all blocks: how far gates have opened and scales have moved.
    pub fn norms(&self) -> BTreeMap<String, f64> {
        tch::no_grad(|| {
            let norm = |tensors: Vec<Tensor>| Tensor::stack(&tensors, 0).norm().double_value(&[]);
            let moved = self.origin.iter().map(|(name, origin)| (&self.tensors[name] - origin).norm());
            let mut values = BTreeMap::from([
                ("distance".to_owned(), norm(moved.collect())),
                ("weight_norm".to_owned(), norm(self.trained().map(|(_, tensor)| tensor.norm()).collect())),
            ]);
            let mut squares = BTreeMap::<String, (f64, usize)>::new();
            let added = self.added_theta0.names().map(|name| (name, &self.tensors[name]));
            for (name, tensor) in added.filter(|(_, tensor)| tensor.requires_grad()) {
                let entry = squares.entry(format!("rms/{}", without_places(name))).or_default();
                entry.0 += tensor.square().sum(tch::Kind::Double).double_value(&[]);
                entry.1 += tensor.numel();
            }
            values
                .extend(squares.into_iter().map(|(name, (sum, count))| (name, (sum / count as f64).sqrt())));
            values
        })
    }
}

/// What a tensor is called wherever it sits: `blocks.3.adapter.scale` is `adapter.scale`.
fn without_places(name: &str) -> String {
    let parts = name.split('.').filter(|part| *part != "blocks" && part.parse::<u32>().is_err());
    parts.collect::<Vec<_>>().join(".")
}

fn owned((name, tensor): (&str, &Tensor)) -> (String, Tensor) {
    (name.to_owned(), tensor.shallow_clone())
}
