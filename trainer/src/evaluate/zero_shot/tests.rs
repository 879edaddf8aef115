//! Zero-shot is open_clip's, and what does not go together is refused.

use super::*;
use crate::models::language::tiny;
use crate::reference::{assert_near, numbers_in};
use crate::weights::safetensors;
use causeway_protocol::Hits;
use std::collections::BTreeMap;
use std::fs;

const CLASSES: [&str; 4] = ["cat", "dog", "cat_a", "coat"];

fn numbers(path: &str) -> Vec<f64> {
    numbers_in(include_str!("../../../goldens/readouts.json"), path)
}

/// A data folder with the tiny text tower of `goldens/language.py` as the asset `tower`.
pub fn data(format: &str) -> (tempfile::TempDir, String) {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().join("tower");
    fs::create_dir_all(&folder).unwrap();
    let about = format!("name = 'tower'\nkind = 'text_encoder'\nformat = '{format}'\ntitle = 'tower'\n");
    fs::write(folder.join("asset.toml"), about + "licence = 'none'\nsource = 'a test'\n").unwrap();
    let weights = folder.join("model.safetensors");
    safetensors::write(&weights, &tiny::weights(7, &tiny::clip_shapes()), &BTreeMap::new()).unwrap();
    let config = serde_json::json!({"hidden_act": "gelu", "num_attention_heads": 2});
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    tiny::write_clip_tokenizer(&folder);
    let digest = crate::data::asset::file_sha256(&weights).unwrap();
    (data, digest)
}

/// What the tests ask of it.
pub fn asked(digest: &str) -> ZeroShot {
    let templates = ["a {}", "{} & dog"].map(str::to_owned).to_vec();
    ZeroShot { text_encoder: "tower".to_owned(), digest: digest.to_owned(), templates }
}

/// An image tower whose features are as wide as the tiny tower's embeddings.
pub fn image_tower() -> VitConfig {
    VitConfig { projection: Some(6), ..VitConfig::default() }
}

#[test]
fn classes_and_similarities_are_those_of_open_clip() {
    let (data, digest) = data("clip-text");
    let library = Library::find(&[data.path().to_owned()]);
    let text = text_encoder(&asked(&digest), &library, &image_tower()).unwrap();
    let classes = class_embeddings(&text, &asked(&digest), &CLASSES.map(str::to_owned)).unwrap();
    // f32 rounding over two blocks.
    assert_near(&classes, &numbers("zero_shot.classes"), 1e-5);
    let images = tiny::values(11, "images", &[5, 6], 0.5);
    let rows = Rows::of(&images, "query", "", 1).unwrap().in_f64();
    let similarities = rows.matmul(&classes.to_kind(Kind::Double).tr());
    assert_near(&similarities, &numbers("zero_shot.logits"), 1e-5);
    let labels: Vec<u32> = numbers("zero_shot.predictions").iter().map(|label| *label as u32).collect();
    assert_eq!(score(&images, &labels, &classes).unwrap().hits, Hits::from_flags(&[true; 5]));
    let wrong: Vec<u32> = labels.iter().map(|label| (label + 1) % 4).collect();
    let score = score(&(images * 7.0), &wrong, &classes).unwrap();
    assert_eq!((score.hits.count(), score.correct_top5), (0, 5));
}

#[test]
fn a_class_stands_in_its_template_with_spaces_for_underscores() {
    assert_eq!(sentence("a photo of a {}.", "annual_crop_land"), "a photo of a annual crop land.");
}

#[test]
fn what_does_not_go_together_is_refused_with_the_reason() {
    let (folder, digest) = data("clip-text");
    let library = Library::find(&[folder.path().to_owned()]);
    let refused = |zero_shot: &ZeroShot, library: &Library, encoder: &VitConfig| {
        format!("{:#}", text_encoder(zero_shot, library, encoder).err().unwrap())
    };
    let error = refused(&asked(&"0".repeat(64)), &library, &image_tower());
    assert!(error.contains(&format!("here have the sha256 {digest}")), "{error}");
    let error = refused(&asked(&digest), &library, &VitConfig::default());
    assert!(error.contains("has no projection"), "{error}");
    let wide = VitConfig { projection: Some(512), ..VitConfig::default() };
    let error = refused(&asked(&digest), &library, &wide);
    assert!(error.contains("are 6 wide, the encoder's features 512"), "{error}");
    let (bert, digest) = data("bert");
    let library = Library::find(&[bert.path().to_owned()]);
    let error = refused(&asked(&digest), &library, &image_tower());
    assert!(error.contains("share no space with images"), "{error}");
    let error = refused(&asked(&digest), &Library::default(), &image_tower());
    assert!(error.contains("tower"), "{error}");
}
