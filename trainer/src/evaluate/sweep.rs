//! The α sweep: the accuracy of every θ_α on every dataset. It asks for the features of the points that are not known
//! yet, scores them, and where `refine` says so, goes on around the best α. What is known already decides which θ_α are
//! asked, never how images are put into batches, so a point has the same bits whether it is computed alone or in a sweep.

use super::features::{Extraction, Piece, Step, checkpoint_at};
use super::pace::Pace;
use super::parts::{Brought, Maker, gather, ranges, share};
use super::readout::{Readouts, Scored};
use super::refine::Refinement;
use super::store::{Features, Store};
use super::work::Work;
use crate::data::asset::{AssetKind, Library, file_sha256};
use crate::data::dataset::Dataset;
use crate::data::fingerprint::Fingerprint;
use crate::weights::interpolate::Line;
use anyhow::{Context, Result};
use causeway_protocol::{
    Alpha, BlobRef, Evaluation, Event, FeatureFile, KnownPoint, NumericsStamp, Part, PointRecord, Protocol,
};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use tch::Tensor;

/// Most bytes of interpolated weights in memory at once. A sweep with more than that reads the images again for each
/// group of α: 11 α of a ViT-B fit.
const RESIDENT_BYTES: usize = 4 << 30;

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
    /// From θ0 to θ1, in the evaluation's arithmetic.
    pub line: &'a Line,
    /// Points that need no computing.
    pub known: &'a [KnownPoint],
    /// What computes.
    pub stamp: NumericsStamp,
    /// The build and the processor, which features are kept under too.
    pub made_by: String,
    /// Where features are kept.
    pub store: &'a Store,
    /// What the parts of this evaluation have computed, where it has parts.
    pub brought: Brought,
    /// Where events go.
    pub emit: &'a mut dyn FnMut(Event) -> Result<()>,
}

/// The points of one dataset that are to be computed: for each α the places of its protocols, both ascending.
type Missing = Vec<(Alpha, Vec<usize>)>;

/// What a sweep knows on its way.
struct State {
    protocols: Vec<Protocol>,
    /// By (dataset, protocol, α), and how many of the queries that α is chosen on are right, where that is told.
    known: HashMap<(String, String, Alpha), Option<u32>>,
    refinement: Refinement,
    pace: Pace,
    work: Work,
}

impl Sweep<'_> {
    /// Computes what is missing, a dataset after the other; of a dataset by α, then by protocol. Then what a refinement
    /// asks for, round by round.
    pub fn run(mut self) -> Result<()> {
        let mut state = self.begin();
        let maker = (self.stamp.clone(), self.made_by.clone());
        let mut extraction = self.extraction(&maker);
        let (datasets, rounds) = (self.datasets, self.evaluation.refine as usize);
        let round = 2;
        state.expect(datasets, self.evaluation.alphas.len(), self.resident());
        (0..rounds).for_each(|_| state.expect(datasets, round, self.resident()));
        self.at(&self.evaluation.alphas, true, &mut state, &mut extraction)?;
        for _ in 0..rounds {
            let alphas = state.refinement.next();
            state.forget(datasets, round, alphas.len(), self.resident());
            self.at(&alphas, false, &mut state, &mut extraction)?;
        }
        state.pace.ended().map_or(Ok(()), |progress| (self.emit)(Event::Progress(progress)))
    }

    /// Computes the features of one part's images and leaves them in files in `folder`, one for each stretch of a dataset
    /// at an α. Whoever counts the votes needs them.
    pub fn run_part(mut self, part: Part, folder: &Path) -> Result<()> {
        let mut state = self.begin();
        let maker = (self.stamp.clone(), self.made_by.clone());
        let mut extraction = self.extraction(&maker);
        let datasets = self.datasets;
        let images: Vec<usize> = datasets.iter().map(|measured| measured.dataset.images().count()).collect();
        let shares = share(&images, self.evaluation.batch_size as usize, part);
        let missing: Vec<Vec<Alpha>> = (0..datasets.len())
            .map(|at| {
                let missing = self.missing(at, &self.evaluation.alphas, &mut state);
                missing.into_iter().map(|(alpha, _)| alpha).collect()
            })
            .collect();
        for (range, alphas) in shares.iter().zip(&missing) {
            let operations = self.operations(&state, range.len(), alphas.len());
            state.pace.expect(operations, (range.len() * alphas.len()) as f64);
        }
        for ((measured, range), alphas) in datasets.iter().zip(&shares).zip(&missing) {
            if range.is_empty() {
                continue;
            }
            let Measured { dataset, digest, .. } = measured;
            let piece = Piece { dataset, digest, images: range.clone() };
            for group in alphas.chunks(self.resident()) {
                extraction.features(&piece, group, &mut |step| self.tell(&mut state.pace, dataset, step))?;
                for alpha in group {
                    let key = extraction.key(&piece, *alpha);
                    let blob = leave(&self.store.file(&key)?, folder)?;
                    let key = serde_json::to_value(&key).context("writing a key as JSON")?;
                    (self.emit)(Event::Features(Box::new(FeatureFile { key, blob })))?;
                }
            }
        }
        Ok(())
    }

    fn extraction<'b>(&self, (stamp, made_by): &'b Maker) -> Extraction<'b>
    where
        Self: 'b,
    {
        Extraction {
            line: self.line,
            backbone: self.backbone,
            evaluation: self.evaluation,
            stamp,
            made_by,
            store: self.store,
            resident: BTreeMap::new(),
        }
    }

    /// Passes a step of the work on to the eye.
    fn tell(&mut self, pace: &mut Pace, dataset: &Dataset, step: Step) -> Result<()> {
        let progress = match step {
            Step::Found(operations) => {
                pace.found(operations);
                None
            }
            Step::Computed(operations, batch, batches) => {
                let doing = || format!("{}, batch {batch} of {batches}", dataset.title);
                pace.computed(operations, doing)
            }
        };
        progress.map_or(Ok(()), |progress| (self.emit)(Event::Progress(progress)))
    }

    fn begin(&self) -> State {
        let of_this_line = |point: &&KnownPoint| {
            point.backbone == self.backbone && point.checkpoint == checkpoint_at(self.line, point.alpha)
        };
        let known = self
            .known
            .iter()
            .filter(of_this_line)
            .map(|point| ((point.dataset.clone(), point.protocol.clone(), point.alpha), point.selected));
        let queries = |measured: &'_ Measured| measured.dataset.queries().len();
        let datasets = self.datasets.iter().map(|measured| (measured.digest.as_str(), queries(measured)));
        State {
            protocols: self.evaluation.protocols(),
            known: known.collect(),
            refinement: Refinement::new(self.evaluation, datasets),
            pace: Pace::new(),
            work: Work::of(self.line, self.evaluation.image_size),
        }
    }

    /// Measures every dataset at these α.
    fn at(
        &mut self,
        alphas: &[Alpha],
        first: bool,
        state: &mut State,
        extraction: &mut Extraction,
    ) -> Result<()> {
        let datasets = self.datasets;
        let missing: Vec<Missing> = (0..datasets.len()).map(|at| self.missing(at, alphas, state)).collect();
        for (measured, missing) in datasets.iter().zip(&missing) {
            let images = measured.dataset.images().count();
            let [all, left] =
                [alphas.len(), missing.len()].map(|count| self.operations(state, images, count));
            state.pace.found(all - left);
        }
        for (at, (measured, missing)) in datasets.iter().zip(&missing).enumerate() {
            if first {
                (self.emit)(measured.event())?;
            }
            for group in missing.chunks(self.resident()) {
                self.measure(at, group, state, extraction)
                    .with_context(|| format!("evaluating on {}", measured.dataset.title))?;
            }
        }
        Ok(())
    }

    fn operations(&self, state: &State, images: usize, alphas: usize) -> f64 {
        state.work.operations(images, alphas, self.resident())
    }

    /// What is to be computed of a dataset. What is known and has a say in a refinement is told to it.
    fn missing(&self, at: usize, alphas: &[Alpha], state: &mut State) -> Missing {
        let digest = &self.datasets[at].digest;
        let asks = self.evaluation.refine > 0 && state.refinement.asks(at);
        let mut missing = Vec::new();
        for alpha in alphas {
            let mut places = Vec::new();
            for (place, protocol) in state.protocols.iter().enumerate() {
                let has_a_say = asks && place == self.evaluation.choosing();
                match state.known.get(&(digest.clone(), protocol.id.clone(), *alpha)) {
                    Some(Some(right)) if has_a_say => state.refinement.counted(at, *alpha, *right),
                    Some(_) if !has_a_say => {}
                    _ => places.push(place),
                }
            }
            if !places.is_empty() {
                missing.push((*alpha, places));
            }
        }
        missing
    }

    /// How many θ_α may be in memory at once.
    fn resident(&self) -> usize {
        (RESIDENT_BYTES / self.line.bytes_moved().max(1)).max(1)
    }

    fn measure(
        &mut self,
        at: usize,
        missing: &[(Alpha, Vec<usize>)],
        state: &mut State,
        extraction: &mut Extraction,
    ) -> Result<()> {
        let Measured { dataset, digest, .. } = &self.datasets[at];
        let piece = Piece { dataset, digest, images: 0..dataset.images().count() };
        let alphas: Vec<Alpha> = missing.iter().map(|(alpha, _)| *alpha).collect();
        let (brought, evaluation, datasets) = (self.brought.clone(), self.evaluation, self.datasets);
        let mut tell = |step| self.tell(&mut state.pace, dataset, step);
        let features: Vec<(Features, NumericsStamp)> = match evaluation.parts {
            1 => {
                let own = extraction.features(&piece, &alphas, &mut tell)?;
                own.into_iter().map(|features| (features, extraction.stamp.clone())).collect()
            }
            parts => {
                let ranges = ranges(datasets, at, evaluation.batch_size as usize, parts);
                gather(extraction, &piece, &ranges, (&alphas, &brought), &mut tell)?
            }
        };
        let choosing = self.evaluation.choosing();
        for ((alpha, places), (features, stamp)) in missing.iter().zip(features) {
            let records = self.points(at, &state.protocols, places, *alpha, (&features.tensor()?, &stamp))?;
            for (place, record) in places.iter().zip(records) {
                if *place == choosing {
                    state.refinement.measured(at, *alpha, &record.hits);
                }
                (self.emit)(Event::Point(Box::new(record)))?;
            }
        }
        Ok(())
    }

    fn points(
        &self,
        at: usize,
        protocols: &[Protocol],
        places: &[usize],
        alpha: Alpha,
        (features, stamp): (&Tensor, &NumericsStamp),
    ) -> Result<Vec<PointRecord>> {
        let measured = &self.datasets[at];
        let scores = self.readouts.score(at, features, places).with_context(|| format!("at α = {alpha}"))?;
        let record = |(place, scored): (&usize, Scored)| PointRecord {
            backbone: self.backbone.to_owned(),
            checkpoint: checkpoint_at(self.line, alpha),
            dataset: measured.digest.clone(),
            protocol: protocols[*place].clone(),
            alpha,
            n: measured.dataset.queries().len() as u32,
            correct: scored.hits.count(),
            correct_top5: scored.correct_top5,
            correct_per_class: scored.correct_per_class,
            hits: scored.hits,
            stamp: stamp.clone(),
        };
        Ok(places.iter().zip(scores).map(record).collect())
    }
}

impl State {
    /// So many more α of every dataset will be measured.
    fn expect(&mut self, datasets: &[Measured], alphas: usize, resident: usize) {
        for images in datasets.iter().map(|measured| measured.dataset.images().count()) {
            self.pace.expect(self.work.operations(images, alphas, resident), (images * alphas) as f64);
        }
    }

    /// Of the α that a round was expected to have, only so many come.
    fn forget(&mut self, datasets: &[Measured], expected: usize, come: usize, resident: usize) {
        for images in datasets.iter().map(|measured| measured.dataset.images().count()) {
            let [more, less] = [expected, come].map(|count| self.work.operations(images, count, resident));
            self.pace.expect(less - more, -((images * (expected - come)) as f64));
        }
    }
}

/// Gives a file a second name in `folder`, from where the agent takes it: the store may make room.
fn leave(file: &Path, folder: &Path) -> Result<BlobRef> {
    let name = file.file_name().context("a file without a name")?.to_string_lossy().into_owned();
    let mine = folder.join(&name);
    let context = || format!("putting {} into {}", file.display(), folder.display());
    if mine.exists() {
        fs::remove_file(&mine).with_context(context)?;
    }
    fs::hard_link(file, &mine).or_else(|_| fs::copy(file, &mine).map(drop)).with_context(context)?;
    let bytes = fs::metadata(&mine).with_context(context)?.len();
    Ok(BlobRef { sha256: file_sha256(&mine)?, bytes, file: name })
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

#[cfg(test)]
mod tests;
