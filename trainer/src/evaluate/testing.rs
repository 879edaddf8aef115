//! A small random encoder, a θ1 in which one block has moved, two datasets of noise, a store.

use super::features::Extraction;
use super::parts::Brought;
use super::readout::Readouts;
use super::store::{Place, Store};
use super::sweep::{Measured, Sweep};
use crate::data::asset::Library;
use crate::data::dataset::{Dataset, Labelled, Source};
use crate::models::vit::tiny;
use crate::random::SplitMix64;
use crate::weights::interpolate::Line;
use crate::weights::{Backbone, Tensors, safetensors};
use anyhow::Result;
use causeway_protocol::{
    Alpha, Dtype, Evaluation, Event, KnownPoint, NumericsStamp, PointRecord, RunProgress,
};
use serde_json::json;
use std::collections::BTreeMap;

/// The program and processor of tests.
pub const MADE_BY: &str = "a test";

pub struct Fixture {
    pub backbone: Backbone,
    pub line: Line,
    /// `a` is scored against itself, `b` has a bank of 20 and 11 queries.
    pub datasets: Vec<Measured>,
    pub evaluation: Evaluation,
    pub stamp: NumericsStamp,
    pub folder: tempfile::TempDir,
}

impl Fixture {
    pub fn new(dtype: Dtype) -> Fixture {
        let backbone = tiny(true);
        let line = line(&backbone, 0.25).with_dtype(dtype);
        let datasets = vec![dataset("a", 23, None), dataset("b", 20, Some(11))];
        let evaluation = json!({
            "datasets": [{"asset": "a", "role": "ood"}, {"asset": "b", "role": "ood"}],
            "alphas": [0, 0.1, 0.3, 1], "k": [1, 5], "image_size": 28, "dtype": dtype, "batch_size": 8
        });
        let evaluation = serde_json::from_value(evaluation).unwrap();
        let stamp = NumericsStamp {
            device: "cpu".into(),
            version: "0".into(),
            libtorch: "test".into(),
            threads: 1,
            batch_size: 8,
        };
        Fixture { backbone, line, datasets, evaluation, stamp, folder: tempfile::tempdir().unwrap() }
    }

    pub fn store(&self) -> Store {
        Store::open(&Place { folder: self.folder.path().to_owned(), most_bytes: 1 << 30 }).unwrap()
    }

    pub fn extraction<'a>(&'a self, store: &'a Store) -> Extraction<'a> {
        Extraction {
            line: &self.line,
            backbone: &self.backbone.digest,
            evaluation: &self.evaluation,
            stamp: &self.stamp,
            made_by: MADE_BY,
            store,
            resident: BTreeMap::new(),
        }
    }

    /// A sweep of the evaluation with nothing kept from before.
    pub fn run(&self, evaluation: &Evaluation, known: &[KnownPoint]) -> (Vec<PointRecord>, Vec<RunProgress>) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&Place { folder: folder.path().to_owned(), most_bytes: 1 << 30 }).unwrap();
        let (mut points, mut progress) = (Vec::new(), Vec::new());
        self.sweep(evaluation, known, &store, &mut |event| {
            match event {
                Event::Point(point) => points.push(*point),
                Event::Progress(done) => progress.push(done),
                _ => {}
            }
            Ok(())
        })
        .unwrap();
        (points, progress)
    }

    pub fn sweep(
        &self,
        evaluation: &Evaluation,
        known: &[KnownPoint],
        store: &Store,
        emit: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        self.begin((evaluation, &self.readouts(evaluation)), known, store, emit).run()
    }

    pub fn readouts(&self, evaluation: &Evaluation) -> Readouts<'_> {
        Readouts::prepare(evaluation, &self.datasets, &Library::default(), self.line.config()).unwrap()
    }

    pub fn begin<'a>(
        &'a self,
        (evaluation, readouts): (&'a Evaluation, &'a Readouts<'a>),
        known: &'a [KnownPoint],
        store: &'a Store,
        emit: &'a mut dyn FnMut(Event) -> Result<()>,
    ) -> Sweep<'a> {
        Sweep {
            evaluation,
            datasets: &self.datasets,
            readouts,
            backbone: &self.backbone.digest,
            line: &self.line,
            known,
            stamp: self.stamp.clone(),
            made_by: MADE_BY.to_owned(),
            store,
            brought: Brought::default(),
            emit,
        }
    }
}

/// A line along which the second block moves.
pub fn line(backbone: &Backbone, by: f64) -> Line {
    let moved = |(name, tensor): (&str, &tch::Tensor)| {
        let value = if name.starts_with("blocks.1") { tensor * 1.5 + by } else { tensor.shallow_clone() };
        (name.to_owned(), value)
    };
    let theta1: Tensors = backbone.tensors.iter().map(moved).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("theta1.safetensors");
    safetensors::write(&path, &theta1, &BTreeMap::new()).unwrap();
    Line::open(backbone, &path).unwrap()
}

pub fn alpha(value: f64) -> Alpha {
    Alpha::from_f64(value).unwrap()
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
