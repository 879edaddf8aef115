//! Safetensors files. The crate's reader checks every offset; its writer keeps metadata in a hash map, whose order
//! changes from run to run, so writing is done here: equal tensors make equal bytes, and so an equal sha256.

use super::{Tensors, digest, memory};
use ::safetensors::Dtype;
use ::safetensors::tensor::{Metadata, TensorInfo};
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::BlobRef;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::sync::mpsc;
use tch::{Kind, Tensor};

/// What a safetensors file holds.
#[derive(Debug)]
pub struct Contents {
    /// The tensors under the file's own names; f16 and bf16 are widened to f32.
    pub tensors: Tensors,
    /// The file's text metadata.
    pub metadata: BTreeMap<String, String>,
    /// sha256 of the file.
    pub sha256: String,
}

/// Most bytes of a header; the format's own limit.
const HEADER_MOST: u64 = 100_000_000;

/// Reads a whole file, tensor by tensor: it is never in memory twice.
///
/// # Errors
/// A file that is missing, truncated or damaged, or a dtype that is not a float; each names the file.
pub fn read(path: &Path) -> Result<Contents> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (length, file) = opened.with_context(|| format!("reading {}", path.display()))?;
    parse(file, length)
        .with_context(|| format!("{} is not a sound safetensors file ({length} bytes long)", path.display()))
}

/// `length` is the file's, in bytes.
fn parse(mut file: impl Read, length: u64) -> Result<Contents> {
    let mut first = [0; 8];
    file.read_exact(&mut first).context("reading the length of its header")?;
    let header_length = u64::from_le_bytes(first);
    ensure!(
        header_length <= HEADER_MOST && 8 + header_length <= length,
        "its first eight bytes announce a header of {header_length} bytes"
    );
    let mut bytes = vec![0; usize::try_from(header_length)?];
    file.read_exact(&mut bytes).context("reading its header")?;
    let header: Metadata = serde_json::from_slice(&bytes).context("reading its header")?;
    let end = 8 + header_length + header.data_len() as u64;
    ensure!(end == length, "by its header it is {end} bytes long");
    let mut hash = Sha256::new_with_prefix(first).chain_update(&bytes);
    let mut tensors = Tensors::new();
    // One thread reads while the other hashes what has been read.
    std::thread::scope(|scope| {
        let (send, receive) = mpsc::channel::<Tensor>();
        let hashing = scope.spawn(move || {
            receive.iter().for_each(|tensor| memory::with_bytes(&tensor, |bytes| hash.update(bytes)));
            causeway_protocol::hex(&hash.finalize())
        });
        // Checked by the crate: in this order one tensor begins where the one before ends, and each is as long as its shape
        // says.
        for name in header.offset_keys() {
            let info = header.info(&name).context("a tensor without a place")?;
            let (shape, kind) = shape_and_kind(info).with_context(|| name.clone())?;
            let tensor = memory::filled(&shape, kind, |bytes| Ok(file.read_exact(bytes)?))
                .with_context(|| format!("reading {name}"))?;
            send.send(tensor.shallow_clone()).ok().context("hashing has ended")?;
            // Widening is exact, but the file's values had been rounded: another θ0 with another digest.
            let tensor = if kind == Kind::Int64 { tensor } else { tensor.f_to_kind(Kind::Float)? };
            tensors.insert(name, tensor);
        }
        drop(send);
        let sha256 = hashing.join().ok().context("hashing has failed")?;
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Contents { tensors, metadata, sha256 })
    })
}

fn shape_and_kind(info: &TensorInfo) -> Result<(Vec<i64>, Kind)> {
    let kind = match info.dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        // Position ids of old BERT exports; nothing that is computed with.
        Dtype::I64 => Kind::Int64,
        other => bail!("it has dtype {other:?}; only F32, F16 and BF16 weights are read"),
    };
    let shape = info.shape.iter().map(|size| Ok(i64::try_from(*size)?)).collect::<Result<_>>()?;
    Ok((shape, kind))
}

/// Writes `tensors` and `metadata` to `path`, whole or not at all: to a temporary name, fsynced, renamed, the folder
/// fsynced. Returns the file as a blob.
///
/// # Errors
/// A full disk or any other failure of the file system.
pub fn write(path: &Path, tensors: &Tensors, metadata: &BTreeMap<String, String>) -> Result<BlobRef> {
    let context = || format!("writing {}", path.display());
    let (Some(folder), Some(file)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        bail!("{} does not name a file in a folder", path.display());
    };
    let partial = folder.join(format!(".{file}.partial"));
    let written = write_file(&partial, tensors, metadata);
    if written.is_err() {
        // A full disk must not keep the half that filled it.
        let _ = fs::remove_file(&partial);
    }
    let (sha256, bytes) = written.with_context(context)?;
    fs::rename(&partial, path).with_context(context)?;
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(context)?;
    Ok(BlobRef { sha256, bytes, file: file.to_owned() })
}

fn write_file(path: &Path, tensors: &Tensors, metadata: &BTreeMap<String, String>) -> Result<(String, u64)> {
    let mut header = BTreeMap::<&str, Value>::from([("__metadata__", json!(metadata))]);
    let mut end = 0;
    for (name, tensor) in tensors.iter() {
        ensure!(name != "__metadata__", "a tensor cannot be named __metadata__");
        let begin = end;
        end += tensor.numel() * tensor.kind().elt_size_in_bytes();
        let dtype = dtype_name(tensor.kind())?;
        header.insert(name, json!({"dtype": dtype, "shape": tensor.size(), "data_offsets": [begin, end]}));
    }
    let mut header = serde_json::to_vec(&header)?;
    // The format wants the data to begin at a multiple of eight; spaces after the header fill the gap.
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut writer = digest::HashingWriter::new(BufWriter::with_capacity(1 << 20, File::create(path)?));
    writer.write_all(&(header.len() as u64).to_le_bytes())?;
    writer.write_all(&header)?;
    for (_, tensor) in tensors.iter() {
        memory::with_bytes(tensor, |bytes| writer.write_all(bytes))?;
    }
    let (buffer, sha256, bytes) = writer.finish();
    buffer.into_inner()?.sync_all()?;
    Ok((sha256, bytes))
}

/// The name of a dtype in safetensors.
pub fn dtype_name(kind: Kind) -> Result<&'static str> {
    Ok(match kind {
        Kind::Float => "F32",
        Kind::Half => "F16",
        Kind::BFloat16 => "BF16",
        Kind::Int64 => "I64",
        other => bail!("{other:?} is no dtype that weights are kept in"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (Tensors, BTreeMap<String, String>) {
        let matrix = Tensor::from_slice(&[1f32, -0.0, f32::MIN_POSITIVE, 4.0, 5.5, -6.25]).reshape([2, 3]);
        let tensors = [("b".to_owned(), matrix), ("a".to_owned(), Tensor::from(7f32))];
        (tensors.into_iter().collect(), BTreeMap::from([("step".to_owned(), "3".to_owned())]))
    }

    #[test]
    fn what_is_written_is_read_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        let (tensors, metadata) = example();
        let blob = write(&path, &tensors, &metadata).unwrap();
        let contents = read(&path).unwrap();
        assert_eq!(contents.metadata, metadata);
        assert_eq!(contents.sha256, blob.sha256);
        assert_eq!(blob.bytes, fs::metadata(&path).unwrap().len());
        assert_eq!(contents.tensors.digest().unwrap(), tensors.digest().unwrap());
        assert!(super::super::bitwise_equal(&contents.tensors["b"], &tensors["b"]));
        let files: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(files.len(), 1, "the temporary file is gone");
    }

    #[test]
    fn equal_tensors_make_equal_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (tensors, mut metadata) = example();
        metadata.extend((0..20).map(|at| (format!("key {at}"), at.to_string())));
        let one = write(&folder.path().join("one"), &tensors, &metadata).unwrap();
        let two = write(&folder.path().join("two"), &tensors, &metadata).unwrap();
        assert_eq!(one.sha256, two.sha256);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        let (tensors, metadata) = example();
        write(&path, &tensors, &metadata).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in [0, 4, 8, 40, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            let error = format!("{:#}", read(&path).unwrap_err());
            assert!(error.contains("weights.safetensors is not a sound safetensors file"), "{error}");
        }
        fs::write(&path, vec![0xff; 4096]).unwrap();
        assert!(read(&path).is_err());
        assert!(read(&folder.path().join("absent")).is_err());
    }

    #[test]
    fn half_precision_is_widened_and_so_another_set_of_weights() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("half.safetensors");
        let exact: Tensors = [("w".to_owned(), Tensor::from_slice(&[1f32, 0.1, -3.0]))].into_iter().collect();
        for kind in [Kind::Half, Kind::BFloat16] {
            let half: Tensors = [("w".to_owned(), exact["w"].to_kind(kind))].into_iter().collect();
            write(&path, &half, &BTreeMap::new()).unwrap();
            let read = read(&path).unwrap().tensors;
            assert_eq!(read["w"].kind(), Kind::Float);
            assert!((&read["w"] - &exact["w"]).abs().max().double_value(&[]) < 1e-3);
            assert_ne!(read.digest().unwrap(), exact.digest().unwrap());
        }
    }
}
