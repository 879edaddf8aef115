//! The rules of an analysis.

use super::Problems;
use crate::{Alpha, Spec};

/// Most α at which layers are decomposed.
const SPECTRUM_ALPHAS_MAX: usize = 21;
/// Most α that are compared with θ0.
const SIMILARITY_ALPHAS_MAX: usize = 11;
/// Most images whose features are compared: their Gram matrices are images × images.
const IMAGES_MAX: u32 = 4096;
/// Fewest: the estimate without bias divides by n − 3.
const IMAGES_MIN: u32 = 8;
/// Most small images that one run ships.
const TILES_MAX: u64 = 1000;

impl Spec {
    pub(super) fn analysis_problems(&self, list: &mut Problems) {
        let Some(analysis) = &self.analysis else { return };
        list.when(
            analysis.spectrum.is_none() && analysis.similarity.is_none(),
            "analysis",
            "must ask for something: analysis.spectrum or analysis.similarity".into(),
        );
        if let Some(spectrum) = &analysis.spectrum {
            alphas(list, "analysis.spectrum.alphas", &spectrum.alphas, SPECTRUM_ALPHAS_MAX);
        }
        let Some(similarity) = &analysis.similarity else { return };
        let at = |field: &str| format!("analysis.similarity.{field}");
        let names = self.evaluation.datasets.iter().map(|dataset| dataset.asset.as_str());
        list.when(
            !names.clone().any(|name| name == similarity.dataset),
            &at("dataset"),
            format!(
                "must be one of evaluation.datasets ({}), is `{}`",
                names.collect::<Vec<_>>().join(", "),
                similarity.dataset
            ),
        );
        let (least, most) = (f64::from(IMAGES_MIN), f64::from(IMAGES_MAX));
        list.within(&at("images"), f64::from(similarity.images), least, most);
        list.within(&at("queries"), f64::from(similarity.queries), 0.0, 50.0);
        list.within(&at("neighbours"), f64::from(similarity.neighbours), 1.0, 50.0);
        if let Some(bank) = similarity.bank {
            list.within(&at("bank"), f64::from(bank), 2.0, 1e9);
        }
        alphas(list, &at("alphas"), &similarity.alphas, SIMILARITY_ALPHAS_MAX);
        let rows = similarity.alphas.iter().filter(|alpha| **alpha != Alpha::ZERO).count() as u64 + 1;
        let tiles = u64::from(similarity.queries) * (1 + rows * u64::from(similarity.neighbours));
        list.when(
            tiles > TILES_MAX,
            &at("queries"),
            format!(
                "would show up to {tiles} images, queries · (1 + α · neighbours) with α = 0 among them; at most \
                 {TILES_MAX} are kept"
            ),
        );
        list.when(
            similarity.seed > i64::MAX as u64,
            &at("seed"),
            format!("must be at most {}, the largest that JSON and SQL both keep", i64::MAX),
        );
    }
}

fn alphas(list: &mut Problems, field: &str, alphas: &[Alpha], most: usize) {
    list.within(field, alphas.len() as f64, 1.0, most as f64);
    list.when(!alphas.windows(2).all(|pair| pair[0] < pair[1]), field, "must ascend without repeats".into());
}
