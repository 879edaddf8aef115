//! Real arrays of a MATLAB 5 file ("MAT-File Format", MathWorks, chapter 1): a header of 128 bytes, then elements, each a
//! tag (type, length) and its bytes, most of them deflated as a whole. An array is an element of elements: flags,
//! dimensions, name, values. It is our own because `matfile` holds the file packed, unpacked and parsed, three times
//! SVHN; this one inflates straight into the array.

use anyhow::{Context, Result, bail, ensure};
use flate2::read::ZlibDecoder;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

/// Longest array; SVHN's largest has 1.6 billion bytes.
const BYTES_MAX: u64 = 4 << 30;
/// Longest dimensions or name.
const SMALL_MAX: u64 = 4096;

const INT8: u32 = 1;
const UINT8: u32 = 2;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

/// An array.
#[derive(Clone, PartialEq, Debug)]
pub struct Array {
    /// Lengths; the first runs fastest.
    pub dims: Vec<usize>,
    /// The values, the first dimension fastest.
    pub values: Values,
}

/// What an array holds, as it is stored: MATLAB writes small whole numbers of any class as bytes.
#[derive(Clone, PartialEq, Debug)]
pub enum Values {
    /// Bytes without sign.
    Bytes(Vec<u8>),
    /// Anything else.
    Numbers(Vec<f64>),
}

impl Values {
    /// As numbers.
    pub fn into_numbers(self) -> Vec<f64> {
        match self {
            Values::Bytes(bytes) => bytes.into_iter().map(f64::from).collect(),
            Values::Numbers(numbers) => numbers,
        }
    }
}

/// The arrays of those names.
///
/// # Errors
/// The file is no MATLAB 5 file, is cut off or damaged, or has no such array.
pub fn read<const N: usize>(path: &Path, names: [&str; N]) -> Result<[Array; N]> {
    let mut file = BufReader::new(File::open(path)?);
    let mut header = [0; 128];
    let whole = file.read_exact(&mut header).is_ok();
    // Version 0x0100, written by a machine of this order of bytes; HDF5, MATLAB's later format, begins otherwise.
    ensure!(whole && header[124..] == [0, 1, b'I', b'M'], "it is no MATLAB 5 file");
    let mut found = [const { None }; N];
    while let Some((kind, length)) = tag(&mut file)? {
        let mut element = (&mut file).take(length);
        let named = match kind {
            COMPRESSED => {
                let mut inflated = BufReader::new(ZlibDecoder::new(&mut element));
                match tag(&mut inflated)? {
                    Some((MATRIX, length)) => matrix(&mut inflated.take(length))?,
                    _ => None,
                }
            }
            MATRIX => matrix(&mut element)?,
            _ => None,
        };
        std::io::copy(&mut element, &mut std::io::sink())?;
        if let Some((name, array)) = named
            && let Some(at) = names.iter().position(|wanted| *wanted == name)
        {
            found[at] = Some(array);
        }
    }
    let mut missing = names.iter().zip(&found).filter(|(_, array)| array.is_none());
    if let Some((name, _)) = missing.next() {
        bail!("it has no array `{name}`; was it cut off?");
    }
    Ok(found.map(|array| array.unwrap_or(Array { dims: Vec::new(), values: Values::Bytes(Vec::new()) })))
}

/// An array with its name; none where its values are not real numbers.
fn matrix(element: &mut impl Read) -> Result<Option<(String, Array)>> {
    let flags = small(element, UINT32)?;
    let dims = small(element, INT32)?;
    let dims: Vec<usize> = dims.chunks_exact(4).map(|word| le(word) as usize).collect();
    let name = String::from_utf8_lossy(&small(element, INT8)?).into_owned();
    // Classes 6 to 15 are numbers: double, single and the whole ones.
    if !flags.first().is_some_and(|class| (6..=15).contains(class)) {
        return Ok(None);
    }
    let context = || format!("the array `{name}`");
    let values = values(element, &dims).with_context(context)?;
    Ok(Some((name, Array { dims, values })))
}

fn values(element: &mut impl Read, dims: &[usize]) -> Result<Values> {
    let count = dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim as u64));
    let (kind, length, bytes) = content(element, BYTES_MAX)?;
    let width = match kind {
        INT8 | UINT8 => 1,
        3 | 4 => 2,
        INT32 | UINT32 | 7 => 4,
        9 | 12 | 13 => 8,
        _ => bail!("it holds values of type {kind}"),
    };
    ensure!(bytes.len() as u64 == length, "it was cut off; fetch the file again");
    ensure!(
        count.and_then(|count| count.checked_mul(width)) == Some(length),
        "its shape is {dims:?} but it has {length} bytes"
    );
    let each = |number: fn(&[u8]) -> f64| bytes.chunks_exact(width as usize).map(number).collect();
    Ok(match kind {
        UINT8 => Values::Bytes(bytes),
        INT8 => Values::Numbers(each(|b| f64::from(b[0] as i8))),
        3 => Values::Numbers(each(|b| f64::from(le(b) as i16))),
        INT32 => Values::Numbers(each(|b| f64::from(le(b) as i32))),
        7 => Values::Numbers(each(|b| f64::from(f32::from_bits(le(b) as u32)))),
        9 => Values::Numbers(each(|b| f64::from_bits(le(b)))),
        12 => Values::Numbers(each(|b| le(b) as i64 as f64)),
        _ => Values::Numbers(each(|b| le(b) as f64)),
    })
}

/// A short element of one type.
fn small(element: &mut impl Read, wanted: u32) -> Result<Vec<u8>> {
    let (kind, length, bytes) = content(element, SMALL_MAX)?;
    ensure!(kind == wanted && bytes.len() as u64 == length, "an array's head is damaged");
    Ok(bytes)
}

/// Type, length and bytes of an element; it may be packed into its own tag, and is filled up to eight bytes.
fn content(element: &mut impl Read, most: u64) -> Result<(u32, u64, Vec<u8>)> {
    let mut head = [0; 8];
    element.read_exact(&mut head).context("it was cut off")?;
    let (low, high) = (le(&head[..2]), le(&head[2..4]));
    if high != 0 {
        ensure!(high <= 4, "an element of {high} bytes within its tag");
        return Ok((low as u32, high, head[4..4 + high as usize].to_vec()));
    }
    let (kind, length) = (low as u32, le(&head[4..]));
    ensure!(length <= most, "an element of {length} bytes; {most} are read");
    // Not reserved at once: a damaged length must cost no memory.
    let mut bytes = Vec::new();
    element.take(length).read_to_end(&mut bytes)?;
    std::io::copy(&mut element.take(length.wrapping_neg() % 8), &mut std::io::sink())?;
    Ok((kind, length, bytes))
}

/// The tag of an element at the top; none at the end.
fn tag(file: &mut impl Read) -> Result<Option<(u32, u64)>> {
    let mut head = [0; 8];
    match file.read_exact(&mut head) {
        Ok(()) => Ok(Some((le(&head[..4]) as u32, le(&head[4..])))),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error).context("it is damaged; fetch the file again"),
    }
}

/// A little-endian number without sign.
fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
