//! Weights: named tensors, the files they live in, and the line between two sets of them.

pub mod checkpoint;
pub mod digest;
pub mod gguf;
pub mod initial;
pub mod interpolate;
pub mod names;
pub mod resume;
pub mod safetensors;

use crate::models::vit::VitConfig;
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

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
            hash.update(safetensors::bytes_of(tensor)?);
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
    /// Its architecture, read off the shapes.
    pub config: VitConfig,
    /// θ0 under canonical names, f32.
    pub tensors: Tensors,
    /// [`Tensors::digest`] of θ0: the backbone's identity.
    pub digest: String,
    /// Keys of the file that no part of the encoder uses, such as a classifier.
    pub ignored: Vec<String>,
}

impl Backbone {
    /// Reads θ0 from a safetensors file in any naming that [`names`] knows.
    ///
    /// # Errors
    /// A file that cannot be read, or keys that are unknown, missing or misshapen: all of them are listed.
    pub fn read(path: &Path) -> Result<Backbone> {
        let file = safetensors::read(path)?;
        let (tensors, ignored) =
            names::canonical(file.tensors).with_context(|| format!("reading weights {}", path.display()))?;
        let backbone =
            Backbone::new(tensors).with_context(|| format!("reading weights {}", path.display()))?;
        Ok(Backbone { ignored, ..backbone })
    }

    /// A backbone of tensors under canonical names.
    ///
    /// # Errors
    /// Keys that are unknown, missing or misshapen, or values that are not finite.
    pub fn new(tensors: Tensors) -> Result<Backbone> {
        let config = VitConfig::infer(&tensors)?;
        for (name, tensor) in tensors.iter() {
            ensure!(is_finite(tensor), "{name} holds values that are not finite");
        }
        let digest = tensors.digest()?;
        Ok(Backbone { config, tensors, digest, ignored: Vec::new() })
    }
}

/// Whether all values are finite.
pub fn is_finite(tensor: &Tensor) -> bool {
    tensor.isfinite().all().int64_value(&[]) == 1
}
