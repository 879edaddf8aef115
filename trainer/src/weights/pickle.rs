//! Pickles read as plain data: nothing in them is ever executed. A pickle is a program for a small stack machine, and
//! Python's machine calls whatever function the file names. This one calls none. It knows by name the handful of
//! functions that torch uses to put tensors together, and does itself what they would do; every other call becomes an
//! opaque object that says what would have been called.
//!
//! It is our own because candle-core's reader, the one there is, brings a second tensor library with it and cannot read
//! TorchScript archives, which is how OpenAI published CLIP.
//!
//! Values lie in a list of nodes and refer to each other by place, so sharing and cycles cost nothing: memory grows with
//! the bytes of the pickle, whatever they say.

mod calls;
mod machine;
mod numpy;

use anyhow::{Context, Result, ensure};
use machine::Machine;
use std::ops::Range;

/// Longest pickle; the state of a large model with its optimiser takes about a megabyte, without the tensors' bytes.
const BYTES_MAX: usize = 32 << 20;

/// Place of a node in its pickle.
pub type At = usize;

/// A value.
#[derive(Clone, PartialEq, Debug)]
pub enum Node {
    /// Nothing.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number of 64 bits.
    Int(i64),
    /// A number.
    Float(f64),
    /// Text.
    Text(String),
    /// A list, tuple or set.
    List(Vec<At>),
    /// A dictionary of any kind, in its order.
    Dict(Vec<(At, At)>),
    /// A class or function by its full name; only a name.
    Class(String),
    /// Bytes that lie beside the pickle.
    Storage(Storage),
    /// A view of a storage.
    Tensor(View),
    /// Something of a class that is not known here.
    Object {
        /// Full name of the class or function that would have made it.
        class: String,
        /// What it would have been made of.
        arguments: At,
        /// Its state, usually the dictionary of its attributes.
        state: Option<At>,
    },
    /// Bytes; where they lie in the pickle.
    Bytes(Range<usize>),
    /// A whole number beyond 64 bits: nothing that weights are made of.
    Other,
}

/// Bytes that lie beside the pickle, in a file of the archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Storage {
    /// Full name of its class, such as `torch.FloatStorage`, which gives the dtype.
    pub class: String,
    /// Name of the file.
    pub key: String,
    /// Number of values.
    pub count: i64,
}

/// A tensor: a view of a storage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// Where its values lie.
    pub storage: Storage,
    /// Place of its first value.
    pub offset: i64,
    /// Shape.
    pub size: Vec<i64>,
    /// Distance of neighbours along each dimension.
    pub stride: Vec<i64>,
}

/// A pickle that has been read.
#[derive(Debug)]
pub struct Pickle {
    nodes: Vec<Node>,
    root: At,
}

impl Pickle {
    /// Reads a pickle.
    ///
    /// # Errors
    /// A pickle that is cut short, too large, or does what no checkpoint does; the place is named.
    pub fn read(bytes: &[u8]) -> Result<Pickle> {
        Pickle::read_up_to(bytes, BYTES_MAX).context("keep the weights alone in the file")
    }

    /// Reads a pickle of at most so many bytes.
    pub fn read_up_to(bytes: &[u8], bytes_max: usize) -> Result<Pickle> {
        ensure!(bytes.len() <= bytes_max, "the pickle is {} bytes long, {bytes_max} are read", bytes.len());
        let mut machine = Machine::new(bytes);
        let root = machine.run().with_context(|| format!("at byte {} of the pickle", machine.place()))?;
        Ok(Pickle { nodes: machine.into_nodes(), root })
    }

    /// The value that the pickle is.
    pub fn root(&self) -> At {
        self.root
    }

    /// The value at a place.
    pub fn node(&self, at: At) -> &Node {
        &self.nodes[at]
    }

    /// The text at a place, if it is one.
    pub fn text(&self, at: At) -> Option<&str> {
        match self.node(at) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The entries of a dictionary whose keys are text; none for any other value.
    pub fn entries(&self, at: At) -> impl Iterator<Item = (&str, At)> {
        let pairs: &[(At, At)] = match self.node(at) {
            Node::Dict(pairs) => pairs,
            _ => &[],
        };
        pairs.iter().filter_map(|(key, value)| Some((self.text(*key)?, *value)))
    }

    /// What a value is, in a few words.
    pub fn describe(&self, at: At) -> String {
        match self.node(at) {
            Node::None => "None".to_owned(),
            Node::Bool(_) => "a bool".to_owned(),
            Node::Int(_) => "an int".to_owned(),
            Node::Float(_) => "a float".to_owned(),
            Node::Text(_) => "text".to_owned(),
            Node::List(items) => format!("a list of {}", items.len()),
            Node::Dict(pairs) => format!("a dict of {}", pairs.len()),
            Node::Class(name) => format!("the class {name}"),
            Node::Storage(_) => "a storage".to_owned(),
            Node::Tensor(view) => format!("a tensor of shape {:?}", view.size),
            Node::Object { class, .. } => format!("a {class}"),
            Node::Bytes(range) => format!("{} bytes", range.len()),
            Node::Other => "a large int".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
