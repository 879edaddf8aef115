//! A folder for each class, images inside, in the order of their names: how EuroSAT, DTD, Imagenette, ImageNet and most
//! home-made sets come. The folder may lie in a zip, which is not unpacked.

use super::archive::zip_members;
use super::source::Source;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// Endings of image files; others, such as a README, are passed over.
pub const ENDINGS: [&str; 5] = ["png", "jpg", "jpeg", "bmp", "webp"];

/// An image in the folder of its class.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// Where it is.
    pub source: Source,
    /// Name of its class.
    pub class: String,
    /// Name of its file.
    pub file: String,
}

/// The images below a folder.
pub fn read(folder: &Path) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    for path in sorted(folder)?.into_iter().filter(|path| path.is_dir()) {
        let class = name(&path);
        let before = images.len();
        for path in sorted(&path)?.into_iter().filter(|path| is_image(path)) {
            let file = name(&path);
            images.push(Image { source: Source::File { path, sha256: None }, class: class.clone(), file });
        }
        ensure!(
            images.len() > before,
            "the class folder {} holds no image ({}); fill it or remove it",
            path.display(),
            ENDINGS.join(", ")
        );
    }
    ensure!(!images.is_empty(), "{} holds no class folders", folder.display());
    Ok(images)
}

/// The images below a folder in a zip, in the same order.
pub fn read_zip(zip: &Path, folder: &str) -> Result<Vec<Image>> {
    let prefix = match folder.trim_matches('/') {
        "" => String::new(),
        folder => format!("{folder}/"),
    };
    let mut images = Vec::new();
    for (path, source) in zip_members(zip)? {
        let inner = path.strip_prefix(&prefix).and_then(|inner| inner.split_once('/'));
        let Some((class, file)) = inner else { continue };
        let visible = !class.starts_with('.') && !file.starts_with('.');
        if visible && !file.contains('/') && is_image(Path::new(file)) {
            images.push(Image { source, class: class.to_owned(), file: file.to_owned() });
        }
    }
    ensure!(!images.is_empty(), "{} holds no class folders with images below `{prefix}`", zip.display());
    images.sort_by(|a, b| (&a.class, &a.file).cmp(&(&b.class, &b.file)));
    Ok(images)
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
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
