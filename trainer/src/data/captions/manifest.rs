//! The table `[captions]` of a manifest: where a format's files are, how many images are taken and which caption of each.

use crate::data::asset::Format;
use anyhow::{Result, ensure};
use serde::Deserialize;

/// How a captions asset is put together. Everything has a default.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptionsManifest {
    /// The lists, or the shards, relative to the asset's folder; `{0000..0575}` stands for all numbers between. The
    /// format's own name for its list if not given.
    pub paths: Vec<String>,
    /// Folder of the images; the format's usual one if not given.
    pub images: Option<String>,
    /// Which splits are taken, where the list has them (Karpathy's `train` and `restval`, a jsonl list's `split`).
    pub splits: Vec<String>,
    /// How a row of cc3m finds its image.
    pub naming: Option<Naming>,
    /// Which texts make the caption (imagenet-captions): `title`, `tags`, `description`.
    pub fields: Vec<Field>,
    /// Take so many images, chosen by `seed`.
    pub limit: Option<usize>,
    /// Seed of that choice, and of the choice among captions.
    pub seed: u64,
    /// Which caption of an image that has several.
    pub caption: Choice,
    /// What to do about an image that is not there or cannot be read; skipped in cc3m, an error elsewhere.
    pub missing: Option<Missing>,
}

/// How a row of cc3m finds its image, below the folder of images. Rows count from 0, a header not counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Naming {
    /// As img2dataset writes files: row 12 is `00000/000000012.jpg`, row 10,003 is `00001/000010003.jpg`.
    #[default]
    Img2dataset,
    /// `<row>.jpg`.
    Row,
    /// The last part of the URL, without what follows `?`.
    Url,
}

/// A text of ImageNet-Captions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Field {
    /// What the photographer called the image.
    Title,
    /// Flickr's tags.
    Tags,
    /// Often long, with HTML and other languages.
    Description,
}

/// Which caption of an image that has several.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// The first that is not empty.
    #[default]
    First,
    /// One chosen by seed and image, the same in every step.
    Random,
}

/// What to do about an image that is not there or cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// Refuse the asset and name the image.
    Error,
    /// Leave it out and count it.
    Skip,
}

impl CaptionsManifest {
    /// An option that the format does not know would be passed over in silence: it is refused.
    pub fn check(&self, format: Format) -> Result<()> {
        let only = |given: bool, option: &str, formats: &[Format]| {
            ensure!(
                !given || formats.contains(&format),
                "[captions] `{option}` does not go with format {format:?}; take it out"
            );
            Ok(())
        };
        only(self.naming.is_some(), "naming", &[Format::Cc3mTsv])?;
        only(!self.fields.is_empty(), "fields", &[Format::ImagenetCaptions])?;
        only(!self.splits.is_empty(), "splits", &[Format::CocoCaptions, Format::Jsonl])?;
        let foldered = [Format::CocoCaptions, Format::Cc3mTsv, Format::ImagenetCaptions];
        only(self.images.is_some(), "images", &foldered)?;
        ensure!(self.limit != Some(0), "[captions] `limit` is 0; it takes one image at least");
        Ok(())
    }

    /// What is done about a missing image in this format.
    pub fn missing(&self, format: Format) -> Missing {
        let usual = if format == Format::Cc3mTsv { Missing::Skip } else { Missing::Error };
        self.missing.unwrap_or(usual)
    }
}
