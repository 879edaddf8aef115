//! FiLM (arXiv 1709.07871): after both LayerNorms of a block, (1 + Δγ) ⊙ LN(x) + β. Nothing else is trained.
//!
//! Δγ and β are vectors, or generated from the caption's embedding c: [Δγ; β] = V·GELU(U·c + u) + v, with U and u
//! shared by all sites and V = v = 0 at the start. Where there is no caption, c is a learned null vector, and Δγ and β
//! are the same for all images again.
//!
//! WiSE-FT of a generator is not WiSE-FT of Δγ and β: both of its layers move along the line, and their product holds
//! terms in α². Between the ends the sweep sees another curve than one through the modulations themselves.

use super::{Added, Norm, Pass, Site, Start, Tuner, acts_in, blocks, first_block};
use crate::models::vit::VitConfig;
use crate::weights::initial;
use anyhow::{Result, ensure};
use causeway_protocol::Film;
use tch::{Device, Kind, Tensor};

/// U.
const HIDDEN_WEIGHT: &str = "film.hidden.weight";
/// u.
const HIDDEN_BIAS: &str = "film.hidden.bias";
/// What stands in for a caption's embedding.
const NULL: &str = "film.null";

/// FiLM as a spec describes it.
pub struct Modulation(pub Film);

impl Tuner for Modulation {
    /// Δγ and β of every site, or what generates them, all 0: the exact identity. Embeddings have length 1, so values of
    /// U with deviation 1 make hidden values of about 1; the null text is as long.
    fn added(&self, site: &Site, seed: u64) -> Result<Added> {
        let (dim, text, float) = (site.config.dim, site.widths.text, (Kind::Float, Device::Cpu));
        let mut added = Added::default();
        if let Some(generator) = &self.0.generator {
            ensure!(text > 0, "this FiLM reads captions, and no text encoder says how wide they are");
            let hidden = i64::from(generator.hidden);
            added.add(HIDDEN_WEIGHT, initial::normal(seed, HIDDEN_WEIGHT, &[hidden, text], 1.0));
            added.add(HIDDEN_BIAS, Tensor::zeros([hidden], float));
            added.add(NULL, initial::normal(seed, NULL, &[1, text], (text as f64).powf(-0.5)));
        }
        for block in blocks(self.0.blocks.as_deref(), site.config)? {
            for norm in [Norm::First, Norm::Second] {
                match &self.0.generator {
                    None => {
                        for leaf in ["delta_gamma", "beta"] {
                            added.add(name(block, norm, leaf), Tensor::zeros([dim], float));
                        }
                    }
                    Some(generator) => {
                        let weight = Tensor::zeros([2 * dim, i64::from(generator.hidden)], float);
                        added.add(name(block, norm, "generator.weight"), weight);
                        added.add(name(block, norm, "generator.bias"), Tensor::zeros([2 * dim], float));
                    }
                }
            }
        }
        Ok(added)
    }

    fn trains(&self, name: &str) -> bool {
        name.starts_with("film.") || name.contains(".film1.") || name.contains(".film2.")
    }

    fn untouched_blocks(&self, _config: &VitConfig) -> Option<i64> {
        Some(first_block(self.0.blocks.as_deref()))
    }

    fn begin<'a>(&'a self, start: Start<'a>) -> Box<dyn Pass + 'a> {
        let hidden = self.0.generator.as_ref().map(|_| hidden(&start));
        Box::new(Modulating { own: &self.0, start, hidden })
    }
}

/// GELU(U·c + u) of every caption of the batch, of the null text where one is missing; of the null text alone where no
/// captions are given. The null text is in the graph in any case.
///
/// # Shapes
/// → [batch, hidden] or [1, hidden]
fn hidden(start: &Start) -> Tensor {
    let of =
        |c: &Tensor| c.linear(&start.tensors[HIDDEN_WEIGHT], Some(&start.tensors[HIDDEN_BIAS])).gelu("none");
    let null = of(&start.tensors[NULL]);
    let Some(text) = start.text else { return null };
    let embeddings = text.tokens.select(1, 0).detach().to_kind(null.kind()); // [batch, text]
    of(&embeddings).where_self(&text.real.any_dim(1, true), &null)
}

struct Modulating<'a> {
    own: &'a Film,
    start: Start<'a>,
    /// What the generator's last layers are given.
    hidden: Option<Tensor>,
}

impl Modulating<'_> {
    /// Whether the images of the batch are modulated each in its own way.
    fn is_per_image(&self) -> bool {
        self.hidden.is_some() && self.start.text.is_some()
    }

    /// 1 + Δγ and β of a site.
    ///
    /// # Shapes
    /// → [dim] each, or [batch, 1, dim] each
    fn at(&self, block: i64, norm: Norm) -> (Tensor, Tensor) {
        let tensor = |leaf: &str| &self.start.tensors[&name(block, norm, leaf)];
        let Some(hidden) = &self.hidden else {
            return (tensor("delta_gamma") + 1.0, tensor("beta").shallow_clone());
        };
        let both = hidden.linear(tensor("generator.weight"), Some(tensor("generator.bias"))); // [batch or 1, 2 dim]
        let both = if self.is_per_image() { both.unsqueeze(1) } else { both.squeeze_dim(0) };
        let dim = self.start.config.dim;
        (both.narrow(-1, 0, dim) + 1.0, both.narrow(-1, dim, dim))
    }
}

impl Pass for Modulating<'_> {
    /// Folded in where it is the same for all images: (1 + Δγ) ⊙ (w ⊙ x̂ + b) + β is
    /// ((1 + Δγ) ⊙ w) ⊙ x̂ + ((1 + Δγ) ⊙ b + β). The same function, the same gradients, and no pass over the tokens.
    fn norm(&mut self, block: i64, norm: Norm, weight: &Tensor, bias: &Tensor) -> (Tensor, Tensor) {
        if self.is_per_image() || !acts_in(self.own.blocks.as_deref(), block) {
            return (weight.shallow_clone(), bias.shallow_clone());
        }
        let (gamma, beta) = self.at(block, norm);
        (&gamma * weight, &gamma * bias + beta)
    }

    fn normed(&mut self, block: i64, norm: Norm, x: Tensor) -> Tensor {
        if !self.is_per_image() || !acts_in(self.own.blocks.as_deref(), block) {
            return x;
        }
        let (gamma, beta) = self.at(block, norm);
        gamma * x + beta
    }
}

fn name(block: i64, norm: Norm, leaf: &str) -> String {
    let site = match norm {
        Norm::First => "film1",
        Norm::Second => "film2",
    };
    format!("blocks.{block}.{site}.{leaf}")
}

#[cfg(test)]
mod tests;
