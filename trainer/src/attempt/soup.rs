//! The soup of an evaluation: made of the checkpoints that the spec names, all of them or those that a dataset chooses,
//! and kept as a checkpoint of its own, which the points belong to.

use super::Attempt;
use super::narrate::say;
use crate::data::asset::AssetKind;
use crate::data::dataset::Dataset;
use crate::evaluate::input::Input;
use crate::evaluate::readout;
use crate::train::CHECKPOINT;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::interpolate::Line;
use crate::weights::{Backbone, soup};
use anyhow::{Context, Result};
use causeway_protocol::{Alpha, Evaluation, Event, Soup, Spec, WeightSource};
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

/// Neighbours that decide what is best, where the bank has as many.
const NEIGHBOURS: usize = 20;

impl Attempt<'_> {
    /// Makes the soup, unless an earlier attempt has, and returns its file.
    pub(super) fn soup(&mut self, spec: &Spec, soup: &Soup, backbone: &Backbone) -> Result<PathBuf> {
        if let Some(made) = self.lease.checkpoint.clone() {
            return self.blob(&made);
        }
        let files = soup.checkpoints.iter().map(|sha256| self.weights(&WeightSource::Blob(sha256.clone())));
        let checkpoints = soup::read(backbone, &files.collect::<Result<Vec<_>>>()?)?;
        let all: Vec<usize> = (0..checkpoints.len()).collect();
        // A soup that cannot be is refused before anything is measured.
        let method = soup::mean(backbone, &checkpoints, &all)?.recipe.method;
        let stay = match &soup.greedy_on {
            None => all,
            Some(name) => self.choose(&spec.evaluation, name, backbone, &checkpoints)?,
        };
        let path = self.folder.join(CHECKPOINT);
        let blob = soup::write(&path, backbone, &checkpoints, &stay)?;
        say(&format!("a soup of {} of {} checkpoints", stay.len(), checkpoints.len()));
        let step = stay.first().map_or(0, |first| checkpoints[*first].step);
        let (backbone, method) = (backbone.digest.clone(), method.as_str().to_owned());
        self.tell(Event::Checkpoint { step, blob, backbone, method })?;
        Ok(path)
    }

    /// The checkpoints that a greedy soup keeps.
    fn choose(
        &self,
        evaluation: &Evaluation,
        name: &str,
        backbone: &Backbone,
        checkpoints: &[Checkpoint],
    ) -> Result<Vec<usize>> {
        let read = || {
            let asset = self.library.get(name, AssetKind::Dataset)?;
            asset.verify()?;
            Dataset::list(asset)
        };
        let dataset = read().with_context(|| format!("reading the dataset `{name}` of the soup"))?;
        let threads = self.environment.threads as usize;
        let judge = Judge { evaluation, dataset: &dataset, backbone, device: self.device, threads };
        let mut correct = |which: &[usize]| judge.correct(soup::mean(backbone, checkpoints, which)?);
        let alone: Vec<u32> = (0..checkpoints.len()).map(|at| correct(&[at])).collect::<Result<_>>()?;
        let (stay, decisions) = soup::greedy(&alone, &mut correct)?;
        for decision in decisions {
            say(&format!(
                "soup, {} images of {name}, k {}: checkpoint {} alone {}, the soup {} without and {} with it: it {}",
                dataset.queries().len(),
                judge.neighbours(),
                soup::short(&checkpoints[decision.at]),
                alone[decision.at],
                decision.without,
                decision.with,
                if decision.stays() { "stays" } else { "goes" }
            ));
        }
        Ok(stay)
    }
}

/// What decides which soup is better: right answers on a dataset, asked as the evaluation asks.
struct Judge<'a> {
    evaluation: &'a Evaluation,
    dataset: &'a Dataset,
    backbone: &'a Backbone,
    device: Device,
    threads: usize,
}

impl Judge<'_> {
    /// Twenty neighbours; of a smaller bank the most that the evaluation asks and the bank has.
    fn neighbours(&self) -> u32 {
        let most = self.dataset.bank.len() - usize::from(self.dataset.query.is_none());
        let fewer = self.evaluation.k.iter().copied().filter(|k| *k as usize <= most).max();
        if most >= NEIGHBOURS { NEIGHBOURS as u32 } else { fewer.unwrap_or(most as u32) }
    }

    /// Right answers of a soup.
    fn correct(&self, soup: Checkpoint) -> Result<u32> {
        let Evaluation { positions, dtype, temperature, batch_size, .. } = self.evaluation;
        let line = Line::to(self.backbone, soup)?.with_positions(*positions);
        let line = line.with_dtype(*dtype).to_device(self.device);
        let encoder = line.encoder(Alpha::ONE);
        let input = Input {
            config: line.config(),
            evaluation: self.evaluation,
            kind: line.kind(),
            device: self.device,
            threads: self.threads,
        };
        let batches = self.dataset.images().count().div_ceil(*batch_size as usize);
        let mut features = Vec::with_capacity(batches);
        input.each(self.dataset, 0..batches, &mut |_, pixels| {
            features.push(encoder.features(pixels).to_kind(Kind::Float).to_device(Device::Cpu));
            Ok(())
        })?;
        let features = Tensor::cat(&features, 0); // [images, dim]
        let scores = readout::knn(self.dataset, &features, &[self.neighbours()], *temperature)?;
        Ok(scores.first().map_or(0, |score| score.hits.count()))
    }
}
