//! WiSE-FT (arXiv 2109.01903, §3): the straight line θ_α = (1 − α)·θ0 + α·θ1 between two sets of weights.

use super::checkpoint::{self, Checkpoint};
use super::source::{self, Hints};
use super::{Backbone, Tensors, bitwise_equal, kind};
use crate::methods::{self, Added};
use crate::models::vit::{Stem, Vit, VitConfig};
use anyhow::{Context, Result, ensure};
use causeway_protocol::{Alpha, Dtype, Method, Positions};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The line between a backbone and a fine-tuned encoder.
#[derive(Debug)]
pub struct Line {
    /// The encoder with the method's modules in it.
    vit: Vit,
    /// The backbone's tensors and the exact identity of the added ones. Those that move are f32 whatever the arithmetic.
    theta0: Tensors,
    /// The fine-tuned tensors; those that did not move are θ0's own.
    theta1: Tensors,
    /// The tensors of the bare backbone, in the arithmetic of the forward pass.
    bare: Tensors,
    /// That arithmetic.
    kind: Kind,
    /// Names of the tensors that differ between the ends, sorted.
    moved: Vec<String>,
    /// sha256 of the file θ1 came from.
    digest: String,
}

/// An encoder and the weights it runs with. It computes in their arithmetic.
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
    /// `pixels` [batch, 3, height, width], normalised, in the encoder's arithmetic → [batch, dim]
    pub fn features(&self, pixels: &Tensor) -> Tensor {
        tch::no_grad(|| self.vit.features(&self.tensors, pixels))
    }

    /// The same bits from what the line's encoders have in common, where they have anything.
    ///
    /// # Shapes
    /// `pixels` [batch, 3, height, width], normalised → [batch, dim]
    pub fn features_with(&self, stem: Option<&Stem>, pixels: &Tensor) -> Tensor {
        match stem {
            Some(stem) => tch::no_grad(|| self.vit.features_from(&self.tensors, stem)),
            None => self.features(pixels),
        }
    }
}

impl Line {
    /// The line from `backbone` to the weights in a file: a checkpoint made from this backbone, or a full set of
    /// weights of the same shape under any names.
    ///
    /// # Errors
    /// A damaged file, a checkpoint of another backbone, weights of another shape.
    pub fn open(backbone: &Backbone, theta1: &Path) -> Result<Line> {
        // Of the same function as θ0: an activation that the file does not tell is θ0's.
        let hints = Hints { activation: Some(backbone.config.activation), ..Hints::default() };
        let source = source::read(theta1, &hints)?;
        let context = || format!("reading weights {}", theta1.display());
        if checkpoint::is_checkpoint(&source.contents.metadata) {
            let checkpoint = checkpoint::parse(source.contents, backbone).with_context(context)?;
            return Line::to(backbone, checkpoint).with_context(context);
        }
        let digest = source.contents.sha256.clone();
        let other = Backbone::of(source).with_context(context)?;
        ensure!(
            other.config == backbone.config,
            "{} holds {:?}, the backbone is {:?}",
            theta1.display(),
            other.config,
            backbone.config
        );
        let ends = (other.tensors, Tensors::new());
        Line::new(backbone, Method::Full {}, Added::default(), ends, digest).with_context(context)
    }

    /// A backbone by itself: both ends are θ0.
    ///
    /// # Errors
    /// None that a sound backbone could cause.
    pub fn alone(backbone: &Backbone) -> Result<Line> {
        let nothing = (Tensors::new(), Tensors::new());
        Line::new(backbone, Method::Full {}, Added::default(), nothing, String::new())
    }

    /// The line to a checkpoint of this backbone.
    ///
    /// # Errors
    /// Tensors that its method does not add, or of other shapes.
    pub fn to(backbone: &Backbone, checkpoint: Checkpoint) -> Result<Line> {
        let expected = methods::added(&checkpoint.recipe, backbone, checkpoint.widths)?;
        let ends = (checkpoint.theta1, checkpoint.theta0);
        Line::new(backbone, checkpoint.recipe.method, expected, ends, checkpoint.digest)
    }

    /// The line to `theta1`, of which only the tensors that differ from θ0 need to be given. `added_theta0` are the
    /// values of the added tensors at α = 0; they must have the names and shapes of the `expected`.
    fn new(
        backbone: &Backbone,
        method: Method,
        expected: Added,
        (theta1, added_theta0): (Tensors, Tensors),
        digest: String,
    ) -> Result<Line> {
        let expected = expected.theta0;
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
        let vit = Vit::new(&backbone.config, &method);
        let bare = backbone.tensors.share();
        Ok(Line { vit, theta0, theta1: ends, bare, kind: Kind::Float, moved, digest })
    }

    /// The checkpoint's digest: the sha256 of the file θ1 came from.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The same line with its tensors on a device.
    pub fn to_device(self, device: Device) -> Line {
        let kind = self.kind;
        self.each(kind, |_, tensor| tensor.to_device(device))
    }

    /// The same line whose encoders compute in another arithmetic: weights are interpolated in f32, and each θ_α is
    /// rounded once.
    pub fn with_dtype(self, dtype: Dtype) -> Line {
        let kind = kind(dtype);
        self.each(kind, |moves, tensor| if moves { tensor.shallow_clone() } else { tensor.to_kind(kind) })
    }

    /// Every tensor once through `change`, which is told whether it moves: those equal at both ends stay one tensor.
    fn each(self, kind: Kind, change: impl Fn(bool, &Tensor) -> Tensor) -> Line {
        let moves = |name: &str| self.moved.binary_search_by(|moved| moved.as_str().cmp(name)).is_ok();
        let theta0: Tensors =
            self.theta0.iter().map(|(name, tensor)| (name.to_owned(), change(moves(name), tensor))).collect();
        let mut theta1 = theta0.share();
        for name in &self.moved {
            theta1.insert(name, change(true, &self.theta1[name]));
        }
        let bare = self.bare.names().map(|name| (name.to_owned(), theta0[name].to_kind(kind))).collect();
        Line { theta0, theta1, bare, kind, ..self }
    }

    /// The same line under another rule for the position table.
    pub fn with_positions(self, positions: Positions) -> Line {
        Line { vit: self.vit.with_positions(positions), ..self }
    }

    /// The encoder's architecture, which is the backbone's.
    pub fn config(&self) -> &VitConfig {
        &self.vit.config
    }

    /// The method at θ1's end; `full` for a full set of weights.
    pub fn method(&self) -> &Method {
        &self.vit.method
    }

    /// Names of the tensors that differ between the two ends, sorted.
    pub fn moved(&self) -> &[String] {
        &self.moved
    }

    /// The arithmetic of its encoders.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where its tensors are.
    pub fn device(&self) -> Device {
        self.bare["cls_token"].device()
    }

    /// Whether an encoder along it computes all tokens in its last block.
    pub fn needs_all_tokens(&self) -> bool {
        self.vit.needs_all_tokens()
    }

    /// Bytes of what a further θ_α needs in memory: the tensors that move. The others are shared.
    pub fn bytes_moved(&self) -> usize {
        let values: usize = self.moved.iter().map(|name| self.theta1[name].numel()).sum();
        values * self.kind.elt_size_in_bytes()
    }

    /// θ_α in the arithmetic of the forward pass. The ends are the ends, bit for bit, and a tensor that is equal at both is
    /// never recomputed: (1 − α)·w + α·w ≠ w for a third of all f32 values.
    pub fn at(&self, alpha: Alpha) -> Tensors {
        let mut tensors = self.theta0.share();
        for name in &self.moved {
            let (theta0, theta1) = (&self.theta0[name], &self.theta1[name]);
            let value = match alpha {
                Alpha::ZERO => theta0.shallow_clone(),
                Alpha::ONE => theta1.shallow_clone(),
                _ => mix(theta0, theta1, alpha),
            };
            tensors.insert(name, value.to_kind(self.kind));
        }
        tensors
    }

    /// How many of the first blocks give the same for every α: those before the first whose weights moved or in which the
    /// method acts. `None` where not even the embedded tokens are the same.
    pub fn shared_blocks(&self) -> Option<i64> {
        let depth = self.vit.config.depth;
        let moved = self.moved.iter().filter(|name| self.bare.get(name).is_some());
        let first = |name: &String| match name.strip_prefix("blocks.") {
            Some(rest) => rest.split('.').next()?.parse().ok(),
            None => (name.starts_with("norm.") || name.starts_with("proj.")).then_some(depth),
        };
        let untouched = methods::tuner(&self.vit.method).untouched_blocks(&self.vit.config);
        moved.map(first).chain([untouched]).min_by_key(|shared| shared.unwrap_or(-1)).flatten()
    }

    /// What all θ_α have in common of a batch.
    ///
    /// # Shapes
    /// `pixels` [batch, 3, height, width], normalised, in the line's arithmetic
    pub fn stem(&self, pixels: &Tensor) -> Option<Stem> {
        let blocks = self.shared_blocks()?;
        Some(tch::no_grad(|| self.vit.stem(&self.bare, pixels, blocks)))
    }

    /// Whether its encoders take images of this side.
    ///
    /// # Errors
    /// A method that was trained for another.
    pub fn check_image_size(&self, image_size: u32) -> Result<()> {
        methods::tuner(&self.vit.method).takes(&self.theta1, image_size)
    }

    /// The encoder at α. At α = 0 it is the bare backbone, without the method: it belongs to no run.
    pub fn encoder(&self, alpha: Alpha) -> Encoder {
        match alpha {
            Alpha::ZERO => {
                let vit = Vit::bare(&self.vit.config).with_positions(self.vit.positions);
                Encoder { vit, tensors: self.bare.share() }
            }
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

#[cfg(test)]
mod tests;
