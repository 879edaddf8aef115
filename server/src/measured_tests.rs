use super::*;
use crate::curves::CurveDataset;
use causeway_protocol::Dtype;
use serde_json::json;

fn dataset(digest: &str, role: Role, queries: u32) -> Dataset {
    Dataset {
        digest: digest.to_owned(),
        title: digest.to_owned(),
        short: digest.to_owned(),
        role,
        licence: String::new(),
        source: String::new(),
        queries,
        bank: queries,
        leave_one_out: true,
        classes: 2,
    }
}

/// A curve of α = 0 and 1 where the first so many queries are right.
fn curve(dataset: &Dataset, run: u128, right: [usize; 2], threads: [u32; 2]) -> Curve {
    let n = dataset.queries as usize;
    let points =
        [Alpha::ZERO, Alpha::ONE].iter().zip(right).zip(threads).map(|((alpha, right), threads)| Point {
            alpha: *alpha,
            top1: right as f64 / n as f64,
            top5: 1.0,
            n: n as i32,
            correct: right as i32,
            mean_per_class: None,
            correct_per_class: None,
            hits: Hits::from_flags(&(0..n).map(|query| query < right).collect::<Vec<_>>()),
            stamp: json!({"device": "cpu", "version": "0.1.0", "libtorch": "2.11.0", "threads": threads, "batch_size": 32}),
        });
    Curve {
        run_id: Uuid::from_u128(run),
        run: format!("run {run}"),
        method: "film".to_owned(),
        variant: "v".to_owned(),
        seed: run as i64,
        backbone: "b".to_owned(),
        checkpoint: Some(format!("c{run}")),
        dataset: CurveDataset {
            digest: dataset.digest.clone(),
            name: dataset.title.clone(),
            title: dataset.title.clone(),
            role: dataset.role.as_str().to_owned(),
            ordinal: 1,
            classes: 2,
            queries_per_class: None,
        },
        protocol: "p".to_owned(),
        readout: "k 20".to_owned(),
        dtype: Dtype::F32,
        area: None,
        points: points.collect(),
    }
}

fn source(run: u128) -> Source {
    Source {
        run: Uuid::from_u128(run),
        line: "v".to_owned(),
        label: "film".to_owned(),
        short: String::new(),
        wanted: 2,
        open: false,
        method: "film".to_owned(),
        seed: run as i64,
        name: format!("run {run}"),
    }
}

fn measured(datasets: &[Dataset], curves: Vec<Curve>, runs: &[u128]) -> Measured {
    let mut measured = Measured {
        halves: datasets.iter().map(parted).collect(),
        input: FigureInput {
            backbone: vec![None; datasets.len()],
            datasets: datasets.to_vec(),
            ..FigureInput::default()
        },
        ..Measured::default()
    };
    let mut scores = HashMap::new();
    curves.into_iter().for_each(|curve| measured.take(curve, &mut scores));
    let sources: Vec<Source> = runs.iter().map(|run| source(*run)).collect();
    measured.input.variants = variants(&sources, &scores, datasets.len());
    measured
}

#[test]
fn the_halves_of_a_score_are_the_whole_and_a_difference_counts_its_own_half() {
    let digits = dataset("digits", Role::Ood, 100);
    let found = measured(std::slice::from_ref(&digits), vec![curve(&digits, 1, [40, 70], [2, 2])], &[1]);
    let half = selection_half("digits", 100);
    let up = |from: usize, to: usize, chosen: bool| {
        half[from..to].iter().filter(|flag| **flag == chosen).count() as u32
    };
    let score = found.input.variants[0].seeds[0].scores[0][&Alpha::ONE];
    let halves = score.halves.unwrap();
    assert_eq!(halves.chosen_on, (up(0, 70, true), 50));
    assert_eq!(halves.reported_on, (up(0, 70, false), 50));
    let reported = found.against_backbone(0, 0, Alpha::ONE, Queries::ReportedOn).unwrap();
    assert_eq!(reported.n, 50);
    assert!((reported.delta - 2.0 * f64::from(up(40, 70, false))).abs() < 1e-9);
    let all = found.role_against_backbone(0, "ood", Alpha::ONE, Queries::All).unwrap();
    assert!((all.delta - 30.0).abs() < 1e-9 && all.n == 100);
}

#[test]
fn few_queries_or_hits_that_do_not_fit_are_not_halved() {
    let small = dataset("small", Role::Ood, 39);
    let found = measured(std::slice::from_ref(&small), vec![curve(&small, 1, [10, 20], [2, 2])], &[1]);
    assert_eq!(found.input.backbone[0].unwrap().halves, None);
    let digits = dataset("digits", Role::Ood, 100);
    let mut old = curve(&digits, 1, [40, 70], [2, 2]);
    old.points[1].hits = Hits::default();
    let found = measured(std::slice::from_ref(&digits), vec![old], &[1]);
    assert!(found.input.backbone[0].unwrap().halves.is_some());
    assert_eq!(found.input.variants[0].seeds[0].scores[0][&Alpha::ONE].halves, None);
}

#[test]
fn stamps_are_counted_by_point_and_the_shared_backbone_once() {
    let digits = dataset("digits", Role::Ood, 100);
    let curves = vec![curve(&digits, 1, [40, 70], [2, 2]), curve(&digits, 2, [40, 60], [2, 4])];
    let found = measured(std::slice::from_ref(&digits), curves, &[1, 2]);
    let told: Vec<(&str, usize)> = found.input.stamps.iter().map(|(words, n)| (words.as_str(), *n)).collect();
    assert_eq!(
        told,
        [
            ("cpu · trainer 0.1.0 · libtorch 2.11.0 · 2 threads · batch 32", 2),
            ("cpu · trainer 0.1.0 · libtorch 2.11.0 · 4 threads · batch 32", 1)
        ]
    );
    assert_eq!(found.input.variants[0].seeds[1].scores[0][&Alpha::ONE].stamp, 1);
}

#[test]
fn robustness_is_against_the_baseline_where_there_is_one_and_has_another_name_where_not() {
    let (photos, digits) = (dataset("photos", Role::Id, 100), dataset("digits", Role::Ood, 100));
    let curves = vec![curve(&photos, 1, [70, 75], [2, 2]), curve(&digits, 1, [40, 58], [2, 2])];
    let mut found = measured(&[photos, digits], curves, &[1]);
    // ΔOOD = 18, ΔID = 5.
    let relative = found.robustness(0).unwrap();
    assert_eq!((relative.kind, relative.backbones), (RobustnessKind::RelativeToBackbone, 0));
    assert!((relative.seeds[0].1 - 13.0).abs() < 1e-9);
    // The line of `robustness.rs`: 75 % ID goes with 50 % OOD.
    found.baseline = Baseline::fit(&[(50.0, 25.0), (75.0, 50.0), (90.0, 75.0)]);
    let effective = found.robustness(0).unwrap();
    assert_eq!((effective.kind, effective.backbones), (RobustnessKind::Effective, 3));
    assert!((effective.seeds[0].1 - 8.0).abs() < 1e-9);
}
