//! Batches compared with the ones made one by one, whatever the threads; errors; the end.

use super::*;
use crate::data::augment::RATIO;
use crate::random::SplitMix64;
use causeway_protocol::Preprocess;

/// Grey noise images of 20 × 16.
fn images(count: usize) -> Vec<Source> {
    let mut random = SplitMix64::new(1);
    let mut bytes = || (0..320).map(|_| (random.next_u64() >> 56) as u8).collect::<Vec<u8>>().into();
    (0..count).map(|_| Source::Grey { bytes: bytes(), begin: 0, width: 20, height: 16 }).collect()
}

fn feed(images: Vec<Source>, augment: Augment) -> Feed {
    let batches = Batches::Shuffled { order: order(images.len()), positions: 0..4 };
    Feed { images, batches, size: 8, augment, threads: 2, ahead: 2, keep_bytes: 1 << 20 }
}

fn order(pairs: usize) -> Order {
    Order { seed: 5, pairs, batch: 4 }
}

/// The batch of a step made image by image.
fn expected(feed: &Feed, step: u64) -> Tensor {
    let one = |(position, index): (usize, usize)| {
        let image = feed.images[index].decode().unwrap();
        super::super::pixels::tensor(&feed.augment.apply(&image, feed.size, 5, step, position))
    };
    let batch = order(feed.images.len()).batch(step);
    Tensor::stack(&batch.into_iter().enumerate().map(one).collect::<Vec<_>>(), 0)
}

#[test]
fn a_batch_is_the_same_for_any_number_of_threads_and_any_first_step() {
    let fixed = |how| Augment { frame: Frame::Fixed(how), flip: true };
    for augment in [Augment::MAE, fixed(Preprocess::Direct), fixed(Preprocess::ResizeCrop)] {
        for (threads, ahead, keep_bytes, begin) in [(1, 1, 0, 0), (4, 3, 3000, 0), (3, 10, 1 << 20, 7)] {
            let feed = Feed { threads, ahead, keep_bytes, ..feed(images(9), augment) };
            let mut loader = Loader::start(feed.clone(), begin..12).unwrap();
            for step in begin..12 {
                let (batch, _) = loader.next().unwrap();
                assert_eq!((batch.size(), batch.kind()), (vec![4, 3, 8, 8], Kind::Uint8));
                assert_eq!(batch, expected(&feed, step), "step {step}, {threads} threads");
            }
            let error = loader.next().unwrap_err().to_string();
            assert!(error.contains("no batch of step 12"), "{error}");
        }
    }
}

#[test]
fn an_evaluation_sees_every_image_once_in_order_and_the_last_batch_is_what_is_left() {
    let all = images(9);
    for (size, threads, first) in [(4, 1, 0), (4, 3, 1), (9, 2, 0), (20, 2, 0)] {
        let feed = feed(all.clone(), Augment { frame: Frame::Fixed(Preprocess::Direct), flip: false });
        let feed = Feed { batches: Batches::InTurn { size }, threads, keep_bytes: 0, ..feed };
        let mut loader = Loader::start(feed, first..9_usize.div_ceil(size) as u64).unwrap();
        for (at, batch) in all.chunks(size).enumerate().skip(first as usize) {
            let expected = super::super::pixels::batch(batch, Preprocess::Direct, 8).unwrap();
            assert_eq!(loader.next().unwrap().0, expected, "batch {at} of {size}");
        }
        assert!(loader.next().is_err());
    }
}

#[test]
fn two_ranks_make_the_halves_of_the_batch() {
    let whole = feed(images(9), Augment::MAE);
    let half = |positions| {
        let batches = Batches::Shuffled { order: order(9), positions };
        let mut loader = Loader::start(Feed { batches, ..whole.clone() }, 3..4).unwrap();
        loader.next().unwrap().0
    };
    assert_eq!(Tensor::cat(&[half(0..2), half(2..4)], 0), expected(&whole, 3));
}

#[test]
fn an_unreadable_image_is_named_in_its_step_and_not_before() {
    let mut images = images(8);
    let broken = order(8).batch(1)[2];
    images[broken] = Source::File { path: "absent.jpg".into(), sha256: None };
    let mut loader = Loader::start(feed(images, Augment::NONE), 0..10).unwrap();
    drop(loader.next().unwrap());
    let error = format!("{:#}", loader.next().unwrap_err());
    assert!(error.contains("place 2 of the batch of step 1") && error.contains("absent.jpg"), "{error}");
}

#[test]
fn it_makes_no_more_than_it_may_and_stops_when_dropped() {
    let loader = Loader::start(feed(images(9), Augment::NONE), 0..1_000_000_000).unwrap();
    let ready = || loader.shared.lock().batches.values().filter(|batch| batch.left == 0).count();
    let since = Instant::now();
    while ready() < 2 {
        assert!(since.elapsed() < Duration::from_secs(20), "the batches are not made");
        std::thread::yield_now();
    }
    assert_eq!(loader.shared.lock().batches.len(), 2);
    let shared = loader.shared.clone();
    drop(loader);
    // Every thread held the feed, and none does any more.
    assert_eq!(Arc::strong_count(&shared), 1);
}

#[test]
fn kept_images_stay_within_their_bytes() {
    let feed = feed(
        images(9),
        Augment { frame: Frame::RandomCrop { scale: (0.5, 1.0), ratio: RATIO }, flip: false },
    );
    // Each image is 960 bytes.
    let mut loader = Loader::start(Feed { keep_bytes: 3000, ..feed }, 0..20).unwrap();
    (0..20).for_each(|_| drop(loader.next().unwrap()));
    let kept = loader.shared.kept.images.iter().filter(|image| image.get().is_some()).count();
    assert_eq!((kept, loader.shared.kept.bytes.load(Ordering::Relaxed)), (3, 2880));
}
