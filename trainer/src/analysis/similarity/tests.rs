use super::*;
use crate::analysis::testing::{adapter_line, full_line};
use crate::random::SplitMix64;
use serde_json::json;

/// Three classes of grey images, some darker, some lighter, with noise.
fn dataset(bank: usize, query: Option<usize>) -> Dataset {
    let images = |count: usize, seed: u64| {
        let mut draws = SplitMix64::new(seed);
        let one = |at: usize| {
            let label = (at % 3) as u32;
            let bytes: Vec<u8> =
                (0..28 * 28).map(|_| (80.0 * f64::from(label) + 60.0 * draws.uniform()) as u8).collect();
            let source = Source::Grey { bytes: bytes.into(), begin: 0, width: 28, height: 28 };
            Labelled { source, label }
        };
        (0..count).map(one).collect::<Vec<_>>()
    };
    Dataset {
        asset: "greys".into(),
        title: "Greys".into(),
        licence: "CC0-1.0".into(),
        source: "drawn".into(),
        classes: ["dark", "grey", "light"].map(str::to_owned).to_vec(),
        bank: images(bank, 1),
        query: query.map(|count| images(count, 2)),
    }
}

fn evaluation() -> Evaluation {
    serde_json::from_value(json!({
        "datasets": [{"asset": "greys", "role": "ood"}], "image_size": 28, "batch_size": 5
    }))
    .unwrap()
}

fn asked(more: serde_json::Value) -> SimilarityAnalysis {
    let mut document = json!({"dataset": "greys", "images": 12, "queries": 3, "neighbours": 4});
    document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(document).unwrap()
}

fn compare(
    line: &Line,
    dataset: &Dataset,
    asked: &SimilarityAnalysis,
    folder: &Path,
) -> Result<SimilarityReport> {
    let mut told = (0, 0);
    let stamp = NumericsStamp {
        device: "cpu".into(),
        version: "0".into(),
        libtorch: "2".into(),
        threads: 1,
        batch_size: 5,
    };
    let report = Similarity {
        asked,
        evaluation: &evaluation(),
        dataset,
        digest: "d",
        backbone: "b",
        line,
        stamp,
        folder,
        done: &mut |done, total| {
            told = (done, total);
            Ok(())
        },
    }
    .run();
    assert!(report.is_err() || told.0 == told.1, "{told:?}");
    report
}

#[test]
fn similarity_is_one_with_itself_and_falls_from_the_first_block_that_moved() {
    let folder = tempfile::tempdir().unwrap();
    let (_, line) = full_line(&["blocks.1.mlp.fc2.weight"]);
    let report = compare(&line, &dataset(30, Some(20)), &asked(json!({})), folder.path()).unwrap();
    let alphas: Vec<f64> = report.alphas.iter().map(|alpha| alpha.as_f64()).collect();
    assert_eq!((alphas, report.images, report.bank), (vec![0.0, 0.5, 1.0], 12, (30, 30)));
    let near_one = |value: Option<f64>| (value.unwrap() - 1.0).abs() < 1e-6;
    assert!(report.cka[0].class.iter().chain(&report.cka[0].patches).all(|value| near_one(*value)));
    let end = &report.cka[2];
    assert!(near_one(end.patches[0]), "block 0 stayed");
    assert!(end.patches[1].unwrap() < 1.0 - 1e-6, "block 1 moved: {:?}", end.patches);
    assert!(end.feature.unwrap() <= report.cka[1].feature.unwrap() + 1e-3, "the farther the less alike");

    let moved: Vec<&LayerDistance> = report.distances.iter().filter(|layer| layer.distance > 0.0).collect();
    assert_eq!(moved.len(), 1);
    let (before, after) = (&line.at(Alpha::ZERO)[&moved[0].name], &line.at(Alpha::ONE)[&moved[0].name]);
    let expected = (after - before).norm().double_value(&[]) / before.norm().double_value(&[]);
    assert!((moved[0].relative().unwrap() - expected).abs() < 1e-6 * expected);
}

#[test]
fn neighbours_are_of_the_bank_and_each_image_has_one_tile() {
    let folder = tempfile::tempdir().unwrap();
    let (_, line) = adapter_line(8);
    let data = dataset(30, Some(20));
    let report = compare(&line, &data, &asked(json!({"alphas": [1]})), folder.path()).unwrap();
    assert_eq!(report.queries.len(), 3);
    let mut labels: Vec<u32> = report.queries.iter().map(|query| query.label).collect();
    labels.sort_unstable();
    assert_eq!(labels, [0, 1, 2], "one of each class");
    let mut tiles = BTreeMap::new();
    for query in &report.queries {
        assert_eq!(query.neighbours.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4]);
        tiles.insert(query.tile, (false, query.place));
        for near in query.neighbours.iter().flatten() {
            assert_eq!(data.bank[near.place as usize].label, near.label);
            let before = tiles.insert(near.tile, (true, near.place));
            assert!(before.is_none_or(|before| before == (true, near.place)));
        }
        let similarities: Vec<f64> = query.neighbours[0].iter().map(|near| near.similarity).collect();
        assert!(similarities.windows(2).all(|pair| pair[0] >= pair[1]));
    }
    let sheet = report.tiles.unwrap();
    assert_eq!(tiles.len() as u32, tiles.keys().max().unwrap() + 1, "no tile is left out");
    assert!(sheet.columns * sheet.rows >= tiles.len() as u32);
    assert!(folder.path().join(&sheet.blob.file).is_file());
    // The up matrices are added and begin at zero: there is nothing to be relative to.
    let up = report.distances.iter().find(|layer| layer.name.ends_with("up.weight")).unwrap();
    assert_eq!((up.added, up.relative(), up.distance > 0.0), (true, None, true));
}

#[test]
fn the_seed_decides_and_a_bank_scored_against_itself_leaves_each_query_out() {
    let folder = tempfile::tempdir().unwrap();
    let (_, line) = full_line(&["blocks.0.mlp.fc1.weight"]);
    let data = dataset(24, None);
    let with = |more| compare(&line, &data, &asked(more), folder.path()).unwrap();
    let one = with(json!({"bank": 10}));
    assert_eq!(one, with(json!({"bank": 10})));
    assert_ne!(one.queries, with(json!({"bank": 10, "seed": 5})).queries);
    assert_eq!(one.bank, (10, 24));
    for query in &with(json!({})).queries {
        assert!(query.neighbours.iter().flatten().all(|near| near.place != query.place));
    }
    let none = with(json!({"queries": 0}));
    assert_eq!((none.queries.len(), none.tiles, none.bank.0), (0, None, 0));
    let error = compare(&line, &dataset(6, None), &asked(json!({})), folder.path()).unwrap_err();
    assert!(format!("{error:#}").contains("it has 6 scored images"), "{error:#}");
}
