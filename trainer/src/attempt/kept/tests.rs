use super::*;
use crate::data::asset::Library;
use crate::evaluate::sweep::read_datasets;
use crate::reference;
use causeway_protocol::parse_spec;
use serde_json::{Value, json};

fn library() -> Library {
    let folder = reference::model("minilm-l6");
    Library::find(&[folder.parent().unwrap().to_path_buf()])
}

/// A spec that keeps these, evaluated on that dataset.
fn spec(retention: Value, evaluated: &str) -> Spec {
    parse_spec(json!({
        "experiment": "e", "kind": "finetune", "seed": 3, "weights": {"theta0": {"asset": "v"}},
        "method": {"kind": "full"}, "captions": {"asset": "tux-captions", "text_encoder": "minilm-l6"},
        "objective": {"contrastive": {}, "reconstruction": {}}, "retention": retention,
        "training": {"steps": 1, "learning_rate": 1e-3, "image_size": 28},
        "evaluation": {"datasets": [{"asset": evaluated, "role": "ood"}], "image_size": 28}
    }))
    .unwrap()
}

fn captions(library: &Library) -> Captions {
    Captions::list(library.get("tux-captions", AssetKind::Captions).unwrap()).unwrap()
}

#[test]
fn images_are_chosen_by_seed_and_name_alone() {
    let (library, captions) = (library(), captions(&library()));
    let keep = |prototypes: u32| {
        let spec = spec(
            json!({"lwf": {"prototypes": prototypes}, "ewc": {"images": 3, "prototypes": 2}}),
            "digits-200",
        );
        kept(&spec, &library, &captions, &[], 1).unwrap()
    };
    let (few, many) = (keep(4).prototypes.unwrap(), keep(6).prototypes.unwrap());
    assert_eq!((few.size(), many.size()), (vec![4, 3, 28, 28], vec![6, 3, 28, 28]));
    assert!(few.equal(&many.narrow(0, 0, 4)), "fewer are the first of more");
    assert!(few.equal(&keep(4).prototypes.unwrap()));
    let fisher = keep(4).fisher.unwrap();
    assert_eq!(fisher.size()[0], 3);
    assert!(!fisher.equal(&few.narrow(0, 0, 3)), "another name, another choice");
    assert!(keep(4).rehearsal.is_none());
    let other = Spec { seed: 4, ..spec(json!({"lwf": {"prototypes": 4}}), "digits-200") };
    assert!(!kept(&other, &library, &captions, &[], 1).unwrap().prototypes.unwrap().equal(&few));
}

#[test]
fn more_than_there_is_is_all_there_is() {
    let (library, captions) = (library(), captions(&library()));
    let few = Captions { images: captions.images[..5].to_vec(), ..Captions::default() };
    let kept = kept(&spec(json!({"lwf": {"prototypes": 9}}), "digits-200"), &library, &few, &[], 1).unwrap();
    assert_eq!(kept.prototypes.unwrap().size()[0], 5);
}

#[test]
fn a_buffer_is_of_a_bank_and_never_of_what_is_scored() {
    let (library, captions) = (library(), captions(&library()));
    let keep = |buffer: Value, evaluated: &str, datasets: &[Measured]| {
        kept(&spec(json!({"rehearsal": buffer}), evaluated), &library, &captions, datasets, 2)
    };
    let images = json!({"dataset": "fashion-mnist-200", "images": 8, "batch_size": 4});
    let evaluation = spec(json!({"rehearsal": images}), "fashion-mnist-200").evaluation;
    let mut datasets = read_datasets(&library, &evaluation, 2).unwrap();
    let buffer = keep(images.clone(), "fashion-mnist-200", &datasets).unwrap().rehearsal.unwrap();
    assert_eq!(buffer.size(), [8, 3, 28, 28]);

    // Were the bank scored after all, as another dataset's queries might be, its images are recognised.
    let bank = datasets[0].dataset.bank.len();
    datasets[0].fingerprints.rotate_left(bank);
    let queries = datasets[0].fingerprints.len() - bank;
    datasets[0].dataset.bank.truncate(queries);
    let error = format!("{:#}", keep(images, "fashion-mnist-200", &datasets).unwrap_err());
    assert!(error.contains("is also an image that `fashion-mnist-200` is scored on"), "{error}");

    let error = format!(
        "{:#}",
        keep(json!({"dataset": "digits-200", "images": 8, "batch_size": 4}), "fashion-mnist-200", &[])
            .unwrap_err()
    );
    assert!(
        error.contains("`retention.rehearsal`") && error.contains("scored against the others"),
        "{error}"
    );
    let error = format!(
        "{:#}",
        keep(json!({"dataset": "fashion-mnist-200", "images": 5000, "batch_size": 4}), "digits-200", &[])
            .unwrap_err()
    );
    assert!(error.contains("fewer than the 5000"), "{error}");
}
