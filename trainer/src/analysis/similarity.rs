//! How similar θ_α is to θ0 on the images of a dataset: linear CKA after each block ([`super::cka`]), how far each layer's
//! weights moved, and what is nearest to some queries. On images that the seed chooses, in f32.

use super::cka::{Centred, cka};
use super::layers::layers;
use super::neighbours::{self, Near};
use super::tiles;
use crate::data::dataset::{Dataset, Labelled, Source};
use crate::data::pixels;
use crate::models::vit::States;
use crate::weights::interpolate::{Encoder, Line};
use anyhow::{Context, Result, ensure};
use causeway_protocol::{
    Alpha, BlockCka, Dtype, Evaluation, LayerDistance, NumericsStamp, Qkv, QueryNeighbours, ShownNeighbour,
    SimilarityAnalysis, SimilarityReport,
};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Fewest images of which a similarity without bias can be estimated.
const IMAGES_MIN: usize = 8;

/// One comparison, complete.
pub struct Similarity<'a> {
    /// What is asked.
    pub asked: &'a SimilarityAnalysis,
    /// How an image becomes a feature.
    pub evaluation: &'a Evaluation,
    /// The images.
    pub dataset: &'a Dataset,
    /// Their dataset's digest.
    pub digest: &'a str,
    /// Digest of θ0.
    pub backbone: &'a str,
    /// From θ0 to θ1.
    pub line: &'a Line,
    /// What computes.
    pub stamp: NumericsStamp,
    /// Where the small images go.
    pub folder: &'a Path,
    /// Told how many of how many forward passes of one image are done.
    pub done: &'a mut dyn FnMut(u64, u64) -> Result<()>,
}

/// Counts forward passes.
struct Passes {
    done: u64,
    total: u64,
}

impl Similarity<'_> {
    /// Computes it all.
    ///
    /// # Errors
    /// Too few images, images that cannot be read, or features that are not finite.
    pub fn run(mut self) -> Result<SimilarityReport> {
        let context = format!("the similarity on {}", self.dataset.title);
        self.compute().context(context)
    }

    fn compute(&mut self) -> Result<SimilarityReport> {
        let (asked, dataset) = (self.asked, self.dataset);
        let own = asked.alphas.iter().copied().filter(|alpha| *alpha != Alpha::ZERO);
        let alphas: Vec<Alpha> = std::iter::once(Alpha::ZERO).chain(own).collect();
        let images = neighbours::chosen_images(dataset, asked.images as usize, asked.seed);
        ensure!(
            images.len() >= IMAGES_MIN,
            "it has {} scored images; features are compared on {IMAGES_MIN} at least",
            images.len()
        );
        let queries = neighbours::chosen_queries(dataset, asked.queries as usize, asked.seed);
        let bank = match queries.is_empty() {
            true => Vec::new(),
            false => neighbours::chosen_bank(dataset, asked.bank, asked.seed),
        };
        let forwards = (images.len() + queries.len() + bank.len()) * alphas.len();
        let mut passes = Passes { done: 0, total: forwards as u64 };
        let cka = self.cka(&images, &alphas, &mut passes)?;
        let distances = distances(self.line);
        let (queries, shown) = self.neighbours(&queries, &bank, &alphas, &mut passes)?;
        let sources: Vec<&Source> = shown.iter().map(|image| &image.source).collect();
        let features = Evaluation { dtype: Dtype::F32, ..self.evaluation.clone() }.feature_id();
        Ok(SimilarityReport {
            backbone: self.backbone.to_owned(),
            checkpoint: self.line.digest().to_owned(),
            dataset: self.digest.to_owned(),
            title: dataset.title.clone(),
            licence: dataset.licence.clone(),
            source: dataset.source.clone(),
            classes: dataset.classes.clone(),
            features,
            images: images.len() as u32,
            bank: (bank.len() as u32, dataset.bank.len() as u32),
            seed: asked.seed,
            alphas,
            cka,
            distances,
            queries,
            tiles: tiles::write(self.folder, &sources)?,
            stamp: self.stamp.clone(),
        })
    }

    /// Batches of the encoder's input. [batch, 3, size, size], normalised
    fn pixels(&self, images: &[&Labelled]) -> Result<Tensor> {
        let (how, size) = (self.evaluation.preprocess, self.evaluation.image_size as usize);
        let sources = images.iter().map(|image| &image.source);
        let pixels = pixels::batch(sources, how, size)?.to_device(self.device());
        Ok(self.line.config().normalise(&pixels))
    }

    fn device(&self) -> Device {
        self.line.at(Alpha::ZERO)["cls_token"].device()
    }

    fn count(&mut self, passes: &mut Passes, images: usize) -> Result<()> {
        passes.done += images as u64;
        (self.done)(passes.done, passes.total)
    }

    fn cka(&mut self, places: &[usize], alphas: &[Alpha], passes: &mut Passes) -> Result<Vec<BlockCka>> {
        let images: Vec<&Labelled> = places.iter().map(|place| &self.dataset.queries()[*place]).collect();
        let mut first: Option<Vec<Centred>> = None;
        let mut rows = Vec::new();
        for alpha in alphas {
            let encoder = self.line.encoder(*alpha);
            let states = self.states(&encoder, &images, passes)?;
            let features: Vec<Centred> = states.iter().map(Centred::new).collect();
            let zero = first.get_or_insert_with(|| states.iter().map(Centred::new).collect());
            let mut values = zero.iter().zip(&features).map(|(one, other)| cka(one, other));
            let depth = self.line.config().depth as usize;
            let class = values.by_ref().take(depth).collect();
            let patches = values.by_ref().take(depth).collect();
            rows.push(BlockCka { alpha: *alpha, class, patches, feature: values.next().flatten() });
        }
        Ok(rows)
    }

    /// The class token after each block, the patches' mean after each block, and the feature. [images, dim] each
    fn states(
        &mut self,
        encoder: &Encoder,
        images: &[&Labelled],
        passes: &mut Passes,
    ) -> Result<Vec<Tensor>> {
        let mut columns: Vec<Vec<Tensor>> = Vec::new();
        for batch in images.chunks(self.evaluation.batch_size as usize) {
            let pixels = self.pixels(batch)?;
            let States { class, patches, feature } =
                tch::no_grad(|| encoder.vit.states(&encoder.tensors, &pixels));
            let all = class.into_iter().chain(patches).chain([feature]);
            for (at, state) in all.enumerate() {
                if columns.len() <= at {
                    columns.push(Vec::new());
                }
                columns[at].push(state.to_device(Device::Cpu));
            }
            self.count(passes, batch.len())?;
        }
        Ok(columns.iter().map(|batches| Tensor::cat(batches, 0)).collect())
    }

    /// The queries with their neighbours at each α, and the images that are shown in the order of their tiles.
    fn neighbours(
        &mut self,
        queries: &[usize],
        bank: &[usize],
        alphas: &[Alpha],
        passes: &mut Passes,
    ) -> Result<(Vec<QueryNeighbours>, Vec<Labelled>)> {
        if queries.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let dataset = self.dataset;
        let most = neighbours::most(dataset, bank, self.asked.neighbours)?;
        let asking: Vec<&Labelled> = queries.iter().map(|place| &dataset.queries()[*place]).collect();
        let searched: Vec<&Labelled> = bank.iter().map(|place| &dataset.bank[*place]).collect();
        let own = neighbours::themselves(dataset, queries, bank);
        let asking_features = self.features(&asking, alphas, passes)?;
        let bank_features = self.features(&searched, alphas, passes)?;
        let found: Vec<Vec<Vec<Near>>> = asking_features
            .iter()
            .zip(&bank_features)
            .map(|(query, bank)| neighbours::nearest(query, bank, &own, most))
            .collect::<Result<_>>()?;

        let mut sheet = Sheet { numbers: BTreeMap::new(), images: Vec::new() };
        let shown = asking.iter().enumerate().map(|(at, image)| {
            let tile = sheet.tile((false, queries[at]), image);
            let mut one = |near: &Near| ShownNeighbour {
                place: bank[near.row] as u32,
                label: searched[near.row].label,
                similarity: f64::from(near.similarity),
                tile: sheet.tile((true, bank[near.row]), searched[near.row]),
            };
            let lists = found.iter().map(|lists| lists[at].iter().map(&mut one).collect());
            let neighbours = lists.collect();
            QueryNeighbours { place: queries[at] as u32, label: image.label, tile, neighbours }
        });
        let shown = shown.collect();
        Ok((shown, sheet.images))
    }

    /// Features at each α: each image is decoded once, and what all α have in common computed once. [images, dim] each
    fn features(
        &mut self,
        images: &[&Labelled],
        alphas: &[Alpha],
        passes: &mut Passes,
    ) -> Result<Vec<Tensor>> {
        let encoders: Vec<Encoder> = alphas.iter().map(|alpha| self.line.encoder(*alpha)).collect();
        let mut features: Vec<Vec<Tensor>> = alphas.iter().map(|_| Vec::new()).collect();
        for batch in images.chunks(self.evaluation.batch_size as usize) {
            let pixels = self.pixels(batch)?;
            let stem = self.line.stem(&pixels);
            for (encoder, features) in encoders.iter().zip(&mut features) {
                features.push(encoder.features_with(stem.as_ref(), &pixels).to_device(Device::Cpu));
                self.count(passes, batch.len())?;
            }
        }
        Ok(features.iter().map(|batches| Tensor::cat(batches, 0).to_kind(Kind::Float)).collect())
    }
}

/// The images that are shown, each once.
struct Sheet {
    /// Tile of an image: whether it is the bank's, and its place there.
    numbers: BTreeMap<(bool, usize), u32>,
    images: Vec<Labelled>,
}

impl Sheet {
    fn tile(&mut self, image: (bool, usize), labelled: &Labelled) -> u32 {
        let images = &mut self.images;
        *self.numbers.entry(image).or_insert_with(|| {
            images.push(labelled.clone());
            images.len() as u32 - 1
        })
    }
}

/// ‖θ0‖ and ‖θ1 − θ0‖ of each layer, in f64. On the line the distance is α times the whole.
pub fn distances(line: &Line) -> Vec<LayerDistance> {
    let (theta0, theta1) = (line.at(Alpha::ZERO), line.at(Alpha::ONE));
    let length = |tensor: &Tensor| tensor.norm().double_value(&[]);
    let one = |layer: super::layers::Layer| {
        let [before, after] = [&theta0, &theta1].map(|end| layer.of(end).map(|t| t.to_kind(Kind::Double)));
        let (before, after) = (before?, after?);
        Some(LayerDistance {
            norm: length(&before),
            distance: if layer.moved { length(&(after - before)) } else { 0.0 },
            name: layer.name,
            block: layer.block,
            added: layer.added,
        })
    };
    layers(line, Qkv::Fused).into_iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests;
