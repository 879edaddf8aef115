//! Weights: named tensors, the files they live in, and the line between two sets of them.

pub mod checkpoint;
pub mod convert;
pub mod digest;
pub mod gguf;
pub mod initial;
pub mod interpolate;
pub mod memory;
pub mod names;
pub mod pickle;
pub mod resume;
pub mod safetensors;
pub mod soup;
pub mod source;
pub mod torch;

use crate::models::mae;
use crate::models::vit::{Known, VitConfig};
use anyhow::{Context, Result, ensure};
use causeway_protocol::{Architecture, Dtype};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Tensors by name, in the order of their names, so that every walk over them is the same walk.
#[derive(Debug, Default)]
pub struct Tensors(BTreeMap<String, Tensor>);

impl Tensors {
    /// No tensors.
    pub fn new() -> Tensors {
        Tensors::default()
    }

    /// Adds a tensor, or replaces the one of that name.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) -> Option<Tensor> {
        self.0.insert(name.into(), tensor)
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// Takes the tensor of that name out.
    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.0.remove(name)
    }

    /// Names and tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of values in all tensors.
    pub fn values(&self) -> u64 {
        self.0.values().map(|tensor| tensor.numel() as u64).sum()
    }

    /// The same tensors again: names are copied, values are shared.
    pub fn share(&self) -> Tensors {
        self.iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect()
    }

    /// The same values in another arithmetic; tensors that are in it already are shared.
    pub fn to_kind(&self, kind: Kind) -> Tensors {
        self.iter().map(|(name, tensor)| (name.to_owned(), tensor.to_kind(kind))).collect()
    }

    /// The same tensors on a device.
    pub fn to_device(&self, device: Device) -> Tensors {
        self.iter().map(|(name, tensor)| (name.to_owned(), tensor.to_device(device))).collect()
    }

    /// sha256 over name, dtype, shape and little-endian bytes of each tensor, by name. It depends on the values
    /// and their canonical names, not on the file or the naming they came from.
    ///
    /// # Errors
    /// A tensor whose dtype has no name in safetensors.
    pub fn digest(&self) -> Result<String> {
        let mut hash = Sha256::new();
        for (name, tensor) in self.iter() {
            let dtype = safetensors::dtype_name(tensor.kind())?;
            hash.update(format!("{name}\0{dtype}\0{:?}\0", tensor.size()));
            memory::with_bytes(tensor, |bytes| hash.update(bytes));
        }
        Ok(causeway_protocol::hex(&hash.finalize()))
    }
}

impl FromIterator<(String, Tensor)> for Tensors {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(pairs: I) -> Tensors {
        Tensors(pairs.into_iter().collect())
    }
}

impl Extend<(String, Tensor)> for Tensors {
    fn extend<I: IntoIterator<Item = (String, Tensor)>>(&mut self, pairs: I) {
        self.0.extend(pairs);
    }
}

impl IntoIterator for Tensors {
    type Item = (String, Tensor);
    type IntoIter = std::collections::btree_map::IntoIter<String, Tensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl std::ops::Index<&str> for Tensors {
    type Output = Tensor;

    /// Models index by name: every name they use was checked when the weights were read.
    fn index(&self, name: &str) -> &Tensor {
        self.get(name).unwrap_or_else(|| panic!("no tensor is named {name}"))
    }
}

/// Whether two tensors have the same shape, dtype and bits; unlike `==`, −0.0 differs from 0.0 and NaN equals itself.
pub fn bitwise_equal(a: &Tensor, b: &Tensor) -> bool {
    let bits = |tensor: &Tensor| match tensor.kind() {
        Kind::Float => tensor.view_dtype(Kind::Int),
        _ => tensor.shallow_clone(),
    };
    a.kind() == b.kind() && a.size() == b.size() && bits(a).equal(&bits(b))
}

/// The pretrained encoder, θ0.
#[derive(Debug)]
pub struct Backbone {
    /// Its architecture, read off the shapes and what the file tells beside them.
    pub config: VitConfig,
    /// θ0 under canonical names, f32.
    pub tensors: Tensors,
    /// The backbone's identity: [`Tensors::digest`] of θ0, and over that what decides its function besides shapes
    /// where it is not the usual ([`VitConfig::beyond_shapes`]).
    pub digest: String,
    /// MAE's decoder under the original's names, where the file holds one. No part of θ0 or its identity.
    pub decoder: Tensors,
    /// Attention heads of that decoder, where the file tells; the published ones have 16.
    pub decoder_heads: Option<i64>,
    /// Keys of the file that no part of the encoder uses, such as a classifier.
    pub ignored: Vec<String>,
    /// Random values: there is nothing in them that training could spoil.
    pub is_fresh: bool,
}

impl Backbone {
    /// Reads θ0 from a file that [`source`] reads in any naming that [`names`] knows.
    ///
    /// # Errors
    /// A file that cannot be read, keys that are unknown, missing or misshapen (all of them are listed), or CLIP's
    /// weights whose activation nothing tells.
    pub fn read(path: &Path) -> Result<Backbone> {
        Backbone::read_with(path, &source::Hints::default())
    }

    /// The same, for a file that does not tell all by itself.
    ///
    /// # Errors
    /// As [`Backbone::read`]; and hints that contradict the file.
    pub fn read_with(path: &Path, hints: &source::Hints) -> Result<Backbone> {
        let source = source::read(path, hints)?;
        Backbone::of(source).with_context(|| format!("reading weights {}", path.display()))
    }

    /// The backbone in a file that has been read.
    ///
    /// # Errors
    /// As [`Backbone::read`].
    pub fn of(source: source::Source) -> Result<Backbone> {
        let named = names::canonical(source.contents.tensors)?;
        let backbone = Backbone::with(named.encoder, source.known)?;
        let ignored = named.ignored.into_iter().chain(source.others).collect();
        Ok(Backbone { decoder: named.decoder, ignored, ..backbone })
    }

    /// An encoder of random values, as MAE's pretraining begins with it.
    ///
    /// # Errors
    /// Numbers that do not go together.
    pub fn fresh(architecture: &Architecture, seed: u64) -> Result<Backbone> {
        let Architecture { dim, depth, heads, patch, image_size } = *architecture;
        let config = VitConfig {
            dim: dim.into(),
            depth: depth.into(),
            heads: heads.into(),
            mlp_dim: 4 * i64::from(dim),
            patch: patch.into(),
            grid: i64::from(image_size / patch.max(1)),
            ..VitConfig::default()
        };
        let known = Known { heads: Some(config.heads), ..Known::default() };
        Ok(Backbone { is_fresh: true, ..Backbone::with(mae::fresh_encoder(&config, seed), known)? })
    }

    /// A backbone of tensors under canonical names.
    ///
    /// # Errors
    /// As [`Backbone::with`].
    pub fn new(tensors: Tensors) -> Result<Backbone> {
        Backbone::with(tensors, Known::default())
    }

    /// A backbone of tensors under canonical names and what is known besides their shapes.
    ///
    /// # Errors
    /// Keys that are unknown, missing or misshapen, values that are not finite, CLIP's weights without an activation.
    pub fn with(tensors: Tensors, known: Known) -> Result<Backbone> {
        let config = VitConfig::infer(&tensors, known)?;
        for (name, tensor) in tensors.iter() {
            ensure!(is_finite(tensor), "{name} holds values that are not finite");
        }
        let digest = match config.beyond_shapes() {
            usual if usual.is_empty() => tensors.digest()?,
            beyond => causeway_protocol::sha256_hex(format!("{}\0{beyond}", tensors.digest()?).as_bytes()),
        };
        let (decoder, ignored) = (Tensors::new(), Vec::new());
        let decoder_heads = known.decoder_heads;
        Ok(Backbone { config, tensors, digest, decoder, decoder_heads, ignored, is_fresh: false })
    }
}

/// The kind of tensors that a forward pass of this arithmetic computes with.
pub fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::F16 => Kind::Half,
    }
}

/// Whether all values are finite. A sum that is finite has only finite terms, and is the fastest look at each; one that
/// is not may have run over. Then the least and the largest value tell, which are NaN where one of them is.
pub fn is_finite(tensor: &Tensor) -> bool {
    if tensor.numel() == 0 || tensor.sum(tensor.kind()).double_value(&[]).is_finite() {
        return true;
    }
    let (least, largest) = tensor.flatten(0, -1).aminmax(0, false);
    least.double_value(&[]).is_finite() && largest.double_value(&[]).is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_that_is_not_finite_is_found_wherever_it_is() {
        for kind in [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Half] {
            let sound = Tensor::ones([7, 300], (kind, Device::Cpu));
            assert!(is_finite(&sound) && is_finite(&sound.narrow(1, 0, 0)), "{kind:?}");
            assert!(is_finite(&(&sound * 6e4)), "{kind:?}: the sum is beyond f16");
            assert!(
                !is_finite(&Tensor::from_slice(&[f64::INFINITY, f64::NEG_INFINITY]).to_kind(kind)),
                "{kind:?}"
            );
            for (wrong, place) in [(f64::NAN, 0), (f64::INFINITY, 1050), (f64::NEG_INFINITY, 2099)] {
                let broken = sound.copy();
                let _ = broken.view(-1).get(place).fill_(wrong);
                assert!(!is_finite(&broken) && !is_finite(&broken.tr()), "{kind:?} {wrong}");
            }
        }
    }
}
