//! The same bits alone and together, behind a stop at any batch, and in ranges; α = 0 for all checkpoints once.

use super::super::testing::{Fixture, alpha, line};
use super::*;
use crate::models::vit::Vit;
use crate::weights::{bitwise_equal, kind, safetensors};
use anyhow::bail;
use std::fs;

fn whole(fixture: &Fixture) -> Piece<'_> {
    let measured = &fixture.datasets[1];
    Piece { dataset: &measured.dataset, digest: &measured.digest, images: 0..31 }
}

/// The features, and in how many steps of which batches they were computed.
fn extract(fixture: &Fixture, store: &Store, piece: &Piece, alphas: &[Alpha]) -> (Vec<Tensor>, Vec<usize>) {
    let mut steps = Vec::new();
    let features = fixture.extraction(store).features(piece, alphas, &mut |step| {
        if let Step::Computed(_, batch, _) = step {
            steps.push(batch);
        }
        Ok(())
    });
    (features.unwrap().iter().map(|features| features.tensor().unwrap()).collect(), steps)
}

#[test]
fn features_alone_and_together_are_those_of_the_encoder_in_each_arithmetic() {
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let fixture = Fixture::new(dtype);
        let alphas = fixture.evaluation.alphas.clone();
        let (together, _) = extract(&fixture, &fixture.store(), &whole(&fixture), &alphas);
        let images: Vec<_> = fixture.datasets[1].dataset.images().map(|image| &image.source).collect();
        let weights = fixture.backbone.tensors.to_kind(kind(dtype));
        let bare = images.chunks(8).map(|batch| {
            let pixels = crate::data::pixels::batch(batch.iter().copied(), Default::default(), 28).unwrap();
            let pixels = fixture.line.config().normalise(&pixels).to_kind(kind(dtype));
            tch::no_grad(|| Vit::bare(fixture.line.config()).features(&weights, &pixels)).to_kind(Kind::Float)
        });
        let bare = Tensor::cat(&bare.collect::<Vec<_>>(), 0);
        assert!(bitwise_equal(&together[0], &bare), "{dtype:?}: α = 0 is the bare backbone");
        for (alpha, together) in alphas.iter().zip(&together) {
            let folder = tempfile::tempdir().unwrap();
            let fixture = Fixture { folder, ..Fixture::new(dtype) };
            let (alone, _) = extract(&fixture, &fixture.store(), &whole(&fixture), &[*alpha]);
            assert!(bitwise_equal(&alone[0], together), "{dtype:?}, α = {alpha}");
        }
        assert!(!bitwise_equal(&together[0], &together[1]));
    }
}

#[test]
fn what_another_process_writes_is_waited_for_and_what_it_leaves_is_computed() {
    let fixture = Fixture::new(Dtype::F32);
    let (piece, alphas) = (whole(&fixture), [Alpha::ZERO, alpha(0.5), Alpha::ONE]);
    let (alone, _) = extract(&fixture, &fixture.store(), &piece, &alphas);
    let bytes = memory::with_bytes(&alone[0], <[u8]>::to_vec);

    // Another has begun θ0's and finishes them a little later.
    let other = Fixture { folder: tempfile::tempdir().unwrap(), ..Fixture::new(Dtype::F32) };
    let (store, key) = (other.store(), other.extraction(&other.store()).key(&whole(&other), Alpha::ZERO));
    let mut partial = store.begin(&key).unwrap();
    assert!(store.begin_alone(&key).unwrap().is_none(), "another writes them");
    let row = bytes.len() / 31;
    let writer = std::thread::spawn(move || {
        for batch in bytes.chunks(8 * row) {
            partial.append(batch).unwrap();
        }
        partial.finish().unwrap();
    });
    let (found, steps) = extract(&other, &store, &whole(&other), &alphas);
    writer.join().unwrap();
    let waited = steps.len() == 4 * 3;
    assert!(
        waited || steps.len() == 4 * 3 + 4 * 2,
        "a shared step and one for each α in each batch: {steps:?}"
    );
    assert!(found.iter().zip(&alone).all(|(found, alone)| bitwise_equal(found, alone)));

    // Another has begun them and never goes on.
    let other = Fixture { folder: tempfile::tempdir().unwrap(), ..Fixture::new(Dtype::F32) };
    let store = other.store();
    let held = store.begin(&key).unwrap();
    let (found, steps) = extract(&other, &store, &whole(&other), &alphas);
    assert_eq!(steps.len(), 4 * 3 + 4 * 2, "θ0's are computed here after all");
    assert!(found.iter().zip(&alone).all(|(found, alone)| bitwise_equal(found, alone)));
    drop(held);
}

#[test]
fn arithmetic_is_another_protocol_with_other_features() {
    let [single, half] = [Dtype::F32, Dtype::Bf16].map(Fixture::new);
    let features = |fixture: &Fixture| extract(fixture, &fixture.store(), &whole(fixture), &[Alpha::ONE]).0;
    let (a, b) = (features(&single), features(&half));
    assert!(!bitwise_equal(&a[0], &b[0]));
    // Two blocks of bf16's eight bits: a few hundredths of values about one.
    assert!((&a[0] - &b[0]).abs().max().double_value(&[]) < 0.2, "{}", (&a[0] - &b[0]).abs().max());
}

#[test]
fn what_is_there_is_not_computed_again_and_alpha_zero_serves_every_checkpoint() {
    let fixture = Fixture::new(Dtype::F32);
    let store = fixture.store();
    let (first, steps) = extract(&fixture, &store, &whole(&fixture), &[Alpha::ZERO, alpha(0.3)]);
    // Four batches, each the shared blocks and two α.
    assert_eq!(steps, [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]);
    let (again, steps) = extract(&fixture, &store, &whole(&fixture), &[Alpha::ZERO, alpha(0.3)]);
    assert!(steps.is_empty() && bitwise_equal(&again[1], &first[1]));

    let other = Fixture { line: line(&fixture.backbone, 0.5), ..Fixture::new(Dtype::F32) };
    let (other, steps) = extract(&other, &store, &whole(&fixture), &[Alpha::ZERO, alpha(0.3)]);
    assert_eq!(steps, [1, 1, 2, 2, 3, 3, 4, 4], "θ0's features were there");
    assert!(bitwise_equal(&other[0], &first[0]) && !bitwise_equal(&other[1], &first[1]));

    // Other threads may sum in another order: no hit.
    let mut more_threads = Fixture::new(Dtype::F32);
    more_threads.stamp.threads = 2;
    assert_eq!(extract(&more_threads, &store, &whole(&more_threads), &[Alpha::ZERO]).1.len(), 8);
}

#[test]
fn an_extraction_that_was_stopped_at_any_step_goes_on_behind_the_last_whole_batch() {
    let reference = Fixture::new(Dtype::F32);
    let alphas = [Alpha::ZERO, alpha(0.3), Alpha::ONE];
    let (expected, all) = extract(&reference, &reference.store(), &whole(&reference), &alphas);
    for stop in 0..all.len() {
        let fixture = Fixture::new(Dtype::F32);
        let store = fixture.store();
        let mut steps = 0;
        let stopped = fixture.extraction(&store).features(&whole(&fixture), &alphas, &mut |step| {
            if let Step::Computed(..) = step {
                steps += 1;
                if steps > stop {
                    bail!("killed");
                }
            }
            Ok(())
        });
        assert!(stopped.is_err());
        // Of one α half a batch is torn, of another the last whole batch has come out differently.
        for (at, path) in writing(fixture.folder.path()).into_iter().enumerate() {
            let mut bytes = fs::read(&path).unwrap();
            match at {
                0 => bytes.extend([7; 100]),
                1 if !bytes.is_empty() => *bytes.last_mut().unwrap() ^= 1,
                _ => {}
            }
            fs::write(&path, bytes).unwrap();
        }
        let (resumed, rest) = extract(&fixture, &store, &whole(&fixture), &alphas);
        for (resumed, expected) in resumed.iter().zip(&expected) {
            assert!(bitwise_equal(resumed, expected), "stopped behind {stop} steps");
        }
        let whole_batches = stop / 4;
        let lost = usize::from(whole_batches > 0);
        // What is left, and the batch that was damaged: its shared blocks and the one α.
        assert_eq!(rest.len(), 4 * (4 - whole_batches) + 2 * lost, "stopped behind {stop} steps");
    }
}

/// Files that an extraction was writing.
fn writing(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().unwrap() == "writing").collect();
    files.sort();
    files
}

#[test]
fn ranges_of_images_merge_into_the_bits_of_the_whole() {
    let fixture = Fixture::new(Dtype::F32);
    let alphas = [Alpha::ZERO, alpha(0.3)];
    let (expected, _) = extract(&fixture, &fixture.store(), &whole(&fixture), &alphas);
    let ranges = [0..8, 8..16, 16..31];
    // Each on a worker of its own, whose files are brought together.
    let here = Fixture::new(Dtype::F32);
    let store = here.store();
    let key = |alpha, range: &Range<usize>| {
        here.extraction(&store).key(&Piece { images: range.clone(), ..whole(&here) }, alpha)
    };
    assert!(store.merge(&key(Alpha::ZERO, &(0..31)), &ranges).unwrap().is_none(), "nothing is here yet");
    for range in &ranges {
        let worker = Fixture::new(Dtype::F32);
        let piece = Piece { images: range.clone(), ..whole(&worker) };
        extract(&worker, &worker.store(), &piece, &alphas);
        for alpha in alphas {
            let file = worker.store().file(&key(alpha, range)).unwrap();
            store.take_in(&key(alpha, range), &file).unwrap();
        }
    }
    for (alpha, expected) in alphas.into_iter().zip(&expected) {
        let merged = store.merge(&key(alpha, &(0..31)), &ranges).unwrap().unwrap();
        assert!(bitwise_equal(&merged.tensor().unwrap(), expected));
    }
    let (_, steps) = extract(&here, &store, &whole(&here), &alphas);
    assert!(steps.is_empty(), "what was merged is there");
    let gap = store.merge(&key(Alpha::ONE, &(0..31)), &[0..8, 16..31]).unwrap_err().to_string();
    assert!(gap.contains("one after the other"), "{gap}");
    let wrong = store.take_in(&key(Alpha::ONE, &(0..8)), &store.file(&key(Alpha::ZERO, &(0..8))).unwrap());
    assert!(wrong.is_err(), "another α's features are not taken in");
}

#[test]
fn a_piece_is_whole_batches() {
    let fixture = Fixture::new(Dtype::F32);
    let store = fixture.store();
    for images in [0..7, 4..16, 8..8, 8..40] {
        let piece = Piece { images, ..whole(&fixture) };
        let error = fixture.extraction(&store).features(&piece, &[Alpha::ZERO], &mut |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("no whole batches of 8 of B with its 31"), "{error}");
    }
}

#[test]
fn features_beyond_f16_are_an_error_that_says_what_to_do() {
    let fixture = Fixture::new(Dtype::F16);
    // A last LayerNorm that scales by far more than f16 holds.
    let theta1 = crate::weights::Tensors::from_iter([(
        "norm.weight".to_owned(),
        &fixture.backbone.tensors["norm.weight"] * 60_000.0,
    )]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("theta1.safetensors");
    let mut all = fixture.backbone.tensors.share();
    all.extend(theta1);
    safetensors::write(&path, &all, &BTreeMap::new()).unwrap();
    let line = Line::open(&fixture.backbone, &path).unwrap().with_dtype(Dtype::F16);
    let fixture = Fixture { line, ..fixture };
    let store = fixture.store();
    let error =
        fixture.extraction(&store).features(&whole(&fixture), &[Alpha::ONE], &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("bf16"), "{error}");
}
