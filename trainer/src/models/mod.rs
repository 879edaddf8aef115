//! Models, one a file. A model is its architecture; the weights are given to each call by name.

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

use crate::weights::Tensors;
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use tch::Tensor;

/// Checks that a text or language model has exactly the tensors of its architecture.
///
/// # Errors
/// Tensors that are missing, misshapen or unknown; all are listed.
fn check_shapes(tensors: &Tensors, shapes: &BTreeMap<String, Vec<i64>>) -> Result<()> {
    let mut problems: Vec<String> = shapes
        .iter()
        .filter_map(|(name, shape)| match tensors.get(name) {
            None => Some(format!("{name} is missing")),
            Some(tensor) if tensor.size() != *shape => {
                Some(format!("{name} is {:?}, must be {shape:?}", tensor.size()))
            }
            Some(_) => None,
        })
        .collect();
    let unknown = tensors.names().filter(|name| !shapes.contains_key(*name));
    problems.extend(unknown.map(|name| format!("{name} is unknown")));
    if !problems.is_empty() {
        bail!("{}", problems.join("; "));
    }
    Ok(())
}

/// x · weightᵀ + bias, by the name of the layer.
fn linear(x: &Tensor, tensors: &Tensors, name: &str) -> Tensor {
    x.linear(&tensors[&format!("{name}.weight")], Some(&tensors[&format!("{name}.bias")]))
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
