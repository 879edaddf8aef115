//! The training loop: an encoder is fine-tuned, or trained from nothing, against the weighted sum of losses that its
//! spec names (methods.md §9). Everything random in a step is a function of (seed, step), so a run stopped at any step
//! and resumed ends with the same bits.

mod divergence;
mod learner;
mod report;
mod scale;
mod selection;

pub use divergence::Diverged;

use crate::attempt::interrupt::{self, Interrupted};
use crate::methods::{Given, Text};
use crate::models::language::LanguageModel;
use crate::objectives::Batch;
use crate::objectives::text_tower::Untrained;
use crate::optim;
use crate::order::Order;
use crate::retention::Kept;
use crate::weights::checkpoint::{self, Recipe};
use crate::weights::{Backbone, initial, resume, safetensors};
use anyhow::{Context, Result, ensure};
use causeway_protocol::{BlobRef, Event, Kind, Spec};
use learner::Learner;
use report::{Pace, Usage};
use selection::Chosen;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tch::{Device, Tensor};

/// File name of the checkpoint in the attempt's folder.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// Steps between two values of what costs a pass over all trained tensors.
const NORMS_EVERY: u64 = 10;

/// One training, complete.
pub struct TrainRun<'a> {
    /// What to do.
    pub spec: &'a Spec,
    /// θ0.
    pub backbone: &'a Backbone,
    /// What to learn from.
    pub pairs: Pairs<'a>,
    /// What the caption loss asks.
    pub language_model: Option<&'a LanguageModel>,
    /// The text encoder, where it is trained too.
    pub text_encoder: Option<&'a Untrained>,
    /// What the method takes from other models.
    pub given: &'a Given,
    /// Images that hold the encoder near θ0.
    pub kept: &'a Kept,
    /// A resume state of the same spec and backbone to go on from.
    pub resume: Option<&'a Path>,
    /// The attempt's folder: resume states and the checkpoint go there.
    pub folder: &'a Path,
    /// Where to compute.
    pub device: Device,
    /// Where events go.
    pub journal: &'a mut dyn FnMut(Event) -> Result<()>,
}

/// The image-caption pairs.
pub struct Pairs<'a> {
    /// Number of pairs.
    pub count: usize,
    /// Opens the images of a range of steps.
    pub images: &'a dyn Fn(Order, Range<u64>) -> Result<Images>,
    /// For each pair the number of its caption; equal texts have one number.
    pub captions: &'a [usize],
    /// Embedding of each distinct caption, [distinct, text]; for the contrastive loss.
    pub embeddings: Option<&'a Tensor>,
    /// Token ids of each distinct caption; for the caption loss.
    pub ids: &'a [Vec<i64>],
    /// Each distinct caption as a method reads it, [tokens, text]; empty where none does.
    pub texts: &'a [Tensor],
}

/// The images of one step after the other: u8 [pairs of the step, 3, image_size, image_size] in the order's sequence,
/// and the time that was spent waiting for them.
pub type Images = Box<dyn Iterator<Item = Result<(Tensor, Duration)>>>;

/// Trains and writes the checkpoint; returns it as the blob that the last event names.
///
/// # Errors
/// [`Diverged`]; [`Interrupted`]; a spec that does not fit backbone or pairs; an image that cannot be read; a failure of the file
/// system or the journal.
pub fn train(mut run: TrainRun) -> Result<BlobRef> {
    let recipe = Recipe::of(run.spec)?;
    run.check(&recipe)?;
    let Chosen { recipe, values } = selection::choose(&run, recipe)?;
    let mut states: Vec<PathBuf> = run.resume.iter().map(|state| state.to_path_buf()).collect();
    let mut rollbacks = 0;
    loop {
        let from = states.last().cloned();
        let (mut learner, begin) = Learner::new(&run, &recipe, from.as_deref())?;
        learner.watch.rollbacks = learner.watch.rollbacks.max(rollbacks);
        match steps(&mut run, &recipe, &mut learner, begin, &mut states, &values) {
            Ok(()) => return finish(&mut run, &recipe, &learner),
            Err(error) => {
                let Some(diverged) = error.downcast_ref::<Diverged>() else { return Err(error) };
                rollbacks = learner.watch.rollbacks + 1;
                if rollbacks > recipe.training.divergence.rollbacks {
                    return Err(error);
                }
                // A state that led nowhere once more may have been spoilt before it was written: the one before, then.
                if rollbacks > 1 && states.last() == from.as_ref() {
                    states.pop();
                }
                states.retain(|state| state.exists());
                let step = match states.last() {
                    None => 0,
                    Some(state) => resume::read(state, &run.backbone.digest, &recipe)?.step,
                };
                (run.journal)(Event::RolledBack { step, rollbacks, reason: diverged.to_string() })?;
            }
        }
    }
}

/// The steps from `begin` to the last. To `states` are added those that a rollback can go back to; `chosen_by` is told
/// with the first step, whose loss is θ0's as well.
fn steps(
    run: &mut TrainRun,
    recipe: &Recipe,
    learner: &mut Learner,
    begin: u64,
    states: &mut Vec<PathBuf>,
    chosen_by: &BTreeMap<String, f64>,
) -> Result<()> {
    let training = &recipe.training;
    let order = order(recipe, run.pairs.count);
    let mut images = (run.pairs.images)(order, begin..training.steps)?;
    let mut pace = Pace::new(training);
    for step in begin..training.steps {
        let (pixels, waited) = images.next().context("the images ended before the steps")??;
        let batches = run.pairs.batches(recipe, &order, step, &pixels);

        let (losses, mut gradients) = learner.gradients(&batches, step)?;
        let norm = optim::clip(&mut gradients, training.clip_norm);
        let overflowed = learner.overflowed(norm, step)?;
        if !overflowed {
            let loss = losses.total;
            learner.watch.check(&training.divergence, loss, norm, step + 1)?;
        }
        let factor = optim::rate_factor(training, step) * learner.watch.rate_factor(&training.divergence);
        if !overflowed {
            learner.step(&gradients, factor, step);
        }

        let done = step + 1;
        let last = done == training.steps;
        let mut values = losses.values();
        values.insert("learning_rate".to_owned(), training.learning_rate * factor);
        if !overflowed {
            values.insert("gradient_norm".to_owned(), norm);
        }
        values.extend(learner.values());
        if step == 0 {
            values.extend(chosen_by.clone());
        }
        if done % NORMS_EVERY == 0 || last {
            values.extend(learner.norms());
            values.extend(batches.first().into_iter().flat_map(|batch| learner.tells(batch)));
            values.extend(pace.usage().map(Usage::values).into_iter().flatten());
        }
        if let Some((name, value)) = values.iter().find(|(_, value)| !value.is_finite()) {
            return Err(Diverged::not_finite(name, *value, done).into());
        }
        (run.journal)(Event::Metrics { step: done, values })?;
        if let Some(progress) = pace.after(done, waited) {
            (run.journal)(Event::Progress(progress))?;
        }
        let told_to_end = interrupt::asked() && !last;
        if (done % training.resume_every == 0 || told_to_end) && !last {
            let blob = resume::write(run.folder, &run.backbone.digest, recipe, done, &learner.state()?)?;
            states.push(run.folder.join(&blob.file));
            (run.journal)(Event::ResumeState { step: done, blob })?;
        }
        if told_to_end {
            return Err(Interrupted { step: Some(done) }.into());
        }
    }
    Ok(())
}

/// Writes the checkpoint: what moved, or, of a pretraining, the whole autoencoder as a set of weights of its own.
fn finish(run: &mut TrainRun, recipe: &Recipe, learner: &Learner) -> Result<BlobRef> {
    let path = run.folder.join(CHECKPOINT);
    let step = recipe.training.steps;
    let blob = if run.spec.kind == Kind::Pretrain {
        let (tensors, metadata) = learner.autoencoder();
        safetensors::write(&path, &tensors, &metadata)?
    } else {
        let (theta1, theta0) = (learner.theta1(), &learner.added_theta0);
        checkpoint::write(&path, run.backbone, recipe, step, (&theta1, theta0), run.given.widths)?
    };
    (run.journal)(Event::Checkpoint {
        step,
        blob: blob.clone(),
        backbone: run.backbone.digest.clone(),
        method: run.spec.trained().to_owned(),
    })?;
    Ok(blob)
}

/// The order of the pairs: a step takes `accumulate` batches at once.
pub fn order(recipe: &Recipe, pairs: usize) -> Order {
    let training = &recipe.training;
    let batch = training.batch_size as usize * training.accumulate as usize;
    Order { seed: recipe.seed, pairs, batch }
}

impl TrainRun<'_> {
    fn check(&self, recipe: &Recipe) -> Result<()> {
        let (training, objective) = (&recipe.training, &recipe.objective);
        self.backbone.config.check_image_size(training.image_size).context("`training.image_size`")?;
        let captions = self.pairs.captions;
        ensure!(self.pairs.count >= 2, "there are {} images to train on; two are needed", self.pairs.count);
        if objective.contrastive.is_some() {
            let embedded = self.pairs.embeddings.map(|embeddings| embeddings.size()[0] as usize);
            let read = self.text_encoder.map(Untrained::captions);
            let distinct = read.or(embedded).context("the contrastive loss needs embedded captions")?;
            ensure!(
                distinct >= 2,
                "the captions hold {distinct} distinct texts; a contrastive loss needs two at least"
            );
            ensure!(captions.iter().all(|row| *row < distinct), "a caption has no embedding");
        }
        if objective.caption.is_some() {
            let distinct = self.pairs.ids.len();
            ensure!(captions.iter().all(|row| *row < distinct), "a caption has no tokens");
        }
        if let Some(reads) = recipe.method.reads() {
            let distinct = self.pairs.texts.len();
            let all = !captions.is_empty() && captions.iter().all(|row| *row < distinct);
            ensure!(all, "a caption has no {:?} for the method to read", reads.form);
        }
        Ok(())
    }
}

impl Pairs<'_> {
    /// The batches of a step, whose images are `pixels`.
    fn batches(&self, recipe: &Recipe, order: &Order, step: u64, pixels: &Tensor) -> Vec<Batch> {
        let training = &recipe.training;
        let indices = order.batch(step);
        let size = training.batch_size as usize;
        let masks = recipe.objective.reconstruction.is_some();
        let one = |(at, indices): (usize, &[usize])| {
            let pixels = pixels.narrow(0, (at * size) as i64, indices.len() as i64);
            let rows: Vec<i64> = match self.captions {
                [] => indices.iter().map(|index| *index as i64).collect(),
                captions => indices.iter().map(|index| captions[*index] as i64).collect(),
            };
            let captions = Tensor::from_slice(&rows).to_device(pixels.device());
            let reads = recipe.method.reads().filter(|_| !self.texts.is_empty());
            Batch {
                text: reads.map(|reads| {
                    let mut draws = initial::stream(recipe.seed, &format!("caption_dropout/{step}/{at}"));
                    let text =
                        |row: &i64| (draws.uniform() >= reads.caption_dropout, &self.texts[*row as usize]);
                    Text::of(rows.iter().map(text), pixels.device())
                }),
                embeddings: self.embeddings.map(|embeddings| embeddings.index_select(0, &captions)),
                ids: match self.ids {
                    [] => Vec::new(),
                    ids => rows.iter().map(|row| ids[*row as usize].clone()).collect(),
                },
                captions,
                // One stream for each image: which patches go depends on the batch's composition in nothing else.
                noise: masks.then(|| initial::stream(recipe.seed, &format!("mask/{step}/{at}"))),
                dropout: initial::stream(recipe.seed, &format!("dropout/{step}/{at}")),
                pixels,
            }
        };
        indices.chunks(size).enumerate().map(one).collect()
    }
}

/// The losses of a step.
#[derive(Debug, Default)]
pub struct Losses {
    /// The weighted sum.
    pub total: f64,
    /// The terms before weighting, by name.
    pub terms: BTreeMap<&'static str, f64>,
}

impl Losses {
    /// As metrics; a single term is the loss itself.
    fn values(&self) -> BTreeMap<String, f64> {
        let mut values = BTreeMap::from([("loss".to_owned(), self.total)]);
        if self.terms.len() > 1 {
            values.extend(self.terms.iter().map(|(name, value)| (format!("loss/{name}"), *value)));
        }
        values
    }
}

#[cfg(test)]
mod reading_tests;
#[cfg(test)]
mod tests;
