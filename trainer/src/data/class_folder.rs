//! A folder for each class, images inside, in the order of their names: how EuroSAT, ImageNet and most home-made sets
//! come.

use super::dataset::Source;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// Endings of image files; others, such as a README, are passed over.
pub const ENDINGS: [&str; 5] = ["png", "jpg", "jpeg", "bmp", "webp"];

/// The images below a folder with the names of their classes.
pub fn read(folder: &Path) -> Result<Vec<(Source, String)>> {
    let mut images = Vec::new();
    for class in sorted(folder)?.into_iter().filter(|path| path.is_dir()) {
        let name = class.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let before = images.len();
        for path in sorted(&class)?.into_iter().filter(|path| is_image(path)) {
            images.push((Source::File { path, sha256: None }, name.clone()));
        }
        ensure!(
            images.len() > before,
            "the class folder {} holds no image ({}); fill it or remove it",
            class.display(),
            ENDINGS.join(", ")
        );
    }
    ensure!(!images.is_empty(), "{} holds no class folders", folder.display());
    Ok(images)
}

/// Visible entries by name: the order that a file system lists them in differs from machine to machine.
pub fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("reading the folder {}", folder.display());
    let entries = std::fs::read_dir(folder).with_context(context)?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(context)?;
    paths.retain(|path| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.')));
    paths.sort();
    Ok(paths)
}

/// Whether a file is one by its ending.
pub fn is_image(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}
