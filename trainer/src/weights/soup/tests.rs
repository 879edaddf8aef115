use super::*;
use crate::methods::{self, Widths, testing};
use crate::models::vit::tiny;
use crate::weights::checkpoint::Recipe;
use crate::weights::interpolate::Line;
use crate::weights::{bitwise_equal, initial, safetensors};
use causeway_protocol::Alpha;
use serde_json::Value;
use std::collections::BTreeMap;

/// A checkpoint whose trained tensors moved by noise under that seed, but for those whose name ends in `still`.
fn made(folder: &Path, method: Value, seed: u64, still: &str) -> PathBuf {
    let backbone = tiny(true);
    let recipe = Recipe { seed, ..testing::recipe(method) };
    let added = methods::added(&recipe, &backbone, Widths::default()).unwrap();
    let mut theta1 = backbone.tensors.share();
    theta1.extend(added.start.share());
    let tuner = methods::tuner(&recipe.method);
    let moved: Tensors = theta1
        .iter()
        .filter(|(name, _)| tuner.trains(name) && (still.is_empty() || !name.ends_with(still)))
        .map(|(name, start)| (name.to_owned(), start + initial::normal(seed, name, &start.size(), 0.1)))
        .collect();
    theta1.extend(moved);
    let path = folder.join(format!("{seed}.safetensors"));
    let ends = (&theta1, &added.theta0);
    checkpoint::write(&path, &backbone, &recipe, 3, ends, Widths::default()).unwrap();
    path
}

#[test]
fn one_checkpoint_however_often_is_itself_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = tiny(true);
    for method in [json!({"kind": "full"}), json!({"kind": "adapter", "rank": 3})] {
        let path = made(folder.path(), method, 1, "");
        let line = Line::open(&backbone, &path).unwrap();
        for times in [1, 2, 3, 7] {
            let checkpoints = read(&backbone, &vec![path.clone(); times]).unwrap();
            let out = folder.path().join("soup.safetensors");
            write(&out, &backbone, &checkpoints, &(0..times).collect::<Vec<_>>()).unwrap();
            let soup = Line::open(&backbone, &out).unwrap();
            for alpha in [Alpha::ONE, Alpha::from_f64(0.3).unwrap()] {
                assert_eq!(soup.at(alpha).digest().unwrap(), line.at(alpha).digest().unwrap(), "{times}");
            }
        }
    }
}

#[test]
fn a_soup_is_the_mean_and_what_a_checkpoint_leaves_out_is_the_backbone_s() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = tiny(true);
    let paths = [
        made(folder.path(), json!({"kind": "full"}), 1, ""),
        made(folder.path(), json!({"kind": "full"}), 2, "norm1.bias"),
        made(folder.path(), json!({"kind": "full"}), 3, "norm1.bias"),
    ];
    let checkpoints = read(&backbone, &paths).unwrap();
    let name = "blocks.0.norm1.bias";
    assert!(checkpoints[1].theta1.get(name).is_none(), "it equals the backbone's");
    let soup = mean(&backbone, &checkpoints, &[0, 1, 2]).unwrap();
    let own = &backbone.tensors[name];
    let by_hand = (&checkpoints[0].theta1[name] + own + own) / 3.0;
    // One rounding instead of three.
    assert!((&soup.theta1[name] - by_hand).abs().max().double_value(&[]) < 1e-7);
    let ends = paths.map(|path| Line::open(&backbone, &path).unwrap().at(Alpha::ONE));
    for (name, mean) in soup.theta1.iter() {
        let sum = &ends[0][name] + &ends[1][name] + &ends[2][name];
        assert!(mean.allclose(&(sum / 3.0), 1e-5, 1e-7, false), "{name}");
    }
}

#[test]
fn the_theta0_of_a_soup_of_adapters_is_still_the_identity() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = tiny(true);
    let method = json!({"kind": "adapter", "rank": 3});
    let paths = [1, 2].map(|seed| made(folder.path(), method.clone(), seed, ""));
    let out = folder.path().join("soup.safetensors");
    let checkpoints = read(&backbone, &paths).unwrap();
    let blob = write(&out, &backbone, &checkpoints, &[0, 1]).unwrap();
    let line = Line::open(&backbone, &out).unwrap();
    let pixels = testing::pixels(2);
    let bare = line.encoder(Alpha::ZERO).features(&pixels);
    let vit = crate::models::vit::Vit::new(&backbone.config, line.method());
    assert!(bitwise_equal(&vit.features(&line.at(Alpha::ZERO), &pixels), &bare));

    let file = safetensors::read(&out).unwrap();
    assert_eq!(file.sha256, blob.sha256);
    let told: Value = serde_json::from_str(&file.metadata["soup"]).unwrap();
    let digests = checkpoints.iter().map(|checkpoint| checkpoint.digest.clone()).collect::<Vec<_>>();
    assert_eq!(told, json!({"checkpoints": digests, "stayed": digests}));
    let recipe: Recipe = serde_json::from_str(&file.metadata["recipe"]).unwrap();
    assert_eq!(recipe.seed, 1, "the first one's");
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = tiny(true);
    let paths = [
        made(folder.path(), json!({"kind": "adapter", "rank": 3}), 1, ""),
        made(folder.path(), json!({"kind": "adapter", "rank": 4}), 2, ""),
    ];
    let checkpoints = read(&backbone, &paths).unwrap();
    let error = mean(&backbone, &checkpoints, &[0, 1]).unwrap_err().to_string();
    assert!(error.contains("of one method") && error.contains(short(&checkpoints[1])), "{error}");
    assert!(mean(&backbone, &checkpoints, &[]).is_err());

    let whole = folder.path().join("whole.safetensors");
    safetensors::write(&whole, &backbone.tensors, &BTreeMap::new()).unwrap();
    let error = format!("{:#}", read(&backbone, &[whole]).unwrap_err());
    assert!(error.contains("whole.safetensors") && error.contains("a full set of weights"), "{error}");
    let error = format!("{:#}", read(&tiny(false), &paths).unwrap_err());
    assert!(error.contains("it was made from backbone"), "{error}");
}

#[test]
fn a_greedy_soup_keeps_what_makes_it_no_worse() {
    // Best first: 2, then 0 and 3 in their order, then 1. With 0 it is as good, with 3 worse, with 1 better.
    let answers = BTreeMap::from([(vec![0, 2], 70), (vec![0, 2, 3], 69), (vec![0, 1, 2], 72)]);
    let mut asked = Vec::new();
    let mut correct = |which: &[usize]| {
        asked.push(which.to_vec());
        Ok(answers[which])
    };
    let (stay, decisions) = greedy(&[60, 50, 70, 60], &mut correct).unwrap();
    assert_eq!(stay, [0, 1, 2]);
    assert_eq!(asked, [vec![0, 2], vec![0, 2, 3], vec![0, 1, 2]]);
    let told: Vec<_> = decisions.iter().map(|one| (one.at, one.without, one.with, one.stays())).collect();
    assert_eq!(told, [(2, 0, 70, true), (0, 70, 70, true), (3, 70, 69, false), (1, 70, 72, true)]);
}
