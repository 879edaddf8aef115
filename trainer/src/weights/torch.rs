//! Files that torch writes: `torch.save`'s checkpoints and TorchScript archives. Either is a zip archive of stored
//! entries: `data.pkl`, a pickle that says how tensors are put together, and a file of bytes for each storage. Only the
//! storages of the chosen state dict are read, so an optimiser's state beside it costs nothing.

use super::pickle::{At, Node, Pickle, Storage, View};
use super::{Tensors, safetensors};
use crate::data::asset::file_sha256;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use tch::{Kind, Tensor};
use zip::{CompressionMethod, ZipArchive};

/// Under which keys training programs keep the state dict, first come first taken: DINO's full checkpoint (whose
/// teacher is what DINO publishes), MAE, OpenCLIP, DeepSpeed.
const STATE_DICT_KEYS: [&str; 5] = ["teacher", "model", "state_dict", "model_state_dict", "module"];
/// Deepest tree of modules in a TorchScript archive.
const DEPTH_MAX: usize = 64;
/// Most attributes in all modules of a TorchScript archive.
const ATTRIBUTES_MAX: usize = 1 << 20;
/// A tensor may repeat values of its storage only up to this size: nothing published does, and without a limit a few
/// bytes could ask for all memory.
const REPEATED_VALUES_MAX: i64 = 1 << 20;

/// What a file of torch's holds.
#[derive(Debug)]
pub struct TorchFile {
    /// Its state dict and sha256, floats widened to f32 as in [`safetensors::read`].
    pub contents: safetensors::Contents,
    /// Whether it is a TorchScript archive.
    pub torchscript: bool,
    /// Entries of the state dict that are no tensors, with what they are.
    pub others: Vec<String>,
}

/// Whether the first bytes are those of a zip archive.
pub fn is_zip(first: &[u8]) -> bool {
    first.starts_with(b"PK\x03\x04")
}

/// Reads the state dict in a file: the one under `key`, else the only one, else the first that training programs have.
///
/// # Errors
/// A file that is no such archive, is cut short, or holds no state dict; it says what to do.
pub fn read(path: &Path, key: Option<&str>) -> Result<TorchFile> {
    read_archive(path, key).with_context(|| format!("reading {}", path.display()))
}

fn read_archive(path: &Path, key: Option<&str>) -> Result<TorchFile> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut first = Vec::new();
    file.by_ref().take(64).read_to_end(&mut first)?;
    check_beginning(&first)?;
    let zip = ZipArchive::new(BufReader::new(file))
        .with_context(|| format!("the archive is damaged or cut short at {length} bytes; fetch it again"))?;
    let mut archive = Archive::new(zip, length)?;
    let pickle = Pickle::read(&archive.bytes("data.pkl")?)?;
    let torchscript = archive.holds("constants.pkl");
    let entries = match torchscript {
        true => attributes(&pickle)?,
        false => state_dict(&pickle, key)?,
    };
    let (mut tensors, mut others) = (Tensors::new(), Vec::new());
    for (name, at) in entries {
        match pickle.node(at) {
            Node::Tensor(view) => {
                let tensor = archive.tensor(view).with_context(|| format!("tensor {name}"))?;
                tensors.insert(name, tensor);
            }
            // Every module's flags and sizes.
            _ if torchscript => {}
            _ => others.push(format!("{name} ({})", pickle.describe(at))),
        }
    }
    let contents = safetensors::Contents { tensors, metadata: BTreeMap::new(), sha256: file_sha256(path)? };
    Ok(TorchFile { contents, torchscript, others })
}

/// Names what people have instead of an archive.
fn check_beginning(first: &[u8]) -> Result<()> {
    if is_zip(first) {
        return Ok(());
    }
    // torch before 1.6 begins its files with a pickled number of ten bytes, in protocol 2.
    if first.starts_with(b"\x80\x02\x8a\x0a") {
        bail!(
            "it is in the format of torch before 1.6; load it with a torch that you trust it with and `torch.save` its \
             state dict again"
        );
    }
    if first.starts_with(b"version https://git-lfs") {
        bail!("it is Git LFS's pointer to a file, not the file; fetch it with `git lfs pull`");
    }
    if first.starts_with(b"<") {
        bail!("it is a web page, not weights; its download must have failed");
    }
    bail!("it is no archive of torch's (a zip) and no safetensors file")
}

/// The entries of a checkpoint's state dict.
fn state_dict(pickle: &Pickle, key: Option<&str>) -> Result<Vec<(String, At)>> {
    let root = pickle.root();
    let holds_tensors =
        |at: At| pickle.entries(at).any(|(_, value)| matches!(pickle.node(value), Node::Tensor(_)));
    let under = |wanted: &str| pickle.entries(root).find(|(key, _)| *key == wanted).map(|(_, at)| at);
    let found = match key {
        Some(key) => under(key).filter(|at| holds_tensors(*at)),
        None if holds_tensors(root) => Some(root),
        None => STATE_DICT_KEYS.iter().filter_map(|key| under(key)).find(|at| holds_tensors(*at)),
    };
    if let Some(found) = found {
        return Ok(pickle.entries(found).map(|(name, at)| (name.to_owned(), at)).collect());
    }
    if let Node::Object { class, .. } = pickle.node(root) {
        bail!("it holds a whole {class}; `torch.save` the state_dict() of that instead");
    }
    let held: Vec<String> =
        pickle.entries(root).map(|(key, at)| format!("{key} ({})", pickle.describe(at))).collect();
    let wanted = key.map_or_else(|| "by itself".to_owned(), |key| format!("under the key {key}"));
    bail!("it holds no state dict {wanted}; its keys are: {}", held.join(", "))
}

/// A TorchScript archive's state dict: the tensors at the ends of the tree of modules, named by the way to them.
fn attributes(pickle: &Pickle) -> Result<Vec<(String, At)>> {
    let mut found = Vec::new();
    let mut open = vec![(String::new(), pickle.root(), 0)];
    let mut seen = 0;
    while let Some((path, at, depth)) = open.pop() {
        seen += 1;
        ensure!(depth <= DEPTH_MAX && seen <= ATTRIBUTES_MAX, "its tree of modules has no end");
        let Node::Object { state: Some(state), .. } = pickle.node(at) else {
            if depth > 0 {
                found.push((path, at));
            }
            continue;
        };
        for (name, value) in pickle.entries(*state) {
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            open.push((path, value, depth + 1));
        }
    }
    Ok(found)
}

struct Archive {
    zip: ZipArchive<BufReader<File>>,
    /// The folder that everything lies in.
    root: String,
    /// Length of the file: no entry is longer.
    length: u64,
    /// The storages read so far, flat: tensors may share them.
    storages: HashMap<String, Tensor>,
}

impl Archive {
    fn new(zip: ZipArchive<BufReader<File>>, length: u64) -> Result<Archive> {
        let root =
            zip.file_names().filter_map(|name| name.strip_suffix("data.pkl")).min_by_key(|name| name.len());
        let root =
            root.context("it is a zip archive, but none of torch's: there is no data.pkl in it")?.to_owned();
        let mut archive = Archive { zip, root, length, storages: HashMap::new() };
        if archive.holds("byteorder") {
            let order = archive.bytes("byteorder")?;
            ensure!(
                order == b"little",
                "it was written on a big-endian machine; only little-endian ones are read"
            );
        }
        Ok(archive)
    }

    fn holds(&self, name: &str) -> bool {
        let name = format!("{}{name}", self.root);
        self.zip.file_names().any(|entry| entry == name)
    }

    /// The bytes of an entry, whose checksum the zip reader checks.
    fn bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        let name = format!("{}{name}", self.root);
        let context = || format!("{name} in the archive is damaged or missing; fetch the file again");
        let mut entry = self.zip.by_name(&name).with_context(context)?;
        ensure!(
            entry.compression() == CompressionMethod::Stored && entry.size() <= self.length,
            "{name} in the archive is compressed, which torch never does"
        );
        let mut bytes = Vec::with_capacity(entry.size() as usize);
        entry.read_to_end(&mut bytes).with_context(context)?;
        Ok(bytes)
    }

    /// All values of a storage, in one row.
    fn storage(&mut self, storage: &Storage) -> Result<&Tensor> {
        if !self.storages.contains_key(&storage.key) {
            let kind = kind(&storage.class)?;
            let bytes = self.bytes(&format!("data/{}", storage.key))?;
            let expected = (storage.count as u64).saturating_mul(kind.elt_size_in_bytes() as u64);
            ensure!(
                bytes.len() as u64 == expected,
                "its storage data/{} has {} bytes, must have {expected}; the file is damaged, fetch it again",
                storage.key,
                bytes.len()
            );
            let tensor = Tensor::f_from_data_size(&bytes, &[storage.count], kind)?;
            self.storages.insert(storage.key.clone(), tensor);
        }
        let tensor = &self.storages[&storage.key];
        ensure!(
            tensor.kind() == kind(&storage.class)? && tensor.size() == [storage.count],
            "its storage data/{} is described in two ways",
            storage.key
        );
        Ok(tensor)
    }

    /// A tensor of its own, row by row, floats as f32.
    fn tensor(&mut self, view: &View) -> Result<Tensor> {
        let count = view.size.iter().try_fold(1i64, |count, size| count.checked_mul(*size));
        let last = view.size.iter().zip(&view.stride).try_fold(view.offset, |last, (size, stride)| {
            last.checked_add((size - 1).max(0).checked_mul(*stride)?)
        });
        let held = view.storage.count;
        match (count, last) {
            (Some(0), _) => {}
            (Some(count), Some(last)) if last < held && (count <= held || count <= REPEATED_VALUES_MAX) => {}
            _ => bail!(
                "its shape {:?} with strides {:?} from {} does not fit its storage of {held} values",
                view.size,
                view.stride,
                view.offset
            ),
        }
        let whole = self.storage(&view.storage)?;
        let tensor = match count {
            Some(0) => Tensor::f_zeros(&view.size, (whole.kind(), tch::Device::Cpu))?,
            _ => whole.f_as_strided(&view.size, &view.stride, view.offset)?,
        };
        // A copy even where nothing changes: training writes into tensors, and storages may be shared.
        Ok(match tensor.kind() {
            Kind::Half | Kind::BFloat16 | Kind::Double => tensor.f_to_kind(Kind::Float)?.f_contiguous()?,
            _ => tensor.f_contiguous()?.copy(),
        })
    }
}

/// The dtype of a storage's class.
fn kind(class: &str) -> Result<Kind> {
    Ok(match class {
        "torch.FloatStorage" => Kind::Float,
        "torch.HalfStorage" => Kind::Half,
        "torch.BFloat16Storage" => Kind::BFloat16,
        "torch.DoubleStorage" => Kind::Double,
        "torch.LongStorage" => Kind::Int64,
        "torch.IntStorage" => Kind::Int,
        "torch.ShortStorage" => Kind::Int16,
        "torch.CharStorage" => Kind::Int8,
        "torch.ByteStorage" => Kind::Uint8,
        "torch.BoolStorage" => Kind::Bool,
        other => bail!("its values are of {other}; only floats, integers and bools are read"),
    })
}

#[cfg(test)]
mod tests;
