//! COCO's captions, `captions_{train,val}{2014,2017}.json`, and Karpathy's split of them, `dataset_coco.json`. Both are
//! named by COCO's image id, so that a subset is the same images whichever file it is chosen from.

use super::{Candidate, Picture, Text};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// Either file: the fields of the other are absent.
#[derive(Deserialize)]
struct Document {
    images: Vec<Image>,
    #[serde(default)]
    annotations: Option<Vec<Annotation>>,
}

#[derive(Deserialize)]
struct Image {
    id: Option<u64>,
    file_name: Option<String>,
    // Karpathy's.
    cocoid: Option<u64>,
    filename: Option<String>,
    filepath: Option<String>,
    split: Option<String>,
    #[serde(default)]
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Annotation {
    id: u64,
    image_id: u64,
    // Absent in instances_*.json and the like.
    caption: Option<String>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

/// The images of one list. `images` is the folder of all, or that of the list's own name where not given: `train2017`
/// for `captions_train2017.json`, the asset's folder for Karpathy's, which names `train2014` and `val2014` itself.
pub fn read(path: &Path, asset: &Path, images: Option<&str>, splits: &[String]) -> Result<Vec<Candidate>> {
    let context = || format!("reading the captions {}", path.display());
    let file = File::open(path).with_context(context)?;
    let document: Document = serde_json::from_reader(BufReader::new(file)).with_context(context)?;
    match document.annotations {
        Some(annotations) => {
            ensure!(
                splits.is_empty(),
                "{} has no splits; `splits` goes with Karpathy's dataset_coco.json",
                path.display()
            );
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let folder = images.or(name.strip_prefix("captions_")).unwrap_or("images");
            official(document.images, annotations, &asset.join(folder))
        }
        None => karpathy(document.images, &asset.join(images.unwrap_or("")), splits),
    }
    .with_context(context)
}

fn official(images: Vec<Image>, annotations: Vec<Annotation>, folder: &Path) -> Result<Vec<Candidate>> {
    let mut captions: HashMap<u64, Vec<(u64, String)>> = HashMap::new();
    for Annotation { id, image_id, caption } in annotations {
        let caption = caption.with_context(|| {
            format!("the annotation {id} has no caption; is this another task's file? take captions_*.json")
        })?;
        captions.entry(image_id).or_default().push((id, caption));
    }
    let candidate = |image: Image| {
        let (Some(id), Some(name)) = (image.id, image.file_name) else {
            bail!("an image has no `id` or no `file_name`");
        };
        let mut captions = captions.remove(&id).unwrap_or_default();
        // By annotation: the order in the file may differ from one copy to the next.
        captions.sort();
        Ok(Candidate {
            key: id.to_string(),
            picture: Picture::file(folder.join(name)),
            text: Text::Ready(captions.into_iter().map(|(_, caption)| caption).collect()),
        })
    };
    let candidates = images.into_iter().map(candidate).collect::<Result<Vec<_>>>()?;
    Ok(candidates)
}

fn karpathy(images: Vec<Image>, folder: &Path, splits: &[String]) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for image in images {
        let name = image.filename.context("an image has no `filename`, and there are no `annotations`")?;
        let split = image.split.unwrap_or_default();
        if !splits.is_empty() && !splits.contains(&split) {
            continue;
        }
        let inner = image.filepath.unwrap_or_default();
        found.push(Candidate {
            key: image.cocoid.map_or_else(|| name.clone(), |id| id.to_string()),
            picture: Picture::Either(folder.join(inner).join(&name), folder.join(&name)),
            text: Text::Ready(image.sentences.into_iter().map(|sentence| sentence.raw).collect()),
        });
    }
    ensure!(!found.is_empty(), "no image is in the splits {splits:?}");
    Ok(found)
}
