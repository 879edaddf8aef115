//! Rows of a sweep are single runs, bit for bit, in each arithmetic; known points are left out; a refinement is a sweep.

use super::super::testing::{Fixture, alpha};
use super::*;
use anyhow::bail;
use causeway_protocol::{Dtype, selection_half};

fn name(point: &PointRecord, selected: Option<u32>) -> KnownPoint {
    KnownPoint {
        backbone: point.backbone.clone(),
        checkpoint: point.checkpoint.clone(),
        dataset: point.dataset.clone(),
        protocol: point.protocol.id.clone(),
        alpha: point.alpha,
        selected,
    }
}

fn places(points: &[PointRecord]) -> Vec<(&str, Alpha, u32)> {
    let k = |point: &PointRecord| point.protocol.readout.k().unwrap_or(0);
    points.iter().map(|point| (point.dataset.as_str(), point.alpha, k(point))).collect()
}

#[test]
fn a_row_of_a_sweep_is_a_single_run_in_each_arithmetic() {
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let fixture = Fixture::new(dtype);
        let (points, progress) = fixture.run(&fixture.evaluation, &[]);
        let mut expected = Vec::new();
        for measured in &fixture.datasets {
            for value in [0.0, 0.1, 0.3, 1.0] {
                expected.extend([1, 5].map(|k| (measured.digest.as_str(), alpha(value), k)));
            }
        }
        assert_eq!(places(&points), expected, "by dataset, then α, then k");
        assert_eq!(progress.last().map(|last| (last.done, last.total)), Some((4 * 54, 4 * 54)));
        for alpha in &fixture.evaluation.alphas {
            let alone = Evaluation { alphas: vec![*alpha], ..fixture.evaluation.clone() };
            let (alone, _) = fixture.run(&alone, &[]);
            let row: Vec<PointRecord> =
                points.iter().filter(|point| point.alpha == *alpha).cloned().collect();
            assert_eq!(alone, row, "{dtype:?}");
        }
    }
}

#[test]
fn known_points_are_left_out_and_the_others_keep_their_bits() {
    let fixture = Fixture::new(Dtype::F32);
    let (all, _) = fixture.run(&fixture.evaluation, &[]);
    // All of the first dataset, α = 0 of the second, and one k of its next α.
    let known: Vec<KnownPoint> = all[..11].iter().map(|point| name(point, None)).collect();
    let (rest, progress) = fixture.run(&fixture.evaluation, &known);
    assert_eq!(rest, all[11..]);
    // What is known counts as done, so a sweep that was stopped goes on where it was.
    assert_eq!(progress.last().map(|last| (last.done, last.total)), Some((4 * 54, 4 * 54)));
    let everything: Vec<KnownPoint> = all.iter().map(|point| name(point, None)).collect();
    assert_eq!(fixture.run(&fixture.evaluation, &everything), (vec![], vec![]));
    // Another checkpoint's points are no help.
    let others = everything.into_iter().map(|known| KnownPoint { checkpoint: Some("x".into()), ..known });
    assert_eq!(fixture.run(&fixture.evaluation, &others.collect::<Vec<_>>()).0, all);
}

#[test]
fn alpha_zero_is_the_bare_backbone_and_belongs_to_no_checkpoint() {
    let fixture = Fixture::new(Dtype::F32);
    let (points, _) = fixture.run(&fixture.evaluation, &[]);
    for point in &points {
        assert_eq!(point.checkpoint.is_none(), point.alpha == Alpha::ZERO);
        assert_eq!(point.correct, point.hits.count());
        assert_eq!(point.backbone, fixture.backbone.digest);
    }
    assert_ne!(points[0].hits, points[6].hits, "θ1 is another encoder");
}

#[test]
fn a_sweep_that_was_stopped_anywhere_goes_on_to_the_same_points() {
    let fixture = Fixture::new(Dtype::F32);
    let (all, _) = fixture.run(&fixture.evaluation, &[]);
    let store = fixture.store();
    let mut points: Vec<PointRecord> = Vec::new();
    // Every process dies at its second event that is neither a dataset nor progress: a point at a time.
    for _ in 0..all.len() {
        let known: Vec<KnownPoint> = points.iter().map(|point| name(point, None)).collect();
        let mut new = None;
        let stopped = fixture.sweep(&fixture.evaluation, &known, &store, &mut |event| {
            match event {
                Event::Point(_) if new.is_some() => bail!("killed"),
                Event::Point(point) => new = Some(*point),
                _ => {}
            }
            Ok(())
        });
        points.extend(new);
        assert_eq!(stopped.is_ok(), points.len() == all.len());
    }
    assert_eq!(points, all);
}

#[test]
fn a_refinement_measures_ordinary_points_around_the_best_and_resumes() {
    let fixture = Fixture::new(Dtype::F32);
    let alphas: Vec<Alpha> = [0.0, 0.5, 1.0].map(alpha).to_vec();
    let coarse = Evaluation { alphas: alphas.clone(), ..fixture.evaluation.clone() };
    let refined = Evaluation { refine: 2, ..coarse.clone() };
    let (points, progress) = fixture.run(&refined, &[]);
    let before = 2 * 3 * 2;
    assert_eq!(points[..before], fixture.run(&coarse, &[]).0);

    // What the rule says of the points so far, round by round.
    let mut rule = {
        let queries = |measured: &Measured| measured.dataset.queries().len();
        let datasets = fixture.datasets.iter().map(|measured| (measured.digest.as_str(), queries(measured)));
        Refinement::new(&refined, datasets)
    };
    let take = |rule: &mut Refinement, points: &[PointRecord]| {
        for point in points.iter().filter(|point| point.protocol.readout.k() == Some(5)) {
            let at = usize::from(point.dataset != fixture.datasets[0].digest);
            rule.measured(at, point.alpha, &point.hits);
        }
    };
    take(&mut rule, &points[..before]);
    let mut expected = alphas;
    let mut rest = &points[before..];
    for _ in 0..2 {
        let next = rule.next();
        assert!(!next.is_empty());
        let (round, others) = rest.split_at(2 * 2 * next.len());
        assert!(round.iter().all(|point| next.contains(&point.alpha)), "{:?}", places(round));
        take(&mut rule, round);
        expected.extend(next);
        rest = others;
    }
    assert!(rest.is_empty());
    expected.sort();
    let last = progress.last().unwrap();
    assert_eq!((last.done, last.total), (54 * expected.len() as u64, 54 * expected.len() as u64));
    let all_at_once = Evaluation { alphas: expected, ..coarse };
    let same = |points: Vec<PointRecord>| {
        let mut points = points;
        points.sort_by_key(|point| (point.dataset.clone(), point.alpha, point.protocol.id.clone()));
        points
    };
    assert_eq!(same(points.clone()), same(fixture.run(&all_at_once, &[]).0));

    // A resume is told how many of the half are right, and asks for nothing else.
    let halved = |point: &PointRecord| {
        let half = selection_half(&point.dataset, point.n as usize);
        name(point, Some(point.hits.count_among(&half)))
    };
    let known: Vec<KnownPoint> = points[..before + 3].iter().map(halved).collect();
    assert_eq!(fixture.run(&refined, &known).0, points[before + 3..]);
    // Where it is not told, the points by which α is chosen are computed once more.
    let silent: Vec<KnownPoint> = points.iter().map(|point| name(point, None)).collect();
    let again = fixture.run(&refined, &silent).0;
    let choosing: Vec<PointRecord> =
        points.iter().filter(|point| point.protocol.readout.k() == Some(5)).cloned().collect();
    assert_eq!(again, choosing);
}
