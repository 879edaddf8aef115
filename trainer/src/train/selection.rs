//! Before training: the blocks that selective-k trains are chosen and written into the recipe, so that resume states and
//! checkpoint name them.
//!
//! `relative_gradient` takes the k blocks with the largest mean, over a few batches, of
//!
//! ‖∂L/∂θ_block‖ / ‖θ_block‖ at θ0,
//!
//! after Auto-RGN (arXiv 2210.11466), which scales learning rates by that ratio instead of choosing. L is the run's
//! objective and the batches are the first of its own order. A decoder or projection that starts at random is random in
//! this gradient too. What holds the encoder near θ0 has no part in it: it says where not to go.

use super::learner::Learner;
use super::{TrainRun, order};
use crate::attempt::narrate::say;
use crate::methods::selective::{block_of, chosen_by_depth, largest};
use crate::weights::checkpoint::Recipe;
use crate::weights::resume;
use anyhow::{Context, Result, ensure};
use causeway_protocol::{Dtype, Method, Selection, Selective};
use std::collections::BTreeMap;
use std::slice;
use tch::Tensor;

/// A recipe whose blocks are chosen.
pub struct Chosen {
    /// With the blocks in its method.
    pub recipe: Recipe,
    /// The relative gradients that decided, as metrics; none where none did.
    pub values: BTreeMap<String, f64>,
}

/// The recipe with its blocks chosen, if its method chooses any. A run that goes on from a state keeps that state's
/// blocks: on another machine two gradients that are nearly equal might change places.
///
/// # Errors
/// More blocks than the backbone has, a damaged state, an image that cannot be read, a gradient that is no number.
pub fn choose(run: &TrainRun, mut recipe: Recipe) -> Result<Chosen> {
    recipe.method = chosen_by_depth(&recipe.method, run.backbone.config.depth)?;
    let mut values = BTreeMap::new();
    let asked = recipe.clone();
    if let Method::Selective(own) = &mut recipe.method
        && own.rule == Selection::RelativeGradient
    {
        let kept = run.resume.map(resume::recipe).transpose()?.map(|kept| kept.method);
        own.chosen = match kept {
            Some(Method::Selective(kept)) => kept.chosen,
            _ => {
                let gradients = relative_gradients(run, &asked, own)?;
                let chosen = largest(&gradients, own.k);
                let told: Vec<String> = gradients.iter().map(|value| format!("{value:.2e}")).collect();
                say(&format!("relative gradients of the blocks: {}; trained are {chosen:?}", told.join(" ")));
                let named = gradients.iter().enumerate();
                values.extend(
                    named.map(|(block, value)| (format!("relative_gradient/block_{block:02}"), *value)),
                );
                Some(chosen)
            }
        };
    }
    Ok(Chosen { recipe, values })
}

/// The mean of ‖∂L/∂θ_block‖ / ‖θ_block‖ over the first batches, for each block.
fn relative_gradients(run: &TrainRun, recipe: &Recipe, own: &Selective) -> Result<Vec<f64>> {
    let depth = u32::try_from(run.backbone.config.depth).context("the backbone's depth")?;
    let mut all = recipe.clone();
    all.method = Method::Selective(Selective { k: depth, chosen: Some((0..depth).collect()), ..own.clone() });
    all.retention = None;
    (all.training.ema, all.training.encoder_frozen_steps) = (None, Some(0));
    if all.training.dtype == Dtype::F16 {
        // f16 needs a scale of the loss, which is found step by step.
        all.training.dtype = Dtype::F32;
    }
    let (learner, _) = Learner::new(run, &all, None)?;
    let (order, accumulate) = (order(recipe, run.pairs.count), u64::from(recipe.training.accumulate));
    let steps = u64::from(own.batches).div_ceil(accumulate);
    let mut images = (run.pairs.images)(order, 0..steps)?;
    let mut sums = vec![0.0; depth as usize];
    let mut left = own.batches as usize;
    for step in 0..steps {
        let (pixels, _) =
            images.next().context("the images ended before the batches that choose the blocks")??;
        let batches = run.pairs.batches(recipe, &order, step, &pixels);
        for batch in &batches[..left.min(batches.len())] {
            let (_, gradients) = learner.gradients(slice::from_ref(batch), step)?;
            let ratios = ratios(&learner, &gradients, depth);
            sums.iter_mut().zip(ratios).for_each(|(sum, ratio)| *sum += ratio);
        }
        left -= left.min(batches.len());
    }
    let means: Vec<f64> = sums.iter().map(|sum| sum / f64::from(own.batches)).collect();
    let broken = means.iter().position(|mean| !mean.is_finite());
    ensure!(
        broken.is_none(),
        "the blocks cannot be chosen: the relative gradient of block {} is {}",
        broken.unwrap_or_default(),
        means[broken.unwrap_or_default()]
    );
    Ok(means)
}

/// ‖gradient‖ / ‖weights‖ of each block.
fn ratios(learner: &Learner, gradients: &[Tensor], depth: u32) -> Vec<f64> {
    let mut norms: Vec<(Vec<Tensor>, Vec<Tensor>)> = (0..depth).map(|_| Default::default()).collect();
    for ((name, weights), gradient) in learner.optimiser.trained().zip(gradients) {
        let block = name.strip_prefix("encoder/").and_then(block_of);
        if let Some((of_gradients, of_weights)) = block.and_then(|block| norms.get_mut(block as usize)) {
            of_gradients.push(gradient.norm());
            of_weights.push(weights.detach().norm());
        }
    }
    let norm = |norms: &[Tensor]| Tensor::stack(norms, 0).norm().double_value(&[]);
    norms.iter().map(|(gradients, weights)| norm(gradients) / norm(weights)).collect()
}
