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

use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;

/// Longest pickle; the state of a large model with its optimiser takes about a megabyte, without the tensors' bytes.
const BYTES_MAX: usize = 32 << 20;
/// Most values in a pickle, and most entries on its stack.
const NODES_MAX: usize = 1 << 20;
/// Longest name of a class, bytes.
const NAME_MAX: usize = 256;
/// Most dimensions of a tensor.
const RANK_MAX: usize = 8;

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
    /// Bytes, or a whole number beyond 64 bits: nothing that weights are made of.
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
        ensure!(
            bytes.len() <= BYTES_MAX,
            "the pickle is {} bytes long, {BYTES_MAX} are read; keep the weights alone in the file",
            bytes.len()
        );
        let mut machine = Machine { bytes, ..Machine::default() };
        let root = machine.run().with_context(|| format!("at byte {} of the pickle", machine.at))?;
        Ok(Pickle { nodes: machine.nodes, root })
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
            Node::Other => "bytes or a large int".to_owned(),
        }
    }
}

/// The stack machine. Opcodes and their meaning are those of CPython's pickletools.
#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<At>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u64, At>,
    /// Entries copied from one list into another, which a program could otherwise do without end.
    copied: usize,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<At> {
        loop {
            let opcode = self.byte()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)?;
            let size = self.nodes.len().max(self.stack.len()).max(self.copied);
            ensure!(
                size <= NODES_MAX,
                "it holds more than {NODES_MAX} values; keep the weights alone in the file"
            );
        }
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            0x80 => self.skip(1), // PROTO
            0x95 => self.skip(8), // FRAME
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop_or_mark(),
            b'1' => self.above_mark().map(drop),
            b'2' => self.top().map(|top| self.put(top)),
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'I' | b'L' => self.text_number(),
            b'J' => self
                .number(4)
                .map(|number| i64::from(number as u32 as i32))
                .and_then(|int| self.push(Node::Int(int))),
            b'K' => self.number(1).and_then(|number| self.push(Node::Int(number as i64))),
            b'M' => self.number(2).and_then(|number| self.push(Node::Int(number as i64))),
            0x8a => self.number(1).and_then(|length| self.long(length)),
            0x8b => self.number(4).and_then(|length| self.long(length)),
            b'F' => {
                let value = self.line()?.parse().context("a float in text")?;
                self.push(Node::Float(value))
            }
            b'G' => {
                let value = f64::from_be_bytes(self.take(8)?.try_into()?);
                self.push(Node::Float(value))
            }
            b'S' => {
                let quoted = self.line()?;
                self.push(Node::Text(quoted.trim_matches(['\'', '"']).to_owned()))
            }
            b'V' => self.line().and_then(|text| self.push(Node::Text(text.to_owned()))),
            b'T' | b'X' => self.number(4).and_then(|length| self.string(length)),
            b'U' | 0x8c => self.number(1).and_then(|length| self.string(length)),
            0x8d => self.number(8).and_then(|length| self.string(length)),
            b'B' => self.number(4).and_then(|length| self.opaque_bytes(length)),
            b'C' => self.number(1).and_then(|length| self.opaque_bytes(length)),
            0x8e | 0x96 => self.number(8).and_then(|length| self.opaque_bytes(length)),
            b']' | b')' | 0x8f => self.push(Node::List(Vec::new())), // EMPTY_LIST, EMPTY_TUPLE, EMPTY_SET
            b'l' | b't' | 0x91 => {
                let items = self.above_mark()?; // LIST, TUPLE, FROZENSET
                self.push(Node::List(items))
            }
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(opcode - 0x84))?;
                self.push(Node::List(items))
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])
            }
            b'e' | 0x90 => {
                let items = self.above_mark()?;
                self.append(items)
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b'd' => {
                let pairs = pairs(&self.above_mark()?)?;
                self.push(Node::Dict(pairs))
            }
            b's' => {
                let pair = self.pop_many(2)?;
                self.set(&pair)
            }
            b'u' => {
                let items = self.above_mark()?;
                self.set(&items)
            }
            b'p' => {
                let key = self.line()?.parse().context("a place in the memo")?;
                self.remember(key)
            }
            b'q' => self.number(1).and_then(|key| self.remember(key)),
            b'r' => self.number(4).and_then(|key| self.remember(key)),
            0x94 => self.remember(self.memo.len() as u64),
            b'g' => {
                let key = self.line()?.parse().context("a place in the memo")?;
                self.recall(key)
            }
            b'h' => self.number(1).and_then(|key| self.recall(key)),
            b'j' => self.number(4).and_then(|key| self.recall(key)),
            b'c' => {
                let name = format!("{}.{}", self.line()?, self.line()?);
                self.class(name)
            }
            0x93 => {
                let parts = self.pop_many(2)?;
                let part = |at: usize| match &self.nodes[parts[at]] {
                    Node::Text(text) if text.len() < NAME_MAX => Ok(text.as_str()),
                    _ => bail!("a class without a name"),
                };
                let name = format!("{}.{}", part(0)?, part(1)?);
                self.class(name)
            }
            b'R' | 0x81 => {
                let parts = self.pop_many(2)?; // REDUCE, NEWOBJ
                self.call(parts[0], parts[1])
            }
            0x92 => {
                let parts = self.pop_many(3)?; // NEWOBJ_EX: class, arguments, named arguments
                self.call(parts[0], parts[1])
            }
            b'i' => {
                let name = format!("{}.{}", self.line()?, self.line()?);
                let arguments = self.above_mark()?;
                self.class(name)?;
                let class = self.pop()?;
                self.push(Node::List(arguments))?;
                let arguments = self.pop()?;
                self.call(class, arguments)
            }
            b'b' => self.build(),
            b'Q' => self.storage(),
            other => bail!("opcode {other:#04x} is none that checkpoints use"),
        }
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let length = usize::try_from(length)?;
        ensure!(length <= rest.len(), "the pickle is cut short");
        self.at += length;
        Ok(&rest[..length])
    }

    fn skip(&mut self, length: u64) -> Result<()> {
        self.take(length).map(drop)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// A little-endian number of so many bytes, without sign.
    fn number(&mut self, length: u64) -> Result<u64> {
        Ok(self.take(length)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn line(&mut self) -> Result<&'a str> {
        let length = self.bytes[self.at..].iter().position(|byte| *byte == b'\n');
        let line = self.take(length.context("the pickle is cut short")? as u64)?;
        self.skip(1)?;
        Ok(std::str::from_utf8(line)?)
    }

    fn string(&mut self, length: u64) -> Result<()> {
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Node::Text(text))
    }

    fn opaque_bytes(&mut self, length: u64) -> Result<()> {
        self.skip(length)?;
        self.push(Node::Other)
    }

    /// `I01`, `I17`, `L17L`.
    fn text_number(&mut self) -> Result<()> {
        let text = self.line()?;
        let node = match text {
            "00" => Node::Bool(false),
            "01" => Node::Bool(true),
            _ => text.trim_end_matches('L').parse().map_or(Node::Other, Node::Int),
        };
        self.push(node)
    }

    /// A number of so many bytes, little-endian, two's complement.
    fn long(&mut self, length: u64) -> Result<()> {
        let bytes = self.take(length)?;
        let sign = bytes.last().is_some_and(|last| *last >= 0x80);
        let mut word = [if sign { 0xff } else { 0 }; 8];
        let node = match word.get_mut(..bytes.len()) {
            None => Node::Other,
            Some(low) => {
                low.copy_from_slice(bytes);
                Node::Int(i64::from_le_bytes(word))
            }
        };
        self.push(node)
    }

    fn put(&mut self, at: At) {
        self.stack.push(at);
    }

    fn push(&mut self, node: Node) -> Result<()> {
        self.put(self.nodes.len());
        self.nodes.push(node);
        Ok(())
    }

    /// The height below which the stack belongs to an enclosing mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<At> {
        ensure!(self.stack.len() > self.floor(), "it takes from an empty stack");
        self.stack.last().copied().context("it takes from an empty stack")
    }

    fn pop(&mut self) -> Result<At> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<At>> {
        ensure!(self.stack.len() >= self.floor() + count, "it takes from an empty stack");
        Ok(self.stack.split_off(self.stack.len() - count))
    }

    fn above_mark(&mut self) -> Result<Vec<At>> {
        let mark = self.marks.pop().context("it closes what it did not open")?;
        Ok(self.stack.split_off(mark))
    }

    fn pop_or_mark(&mut self) -> Result<()> {
        if self.stack.len() == self.floor() && self.marks.pop().is_some() {
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn remember(&mut self, key: u64) -> Result<()> {
        self.memo.insert(key, self.top()?);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<()> {
        let at = self.memo.get(&key).context("it recalls what it did not remember")?;
        let at = *at;
        self.put(at);
        Ok(())
    }

    fn append(&mut self, items: Vec<At>) -> Result<()> {
        let list = self.top()?;
        match &mut self.nodes[list] {
            Node::List(list) => list.extend(items),
            // A class that is not known here, derived from list or set.
            Node::Object { .. } => {}
            _ => bail!("it appends to what is no list"),
        }
        Ok(())
    }

    fn set(&mut self, items: &[At]) -> Result<()> {
        let pairs = pairs(items)?;
        let dict = self.top()?;
        match &mut self.nodes[dict] {
            Node::Dict(dict) => dict.extend(pairs),
            Node::Object { .. } => {}
            _ => bail!("it sets an entry of what is no dictionary"),
        }
        Ok(())
    }

    fn class(&mut self, name: String) -> Result<()> {
        ensure!(name.len() <= NAME_MAX, "the name of a class is {} bytes long", name.len());
        self.push(Node::Class(name))
    }

    /// What a call would have made.
    fn call(&mut self, callee: At, arguments: At) -> Result<()> {
        let class = match &self.nodes[callee] {
            Node::Class(name) => name.clone(),
            _ => "call of what is no class".to_owned(),
        };
        let given = match &self.nodes[arguments] {
            Node::List(items) => items.as_slice(),
            _ => &[],
        };
        match (class.as_str(), given) {
            (
                "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
                [storage, offset, size, stride, ..],
            ) => {
                let view = self.view(*storage, *offset, *size, *stride)?;
                self.push(Node::Tensor(view))
            }
            // A parameter is its tensor.
            (
                "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state",
                [tensor, ..],
            ) => {
                let tensor = *tensor;
                self.put(tensor);
                Ok(())
            }
            // A tensor with attributes: the function that would make it, its class, that function's arguments, state.
            ("torch._tensor._rebuild_from_type_v2", [function, _, arguments, ..]) if matches!(&self.nodes[*function], Node::Class(name) if name.starts_with("torch._utils._rebuild_")) => {
                self.call(*function, *arguments)
            }
            // TorchScript's marks of a list's type.
            ("torch.jit._pickle.restore_type_tag", [value, ..])
            | (
                "torch.jit._pickle.build_intlist"
                | "torch.jit._pickle.build_doublelist"
                | "torch.jit._pickle.build_boollist"
                | "torch.jit._pickle.build_tensorlist",
                [value, ..],
            ) => {
                let value = *value;
                self.put(value);
                Ok(())
            }
            ("collections.OrderedDict", []) | ("collections.defaultdict", _) => {
                self.push(Node::Dict(Vec::new()))
            }
            ("collections.OrderedDict", [items, ..]) => {
                let items = match &self.nodes[*items] {
                    Node::List(items) => items.clone(),
                    _ => Vec::new(),
                };
                self.copied += items.len();
                let pair = |at: &At| match &self.nodes[*at] {
                    Node::List(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
                    _ => bail!("an OrderedDict is made of what are no pairs"),
                };
                let pairs = items.iter().map(pair).collect::<Result<_>>()?;
                self.push(Node::Dict(pairs))
            }
            _ => self.push(Node::Object { class, arguments, state: None }),
        }
    }

    fn view(&self, storage: At, offset: At, size: At, stride: At) -> Result<View> {
        let int = |at: At| match self.nodes[at] {
            Node::Int(int) if int >= 0 => Ok(int),
            _ => bail!("a tensor's shape holds what is no length"),
        };
        let ints = |at: At| match &self.nodes[at] {
            Node::List(items) if items.len() <= RANK_MAX => items.iter().map(|item| int(*item)).collect(),
            _ => bail!("a tensor's shape is no list of at most {RANK_MAX} lengths"),
        };
        let Node::Storage(storage) = &self.nodes[storage] else { bail!("a tensor without a storage") };
        let view =
            View { storage: storage.clone(), offset: int(offset)?, size: ints(size)?, stride: ints(stride)? };
        ensure!(
            view.size.len() == view.stride.len(),
            "a tensor has {:?} and strides {:?}",
            view.size,
            view.stride
        );
        Ok(view)
    }

    /// Attributes: of an object its state; those of dictionaries and tensors, such as torch's `_metadata`, mean nothing
    /// for weights.
    fn build(&mut self) -> Result<()> {
        let given = self.pop()?;
        let object = self.top()?;
        if let Node::Object { state, .. } = &mut self.nodes[object] {
            *state = Some(given);
        }
        Ok(())
    }

    /// torch's only persistent id: ('storage', class, key, device, number of values).
    fn storage(&mut self) -> Result<()> {
        let id = self.pop()?;
        let parts = match &self.nodes[id] {
            Node::List(parts) => parts.as_slice(),
            _ => &[],
        };
        let nodes: Vec<&Node> = parts.iter().map(|at| &self.nodes[*at]).collect();
        let [Node::Text(kind), Node::Class(class), Node::Text(key), _, Node::Int(count), ..] =
            nodes.as_slice()
        else {
            bail!("a persistent id that is not torch's");
        };
        ensure!(
            kind == "storage" && key.len() <= NAME_MAX && *count >= 0,
            "a persistent id that is not torch's"
        );
        let storage = Storage { class: class.clone(), key: key.clone(), count: *count };
        self.push(Node::Storage(storage))
    }
}

fn pairs(items: &[At]) -> Result<Vec<(At, At)>> {
    ensure!(items.len() % 2 == 0, "a dictionary's key has no value");
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

#[cfg(test)]
mod tests;
