//! The stack machine of pickles. Opcodes and their meaning are those of CPython's pickletools; those that no checkpoint
//! uses are errors.

use super::{At, Node};
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;

/// Most values in a pickle, and most entries on its stack.
pub(super) const NODES_MAX: usize = 1 << 20;
/// Longest name of a class, bytes.
pub(super) const NAME_MAX: usize = 256;

/// The machine.
#[derive(Default)]
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    pub(super) nodes: Vec<Node>,
    stack: Vec<At>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u64, At>,
    /// Entries copied from one list into another, which a program could otherwise do without end.
    pub(super) copied: usize,
}

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Machine<'a> {
        Machine { bytes, ..Machine::default() }
    }

    /// Where in the pickle it is.
    pub(super) fn place(&self) -> usize {
        self.at
    }

    /// What it has made.
    pub(super) fn into_nodes(self) -> Vec<Node> {
        self.nodes
    }

    /// Runs the program; the place of what it leaves.
    pub(super) fn run(&mut self) -> Result<At> {
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
            b'T' => self.number(4).and_then(|length| self.python2_string(length)),
            b'U' => self.number(1).and_then(|length| self.python2_string(length)),
            b'X' => self.number(4).and_then(|length| self.string(length)),
            0x8c => self.number(1).and_then(|length| self.string(length)),
            0x8d => self.number(8).and_then(|length| self.string(length)),
            b'B' => self.number(4).and_then(|length| self.some_bytes(length)),
            b'C' => self.number(1).and_then(|length| self.some_bytes(length)),
            0x8e | 0x96 => self.number(8).and_then(|length| self.some_bytes(length)),
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

    /// Python 2's `str` was text and bytes alike: text where it can be, which loses none of its bytes.
    fn python2_string(&mut self, length: u64) -> Result<()> {
        let begin = self.at;
        let node = match std::str::from_utf8(self.take(length)?) {
            Ok(text) => Node::Text(text.to_owned()),
            Err(_) => Node::Bytes(begin..self.at),
        };
        self.push(node)
    }

    fn some_bytes(&mut self, length: u64) -> Result<()> {
        let begin = self.at;
        self.skip(length)?;
        self.push(Node::Bytes(begin..self.at))
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

    pub(super) fn put(&mut self, at: At) {
        self.stack.push(at);
    }

    pub(super) fn push(&mut self, node: Node) -> Result<()> {
        self.put(self.nodes.len());
        self.nodes.push(node);
        Ok(())
    }

    /// The height below which the stack belongs to an enclosing mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    pub(super) fn top(&self) -> Result<At> {
        ensure!(self.stack.len() > self.floor(), "it takes from an empty stack");
        self.stack.last().copied().context("it takes from an empty stack")
    }

    pub(super) fn pop(&mut self) -> Result<At> {
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
}

fn pairs(items: &[At]) -> Result<Vec<(At, At)>> {
    ensure!(items.len().is_multiple_of(2), "a dictionary's key has no value");
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}
