//! numpy's arrays in a pickle: an object of `_reconstruct` whose state is (version, shape, dtype, whether the columns come
//! first, bytes). The bytes are a string of Python 2, bytes of Python 3, or text that `_codecs.encode` would turn into
//! bytes again, which is what Python 3 writes for readers of protocol 2.

use super::{At, Node, Pickle};
use anyhow::{Context, Result, bail, ensure};
use std::borrow::Cow;

impl Pickle {
    /// The shape and the values of an array of bytes. `pickle` is what this was read from.
    pub fn array_u8<'a>(&'a self, at: At, pickle: &'a [u8]) -> Result<(Vec<usize>, Cow<'a, [u8]>)> {
        let Node::Object { class, state: Some(state), .. } = self.node(at) else {
            bail!("it is {}, not an array of numpy's", self.describe(at));
        };
        ensure!(
            ["numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"]
                .contains(&class.as_str()),
            "it is a {class}, not an array of numpy's"
        );
        let Node::List(state) = self.node(*state) else { bail!("an array without a state") };
        let &[_, shape, dtype, columns_first, values] = state.as_slice() else {
            bail!("an array's state is no five values")
        };
        let dtype = self.dtype(dtype).context("an array without a dtype")?;
        ensure!(["u1", "|u1", "uint8", "B"].contains(&dtype), "it holds {dtype}, not bytes without sign");
        ensure!(
            matches!(self.node(columns_first), Node::Bool(false) | Node::Int(0)),
            "its columns come first; save it with numpy.ascontiguousarray"
        );
        let Node::List(shape) = self.node(shape) else { bail!("an array without a shape") };
        let length = |at: &At| match self.node(*at) {
            Node::Int(length) => usize::try_from(*length).context("a length below zero"),
            _ => bail!("its shape holds {}", self.describe(*at)),
        };
        let shape = shape.iter().map(length).collect::<Result<Vec<usize>>>()?;
        let values = self.bytes(values, pickle)?;
        ensure!(
            shape.iter().try_fold(1usize, |product, length| product.checked_mul(*length))
                == Some(values.len()),
            "its shape is {shape:?} but it holds {} values",
            values.len()
        );
        Ok((shape, values))
    }

    fn dtype(&self, at: At) -> Option<&str> {
        let Node::Object { class, arguments, .. } = self.node(at) else { return None };
        let Node::List(arguments) = self.node(*arguments) else { return None };
        if class == "numpy.dtype" { self.text(*arguments.first()?) } else { None }
    }

    fn bytes<'a>(&'a self, at: At, pickle: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        match self.node(at) {
            Node::Bytes(range) => {
                let bytes = pickle.get(range.clone()).context("the bytes belong to another pickle")?;
                Ok(Cow::Borrowed(bytes))
            }
            Node::Text(text) => Ok(Cow::Borrowed(text.as_bytes())),
            Node::Object { class, arguments, .. } if class == "_codecs.encode" => {
                let Node::List(arguments) = self.node(*arguments) else {
                    bail!("`_codecs.encode` of nothing")
                };
                let text =
                    arguments.first().and_then(|text| self.text(*text)).context("it encodes no text")?;
                let bytes = text.chars().map(|letter| u8::try_from(u32::from(letter)));
                let bytes =
                    bytes.collect::<std::result::Result<Vec<u8>, _>>().context("text beyond latin-1")?;
                Ok(Cow::Owned(bytes))
            }
            _ => bail!("its values are {}", self.describe(at)),
        }
    }
}
