//! Training images that are also evaluation images. An image that was trained on and is then measured makes an accuracy
//! look better than it is. The same pixels are a leak; nearly the same, after resizing or another compression, are told
//! too, because only a person can judge them.

use super::captions::Captions;
use super::dataset::{Dataset, Source};
use super::fingerprint::Fingerprint;
use anyhow::{Result, ensure};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Most bits in which the perceptual hashes of two images differ that are told as near. Measured: images of COCO,
/// CIFAR-10 and Tux Paint differ from their own copies, resized to 224, 64 or 32 pixels, in 4 bits at most, and 98 % of
/// them do as JPEG of quality 30; of 7 million pairs of different images 3 are as near. A crop of 2 % a side is farther
/// for half of the images, and simple shapes, such as Fashion-MNIST's, are near without being the same.
pub const NEAR_BITS: u32 = 4;
/// The bits are cut into one band more than may differ, so that near hashes agree in one band at least (pigeonholes):
/// only images that agree in a band are compared.
const BANDS: u32 = NEAR_BITS + 1;
/// Bits of a band; the last one has what is left.
const BAND_BITS: u32 = 64 / BANDS;

/// A training image that an evaluation dataset holds too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leak {
    /// The training image.
    pub image: String,
    /// Its place among the training images.
    pub place: usize,
    /// The dataset's asset.
    pub dataset: String,
    /// The side of the dataset: `bank`, `query` or `leave_one_out`.
    pub split: &'static str,
    /// The dataset's image.
    pub found: String,
    /// How alike they are.
    pub likeness: Likeness,
}

/// How alike two images are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Likeness {
    /// The same pixels.
    Exact,
    /// Perceptual hashes that differ in so many bits.
    Near(u32),
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Leak { image, dataset, split, found, likeness, .. } = self;
        match likeness {
            Likeness::Exact => write!(f, "{image} is {found} of `{dataset}` ({split}), pixel for pixel"),
            Likeness::Near(bits) => {
                write!(f, "{image} resembles {found} of `{dataset}` ({split}): {bits} of 64 bits differ")
            }
        }
    }
}

/// Images by which leaks are looked for: a name for each, where it is, and what it is recognised by.
pub struct Images<'a> {
    /// Where they are.
    pub sources: Vec<&'a Source>,
    /// What they are recognised by.
    pub fingerprints: &'a [Fingerprint],
}

/// A dataset and the fingerprints of its images, in the order of [`Dataset::images`].
pub struct Scanned<'a> {
    /// The dataset.
    pub dataset: &'a Dataset,
    /// [`Dataset::fingerprints`].
    pub fingerprints: &'a [Fingerprint],
}

/// Every training image that a dataset holds too: exact ones first, then near ones, in the order of the training images.
/// Each training image is told once for each dataset image that it is like. The time is that of reading the images,
/// which the fingerprints have cost already, and comparing a hundredth of the pairs.
///
/// # Errors
/// The captions were listed and not read, so that they have no fingerprints.
pub fn leaks(captions: &Captions, datasets: &[Scanned], threads: usize) -> Result<Vec<Leak>> {
    ensure!(
        captions.fingerprints.len() == captions.images.len(),
        "the captions were only listed; a leak is found by pixels, so read them"
    );
    let training = Images { sources: captions.images.iter().collect(), fingerprints: &captions.fingerprints };
    let mut leaks = Vec::new();
    for Scanned { dataset, fingerprints } in datasets {
        let splits: Vec<&'static str> = dataset.splits().collect();
        let images = Images { sources: dataset.images().map(|image| &image.source).collect(), fingerprints };
        ensure!(
            splits.len() == fingerprints.len(),
            "the fingerprints are not those of the dataset `{}`",
            dataset.asset
        );
        for (place, at, likeness) in pairs(&training, &images, threads) {
            leaks.push(Leak {
                image: training.sources[place].name(),
                place,
                dataset: dataset.asset.clone(),
                split: splits[at],
                found: images.sources[at].name(),
                likeness,
            });
        }
    }
    leaks.sort_by_key(|leak| (leak.likeness != Likeness::Exact, leak.place));
    Ok(leaks)
}

/// Fails if a leak is exact, and names the first ones.
pub fn refuse_exact(leaks: &[Leak]) -> Result<()> {
    let exact: Vec<String> =
        leaks.iter().filter(|leak| leak.likeness == Likeness::Exact).map(Leak::to_string).collect();
    let first = exact.iter().take(5).map(|leak| format!("\n  {leak}")).collect::<String>();
    ensure!(
        exact.is_empty(),
        "{} training images are also evaluation images, so their accuracy would be too good; take them out of the \
         captions or the dataset:{first}{}",
        exact.len(),
        if exact.len() > 5 { "\n  …" } else { "" }
    );
    Ok(())
}

/// Places of alike images, (training, dataset, likeness), in the order of the training images.
pub fn pairs(training: &Images, dataset: &Images, threads: usize) -> Vec<(usize, usize, Likeness)> {
    let mut exact: HashMap<[u8; 32], Vec<usize>> = HashMap::new();
    for (at, print) in dataset.fingerprints.iter().enumerate() {
        exact.entry(print.pixels).or_default().push(at);
    }
    let bands = Bands::of(dataset.fingerprints);
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(print) = training.fingerprints.get(place) else { return };
            let same = exact.get(&print.pixels).into_iter().flatten();
            let mut alike: Vec<_> = same.map(|at| (place, *at, Likeness::Exact)).collect();
            for (at, bits) in bands.near(print, dataset.fingerprints) {
                alike.push((place, at, Likeness::Near(bits)));
            }
            if !alike.is_empty() {
                found.lock().unwrap_or_else(PoisonError::into_inner).append(&mut alike);
            }
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_unstable();
    found
}

/// Images by each band of their hash.
struct Bands {
    /// For each band and each of its values the images that have it.
    images: Vec<HashMap<u64, Vec<u32>>>,
}

impl Bands {
    fn of(prints: &[Fingerprint]) -> Bands {
        let mut images = vec![HashMap::<u64, Vec<u32>>::new(); BANDS as usize];
        for (at, print) in prints.iter().enumerate() {
            let Some(hash) = print.perceptual else { continue };
            for (band, images) in images.iter_mut().enumerate() {
                images.entry(value(hash, band as u32)).or_default().push(at as u32);
            }
        }
        Bands { images }
    }

    /// Images near to one but not equal to it, and by how many bits.
    fn near(&self, print: &Fingerprint, prints: &[Fingerprint]) -> Vec<(usize, u32)> {
        let Some(hash) = print.perceptual else { return Vec::new() };
        let mut near = Vec::new();
        for (band, images) in self.images.iter().enumerate() {
            for at in images.get(&value(hash, band as u32)).into_iter().flatten() {
                let other = &prints[*at as usize];
                let bits = other.perceptual.map_or(64, |other| (other ^ hash).count_ones());
                if bits <= NEAR_BITS && other.pixels != print.pixels {
                    near.push((*at as usize, bits));
                }
            }
        }
        near.sort_unstable();
        near.dedup();
        near
    }
}

/// The bits of a band.
fn value(hash: u64, band: u32) -> u64 {
    let rest = hash >> (band * BAND_BITS);
    if band + 1 == BANDS { rest } else { rest & ((1 << BAND_BITS) - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::Labelled;
    use crate::random::SplitMix64;

    fn print(pixels: u8, perceptual: Option<u64>) -> Fingerprint {
        Fingerprint { pixels: [pixels; 32], perceptual, width: 1, height: 1 }
    }

    fn source(at: usize) -> Source {
        Source::File { path: format!("{at}.png").into(), sha256: None }
    }

    #[test]
    fn every_near_pair_is_found_and_no_other() {
        let mut random = SplitMix64::new(4);
        let base: Vec<u64> = (0..200).map(|_| random.next_u64()).collect();
        // Each with a few bits changed at random places: 0 to 11 of them.
        let changed = |(at, hash): (usize, &u64)| {
            let bits = (0..at % 12).fold(*hash, |hash, _| hash ^ 1 << random.below(64));
            print(1, Some(bits))
        };
        let training: Vec<Fingerprint> = base.iter().map(|hash| print(0, Some(*hash))).collect();
        let dataset: Vec<Fingerprint> = base.iter().enumerate().map(changed).collect();
        let images = |fingerprints| Images { sources: Vec::new(), fingerprints };
        let found = pairs(&images(&training), &images(&dataset), 3);
        let mut expected = Vec::new();
        for (place, one) in training.iter().enumerate() {
            for (at, other) in dataset.iter().enumerate() {
                let bits = (one.perceptual.unwrap() ^ other.perceptual.unwrap()).count_ones();
                if bits <= NEAR_BITS {
                    expected.push((place, at, Likeness::Near(bits)));
                }
            }
        }
        assert!(expected.len() > 60, "{}", expected.len());
        assert_eq!(found, expected);
    }

    #[test]
    fn exact_leaks_are_refused_by_name_and_near_ones_told() {
        let captions = Captions {
            images: (0..3).map(source).collect(),
            fingerprints: vec![print(1, Some(1)), print(2, None), print(3, Some(u64::MAX))],
            ..Captions::default()
        };
        let labelled = |at| Labelled { source: source(at), label: 0 };
        let dataset = Dataset {
            asset: "held-out".to_owned(),
            title: String::new(),
            licence: String::new(),
            source: String::new(),
            classes: vec!["a".to_owned()],
            bank: vec![labelled(10), labelled(11)],
            query: Some(vec![labelled(12)]),
        };
        let prints = [print(9, Some(0b111)), print(8, None), print(2, None)];
        let scanned = [Scanned { dataset: &dataset, fingerprints: &prints }];
        let found = leaks(&captions, &scanned, 2).unwrap();
        let told: Vec<String> = found.iter().map(Leak::to_string).collect();
        assert_eq!(
            told,
            [
                "1.png is 12.png of `held-out` (query), pixel for pixel",
                "0.png resembles 10.png of `held-out` (bank): 2 of 64 bits differ",
            ]
        );
        let error = refuse_exact(&found).unwrap_err().to_string();
        assert!(error.starts_with("1 training images") && error.contains("1.png is 12.png"), "{error}");
        refuse_exact(&found[1..]).unwrap();

        let listed = Captions { images: vec![source(0)], ..Captions::default() };
        assert!(leaks(&listed, &scanned, 1).unwrap_err().to_string().contains("only listed"));
    }

    #[test]
    fn the_bands_cover_all_bits() {
        let joined = (0..BANDS).fold(0, |all, band| all | value(u64::MAX, band) << (band * BAND_BITS));
        assert_eq!(joined, u64::MAX);
    }
}
