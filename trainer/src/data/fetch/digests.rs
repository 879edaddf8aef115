//! Both digests of a file in one pass: the md5 that its owner publishes, the sha256 that a manifest records.

use anyhow::{Context, Result};
use causeway_protocol::hex;
use md5::Md5;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Digests and length.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Digests {
    /// As owners publish it: against damage, not against malice.
    pub md5: String,
    /// As manifests record it.
    pub sha256: String,
    /// Length.
    pub bytes: u64,
}

/// The digests of a file.
pub fn digests(path: &Path) -> Result<Digests> {
    let context = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let (mut md5, mut sha256, mut bytes) = (Md5::new(), Sha256::new(), 0);
    let mut chunk = vec![0; 1 << 16];
    loop {
        let length = file.read(&mut chunk).with_context(context)?;
        if length == 0 {
            return Ok(Digests { md5: hex(&md5.finalize()), sha256: hex(&sha256.finalize()), bytes });
        }
        md5.update(&chunk[..length]);
        sha256.update(&chunk[..length]);
        bytes += length as u64;
    }
}
