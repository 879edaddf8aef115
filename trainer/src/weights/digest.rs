//! sha256 as the name of bytes.

use causeway_protocol::hex;
use sha2::{Digest, Sha256};
use std::io::{self, Write};

/// Passes bytes on and keeps their sha256 and number, so that a file is named without being read again.
pub struct HashingWriter<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Hashes what goes to `inner`.
    pub fn new(inner: W) -> HashingWriter<W> {
        HashingWriter { inner, hash: Sha256::new(), bytes: 0 }
    }

    /// The writer, the sha256 of what it was given, and the number of bytes.
    pub fn finish(self) -> (W, String, u64) {
        (self.inner, hex(&self.hash.finalize()), self.bytes)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_through_is_named_as_if_hashed_at_once() {
        let mut writer = HashingWriter::new(Vec::new());
        writer.write_all(b"ab").unwrap();
        writer.write_all(b"c").unwrap();
        let (passed, sha256, bytes) = writer.finish();
        assert_eq!((passed.as_slice(), bytes), (b"abc".as_slice(), 3));
        // FIPS 180-2, appendix B.1.
        assert_eq!(sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(sha256, causeway_protocol::sha256_hex(b"abc"));
    }
}
