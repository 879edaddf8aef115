//! Each format on tiny files made here; subsets, duplicates and digests.

use super::*;
use crate::data::tar::tests::tar;
use ::image::{ImageFormat, Rgb, RgbImage as Bitmap};
use serde_json::json;
use std::collections::BTreeSet;
use std::io::Cursor;
use tempfile::TempDir;

/// An image that differs from that of every other number, encoded.
fn encoded(number: u8, format: ImageFormat) -> Vec<u8> {
    let image = Bitmap::from_fn(12, 10, |x, y| Rgb([number, (20 * x) as u8, (25 * y) as u8]));
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn write(folder: &TempDir, path: &str, bytes: impl AsRef<[u8]>) {
    let path = folder.path().join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// The asset in the folder; `options` is what `[captions]` says.
fn asset(folder: &TempDir, format: &str, options: &str) -> Asset {
    let text = format!(
        "name = \"tiny\"\nkind = \"captions\"\nformat = \"{format}\"\ntitle = \"Tiny\"\nlicence = \"MIT\"\n\
         source = \"test\"\n[captions]\n{options}"
    );
    write(folder, "asset.toml", text);
    Asset::read(folder.path()).unwrap()
}

fn read(folder: &TempDir, format: &str, options: &str) -> Result<Captions> {
    Captions::read(&asset(folder, format, options), 2, &|_, _| ())
}

fn error(folder: &TempDir, format: &str, options: &str) -> String {
    format!("{:#}", read(folder, format, options).unwrap_err())
}

/// Each image's file name and caption.
fn pairs(captions: &Captions) -> Vec<(String, String)> {
    let name = |source: &Source| source.name().rsplit(['/', ':']).next().unwrap_or_default().to_owned();
    let pair = |at: usize| (name(&captions.images[at]), captions.caption(at).to_owned());
    (0..captions.images.len()).map(pair).collect()
}

fn owned<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
    pairs.map(|(image, caption)| (image.to_owned(), caption.to_owned())).into()
}

/// COCO of so many images with two captions each; `reversed` lists everything backwards.
fn coco(images: u8, reversed: bool) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut listed = Vec::new();
    let mut annotations = Vec::new();
    for id in 0..images {
        let name = format!("{id:012}.jpg");
        write(&folder, &format!("train2017/{name}"), encoded(id, ImageFormat::Jpeg));
        listed.push(json!({"id": id, "file_name": name, "height": 10, "width": 12, "license": 3}));
        for which in 0..2 {
            let caption = format!(" Image {id}, text {which}.\n");
            annotations.push(json!({"image_id": id, "id": 10 * u32::from(id) + which, "caption": caption}));
        }
    }
    if reversed {
        listed.reverse();
        annotations.reverse();
    }
    let document = json!({"info": {}, "licenses": [], "images": listed, "annotations": annotations});
    write(&folder, "annotations/captions_train2017.json", document.to_string());
    folder
}

#[test]
fn coco_pairs_each_image_with_its_first_caption() {
    let captions = read(&coco(3, false), "coco-captions", "").unwrap();
    let expected = [
        ("000000000000.jpg", "Image 0, text 0."),
        ("000000000001.jpg", "Image 1, text 0."),
        ("000000000002.jpg", "Image 2, text 0."),
    ];
    assert_eq!(pairs(&captions), owned(expected));
    assert_eq!(captions.account.to_string(), "3 images listed");
}

#[test]
fn a_random_caption_is_chosen_by_seed_and_image() {
    let folder = coco(40, false);
    let chosen = |options: &str| pairs(&read(&folder, "coco-captions", options).unwrap());
    let one = chosen("caption = \"random\"\nseed = 1");
    assert_eq!(one, chosen("caption = \"random\"\nseed = 1"));
    assert_ne!(one, chosen("caption = \"random\"\nseed = 2"));
    // 40 coins: three and a half standard deviations are 11.
    let second = one.iter().filter(|(_, caption)| caption.ends_with("text 1.")).count();
    assert!(second.abs_diff(20) < 11, "{second}");
    assert_eq!(
        one,
        pairs(&read(&coco(40, true), "coco-captions", "caption = \"random\"\nseed = 1").unwrap())
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_subset_is_decided_by_its_seed_whatever_the_order_of_the_files() {
    let (folder, reversed) = (coco(60, false), coco(60, true));
    let subset = |folder: &TempDir, limit, seed| {
        read(folder, "coco-captions", &format!("limit = {limit}\nseed = {seed}")).unwrap()
    };
    let ten = subset(&folder, 10, 1);
    assert_eq!(pairs(&ten), pairs(&subset(&reversed, 10, 1)));
    assert_eq!(ten.account.chosen, subset(&reversed, 10, 1).account.chosen);
    assert_eq!(ten.digest(), subset(&reversed, 10, 1).digest());
    assert_eq!(pairs(&ten), pairs(&subset(&folder, 20, 1))[..10], "a smaller subset begins the larger");
    assert_ne!(pairs(&ten), pairs(&subset(&folder, 10, 2)));
    assert_ne!(ten.account.chosen, subset(&folder, 20, 1).account.chosen);
    let listed = Captions::list(&asset(&folder, "coco-captions", "limit = 10\nseed = 1")).unwrap();
    assert_eq!((pairs(&listed), listed.digest()), (pairs(&ten), None));
    assert_eq!(listed.account.chosen, ten.account.chosen);
    let error = error(&folder, "coco-captions", "limit = 61");
    assert!(error.contains("limit = 61, but only 60 images can be used"), "{error}");
}

#[test]
fn a_missing_coco_image_is_an_error_unless_it_may_be_skipped() {
    let folder = coco(4, false);
    std::fs::remove_file(folder.path().join("train2017/000000000002.jpg")).unwrap();
    let error = error(&folder, "coco-captions", "");
    assert!(error.contains("000000000002.jpg is missing") && error.contains("missing = \"skip\""), "{error}");
    let captions = read(&folder, "coco-captions", "missing = \"skip\"").unwrap();
    assert_eq!((captions.images.len(), captions.account.missing.count), (3, 1));
    let other = json!({"images": [], "annotations": [{"id": 1, "image_id": 2, "bbox": []}]});
    write(&folder, "annotations/captions_train2017.json", other.to_string());
    let error = self::error(&folder, "coco-captions", "");
    assert!(error.contains("the annotation 1 has no caption"), "{error}");
}

#[test]
fn karpathys_split_names_folder_and_split() {
    let folder = tempfile::tempdir().unwrap();
    let image = |id: u8, split: &str, path: &str| {
        let name = format!("COCO_val2014_{id:012}.jpg");
        write(&folder, &format!("{path}/{name}"), encoded(id, ImageFormat::Jpeg));
        json!({"filepath": path, "filename": name, "cocoid": id, "split": split, "imgid": 7,
               "sentids": [1], "sentences": [{"raw": format!("A {split} image, {id}."), "tokens": ["a"]}]})
    };
    let images =
        [image(1, "train", "train2014"), image(2, "restval", "val2014"), image(3, "test", "val2014")];
    write(&folder, "dataset_coco.json", json!({"images": images, "dataset": "coco"}).to_string());
    let options = "paths = [\"dataset_coco.json\"]\nsplits = [\"train\", \"restval\"]";
    let captions = read(&folder, "coco-captions", options).unwrap();
    let texts: Vec<String> = pairs(&captions).into_iter().map(|(_, caption)| caption).collect();
    assert_eq!(texts, ["A train image, 1.", "A restval image, 2."]);
    let error = error(&folder, "coco-captions", "paths = [\"dataset_coco.json\"]\nsplits = [\"dev\"]");
    assert!(error.contains("no image is in the splits [\"dev\"]"), "{error}");
}

const CC3M: &str = "a very typical bus station\thttp://a.b/bus.jpg?x=1\nsierra &amp;amp; trees\thttp://a.b/c/tree.png\n\
                    two\thttp://a.b/1/same.jpg\nthree\thttp://a.b/2/same.jpg\n \thttp://a.b/blank.jpg\n";

#[test]
fn cc3m_rows_find_their_images_by_number_or_url() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "Train_GCC-training.tsv", CC3M);
    for row in [0, 1, 4] {
        write(&folder, &format!("images/00000/{row:09}.jpg"), encoded(row, ImageFormat::Jpeg));
    }
    write(&folder, "images/3.webp", encoded(3, ImageFormat::WebP));
    write(&folder, "images/0.png", encoded(0, ImageFormat::Png));
    for (at, name) in ["bus.jpg", "tree.png", "same.jpg"].iter().enumerate() {
        write(&folder, &format!("by-url/{name}"), encoded(at as u8, ImageFormat::Png));
    }
    let numbered = read(&folder, "cc3m-tsv", "").unwrap();
    let expected = [("000000000.jpg", "a very typical bus station"), ("000000001.jpg", "sierra & trees")];
    assert_eq!(pairs(&numbered), owned(expected));
    let account = &numbered.account;
    assert_eq!(
        (account.listed, account.missing.count, account.empty, account.captionless.count),
        (5, 2, 1, 1)
    );
    assert!(account.missing.examples[0].ends_with("images/00000/000000002.jpg"), "{account:?}");

    let rows = read(&folder, "cc3m-tsv", "naming = \"row\"").unwrap();
    assert_eq!(pairs(&rows), owned([("0.png", "a very typical bus station"), ("3.webp", "three")]));
    let urls = read(&folder, "cc3m-tsv", "naming = \"url\"\nimages = \"by-url\"").unwrap();
    assert_eq!(
        pairs(&urls),
        owned([("bus.jpg", "a very typical bus station"), ("tree.png", "sierra & trees")])
    );
    assert_eq!(
        urls.account.incomplete, 2,
        "same.jpg is the image of one of two rows, and nobody knows which"
    );
}

#[test]
fn cc3m_may_have_a_header_and_its_broken_images_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let text = "url\tcaption\nhttp://a.b/0.jpg\tnone\nhttp://a.b/1.jpg\tone\nhttp://a.b/2.jpg\ttwo\n";
    write(&folder, "Train_GCC-training.tsv", text);
    write(&folder, "images/00000/000000000.jpg", "an HTML page that says 404");
    write(&folder, "images/00000/000000001.jpg", encoded(1, ImageFormat::Jpeg));
    write(&folder, "images/00000/000000002.jpg", encoded(2, ImageFormat::Jpeg));
    let captions = read(&folder, "cc3m-tsv", "limit = 2\nseed = 3").unwrap();
    let found: BTreeSet<String> = pairs(&captions).into_iter().map(|(_, caption)| caption).collect();
    assert_eq!(found, BTreeSet::from(["one".to_owned(), "two".to_owned()]));
    let error = error(&folder, "cc3m-tsv", "missing = \"error\"");
    assert!(error.contains("000000000.jpg cannot be decoded"), "{error}");
    write(&folder, "Train_GCC-training.tsv", "a b\thttp://a.b/0.jpg\nno tab here\n");
    let error = self::error(&folder, "cc3m-tsv", "");
    assert!(error.contains("line 2") && error.contains("no tab here"), "{error}");
    write(&folder, "Train_GCC-training.tsv", "text\tlink\na b\thttp://a.b/0.jpg\n");
    let error = self::error(&folder, "cc3m-tsv", "");
    assert!(error.contains("no column `caption`"), "{error}");
}

#[test]
fn webdataset_samples_are_read_from_their_shards() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = [1, 2].map(|number| encoded(number, ImageFormat::Jpeg));
    let third = encoded(3, ImageFormat::Png);
    let shard = tar(&[
        ("000.jpg", &first),
        ("000.json", b"{\"caption\": \"not this\", \"url\": 1}"),
        ("000.txt", b"a caption\n"),
        ("001.seg.png", &third),
        ("001.jpg", &second),
        ("001.json", b"{\"caption\": \"from json\"}"),
        ("002.jpg", &second),
        ("003.txt", b"no image"),
    ]);
    write(&folder, "s-00.tar", shard);
    write(&folder, "s-01.tar", tar(&[("d/004.PNG", &third), ("d/004.txt", b"third")]));
    let options = "paths = [\"s-{00..01}.tar\"]";
    let captions = read(&folder, "webdataset", options).unwrap();
    let expected = [("000.jpg", "a caption"), ("001.jpg", "from json"), ("004.PNG", "third")];
    assert_eq!(pairs(&captions), owned(expected));
    assert_eq!((captions.account.listed, captions.account.incomplete), (5, 2));
    let image = captions.images[1].decode().unwrap();
    assert_eq!(image, crate::data::image::decode(&second).unwrap());
    let limited = read(&folder, "webdataset", &format!("{options}\nlimit = 2")).unwrap();
    assert_eq!(limited.images.len(), 2);

    let error = error(&folder, "webdataset", "paths = [\"s-{00..02}.tar\"]");
    assert!(error.contains("s-02.tar; are all parts there?"), "{error}");
    let shard = std::fs::read(folder.path().join("s-01.tar")).unwrap();
    write(&folder, "s-01.tar", &shard[..700]);
    let error = self::error(&folder, "webdataset", options);
    assert!(error.contains("s-01.tar") && error.contains("cut off"), "{error}");
    let error = self::error(&folder, "webdataset", "");
    assert!(error.contains("needs `paths` with the shards"), "{error}");
}

#[test]
fn imagenet_captions_are_titles_or_more() {
    let folder = tempfile::tempdir().unwrap();
    let entries = json!([
        {"filename": "n01_1.JPEG", "wnid": "n01", "title": "My &quot;dog&quot;", "tags": ["rex", "park"],
         "description": "In <b>the</b> park &lt;3"},
        {"filename": "n02_5.JPEG", "title": "IMG_2041", "tags": [], "description": ""},
    ]);
    write(&folder, "imagenet_captions.json", entries.to_string());
    write(&folder, "images/n01/n01_1.JPEG", encoded(1, ImageFormat::Jpeg));
    write(&folder, "images/n02/n02_5.JPEG", encoded(2, ImageFormat::Jpeg));
    let captions = read(&folder, "imagenet-captions", "").unwrap();
    assert_eq!(captions.distinct, ["My \"dog\"", "IMG_2041"]);
    let all = read(&folder, "imagenet-captions", "fields = [\"title\", \"tags\", \"description\"]").unwrap();
    assert_eq!(all.distinct, ["My \"dog\" rex park In the park <3", "IMG_2041"]);
}

#[test]
fn lines_of_a_list_may_have_several_captions_and_other_fields() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..3u8 {
        write(&folder, &format!("{number}.png"), encoded(number, ImageFormat::Png));
    }
    let lines = [
        json!({"image": "0.png", "captions": ["", "zero", "nought"], "split": "train", "license": "CC"}),
        json!({"image": "1.png", "caption": "one", "split": "val"}),
        json!({"image": "2.png", "caption": "two", "split": "train"}),
        json!({"image": "2.png", "caption": "a pair", "split": "train"}),
    ];
    write(&folder, "images.jsonl", lines.map(|line| line.to_string()).join("\n"));
    let captions = read(&folder, "jsonl", "").unwrap();
    assert_eq!(captions.distinct, ["zero", "one", "two"]);
    assert_eq!(captions.account.empty, 1);
    assert_eq!(read(&folder, "jsonl", "splits = [\"train\"]").unwrap().distinct, ["zero", "two"]);
}

#[test]
fn an_image_that_is_there_twice_is_kept_once_and_replaced_in_a_subset() {
    let folder = tempfile::tempdir().unwrap();
    let mut lines = String::new();
    for number in 0..20u8 {
        // The second half repeats the first in another format.
        let (name, format) = if number < 10 { ("png", ImageFormat::Png) } else { ("bmp", ImageFormat::Bmp) };
        write(&folder, &format!("{number}.{name}"), encoded(number % 10, format));
        lines +=
            &json!({"image": format!("{number}.{name}"), "caption": format!("Number {number}.")}).to_string();
        lines += "\n";
    }
    write(&folder, "images.jsonl", lines);
    let whole = read(&folder, "jsonl", "").unwrap();
    assert_eq!((whole.images.len(), whole.account.duplicates.len()), (10, 10));
    let duplicate = &whole.account.duplicates[3];
    assert!(duplicate.image.ends_with("13.bmp") && duplicate.of.ends_with("3.png"), "{duplicate:?}");
    let subset = read(&folder, "jsonl", "limit = 10").unwrap();
    let pixels: BTreeSet<[u8; 32]> = subset.fingerprints.iter().map(|print| print.pixels).collect();
    assert_eq!(pixels.len(), 10);
    let error = error(&folder, "jsonl", "limit = 11");
    assert!(error.contains("only 10 images can be used") && error.contains("10 there twice"), "{error}");
}

#[test]
fn the_digest_is_over_pixels_and_captions_and_not_over_files() {
    let list = |format: ImageFormat, ending: &str, caption: &str| {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = String::new();
        for number in 0..2u8 {
            write(&folder, &format!("{number}.{ending}"), encoded(number, format));
            let caption = format!("{caption} {number}");
            lines += &json!({"image": format!("{number}.{ending}"), "caption": caption}).to_string();
            lines += "\n";
        }
        write(&folder, "images.jsonl", lines);
        read(&folder, "jsonl", "").unwrap().digest().unwrap()
    };
    let digest = list(ImageFormat::Png, "png", "A square");
    assert_eq!(digest, list(ImageFormat::Bmp, "bmp", "A  square "));
    assert_ne!(digest, list(ImageFormat::Png, "png", "A circle"));
}

#[test]
fn options_that_a_format_does_not_know_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |format: &str, options: &str| {
        let text = format!(
            "name = \"t\"\nkind = \"captions\"\nformat = \"{format}\"\ntitle = \"\"\nlicence = \"\"\nsource = \"\"\n\
             [captions]\n{options}"
        );
        write(&folder, "asset.toml", text);
        format!("{:#}", Asset::read(folder.path()).unwrap_err())
    };
    assert!(refused("jsonl", "naming = \"row\"").contains("`naming` does not go with format Jsonl"));
    assert!(refused("webdataset", "splits = [\"a\"]").contains("`splits` does not go"));
    assert!(refused("coco-captions", "fields = [\"title\"]").contains("`fields` does not go"));
    assert!(refused("coco-captions", "limit = 0").contains("`limit` is 0"));
    assert!(refused("coco-captions", "limits = 3").contains("limits"));
}
