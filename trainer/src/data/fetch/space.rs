//! Whether a disk has room, asked before anything is written to it.

use anyhow::{Context, Result, ensure};
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Checks that the disk of a path, which need not be there yet, has room for so many bytes.
pub fn check(path: &Path, bytes: u64) -> Result<()> {
    let folder = path.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let free = free(folder)?;
    ensure!(
        bytes <= free,
        "{} has {:.1} GB free, {:.1} GB are needed; make room, or give another folder with --to",
        folder.display(),
        free as f64 / 1e9,
        bytes as f64 / 1e9
    );
    Ok(())
}

/// Bytes that a user without privileges may still write.
fn free(folder: &Path) -> Result<u64> {
    let name = CString::new(folder.as_os_str().as_bytes()).context("a path with a null byte")?;
    let mut told = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the name ends with a null byte, and the place is as large as what is written there.
    let failed = unsafe { libc::statvfs(name.as_ptr(), told.as_mut_ptr()) } != 0;
    if failed {
        let error = std::io::Error::last_os_error();
        return Err(error).with_context(|| format!("asking how much room {} has", folder.display()));
    }
    // SAFETY: the call has succeeded, so it has written all of it.
    let told = unsafe { told.assume_init() };
    Ok(told.f_bavail.saturating_mul(told.f_frsize))
}
