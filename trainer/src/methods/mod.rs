//! Methods: what is made trainable, one a file. A method adds tensors to a backbone and acts at fixed places of the
//! forward pass; it never forks the model. Whatever it adds starts as the exact identity, or has the exact identity as
//! its θ0, or says which identity is its own.

pub mod adapter;
pub mod attend;
pub mod block_expansion;
pub mod cross_modal;
pub mod film;
pub mod full;
pub mod fusion;
pub mod ladder;
pub mod lora;
pub mod reprogram;
pub mod selective;
pub mod token_replay;

use crate::models::vit::VitConfig;
use crate::weights::checkpoint::Recipe;
use crate::weights::{Backbone, Tensors};
use anyhow::{Context, Result, ensure};
use causeway_protocol::Method;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// One of the two LayerNorms of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Norm {
    /// Before the attention.
    First,
    /// Before the MLP.
    Second,
}

/// The tensors a method adds.
#[derive(Debug, Default)]
pub struct Added {
    /// What training starts from.
    pub start: Tensors,
    /// Where the line begins, α = 0: the exact identity. Equal to `start` unless that is only near the identity.
    pub theta0: Tensors,
    /// Names of those whose values come from elsewhere and are not there yet.
    pub awaited: Vec<String>,
}

impl Added {
    /// Adds a tensor that is at θ0 what it is at the start.
    pub fn add(&mut self, name: impl Into<String>, value: Tensor) {
        let name = name.into();
        self.theta0.insert(name.clone(), value.shallow_clone());
        self.start.insert(name, value);
    }

    /// Adds a tensor whose θ0 is not its start.
    pub fn add_from(&mut self, name: impl Into<String>, start: Tensor, theta0: Tensor) {
        let name = name.into();
        self.theta0.insert(name.clone(), theta0);
        self.start.insert(name, start);
    }

    /// Adds a tensor whose values [`Added::take`] brings.
    pub fn await_values(&mut self, name: &str, shape: &[i64]) {
        self.awaited.push(name.to_owned());
        self.add(name, Tensor::zeros(shape, (Kind::Float, Device::Cpu)));
    }

    /// Puts values in the place of those that are there.
    ///
    /// # Errors
    /// A value that belongs nowhere, or has another shape; an awaited one that is not among them.
    pub fn take(&mut self, given: &Tensors) -> Result<()> {
        for (name, value) in given.iter() {
            let place = self.start.get(name).with_context(|| format!("nothing is called {name}"))?;
            ensure!(place.size() == value.size(), "{name} is {:?}, must be {:?}", value.size(), place.size());
            self.awaited.retain(|awaited| awaited != name);
            self.add(name, value.shallow_clone());
        }
        ensure!(self.awaited.is_empty(), "nothing gives {} its values", self.awaited.join(", "));
        Ok(())
    }
}

/// What a method is added to.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The backbone's architecture.
    pub config: &'a VitConfig,
    /// The backbone's tensors.
    pub tensors: &'a Tensors,
    /// Side of the training images, pixels.
    pub image_size: i64,
    /// How wide what comes from other models is.
    pub widths: Widths,
}

/// Widths of what a method takes from other models; written into checkpoints, since shapes rest on them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Widths {
    /// Of the captions as the method reads them, an embedding's or a token's; 0 where it reads none.
    #[serde(default)]
    pub text: i64,
    /// Of a word of the language model; 0 where there is none.
    #[serde(default)]
    pub word: i64,
}

/// What a method takes from other models and from the training data.
#[derive(Debug, Default)]
pub struct Given {
    /// How wide it is.
    pub widths: Widths,
    /// Values of added tensors that rest on it, by their names.
    pub tensors: Tensors,
}

/// The captions of a batch, as a method reads them that is given captions.
#[derive(Debug)]
pub struct Text {
    /// [batch, tokens, text]; one token where the method reads embeddings. f32
    pub tokens: Tensor,
    /// Which tokens are real; a row of none is a caption that is missing. bool [batch, tokens]
    pub real: Tensor,
}

impl Text {
    /// A batch of captions, each [tokens, text]; those that are not shown are missing. Shorter ones are filled up behind
    /// their tokens.
    pub fn of<'a>(captions: impl Iterator<Item = (bool, &'a Tensor)>, device: Device) -> Text {
        let (shown, rows): (Vec<bool>, Vec<&Tensor>) = captions.unzip();
        let lengths = rows.iter().zip(&shown).map(|(row, shown)| if *shown { row.size()[0] } else { 0 });
        let lengths = Tensor::from_slice(&lengths.collect::<Vec<i64>>()).unsqueeze(1);
        let tokens = Tensor::pad_sequence(&rows, true, 0.0, "right");
        let places = Tensor::arange(tokens.size()[1], (Kind::Int64, Device::Cpu)).unsqueeze(0);
        let real = places.less_tensor(&lengths);
        Text { tokens: tokens.to_device(device), real: real.to_device(device) }
    }
}

/// A kind of fine-tuning.
pub trait Tuner {
    /// The tensors that it adds, with their values under `seed`.
    ///
    /// # Errors
    /// A backbone that it cannot be added to.
    fn added(&self, _site: &Site, _seed: u64) -> Result<Added> {
        Ok(Added::default())
    }

    /// Whether training may change the tensor of that name, the backbone's or an added one.
    fn trains(&self, name: &str) -> bool;

    /// Whether it stands still at the beginning, in so many steps, while the rest of what it trains learns.
    fn stands_still(&self, _name: &str) -> u64 {
        0
    }

    /// Whether the encoder takes images of this side with these tensors, the added ones included.
    ///
    /// # Errors
    /// Tensors that were made for images of another side.
    fn takes(&self, _tensors: &Tensors, _image_size: u32) -> Result<()> {
        Ok(())
    }

    /// What is worth telling of a batch now and then, as metrics: what the method does to the tokens that enter the first
    /// block, as `start` has its tensors. [batch, tokens, dim]
    fn tells(&self, _start: Start, _embedded: &Tensor) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// Whether what it does to the class token in the last block rests on all tokens there.
    fn needs_all_tokens(&self) -> bool {
        false
    }

    /// How many of the first blocks compute what the backbone does, whatever the added tensors are: the method may look
    /// at their states and changes none. `None` where it changes the input or the embedded tokens.
    fn untouched_blocks(&self, _config: &VitConfig) -> Option<i64> {
        None
    }

    /// Whether it looks at the states of blocks that it leaves untouched.
    fn looks_at_states(&self) -> bool {
        false
    }

    /// Begins a forward pass.
    fn begin<'a>(&'a self, _start: Start<'a>) -> Box<dyn Pass + 'a> {
        Box::new(Untouched)
    }
}

/// What a forward pass begins with.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    /// The backbone's architecture.
    pub config: &'a VitConfig,
    /// All tensors, the added ones included, in the dtype of the pass.
    pub tensors: &'a Tensors,
    /// The captions, if the method is given any.
    pub text: Option<&'a Text>,
}

/// What a method does in one forward pass, at each place in the order in which the pass comes by. Nothing, where it
/// does not say otherwise.
pub trait Pass {
    /// The input. [batch, 3, height, width] → the same
    fn pixels(&mut self, x: Tensor) -> Tensor {
        x
    }

    /// The tokens that enter the first block, positions included. [batch, tokens, dim] → the same
    fn embedded(&mut self, x: Tensor) -> Tensor {
        x
    }

    /// Weight and bias of a LayerNorm. [dim], [dim] → the same
    fn norm(&mut self, _block: i64, _norm: Norm, weight: &Tensor, bias: &Tensor) -> (Tensor, Tensor) {
        (weight.shallow_clone(), bias.shallow_clone())
    }

    /// What leaves a LayerNorm. [batch, tokens, dim] → the same
    fn normed(&mut self, _block: i64, _norm: Norm, x: Tensor) -> Tensor {
        x
    }

    /// What leaves a linear layer: `attn.qkv`, of which only the `rows` of its weight are asked, `attn.proj`, `mlp.fc1`
    /// or `mlp.fc2`. `x` [batch, tokens, in] went in, `y` [batch, tokens, rows] came out → [batch, tokens, rows]
    fn linear(&mut self, _block: i64, _layer: &str, _rows: Range<i64>, _x: &Tensor, y: Tensor) -> Tensor {
        y
    }

    /// What the attention gives, before LayerScale and addition. [batch, tokens, dim] → the same
    fn attended(&mut self, _block: i64, y: Tensor) -> Tensor {
        y
    }

    /// The state between attention and MLP. [batch, tokens, dim] → the same
    fn between(&mut self, _block: i64, x: Tensor) -> Tensor {
        x
    }

    /// What the MLP gives, before LayerScale and addition. [batch, tokens, dim] → the same
    fn mlp(&mut self, _block: i64, y: Tensor) -> Tensor {
        y
    }

    /// The state after a block; `middle` is that between its attention and its MLP. [batch, tokens, dim] → the same
    fn after_block(&mut self, _block: i64, _middle: &Tensor, x: Tensor) -> Tensor {
        x
    }

    /// The tokens after the final LayerNorm; of all, or of the class token alone. [batch, tokens, dim] → the same
    fn finish(&mut self, x: Tensor) -> Tensor {
        x
    }
}

/// The pass of a method that only trains what is there.
pub struct Untouched;

impl Pass for Untouched {}

/// How the method of a spec is done.
pub fn tuner(method: &Method) -> Box<dyn Tuner> {
    match method {
        Method::Full {} => Box::new(full::Full),
        Method::Selective(spec) => Box::new(selective::Selected(spec.clone())),
        Method::BlockExpansion(spec) => Box::new(block_expansion::Copies(spec.clone())),
        Method::Adapter(spec) => Box::new(adapter::Adapters(spec.clone())),
        Method::Lora(spec) => Box::new(lora::Updates(spec.clone())),
        Method::Film(spec) => Box::new(film::Modulation(spec.clone())),
        Method::Fusion(spec) => Box::new(fusion::Fused(spec.clone())),
        Method::TokenReplay(spec) => token_replay::tuner(spec),
        Method::Ladder(spec) => Box::new(ladder::SideNetwork(spec.clone())),
        Method::Reprogram(spec) => Box::new(reprogram::Reprogramming(spec.clone())),
        Method::CrossModal(spec) => Box::new(cross_modal::Rewording::new(spec)),
    }
}

/// The tensors that a recipe's method adds to a backbone.
///
/// # Errors
/// A backbone that it cannot be added to; blocks that the backbone has not.
pub fn added(recipe: &Recipe, backbone: &Backbone, widths: Widths) -> Result<Added> {
    let site = Site {
        config: &backbone.config,
        tensors: &backbone.tensors,
        image_size: recipe.training.image_size.into(),
        widths,
    };
    tuner(&recipe.method).added(&site, recipe.seed)
}

/// Name and number of values of every tensor that training may change, added ones included. Of blocks that gradients are
/// yet to choose, others of the same size stand in.
///
/// # Errors
/// As [`added`].
pub fn trainable(recipe: &Recipe, backbone: &Backbone, widths: Widths) -> Result<Vec<(String, u64)>> {
    let method = selective::chosen_by_depth(&recipe.method, backbone.config.depth)?;
    let recipe = &Recipe { method, ..recipe.clone() };
    let tuner = tuner(&recipe.method);
    // The numbers do not depend on the seed.
    let added = added(recipe, backbone, widths)?.start;
    let all = backbone.tensors.iter().chain(added.iter());
    let trained = all.filter(|(name, _)| tuner.trains(name) && !recipe.fixes(name));
    Ok(trained.map(|(name, tensor)| (name.to_owned(), tensor.numel() as u64)).collect())
}

/// The blocks that are meant where a spec may name some: those, or all.
///
/// # Errors
/// A block that the backbone has not.
pub fn blocks(named: Option<&[u32]>, config: &VitConfig) -> Result<Vec<i64>> {
    let Some(named) = named else { return Ok((0..config.depth).collect()) };
    let depth = config.depth;
    let beyond = named.iter().find(|block| i64::from(**block) >= depth);
    ensure!(
        beyond.is_none(),
        "`method.blocks` names block {}, the backbone has {depth}, counted from 0",
        beyond.copied().unwrap_or_default()
    );
    Ok(named.iter().map(|block| i64::from(*block)).collect())
}

/// The first block in which a method that may name blocks acts.
pub fn first_block(named: Option<&[u32]>) -> i64 {
    named.map_or(0, |named| named.first().copied().unwrap_or_default().into())
}

/// Whether a method that may name blocks acts in this one.
pub fn acts_in(named: Option<&[u32]>, block: i64) -> bool {
    named.is_none_or(|named| named.iter().any(|own| i64::from(*own) == block))
}

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
