//! The training loop (methods.md §9, A2 without MAE): an encoder is fine-tuned so that the feature of an image and the
//! embedding of its caption agree. A run stopped at any step and resumed ends with the same bits.

use crate::methods;
use crate::models::vit::Vit;
use crate::objectives::contrastive::Heads;
use crate::optim::{self, AdamW};
use crate::order::Order;
use crate::weights::checkpoint::{self, Recipe};
use crate::weights::{Backbone, Tensors, resume};
use anyhow::{Context, Result, ensure};
use causeway_protocol::{BlobRef, Event, Phase, RunProgress, Spec, Training};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tch::Tensor;

/// File name of the checkpoint in the attempt's folder.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// Steps between two values of the distance to θ0, which costs a pass over all trained tensors.
const DISTANCE_EVERY: u64 = 10;
/// Time between two reports of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// One training, complete.
pub struct TrainRun<'a> {
    /// What to do.
    pub spec: &'a Spec,
    /// θ0.
    pub backbone: &'a Backbone,
    /// What to learn from.
    pub pairs: Pairs<'a>,
    /// A resume state of the same spec and backbone to go on from.
    pub resume: Option<&'a Path>,
    /// The attempt's folder: resume states and the checkpoint go there.
    pub folder: &'a Path,
    /// Where events go.
    pub journal: &'a mut dyn FnMut(Event) -> Result<()>,
}

/// The image-caption pairs.
pub struct Pairs<'a> {
    /// Pixels of a pair's image by index, u8 [3, image_size, image_size].
    pub image: &'a dyn Fn(usize) -> Result<Tensor>,
    /// For each pair the row of its caption in `embeddings`; equal texts share a row.
    pub captions: &'a [usize],
    /// Embedding of each distinct caption, [distinct, text].
    pub embeddings: &'a Tensor,
}

/// The loss or its gradient stopped being a number. Another attempt would come to the same end.
#[derive(Debug)]
pub struct Diverged {
    what: &'static str,
    value: f64,
    step: u64,
}

impl std::error::Error for Diverged {}

impl std::fmt::Display for Diverged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Diverged { what, value, step } = self;
        write!(f, "{what} became {value} at step {step}; lower training.learning_rate")
    }
}

/// Trains and writes the checkpoint; returns it as the blob that the last event names.
///
/// # Errors
/// [`Diverged`]; a spec that does not fit backbone or pairs; an image that cannot be read; a failure of the file
/// system or the journal.
pub fn train(run: TrainRun) -> Result<BlobRef> {
    let recipe = Recipe::of(run.spec)?;
    let training = &recipe.training;
    run.check(training)?;
    let (mut learner, begin) = Learner::new(&run, &recipe)?;
    let order =
        Order { seed: recipe.seed, pairs: run.pairs.captions.len(), batch: training.batch_size as usize };
    let mut progress = Progress::new(training);

    for step in begin..training.steps {
        let indices = order.batch(step);
        let pixels = run.pairs.pixels(&indices, training.flip.then(|| order.mirrored(step)))?;
        let (embeddings, captions) = run.pairs.text(&indices);

        let features = learner.vit.features(&learner.tensors, &learner.vit.config.normalise(&pixels)); // [batch, dim]
        let loss =
            learner.heads.loss(&features, &embeddings, &captions) * recipe.objective.contrastive.weight;
        let mut gradients = learner.optimiser.gradients(&loss)?;
        let gradient_norm = optim::clip(&mut gradients, training.clip_norm);
        let loss = finite("loss", loss.double_value(&[]), step)?;
        finite("gradient norm", gradient_norm, step)?;
        let factor = optim::rate_factor(training, step);
        learner.optimiser.step(&gradients, factor);
        learner.heads.clamp();

        let done = step + 1;
        let mut values = BTreeMap::from([
            ("loss".to_owned(), loss),
            ("learning_rate".to_owned(), training.learning_rate * factor),
            ("gradient_norm".to_owned(), gradient_norm),
            ("temperature".to_owned(), learner.heads.temperature()),
        ]);
        if done % DISTANCE_EVERY == 0 || done == training.steps {
            values.insert("distance".to_owned(), finite("distance to θ0", learner.distance(), step)?);
        }
        (run.journal)(Event::Metrics { step: done, values })?;
        if let Some(progress) = progress.after(done) {
            (run.journal)(Event::Progress(progress))?;
        }
        if done % training.resume_every == 0 && done < training.steps {
            let state = learner.optimiser.state();
            let blob = resume::write(run.folder, &run.backbone.digest, &recipe, done, &state)?;
            (run.journal)(Event::ResumeState { step: done, blob })?;
        }
    }

    let path = run.folder.join(CHECKPOINT);
    let (theta1, step) = (&learner.tensors, training.steps);
    let blob = checkpoint::write(&path, run.backbone, &recipe, step, theta1, &learner.added_theta0)?;
    (run.journal)(Event::Checkpoint {
        step,
        blob: blob.clone(),
        backbone: run.backbone.digest.clone(),
        method: recipe.method.as_str().to_owned(),
    })?;
    Ok(blob)
}

/// What changes from step to step.
struct Learner {
    vit: Vit,
    /// All tensors of the encoder: the trained ones are the optimiser's, the frozen ones the backbone's, without graph.
    tensors: Tensors,
    heads: Heads,
    optimiser: AdamW,
    /// θ0 of the tensors that the method adds.
    added_theta0: Tensors,
    /// θ0 of the trained tensors.
    origin: Tensors,
}

impl Learner {
    /// The state before the first step, or the one to resume from; and the number of steps done.
    fn new(run: &TrainRun, recipe: &Recipe) -> Result<(Learner, u64)> {
        let (training, method, config) = (&recipe.training, &recipe.method, &run.backbone.config);
        let added = methods::added(method, config, recipe.seed);
        let mut optimiser = AdamW::new(training.betas);
        let (mut tensors, mut origin) = (run.backbone.tensors.share(), added.theta0.share());
        tensors.extend(added.start.iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())));
        let trained: Vec<String> =
            tensors.names().filter(|name| methods::trains(method, name)).map(str::to_owned).collect();
        for name in trained {
            let start = &tensors[&name];
            if added.theta0.get(&name).is_none() {
                origin.insert(name.clone(), start.shallow_clone());
            }
            let parameter = format!("encoder/{name}");
            let value = optimiser.train(&parameter, start, training.learning_rate, training.weight_decay);
            tensors.insert(name, value);
        }
        let text_dim = run.pairs.embeddings.size()[1];
        let start = Heads::new(config.feature_dim(), text_dim, &recipe.objective.contrastive, recipe.seed);
        let mut head = |name: &str, start: &Tensor| {
            optimiser.train(
                &format!("heads/{name}"),
                start,
                training.head_learning_rate,
                training.weight_decay,
            )
        };
        let heads = Heads {
            image: head("image", &start.image),
            text: head("text", &start.text),
            logit_scale: head("logit_scale", &start.logit_scale),
        };
        let begin = match run.resume {
            None => 0,
            Some(path) => {
                let (step, state) = resume::read(path, &run.backbone.digest, recipe)?;
                optimiser
                    .restore(&state, step)
                    .with_context(|| format!("resuming from {}", path.display()))?;
                step
            }
        };
        let vit = Vit::new(config, method);
        Ok((Learner { vit, tensors, heads, optimiser, added_theta0: added.theta0, origin }, begin))
    }

    /// ‖θ − θ0‖ over the trained tensors of the encoder.
    fn distance(&self) -> f64 {
        tch::no_grad(|| {
            let norms: Vec<Tensor> =
                self.origin.iter().map(|(name, origin)| (&self.tensors[name] - origin).norm()).collect();
            Tensor::stack(&norms, 0).norm().double_value(&[])
        })
    }
}

impl TrainRun<'_> {
    fn check(&self, training: &Training) -> Result<()> {
        self.backbone.config.check_image_size(training.image_size).context("`training.image_size`")?;
        let (captions, distinct) = (self.pairs.captions, self.pairs.embeddings.size()[0] as usize);
        ensure!(
            distinct >= 2,
            "the captions hold {distinct} distinct texts; a contrastive loss needs two at least"
        );
        ensure!(captions.iter().all(|row| *row < distinct), "a caption has no embedding");
        Ok(())
    }
}

impl Pairs<'_> {
    /// Images of a batch, u8 [batch, 3, image_size, image_size].
    fn pixels(&self, indices: &[usize], mirrored: Option<Vec<bool>>) -> Result<Tensor> {
        let mut images = indices.iter().map(|index| (self.image)(*index)).collect::<Result<Vec<_>>>()?;
        for (image, mirrored) in images.iter_mut().zip(mirrored.into_iter().flatten()) {
            if mirrored {
                *image = image.flip([-1]);
            }
        }
        Tensor::f_stack(&images, 0).context("the images of a batch differ in size")
    }

    /// Embeddings [batch, text] and caption numbers [batch] of a batch.
    fn text(&self, indices: &[usize]) -> (Tensor, Tensor) {
        let rows: Vec<i64> = indices.iter().map(|index| self.captions[*index] as i64).collect();
        let rows = Tensor::from_slice(&rows);
        (self.embeddings.index_select(0, &rows), rows)
    }
}

fn finite(what: &'static str, value: f64, step: u64) -> Result<f64> {
    if value.is_finite() { Ok(value) } else { Err(Diverged { what, value, step: step + 1 }.into()) }
}

/// Says how far training is, now and then.
struct Progress {
    total: u64,
    batch: u64,
    since: Instant,
    steps: u64,
}

impl Progress {
    fn new(training: &Training) -> Progress {
        Progress { total: training.steps, batch: training.batch_size.into(), since: Instant::now(), steps: 0 }
    }

    fn after(&mut self, done: u64) -> Option<RunProgress> {
        self.steps += 1;
        let elapsed = self.since.elapsed();
        if elapsed < PROGRESS_EVERY && done < self.total {
            return None;
        }
        let images_per_second = (self.steps * self.batch) as f64 / elapsed.as_secs_f64().max(1e-9);
        (self.since, self.steps) = (Instant::now(), 0);
        let doing = format!("step {done} of {}", self.total);
        Some(RunProgress { phase: Phase::Train, done, total: self.total, images_per_second, doing })
    }
}

#[cfg(test)]
mod tests;
