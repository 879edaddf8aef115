//! WiSE-FT (arXiv 2109.01903, §3): the straight line θ_α = (1 − α)·θ0 + α·θ1 between two sets of weights.

use super::checkpoint::{self, Checkpoint};
use super::source::{self, Hints};
use super::{Backbone, Tensors, bitwise_equal};
use crate::methods::{self, Added};
use crate::models::vit::{Stem, Vit, VitConfig};
use anyhow::{Context, Result, ensure};
use causeway_protocol::{Alpha, Method, Positions};
use std::path::Path;
use tch::{Device, Tensor};

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
        Ok(Line { vit, theta0, theta1: ends, bare: backbone.tensors.share(), moved, digest })
    }

    /// The checkpoint's digest: the sha256 of the file θ1 came from.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The same line with its tensors on a device.
    pub fn to_device(self, device: Device) -> Line {
        let Line { theta0, theta1, bare, .. } = &self;
        let [theta0, theta1, bare] = [theta0, theta1, bare].map(|tensors| tensors.to_device(device));
        Line { theta0, theta1, bare, ..self }
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
    /// `pixels` [batch, 3, height, width], normalised
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
mod tests {
    use super::*;
    use crate::methods::{Widths, testing};
    use crate::models::vit::{Activation, tiny, tiny_clip};
    use crate::weights::{initial, safetensors};
    use serde_json::json;
    use std::collections::BTreeMap;

    fn alpha(value: f64) -> Alpha {
        Alpha::from_f64(value).unwrap()
    }

    /// A line on which every second tensor moved, and the fine-tuned end.
    fn full_line() -> (Backbone, Line) {
        let backbone = tiny(true);
        let moved = backbone.tensors.iter().step_by(2);
        let theta1 = moved
            .map(|(name, tensor)| (name.to_owned(), tensor + initial::normal(5, name, &tensor.size(), 0.05)));
        let line = Line::new(
            &backbone,
            Method::Full {},
            Added::default(),
            (theta1.collect(), Tensors::new()),
            String::new(),
        )
        .unwrap();
        (backbone, line)
    }

    #[test]
    fn the_ends_are_the_ends_bit_for_bit() {
        let (backbone, line) = full_line();
        assert_eq!(line.at(Alpha::ZERO).digest().unwrap(), backbone.digest);
        assert_eq!(line.at(Alpha::ONE).digest().unwrap(), line.theta1.digest().unwrap());
        assert_ne!(line.theta1.digest().unwrap(), backbone.digest);
        let pixels = initial::normal(1, "pixels", &[2, 3, 28, 28], 1.0);
        let bare = Vit::bare(&backbone.config).features(&backbone.tensors, &pixels);
        assert!(bitwise_equal(&line.encoder(Alpha::ZERO).features(&pixels), &bare));
    }

    #[test]
    fn tensors_equal_at_both_ends_are_never_recomputed() {
        let (backbone, line) = full_line();
        assert_eq!(line.moved().len(), backbone.tensors.len().div_ceil(2));
        let tensors = line.at(alpha(0.1));
        for (name, tensor) in tensors.iter() {
            let shared = tensor.data_ptr() == backbone.tensors[name].data_ptr();
            assert_eq!(shared, !line.moved().iter().any(|moved| moved == name), "{name}");
        }
        // What the rule is for: between equal ends, computing changes bits.
        let equal = initial::normal(1, "equal", &[1000], 1.0);
        assert!(!bitwise_equal(&mix(&equal, &equal, alpha(0.1)), &equal));
    }

    #[test]
    fn between_the_ends_two_products_are_added() {
        let (a, b) = (initial::normal(1, "a", &[500], 1.0), initial::normal(1, "b", &[500], 1.0));
        let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor).unwrap();
        for tenth in [0.1, 0.2, 0.3, 0.7, 0.9] {
            let (stay, go) = ((1.0 - tenth) as f32, tenth as f32);
            let expected: Vec<f32> =
                values(&a).iter().zip(values(&b)).map(|(a, b)| stay * a + go * b).collect();
            assert_eq!(values(&mix(&a, &b, alpha(tenth))), expected, "α = {tenth}");
        }
        let mean = mix(&a, &b, alpha(0.5));
        assert!(mean.allclose(&((&a + &b) / 2.0), 0.0, 1e-7, false));
        // Row by row, so splitting query, key and value changes nothing.
        let split: Vec<Tensor> =
            a.chunk(2, 0).iter().zip(b.chunk(2, 0)).map(|(a, b)| mix(a, &b, alpha(0.3))).collect();
        assert!(bitwise_equal(&Tensor::cat(&split, 0), &mix(&a, &b, alpha(0.3))));
    }

    #[test]
    fn an_adapter_begins_as_the_identity_and_grows_along_the_line() {
        let backbone = tiny(true);
        let recipe = testing::recipe(json!({"kind": "adapter", "rank": 4, "init": "houlsby"}));
        let added = || methods::added(&recipe, &backbone, Widths::default()).unwrap();
        let ends = (added().start, added().theta0);
        let line = Line::new(&backbone, recipe.method.clone(), added(), ends, String::new()).unwrap();
        assert_eq!(line.moved(), ["blocks.0.adapter.up.weight", "blocks.1.adapter.up.weight"]);
        let pixels = initial::normal(1, "pixels", &[2, 3, 28, 28], 1.0);
        let bare = line.encoder(Alpha::ZERO).features(&pixels);
        // With the method's modules in it, θ0 gives the same bits.
        let at_zero = Encoder { vit: line.vit.clone(), tensors: line.at(Alpha::ZERO) };
        assert!(bitwise_equal(&at_zero.features(&pixels), &bare));
        let distances: Vec<f64> = [0.25, 0.5, 1.0]
            .map(|value| (line.encoder(alpha(value)).features(&pixels) - &bare).norm().double_value(&[]))
            .to_vec();
        assert!(
            0.0 < distances[0] && distances[0] < distances[1] && distances[1] < distances[2],
            "{distances:?}"
        );
    }

    #[test]
    fn blocks_before_the_first_that_moved_are_computed_once_and_give_the_same_bits() {
        let backbone = tiny(true);
        let pixels = initial::normal(1, "pixels", &[2, 3, 28, 28], 1.0);
        let line = |moved: &[&str]| {
            let theta1 = moved.iter().map(|name| ((*name).to_owned(), &backbone.tensors[name] + 0.1));
            let ends = (theta1.collect(), Tensors::new());
            Line::new(&backbone, Method::Full {}, Added::default(), ends, String::new()).unwrap()
        };
        for (moved, shared) in [
            (vec!["norm.weight"], Some(2)),
            (vec!["blocks.1.mlp.fc2.bias", "norm.weight"], Some(1)),
            (vec!["blocks.0.ls1.gamma", "blocks.1.mlp.fc2.bias"], Some(0)),
            (vec!["blocks.1.mlp.fc2.bias", "cls_token"], None),
        ] {
            let line = line(&moved);
            assert_eq!(line.shared_blocks(), shared, "{moved:?}");
            let stem = line.stem(&pixels);
            for value in [0.0, 0.3, 1.0] {
                let encoder = line.encoder(alpha(value));
                let features = encoder.features_with(stem.as_ref(), &pixels);
                assert!(bitwise_equal(&features, &encoder.features(&pixels)), "{moved:?} {value}");
            }
        }
    }

    #[test]
    fn a_full_set_of_weights_is_an_end_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("theta1.safetensors");
        let (backbone, line) = full_line();
        let prefixed: Tensors = line
            .theta1
            .iter()
            .map(|(name, tensor)| (format!("module.{name}"), tensor.shallow_clone()))
            .collect();
        let blob = safetensors::write(&path, &prefixed, &BTreeMap::new()).unwrap();
        let opened = Line::open(&backbone, &path).unwrap();
        assert_eq!(opened.digest(), blob.sha256);
        assert_eq!(opened.moved(), line.moved());
        assert_eq!(opened.at(alpha(0.3)).digest().unwrap(), line.at(alpha(0.3)).digest().unwrap());

        let error = Line::open(&tiny(false), &path).unwrap_err().to_string();
        assert!(error.contains("layer_scale: true"), "{error}");
    }

    #[test]
    fn both_ends_are_under_one_rule_for_positions_and_one_activation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("theta1.safetensors");
        let backbone = tiny_clip(Activation::QuickGelu);
        let theta1 = backbone.tensors.iter().map(|(name, tensor)| (name.to_owned(), tensor * 1.25));
        safetensors::write(&path, &theta1.collect(), &BTreeMap::new()).unwrap();
        let line = Line::open(&backbone, &path).unwrap();
        assert_eq!(line.config().activation, Activation::QuickGelu, "θ0's, for the file does not tell");
        let pixels = initial::normal(1, "pixels", &[1, 3, 28, 42], 1.0);
        let usual = [Alpha::ZERO, Alpha::ONE].map(|alpha| line.encoder(alpha).features(&pixels));
        let line = line.with_positions(Positions::TimmAntialias);
        for (alpha, usual) in [Alpha::ZERO, Alpha::ONE].into_iter().zip(usual) {
            assert!(!bitwise_equal(&line.encoder(alpha).features(&pixels), &usual));
        }
    }
}
