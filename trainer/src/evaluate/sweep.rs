//! The α sweep: k-NN accuracy of every θ_α on every dataset. Images are decoded and resized once, and α is the inner
//! loop over weights that all stay in memory; the blocks before the first that differs are computed once for all α.
//! Which points are known already decides which θ_α are asked, never how images are put into batches, so a point has
//! the same bits whether it is computed alone or in a sweep.

use super::readout::{Readouts, Scored};
use crate::data::asset::{AssetKind, Library};
use crate::data::dataset::{Dataset, Source};
use crate::data::fingerprint::Fingerprint;
use crate::data::pixels;
use crate::weights::interpolate::{Encoder, Line};
use anyhow::{Context, Result};
use causeway_protocol::{
    Alpha, Evaluation, Event, Feature, KnownPoint, NumericsStamp, Phase, PointRecord, Protocol, RunProgress,
};
use std::collections::HashSet;
use std::time::{Duration, Instant};
use tch::{Device, Tensor};

/// Most bytes of interpolated weights in memory at once. A sweep with more than that reads the images again for each
/// group of α: 11 α of a ViT-B fit.
const RESIDENT_BYTES: usize = 4 << 30;
/// Time between two reports of progress: they are for the eye, and every line is shipped and stored.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// A dataset and the digest over its pixels, labels and split.
pub struct Measured {
    /// The images.
    pub dataset: Dataset,
    /// The dataset's identity.
    pub digest: String,
    /// What its images are recognised by, in the order of [`Dataset::images`].
    pub fingerprints: Vec<Fingerprint>,
}

/// Reads every dataset of an evaluation: each file is checked and each image decoded, so that whatever is wrong with
/// them is known before training begins.
pub fn read_datasets(library: &Library, evaluation: &Evaluation, threads: usize) -> Result<Vec<Measured>> {
    let read = |name: &str| {
        let asset = library.get(name, AssetKind::Dataset)?;
        asset.verify()?;
        let dataset = Dataset::list(asset)?;
        let fingerprints = dataset.fingerprints(threads, &|_| ())?;
        let digest = dataset.digest_of(&fingerprints);
        anyhow::Ok(Measured { dataset, digest, fingerprints })
    };
    let one = |name: &str| read(name).with_context(|| format!("reading the dataset `{name}`"));
    evaluation.datasets.iter().map(|dataset| one(&dataset.asset)).collect()
}

/// One sweep, complete.
pub struct Sweep<'a> {
    /// What to measure and how.
    pub evaluation: &'a Evaluation,
    /// Its datasets, in its order.
    pub datasets: &'a [Measured],
    /// How features become classes.
    pub readouts: &'a Readouts<'a>,
    /// Digest of θ0.
    pub backbone: &'a str,
    /// From θ0 to θ1.
    pub line: &'a Line,
    /// Points that need no computing.
    pub known: &'a [KnownPoint],
    /// What computes.
    pub stamp: NumericsStamp,
    /// Where events go.
    pub emit: &'a mut dyn FnMut(Event) -> Result<()>,
}

/// The points of one dataset that are to be computed: for each α the places of its protocols, both ascending.
type Missing = Vec<(Alpha, Vec<usize>)>;

impl Sweep<'_> {
    /// Computes what is missing, a dataset after the other; of a dataset by α, then by k.
    pub fn run(mut self) -> Result<()> {
        let protocols = self.evaluation.protocols();
        let known: HashSet<KnownPoint> = self.known.iter().cloned().collect();
        let missing: Vec<Missing> =
            self.datasets.iter().map(|measured| self.missing(measured, &protocols, &known)).collect();
        let forwards = |(measured, missing): (&Measured, &Missing)| {
            (measured.dataset.images().count() * missing.len()) as u64
        };
        let mut pace = Pace::new(self.datasets.iter().zip(&missing).map(forwards).sum());
        for (at, (measured, missing)) in self.datasets.iter().zip(&missing).enumerate() {
            (self.emit)(measured.event())?;
            for group in missing.chunks(self.resident()) {
                self.measure((at, measured), &protocols, group, &mut pace)
                    .with_context(|| format!("evaluating on {}", measured.dataset.title))?;
            }
        }
        Ok(())
    }

    fn missing(&self, measured: &Measured, protocols: &[Protocol], known: &HashSet<KnownPoint>) -> Missing {
        let of_alpha = |alpha: &Alpha| {
            let unknown = |protocol: &Protocol| {
                let point = KnownPoint {
                    backbone: self.backbone.to_owned(),
                    checkpoint: self.checkpoint(*alpha),
                    dataset: measured.digest.clone(),
                    protocol: protocol.id.clone(),
                    alpha: *alpha,
                };
                !known.contains(&point)
            };
            let places: Vec<usize> = (0..protocols.len()).filter(|at| unknown(&protocols[*at])).collect();
            (!places.is_empty()).then_some((*alpha, places))
        };
        self.evaluation.alphas.iter().filter_map(of_alpha).collect()
    }

    /// The checkpoint that a point belongs to: α = 0 is the bare backbone and belongs to none.
    fn checkpoint(&self, alpha: Alpha) -> Option<String> {
        (alpha != Alpha::ZERO).then(|| self.line.digest().to_owned())
    }

    /// How many θ_α may be in memory at once.
    fn resident(&self) -> usize {
        let end = self.line.encoder(Alpha::ONE).tensors;
        let moved = self.line.moved().iter().filter_map(|name| end.get(name));
        let bytes: usize = moved.map(|tensor| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum();
        (RESIDENT_BYTES / bytes.max(1)).max(1)
    }

    fn measure(
        &mut self,
        (at, measured): (usize, &Measured),
        protocols: &[Protocol],
        missing: &[(Alpha, Vec<usize>)],
        pace: &mut Pace,
    ) -> Result<()> {
        let encoders: Vec<Encoder> = missing.iter().map(|(alpha, _)| self.line.encoder(*alpha)).collect();
        let features = self.features(&measured.dataset, &encoders, pace)?;
        for ((alpha, places), features) in missing.iter().zip(features) {
            for record in self.points((at, measured), protocols, places, *alpha, &features)? {
                (self.emit)(Event::Point(Box::new(record)))?;
            }
        }
        Ok(())
    }

    /// The features of all images, the bank's first, for each encoder. `[images, dim]`, f32
    fn features(&mut self, dataset: &Dataset, encoders: &[Encoder], pace: &mut Pace) -> Result<Vec<Tensor>> {
        let Feature::Cls = self.evaluation.feature;
        let (how, size) = (self.evaluation.preprocess, self.evaluation.image_size as usize);
        let images: Vec<&Source> = dataset.images().map(|image| &image.source).collect();
        let batches: Vec<&[&Source]> = images.chunks(self.evaluation.batch_size as usize).collect();
        let device = encoders.first().map_or(Device::Cpu, |encoder| encoder.tensors["cls_token"].device());
        let mut features: Vec<Vec<Tensor>> =
            encoders.iter().map(|_| Vec::with_capacity(batches.len())).collect();
        for (at, batch) in batches.iter().enumerate() {
            let pixels = pixels::batch(batch.iter().copied(), how, size)?.to_device(device);
            let pixels = self.line.config().normalise(&pixels); // [batch, 3, size, size]
            let stem = self.line.stem(&pixels);
            for (encoder, features) in encoders.iter().zip(&mut features) {
                features.push(encoder.features_with(stem.as_ref(), &pixels));
                let doing = || format!("{}, batch {} of {}", dataset.title, at + 1, batches.len());
                if let Some(progress) = pace.after(batch.len() as u64, doing) {
                    (self.emit)(Event::Progress(progress))?;
                }
            }
        }
        // The votes are cheap, and the same on every machine.
        Ok(features.iter().map(|batches| Tensor::cat(batches, 0).to_device(Device::Cpu)).collect())
    }

    fn points(
        &self,
        (at, measured): (usize, &Measured),
        protocols: &[Protocol],
        places: &[usize],
        alpha: Alpha,
        features: &Tensor,
    ) -> Result<Vec<PointRecord>> {
        let scores = self.readouts.score(at, features, places).with_context(|| format!("at α = {alpha}"))?;
        let record = |(place, scored): (&usize, Scored)| PointRecord {
            backbone: self.backbone.to_owned(),
            checkpoint: self.checkpoint(alpha),
            dataset: measured.digest.clone(),
            protocol: protocols[*place].clone(),
            alpha,
            n: measured.dataset.queries().len() as u32,
            correct: scored.hits.count(),
            correct_top5: scored.correct_top5,
            correct_per_class: scored.correct_per_class,
            hits: scored.hits,
            stamp: self.stamp.clone(),
        };
        Ok(places.iter().zip(scores).map(record).collect())
    }
}

impl Measured {
    fn event(&self) -> Event {
        let dataset = &self.dataset;
        Event::Dataset {
            asset: dataset.asset.clone(),
            digest: self.digest.clone(),
            title: dataset.title.clone(),
            licence: dataset.licence.clone(),
            source: dataset.source.clone(),
            queries: dataset.queries().len() as u32,
            bank: dataset.bank.len() as u32,
            leave_one_out: dataset.query.is_none(),
            classes: dataset.classes.clone(),
            queries_per_class: dataset.queries_per_class(),
        }
    }
}

/// Says how far the sweep is, now and then, and at its end.
struct Pace {
    done: u64,
    total: u64,
    lately: u64,
    since: Instant,
}

impl Pace {
    fn new(total: u64) -> Pace {
        Pace { done: 0, total, lately: 0, since: Instant::now() }
    }

    /// After some forward passes.
    fn after(&mut self, images: u64, doing: impl Fn() -> String) -> Option<RunProgress> {
        self.done += images;
        self.lately += images;
        let elapsed = self.since.elapsed();
        if elapsed < PROGRESS_EVERY && self.done < self.total {
            return None;
        }
        let images_per_second = self.lately as f64 / elapsed.as_secs_f64().max(1e-9);
        (self.lately, self.since) = (0, Instant::now());
        let (done, total) = (self.done, self.total);
        Some(RunProgress { phase: Phase::Evaluate, done, total, images_per_second, doing: doing() })
    }
}

#[cfg(test)]
mod tests;
