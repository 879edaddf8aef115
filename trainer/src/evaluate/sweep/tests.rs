//! A sweep over a small random encoder: its rows are single runs, bit for bit, and known points are left out.

use super::*;
use crate::models::vit::tiny;
use crate::random::SplitMix64;
use crate::weights::{Backbone, Tensors, bitwise_equal, safetensors};
use causeway_protocol::{EvaluatedDataset, Preprocess, Role};
use std::collections::BTreeMap;

struct Fixture {
    backbone: Backbone,
    line: Line,
    datasets: Vec<Measured>,
    evaluation: Evaluation,
}

impl Fixture {
    /// Two datasets of noise, one of them scored against itself, and a θ1 in which one block has moved.
    fn new() -> Fixture {
        let backbone = tiny(true);
        let moved = |(name, tensor): (&str, &Tensor)| {
            let value =
                if name.starts_with("blocks.1") { tensor * 1.5 + 0.25 } else { tensor.shallow_clone() };
            (name.to_owned(), value)
        };
        let theta1: Tensors = backbone.tensors.iter().map(moved).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("theta1.safetensors");
        safetensors::write(&path, &theta1, &BTreeMap::new()).unwrap();
        let line = Line::open(&backbone, &path).unwrap();
        let datasets = vec![dataset("a", 23, None), dataset("b", 20, Some(11))];
        let evaluated = |name: &str| EvaluatedDataset { asset: name.to_owned(), role: Role::Ood };
        let evaluation = Evaluation {
            positions: causeway_protocol::Positions::default(),
            datasets: vec![evaluated("a"), evaluated("b")],
            alphas: [0, 1000, 3000, 10_000].iter().filter_map(|a| Alpha::from_ten_thousandths(*a)).collect(),
            k: vec![1, 5],
            temperature: 0.07,
            preprocess: Preprocess::Direct,
            image_size: 28,
            feature: Feature::Cls,
            dtype: Default::default(),
            linear_probe: None,
            zero_shot: None,
            refine: 0,
            batch_size: 8,
        };
        Fixture { backbone, line, datasets, evaluation }
    }

    fn run(&self, evaluation: &Evaluation, known: &[KnownPoint]) -> (Vec<PointRecord>, Vec<RunProgress>) {
        let (mut points, mut progress) = (Vec::new(), Vec::new());
        self.sweep(evaluation, known, &mut |event| {
            match event {
                Event::Point(point) => points.push(*point),
                Event::Progress(done) => progress.push(done),
                _ => {}
            }
            Ok(())
        })
        .run()
        .unwrap();
        (points, progress)
    }

    fn sweep<'a>(
        &'a self,
        evaluation: &'a Evaluation,
        known: &'a [KnownPoint],
        emit: &'a mut dyn FnMut(Event) -> Result<()>,
    ) -> Sweep<'a> {
        let stamp =
            NumericsStamp { device: "cpu".into(), libtorch: "test".into(), threads: 1, batch_size: 8 };
        let (datasets, line, backbone) = (&self.datasets, &self.line, &self.backbone.digest);
        Sweep { evaluation, datasets, backbone, line, known, stamp, emit }
    }

    fn alone(&self, alpha: Alpha) -> Evaluation {
        Evaluation { alphas: vec![alpha], ..self.evaluation.clone() }
    }
}

fn dataset(name: &str, bank: usize, query: Option<usize>) -> Measured {
    let mut random = SplitMix64::new(bank as u64);
    let mut images = |n: usize| {
        let bytes: Vec<u8> = (0..n * 36).map(|_| (random.next_u64() >> 56) as u8).collect();
        let bytes: std::sync::Arc<[u8]> = bytes.into();
        let image = |at: usize| Labelled {
            source: Source::Grey { bytes: bytes.clone(), begin: at * 36, width: 6, height: 6 },
            label: (at % 3) as u32,
        };
        (0..n).map(image).collect::<Vec<_>>()
    };
    let dataset = Dataset {
        asset: name.to_owned(),
        title: name.to_uppercase(),
        licence: "MIT".to_owned(),
        source: "noise".to_owned(),
        classes: ["x", "y", "z"].map(str::to_owned).to_vec(),
        bank: images(bank),
        query: query.map(images),
    };
    let digest = dataset.digest().unwrap();
    let fingerprints = dataset.fingerprints(1, &|_| ()).unwrap();
    Measured { dataset, digest, fingerprints }
}

#[test]
fn a_row_of_a_sweep_is_a_single_run_bit_for_bit() {
    let fixture = Fixture::new();
    let (points, progress) = fixture.run(&fixture.evaluation, &[]);
    let order: Vec<(&str, i64, u32)> = points
        .iter()
        .map(|point| {
            (point.dataset.as_str(), point.alpha.ten_thousandths(), point.protocol.readout.k().unwrap_or(0))
        })
        .collect();
    let mut expected = Vec::new();
    for measured in &fixture.datasets {
        for alpha in [0, 1000, 3000, 10_000] {
            expected.extend([1, 5].map(|k| (measured.digest.as_str(), alpha, k)));
        }
    }
    assert_eq!(order, expected, "by dataset, then α, then k");
    assert_eq!(progress.last().map(|last| (last.done, last.total)), Some((4 * 54, 4 * 54)));

    for alpha in fixture.evaluation.alphas.clone() {
        let (alone, _) = fixture.run(&fixture.alone(alpha), &[]);
        let row: Vec<PointRecord> = points.iter().filter(|point| point.alpha == alpha).cloned().collect();
        assert_eq!(alone, row);
    }
    let encoders =
        |alphas: &[Alpha]| alphas.iter().map(|alpha| fixture.line.encoder(*alpha)).collect::<Vec<_>>();
    let features = |alphas: &[Alpha]| {
        let mut emit = |_| Ok(());
        let mut sweep = fixture.sweep(&fixture.evaluation, &[], &mut emit);
        sweep.features(&fixture.datasets[1].dataset, &encoders(alphas), &mut Pace::new(0)).unwrap()
    };
    for (alpha, together) in fixture.evaluation.alphas.iter().zip(features(&fixture.evaluation.alphas)) {
        assert!(bitwise_equal(&features(&[*alpha])[0], &together), "α = {alpha}");
    }
}

#[test]
fn known_points_are_left_out_and_the_others_keep_their_bits() {
    let fixture = Fixture::new();
    let (all, _) = fixture.run(&fixture.evaluation, &[]);
    let name = |point: &PointRecord| KnownPoint {
        backbone: point.backbone.clone(),
        checkpoint: point.checkpoint.clone(),
        dataset: point.dataset.clone(),
        protocol: point.protocol.id.clone(),
        alpha: point.alpha,
    };
    // All of the first dataset, α = 0 of the second, and one k of its next α.
    let known: Vec<KnownPoint> = all[..11].iter().map(name).collect();
    let (rest, progress) = fixture.run(&fixture.evaluation, &known);
    assert_eq!(rest, all[11..]);
    assert_eq!(progress.last().map(|last| last.total), Some(3 * 31));
    let everything: Vec<KnownPoint> = all.iter().map(name).collect();
    assert_eq!(fixture.run(&fixture.evaluation, &everything), (vec![], vec![]));
}

#[test]
fn alpha_zero_is_the_bare_backbone_and_belongs_to_no_checkpoint() {
    let fixture = Fixture::new();
    let (points, _) = fixture.run(&fixture.evaluation, &[]);
    for point in &points {
        assert_eq!(point.checkpoint.is_none(), point.alpha == Alpha::ZERO);
        assert_eq!(point.correct, point.hits.count());
        assert_eq!(point.backbone, fixture.backbone.digest);
    }
    assert_ne!(points[0].hits, points[6].hits, "θ1 is another encoder");
}
