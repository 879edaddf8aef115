//! A tar.gz becomes a folder. An archive is a stranger: what would leave the folder, or is no plain file or folder, is an
//! error, and the folder has its name only once all of it is there.

use anyhow::{Context, Result, bail, ensure};
use flate2::read::MultiGzDecoder;
use indicatif::ProgressBar;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Component, Path};
use tar::{Archive, EntryType};

/// Unpacks `archive`, all of whose members lie below `inner`, so that `folder/inner` holds them.
pub fn unpack(archive: &Path, folder: &Path, inner: &str) -> Result<()> {
    let context = || format!("unpacking {}", archive.display());
    let file = File::open(archive).with_context(context)?;
    let bar = ProgressBar::new(file.metadata().with_context(context)?.len());
    let temporary = folder.join(format!(".unpacking-{inner}"));
    if temporary.exists() {
        std::fs::remove_dir_all(&temporary).with_context(context)?;
    }
    std::fs::create_dir_all(&temporary).with_context(context)?;
    members(bar.wrap_read(file), &temporary, inner).with_context(context)?;
    bar.finish_and_clear();
    let (from, to) = (temporary.join(inner), folder.join(inner));
    std::fs::rename(&from, &to).with_context(|| format!("moving {} to {}", from.display(), to.display()))?;
    std::fs::remove_dir(&temporary).with_context(context)
}

fn members(file: impl Read, folder: &Path, inner: &str) -> Result<()> {
    let mut tar = Archive::new(MultiGzDecoder::new(BufReader::new(file)));
    tar.set_preserve_permissions(false);
    tar.set_preserve_mtime(false);
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        ensure!(plain, "its member {} would leave the folder; the archive is not used", path.display());
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::Directory => {}
            // Headers that speak of other members.
            EntryType::XGlobalHeader | EntryType::XHeader => continue,
            other => {
                bail!("its member {} is no plain file but {other:?}; the archive is not used", path.display())
            }
        }
        let below = path.components().find(|part| *part != Component::CurDir);
        match below {
            Some(first) if first.as_os_str() == inner => drop(entry.unpack_in(folder)?),
            // `./` itself, or what macOS leaves beside.
            _ => {}
        }
    }
    ensure!(folder.join(inner).is_dir(), "it holds no folder {inner}");
    Ok(())
}
