//! Datasets as their owners pack them, read without unpacking: the images of a zip where they lie in it, and the few
//! files of arrays of a compressed tar, which has no places to jump to, in one pass.

use super::source::Source;
use anyhow::{Context, Result, bail, ensure};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zip::ZipArchive;

/// Longest file of arrays; CIFAR-100's training pickle has 155 million bytes.
const BYTES_MAX: u64 = 1 << 30;

/// The files of a zip, with their paths, in the order of the archive.
pub fn zip_members(path: &Path) -> Result<Vec<(String, Source)>> {
    let context = || format!("reading the zip {}; is it complete?", path.display());
    let file = File::open(path).with_context(context)?;
    let mut archive = ZipArchive::new(BufReader::new(file)).with_context(context)?;
    let shared: Arc<Path> = path.into();
    let mut members = Vec::with_capacity(archive.len());
    for at in 0..archive.len() {
        let member = archive.by_index_raw(at).with_context(context)?;
        if member.is_dir() {
            continue;
        }
        // By number: what the crate calls a method depends on what it was built to decode.
        #[allow(deprecated)]
        let deflated = match member.compression().to_u16() {
            0 => false,
            8 => true,
            other => bail!(
                "{}: `{}` is packed by method {other}; zip it again with deflate",
                path.display(),
                member.name()
            ),
        };
        let (name, begin, length) = (member.name().to_owned(), member.data_start(), member.compressed_size());
        let source = Source::Member { file: shared.clone(), name: name.clone(), begin, length, deflated };
        members.push((name, source));
    }
    Ok(members)
}

/// The bytes of some files of a folder, or of a tar.gz in it, each with a path to name it by.
pub fn read_files(folder: &Path, archive: Option<&str>, names: &[String]) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let Some(archive) = archive else {
        let read = |name: &String| {
            let path = folder.join(name);
            let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            Ok((path, bytes))
        };
        return names.iter().map(read).collect();
    };
    let path = folder.join(archive);
    let context = || format!("reading the archive {}; is it complete?", path.display());
    let file = File::open(&path).with_context(context)?;
    let mut tar = ::tar::Archive::new(MultiGzDecoder::new(BufReader::new(file)));
    let mut found: Vec<Option<Vec<u8>>> = vec![None; names.len()];
    for entry in tar.entries().with_context(context)? {
        let mut entry = entry.with_context(context)?;
        let name = entry.path().with_context(context)?.to_string_lossy().trim_start_matches("./").to_owned();
        let Some(at) = names.iter().position(|wanted| *wanted == name) else { continue };
        ensure!(
            entry.size() <= BYTES_MAX,
            "{}: {name} has {} bytes; {BYTES_MAX} are read",
            path.display(),
            entry.size()
        );
        let mut bytes = Vec::with_capacity(entry.size() as usize);
        entry.read_to_end(&mut bytes).with_context(context)?;
        found[at] = Some(bytes);
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    let held = |(name, bytes): (&String, Option<Vec<u8>>)| {
        let bytes = bytes.with_context(|| format!("{} holds no {name}", path.display()))?;
        Ok((path.join(name), bytes))
    };
    names.iter().zip(found).map(held).collect()
}
