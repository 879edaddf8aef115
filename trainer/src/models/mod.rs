//! Models, one a file. A model is its architecture; the weights are given to each call by name.

pub mod affine;
pub mod bert;
pub mod clip_text;
#[cfg(test)]
mod golden;
pub mod gpt2;
pub mod language;
pub mod llama;
pub mod mae;
pub mod text;
pub mod vit;

pub use affine::affine;

use crate::weights::Tensors;
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Checks that a model has exactly the tensors of its architecture.
///
/// # Errors
/// What [`misfits`] finds.
fn check_shapes(tensors: &Tensors, shapes: &BTreeMap<String, Vec<i64>>) -> Result<()> {
    all_told(&misfits(tensors, shapes))
}

/// An error of all problems at once, if there are any.
fn all_told(problems: &[String]) -> Result<()> {
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    Ok(())
}

/// What is wrong with tensors that should have exactly these names and shapes, in f32: missing, misshapen, unknown.
fn misfits(tensors: &Tensors, shapes: &BTreeMap<String, Vec<i64>>) -> Vec<String> {
    let mut problems = lacking(tensors, shapes);
    let unknown = tensors.names().filter(|name| !shapes.contains_key(*name));
    problems.extend(unknown.map(|name| format!("{name} is unknown")));
    problems
}

/// The same, where other tensors may be there too.
fn lacking<'a>(
    tensors: &Tensors,
    shapes: impl IntoIterator<Item = (&'a String, &'a Vec<i64>)>,
) -> Vec<String> {
    let problem = |(name, shape): (&String, &Vec<i64>)| match tensors.get(name) {
        None => Some(format!("{name} is missing")),
        Some(tensor) if tensor.size() != *shape => {
            Some(format!("{name} is {:?}, must be {shape:?}", tensor.size()))
        }
        Some(tensor) if tensor.kind() != Kind::Float => Some(format!("{name} is {:?}", tensor.kind())),
        Some(_) => None,
    };
    shapes.into_iter().filter_map(problem).collect()
}

/// x · weightᵀ + bias, by the name of the layer.
fn linear(x: &Tensor, tensors: &Tensors, name: &str) -> Tensor {
    affine(x, &tensors[&format!("{name}.weight")], Some(&tensors[&format!("{name}.bias")]))
}

/// LayerNorm over the last dimension, by the name of the layer.
fn layer_norm(x: &Tensor, tensors: &Tensors, name: &str, eps: f64) -> Tensor {
    let (weight, bias) = (&tensors[&format!("{name}.weight")], &tensors[&format!("{name}.bias")]);
    x.layer_norm(weight.size(), Some(weight), Some(bias), eps, false)
}

/// Softmax attention in which a token sees itself and those before it, or what `mask` says.
///
/// # Shapes
/// `query`, `key`, `value` [batch, heads, tokens, head], `mask` bool [batch, 1, tokens, tokens] → [batch, tokens,
/// heads · head]
fn causal_attention(query: &Tensor, key: &Tensor, value: &Tensor, mask: Option<&Tensor>) -> Tensor {
    let causal = mask.is_none();
    let mixed = Tensor::scaled_dot_product_attention(query, key, value, mask, 0.0, causal, None, false);
    mixed.transpose(1, 2).flatten(2, 3)
}

/// The values of a token's width, split among heads.
///
/// # Shapes
/// [batch, tokens, heads · head] → [batch, heads, tokens, head]
fn split_heads(x: &Tensor, heads: i64) -> Tensor {
    let (batch, tokens, dim) = (x.size()[0], x.size()[1], x.size()[2]);
    x.reshape([batch, tokens, heads, dim / heads]).transpose(1, 2)
}
