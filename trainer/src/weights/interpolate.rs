//! WiSE-FT (arXiv 2109.01903, §3): the straight line θ_α = (1 − α)·θ0 + α·θ1 between two sets of weights.

use super::{Backbone, Tensors, bitwise_equal, checkpoint, names, safetensors};
use crate::methods;
use crate::models::vit::Vit;
use anyhow::{Context, Result, ensure};
use causeway_protocol::{Alpha, Method};
use std::path::Path;
use tch::Tensor;

/// The line between a backbone and a fine-tuned encoder.
#[derive(Debug)]
pub struct Line {
    /// The encoder with the method's modules in it.
    vit: Vit,
    /// The backbone's tensors and the exact identity of the added ones.
    theta0: Tensors,
    /// The fine-tuned tensors; those that did not move are θ0's own.
    theta1: Tensors,
    /// The tensors of the bare backbone.
    bare: Tensors,
    /// Names of the tensors that differ between the ends, sorted.
    moved: Vec<String>,
    /// sha256 of the file θ1 came from.
    digest: String,
}

/// An encoder and the weights it runs with.
#[derive(Debug)]
pub struct Encoder {
    /// The function.
    pub vit: Vit,
    /// Its weights.
    pub tensors: Tensors,
}

impl Encoder {
    /// The features of a batch, without a graph.
    ///
    /// # Shapes
    /// `pixels` [batch, 3, height, width], normalised → [batch, dim]
    pub fn features(&self, pixels: &Tensor) -> Tensor {
        tch::no_grad(|| self.vit.features(&self.tensors, pixels))
    }
}

impl Line {
    /// The line from `backbone` to the weights in a file: a checkpoint made from this backbone, or a full set of
    /// weights of the same shape under any names.
    ///
    /// # Errors
    /// A damaged file, a checkpoint of another backbone, weights of another shape.
    pub fn open(backbone: &Backbone, theta1: &Path) -> Result<Line> {
        let file = safetensors::read(theta1)?;
        let context = || format!("reading weights {}", theta1.display());
        if checkpoint::is_checkpoint(&file.metadata) {
            let checkpoint = checkpoint::parse(file, backbone).with_context(context)?;
            let method = checkpoint.recipe.method;
            return Line::new(backbone, method, checkpoint.theta1, checkpoint.theta0, checkpoint.digest)
                .with_context(context);
        }
        let digest = file.sha256;
        let (tensors, _) = names::canonical(file.tensors).with_context(context)?;
        let other = Backbone::new(tensors).with_context(context)?;
        ensure!(
            other.config == backbone.config,
            "{} holds {:?}, the backbone is {:?}",
            theta1.display(),
            other.config,
            backbone.config
        );
        Line::new(backbone, Method::Full {}, other.tensors, Tensors::new(), digest).with_context(context)
    }

    /// The line to `theta1`, of which only the tensors that differ from θ0 need to be given. `added_theta0` are the
    /// values of the added tensors at α = 0.
    fn new(
        backbone: &Backbone,
        method: Method,
        theta1: Tensors,
        added_theta0: Tensors,
        digest: String,
    ) -> Result<Line> {
        let expected = methods::added(&method, &backbone.config, 0).theta0;
        let mut theta0 = backbone.tensors.share();
        theta0.extend(added_theta0.iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())));
        for (name, tensor) in expected.iter() {
            let given = theta0.get(name).with_context(|| format!("theta0/{name} is missing"))?;
            ensure!(
                given.size() == tensor.size(),
                "theta0/{name} is {:?}, must be {:?}",
                given.size(),
                tensor.size()
            );
        }
        ensure!(
            theta0.len() == backbone.tensors.len() + expected.len(),
            "θ0 holds tensors that {method:?} does not add"
        );

        let mut ends = theta0.share();
        let mut moved = Vec::new();
        for (name, tensor) in theta1.iter() {
            let start = theta0.get(name).with_context(|| format!("theta1/{name} is unknown"))?;
            ensure!(
                start.size() == tensor.size() && start.kind() == tensor.kind(),
                "theta1/{name} is {:?}, must be {:?}",
                tensor.size(),
                start.size()
            );
            if !bitwise_equal(start, tensor) {
                ends.insert(name, tensor.shallow_clone());
                moved.push(name.to_owned());
            }
        }
        let vit = Vit { config: backbone.config.clone(), method };
        Ok(Line { vit, theta0, theta1: ends, bare: backbone.tensors.share(), moved, digest })
    }

    /// The checkpoint's digest: the sha256 of the file θ1 came from.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The method at θ1's end; `full` for a full set of weights.
    pub fn method(&self) -> &Method {
        &self.vit.method
    }

    /// Names of the tensors that differ between the two ends, sorted.
    pub fn moved(&self) -> &[String] {
        &self.moved
    }

    /// θ_α. The ends are the ends, bit for bit, and a tensor that is equal at both is never recomputed:
    /// (1 − α)·w + α·w ≠ w for a third of all f32 values.
    pub fn at(&self, alpha: Alpha) -> Tensors {
        match alpha {
            Alpha::ZERO => self.theta0.share(),
            Alpha::ONE => self.theta1.share(),
            _ => {
                let mut tensors = self.theta0.share();
                for name in &self.moved {
                    tensors.insert(name, mix(&self.theta0[name], &self.theta1[name], alpha));
                }
                tensors
            }
        }
    }

    /// The encoder at α. At α = 0 it is the bare backbone, without the method: it belongs to no run.
    pub fn encoder(&self, alpha: Alpha) -> Encoder {
        match alpha {
            Alpha::ZERO => Encoder { vit: Vit::bare(&self.vit.config), tensors: self.bare.share() },
            _ => Encoder { vit: self.vit.clone(), tensors: self.at(alpha) },
        }
    }
}

/// (1 − α)·a + α·b as two products: exact at the ends, which a + α·(b − a) is not. 1 − α is taken in f64 and each
/// coefficient rounded to f32 once, as torch does for `(1 - alpha) * a + alpha * b`.
fn mix(a: &Tensor, b: &Tensor, alpha: Alpha) -> Tensor {
    let alpha = alpha.as_f64();
    let (stay, go) = ((1.0 - alpha) as f32, alpha as f32);
    tch::no_grad(|| a * f64::from(stay) + b * f64::from(go))
}
