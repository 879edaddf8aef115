//! GGUF files, versions 2 and 3: what llama.cpp keeps a language model in, metadata and tokenizer included.
//! Quantised tensors are widened to f32 as ggml defines it. The layout is that of ggml's `docs/gguf.md`; all
//! numbers are little-endian. Nothing in the file is believed: every count and offset is checked against the bytes
//! that are there.

use super::Tensors;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tch::{Kind, Tensor};

/// How deep arrays of arrays may go; files in use have none.
const NESTING_MAX: usize = 4;
/// How many values the metadata may hold; a vocabulary of 262,144 with merges and types has under a million.
const VALUES_MAX: usize = 8 << 20;
/// ggml's own limit of a tensor's dimensions.
const DIMENSIONS_MAX: u32 = 4;
/// Where tensors begin unless `general.alignment` says otherwise.
const ALIGNMENT: u64 = 32;
/// Values in a block of Q4_0, Q4_1 and Q8_0.
const BLOCK: usize = 32;

/// What a GGUF file holds.
#[derive(Debug)]
pub struct Contents {
    /// What the file says about itself.
    pub metadata: Metadata,
    /// The tensors under the file's own names, f32, the last dimension contiguous as everywhere here.
    pub tensors: Tensors,
    /// sha256 of the file.
    pub sha256: String,
}

/// A value of the metadata.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Any whole number, signed or not, of 8 to 64 bits.
    Integer(i128),
    /// f32 or f64.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// UTF-8.
    Text(String),
    /// Values of one kind.
    Array(Vec<Value>),
}

/// Key and value pairs of a file.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Metadata(BTreeMap<String, Value>);

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    fn need(&self, key: &str) -> Result<&Value> {
        self.get(key).with_context(|| format!("{key} is missing in its metadata"))
    }

    /// The text of a key.
    ///
    /// # Errors
    /// A key that is missing or holds something else; so for the others.
    pub fn text(&self, key: &str) -> Result<&str> {
        match self.need(key)? {
            Value::Text(text) => Ok(text),
            other => bail!("{key} is {}, not a text", other.kind()),
        }
    }

    /// The whole number of a key.
    pub fn integer(&self, key: &str) -> Result<i64> {
        self.need(key)?.integer().with_context(|| format!("{key} is no whole number of 64 bits"))
    }

    /// The number of a key.
    pub fn float(&self, key: &str) -> Result<f64> {
        match self.need(key)? {
            Value::Float(value) => Ok(*value),
            Value::Integer(value) => Ok(*value as f64),
            other => bail!("{key} is {}, not a number", other.kind()),
        }
    }

    /// The texts of a key.
    pub fn texts(&self, key: &str) -> Result<Vec<&str>> {
        let values = self.array(key)?.iter();
        values
            .map(|value| match value {
                Value::Text(text) => Ok(text.as_str()),
                other => bail!("{key} holds {}, not texts", other.kind()),
            })
            .collect()
    }

    /// The whole numbers of a key.
    pub fn integers(&self, key: &str) -> Result<Vec<i64>> {
        let integer = |value: &Value| value.integer();
        let numbers: Option<Vec<i64>> = self.array(key)?.iter().map(integer).collect();
        numbers.with_context(|| format!("{key} holds something that is no whole number of 64 bits"))
    }

    fn array(&self, key: &str) -> Result<&[Value]> {
        match self.need(key)? {
            Value::Array(values) => Ok(values),
            other => bail!("{key} is {}, not an array", other.kind()),
        }
    }
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Bool(_) => "true or false",
            Value::Text(_) => "a text",
            Value::Array(_) => "an array",
        }
    }

    fn integer(&self) -> Option<i64> {
        match self {
            Value::Integer(value) => i64::try_from(*value).ok(),
            _ => None,
        }
    }
}

/// How a tensor's values are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Encoding {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q8_0,
}

/// A tensor as the file describes it.
struct Described {
    name: String,
    /// Slowest dimension first; the file has it the other way round.
    shape: Vec<i64>,
    encoding: Encoding,
    /// Counted from where the tensors begin.
    offset: u64,
    bytes: u64,
}

/// Reads a whole file.
///
/// # Errors
/// A file that is missing, truncated or damaged, another version, an encoding that is not known; each names the file.
pub fn read(path: &Path) -> Result<Contents> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let (metadata, tensors) = parse(&bytes).with_context(|| {
        format!("{} is not a sound GGUF file ({} bytes long)", path.display(), bytes.len())
    })?;
    Ok(Contents { metadata, tensors, sha256: causeway_protocol::sha256_hex(&bytes) })
}

fn parse(bytes: &[u8]) -> Result<(Metadata, Tensors)> {
    let mut reader = Reader { bytes, at: 0, values_left: VALUES_MAX };
    ensure!(reader.take(4)? == b"GGUF", "it does not begin with GGUF");
    let version = reader.u32()?;
    ensure!(
        (2..=3).contains(&version),
        "its version is {version}; versions 2 and 3, little-endian, are read"
    );
    let (tensor_count, pair_count) = (reader.u64()?, reader.u64()?);
    let mut metadata = Metadata::default();
    for _ in 0..pair_count {
        let key = reader.text()?;
        let kind = reader.u32()?;
        let value = reader.value(kind, 0).with_context(|| format!("the value of {key}"))?;
        ensure!(metadata.0.insert(key.clone(), value).is_none(), "{key} is there twice");
    }
    let mut described = Vec::new();
    for _ in 0..tensor_count {
        described.push(reader.described()?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(_) => u64::try_from(metadata.integer("general.alignment")?)?,
    };
    ensure!(alignment.is_power_of_two(), "its alignment is {alignment}, not a power of two");
    let begin =
        (reader.at as u64).checked_next_multiple_of(alignment).context("its alignment is too large")?;
    let data = usize::try_from(begin).ok().and_then(|begin| bytes.get(begin..)).unwrap_or_default();
    // Tensors that shared bytes would let a small file ask for much memory.
    let claimed = described.iter().try_fold(0u64, |sum, tensor| sum.checked_add(tensor.bytes));
    ensure!(
        claimed.is_some_and(|claimed| claimed <= data.len() as u64),
        "its tensors take more bytes than the {} that follow its head",
        data.len()
    );
    let mut tensors = Tensors::new();
    for tensor in described {
        let values =
            widened(&tensor, data, alignment).with_context(|| format!("the tensor {}", tensor.name))?;
        ensure!(tensors.insert(tensor.name.clone(), values).is_none(), "{} is there twice", tensor.name);
    }
    Ok((metadata, tensors))
}

/// A tensor's values as f32.
fn widened(tensor: &Described, data: &[u8], alignment: u64) -> Result<Tensor> {
    let Described { shape, encoding, offset, bytes, .. } = tensor;
    ensure!(offset % alignment == 0, "it begins at {offset}, which is no multiple of {alignment}");
    let end = offset.checked_add(*bytes).filter(|end| *end <= data.len() as u64);
    let end =
        end.with_context(|| format!("it would end behind the file's end ({bytes} bytes at {offset})"))?;
    let bytes = &data[*offset as usize..end as usize];
    Ok(match encoding {
        Encoding::F32 => Tensor::f_from_data_size(bytes, shape, Kind::Float)?,
        Encoding::F16 => Tensor::f_from_data_size(bytes, shape, Kind::Half)?.f_to_kind(Kind::Float)?,
        Encoding::BF16 => Tensor::f_from_data_size(bytes, shape, Kind::BFloat16)?.f_to_kind(Kind::Float)?,
        Encoding::Q4_0 => blocks::<18>(bytes, shape, |block, values| {
            let scale = half(block[0], block[1]);
            nibbles(&block[2..], values, |q| (f32::from(q) - 8.0) * scale);
        })?,
        Encoding::Q4_1 => blocks::<20>(bytes, shape, |block, values| {
            let (scale, least) = (half(block[0], block[1]), half(block[2], block[3]));
            nibbles(&block[4..], values, |q| f32::from(q) * scale + least);
        })?,
        Encoding::Q8_0 => blocks::<34>(bytes, shape, |block, values| {
            let scale = half(block[0], block[1]);
            values.iter_mut().zip(&block[2..]).for_each(|(value, q)| *value = f32::from(*q as i8) * scale);
        })?,
    })
}

/// Widens blocks of `BYTES` bytes into 32 values each.
fn blocks<const BYTES: usize>(
    bytes: &[u8],
    shape: &[i64],
    widen: impl Fn(&[u8; BYTES], &mut [f32]),
) -> Result<Tensor> {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let mut values = vec![0f32; blocks.len() * BLOCK];
    for (block, values) in blocks.iter().zip(values.chunks_exact_mut(BLOCK)) {
        widen(block, values);
    }
    Ok(Tensor::f_from_slice(&values)?.f_reshape(shape)?)
}

/// Sixteen bytes hold 32 values: the low halves are the first sixteen, the high halves the others.
fn nibbles(bytes: &[u8], values: &mut [f32], widen: impl Fn(u8) -> f32) {
    let (low, high) = values.split_at_mut(BLOCK / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (widen(byte & 0xf), widen(byte >> 4));
    }
}

/// The f16 of two bytes, exactly.
fn half(low: u8, high: u8) -> f32 {
    let sign = if high & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from(high >> 2 & 0x1f);
    let fraction = f32::from(u16::from(high & 3) << 8 | u16::from(low));
    sign * match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    }
}

impl Encoding {
    /// By ggml's number of the type.
    fn of(number: u32) -> Result<Encoding> {
        Ok(match number {
            0 => Encoding::F32,
            1 => Encoding::F16,
            2 => Encoding::Q4_0,
            3 => Encoding::Q4_1,
            8 => Encoding::Q8_0,
            30 => Encoding::BF16,
            _ => bail!("ggml's type {number} is not read; F32, F16, BF16, Q4_0, Q4_1 and Q8_0 are"),
        })
    }

    /// Bytes of so many values, and how many values those are.
    fn block(self) -> (u64, u64) {
        match self {
            Encoding::F32 => (4, 1),
            Encoding::F16 | Encoding::BF16 => (2, 1),
            Encoding::Q4_0 => (18, BLOCK as u64),
            Encoding::Q4_1 => (20, BLOCK as u64),
            Encoding::Q8_0 => (34, BLOCK as u64),
        }
    }
}

/// The head of a file, read from front to back.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    values_left: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.with_context(|| format!("it ends where {count} bytes at {} should be", self.at))?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String> {
        let length = usize::try_from(self.u64()?)?;
        let at = self.at;
        let text = std::str::from_utf8(self.take(length)?);
        Ok(text.with_context(|| format!("the text at {at} is not UTF-8"))?.to_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value> {
        self.values_left = self.values_left.checked_sub(1).context("its metadata holds too many values")?;
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 => {
                ensure!(depth < NESTING_MAX, "arrays lie in arrays more than {NESTING_MAX} deep");
                let (kind, count) = (self.u32()?, self.u64()?);
                // Grows as values arrive: the count is only a claim.
                let mut values = Vec::new();
                for _ in 0..count {
                    values.push(self.value(kind, depth + 1)?);
                }
                Value::Array(values)
            }
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => bail!("there is no kind {other} of values"),
        })
    }

    fn described(&mut self) -> Result<Described> {
        let name = self.text()?;
        let context = format!("the tensor {name}");
        self.described_as(name).context(context)
    }

    fn described_as(&mut self, name: String) -> Result<Described> {
        let dimensions = self.u32()?;
        ensure!(dimensions <= DIMENSIONS_MAX, "it has {dimensions} dimensions");
        let sizes = (0..dimensions).map(|_| self.u64()).collect::<Result<Vec<u64>>>()?;
        ensure!(!sizes.contains(&0), "its shape {sizes:?} holds no values");
        let encoding = Encoding::of(self.u32()?)?;
        let (block_bytes, block) = encoding.block();
        let row = sizes.first().copied().unwrap_or(1);
        ensure!(row % block == 0, "its rows of {row} values are not made of blocks of {block}");
        let values = sizes.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
        let bytes = values.and_then(|values| (values / block).checked_mul(block_bytes));
        let shape = sizes.iter().rev().map(|size| i64::try_from(*size)).collect::<Result<_, _>>();
        let (Some(bytes), Ok(shape)) = (bytes, shape) else { bail!("its shape {sizes:?} is too large") };
        Ok(Described { name, shape, encoding, offset: self.u64()?, bytes })
    }
}

#[cfg(test)]
mod tests;
