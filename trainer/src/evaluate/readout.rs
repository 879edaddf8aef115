//! How features become numbers: every readout of an evaluation behind one door. What a readout needs once is loaded
//! before anything is computed, so that whatever is wrong with it is known then.

use super::knn::{self, Question};
use super::standing::Score;
use super::sweep::Measured;
use super::{probe, zero_shot};
use crate::data::asset::Library;
use crate::data::dataset::{Dataset, Labelled};
use crate::models::vit::VitConfig;
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::{Evaluation, Hits, Readout};
use tch::Tensor;

/// The readouts of an evaluation, ready to score.
pub struct Readouts<'a> {
    datasets: &'a [Measured],
    /// How features become classes, in the order of [`Evaluation::protocols`].
    readouts: Vec<Readout>,
    /// For each dataset the embeddings of its classes, f32 [classes, dim], where zero-shot is asked.
    class_embeddings: Vec<Tensor>,
}

/// What a dataset's features say under one protocol.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scored {
    /// The queries whose first class is right.
    pub hits: Hits,
    /// How many queries have their label among the first five classes.
    pub correct_top5: u32,
    /// Of each class, how many queries are right.
    pub correct_per_class: Vec<u32>,
}

impl<'a> Readouts<'a> {
    /// Loads what the readouts need, for features of this encoder.
    ///
    /// # Errors
    /// A text encoder that is missing, is another one, or has no space in common with the features.
    pub fn prepare(
        evaluation: &Evaluation,
        datasets: &'a [Measured],
        library: &Library,
        encoder: &VitConfig,
    ) -> Result<Readouts<'a>> {
        let readouts = evaluation.protocols().into_iter().map(|protocol| protocol.readout).collect();
        let Some(asked) = &evaluation.zero_shot else {
            return Ok(Readouts { datasets, readouts, class_embeddings: Vec::new() });
        };
        let text = zero_shot::text_encoder(asked, library, encoder).context("`evaluation.zero_shot`")?;
        let embed =
            |measured: &Measured| zero_shot::class_embeddings(&text, asked, &measured.dataset.classes);
        let class_embeddings = datasets.iter().map(embed).collect::<Result<_>>()?;
        Ok(Readouts { datasets, readouts, class_embeddings })
    }

    /// Whether [`Readouts::prepare`] would succeed, without computing anything: for `plan`.
    ///
    /// # Errors
    /// As there.
    pub fn check(evaluation: &Evaluation, library: &Library, encoder: &VitConfig) -> Result<()> {
        if let Some(asked) = &evaluation.zero_shot {
            zero_shot::text_encoder(asked, library, encoder).context("`evaluation.zero_shot`")?;
        }
        Ok(())
    }

    /// Scores the features of a dataset, the `dataset`-th of those prepared for, under the protocols at those places of
    /// [`Evaluation::protocols`]. All k come from one search.
    ///
    /// # Shapes
    /// `features` [images, dim], f32, in the order of [`Dataset::images`]: the bank's first
    ///
    /// # Errors
    /// Features that are not finite; a linear probe that does not converge.
    pub fn score(&self, dataset: usize, features: &Tensor, protocols: &[usize]) -> Result<Vec<Scored>> {
        let measured = self.datasets.get(dataset).context("a dataset that was not prepared for")?;
        let asked = |place: &usize| self.readouts.get(*place).context("a protocol that was not prepared");
        let readouts = protocols.iter().map(asked).collect::<Result<Vec<_>>>()?;
        let images = Images::of(&measured.dataset, features)?;
        let question = images.question();
        let mut votes = {
            let asked = readouts.iter().filter_map(|readout| match readout {
                Readout::Knn { k, temperature, .. } => Some((*k, *temperature)),
                Readout::LinearProbe(_) | Readout::ZeroShot(_) => None,
            });
            let (ks, temperatures): (Vec<u32>, Vec<f64>) = asked.unzip();
            match temperatures.first() {
                Some(temperature) => knn::score(&question, &ks, *temperature)?.into_iter(),
                None => Vec::new().into_iter(),
            }
        };
        let one = |readout: &&Readout| -> Result<Scored> {
            let score = match readout {
                Readout::Knn { .. } => votes.next().context("a vote was not counted")?,
                Readout::LinearProbe(asked) => probe::score(&question, &asked.c, &measured.digest)?,
                Readout::ZeroShot(_) => {
                    let Some(classes) = self.class_embeddings.get(dataset) else {
                        bail!("the classes of {} have no embeddings", measured.dataset.title);
                    };
                    let queries = question.queries.unwrap_or(question.bank);
                    zero_shot::score(queries, question.query_labels, classes)?
                }
            };
            Ok(Scored::of(score, &measured.dataset))
        };
        readouts.iter().map(one).collect()
    }
}

impl Scored {
    fn of(Score { hits, correct_top5 }: Score, dataset: &Dataset) -> Scored {
        Scored { correct_per_class: dataset.per_class(&hits), hits, correct_top5 }
    }
}

/// k-NN of a dataset alone, for what is decided before or beside an evaluation.
///
/// # Shapes
/// `features` as for [`Readouts::score`]
///
/// # Errors
/// Features that are not finite.
pub fn knn(dataset: &Dataset, features: &Tensor, ks: &[u32], temperature: f64) -> Result<Vec<Scored>> {
    let scores = knn::score(&Images::of(dataset, features)?.question(), ks, temperature)?;
    Ok(scores.into_iter().map(|score| Scored::of(score, dataset)).collect())
}

/// A dataset's features and labels, bank and queries apart.
struct Images {
    bank: Tensor,
    bank_labels: Vec<u32>,
    queries: Option<(Tensor, Vec<u32>)>,
    classes: usize,
}

impl Images {
    fn of(dataset: &Dataset, features: &Tensor) -> Result<Images> {
        let labels = |images: &[Labelled]| images.iter().map(|image| image.label).collect::<Vec<u32>>();
        let (bank, images) = (dataset.bank.len() as i64, dataset.images().count() as i64);
        ensure!(
            features.size()[0] == images,
            "{} features for the {images} images of {}",
            features.size()[0],
            dataset.title
        );
        let queries = dataset.query.as_ref().map(|query| {
            let features = features.narrow(0, bank, query.len() as i64);
            (features, labels(query))
        });
        let bank = features.narrow(0, 0, bank);
        Ok(Images { bank, bank_labels: labels(&dataset.bank), queries, classes: dataset.classes.len() })
    }

    fn question(&self) -> Question<'_> {
        Question {
            bank: &self.bank,
            bank_labels: &self.bank_labels,
            queries: self.queries.as_ref().map(|(features, _)| features),
            query_labels: self.queries.as_ref().map_or(&self.bank_labels, |(_, labels)| labels),
            classes: self.classes,
        }
    }
}

#[cfg(test)]
mod tests;
