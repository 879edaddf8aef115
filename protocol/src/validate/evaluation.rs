//! Rules of the α sweep.

use super::Problems;
use crate::{Alpha, Spec, WeightSource};

/// Most datasets in one evaluation.
const DATASETS_MAX: usize = 32;
/// Most runs that an evaluation is spread over.
const PARTS_MAX: f64 = 64.0;
/// Most α in one sweep.
const ALPHAS_MAX: usize = 101;
/// Most rounds of refinement: a step of 0.1 is 0.0004 after eight, and α has four decimals.
const REFINE_MAX: u32 = 8;

impl Spec {
    pub(super) fn evaluate_problems(&self, list: &mut Problems) {
        match &self.weights.theta1 {
            Some(WeightSource::Soup(soup)) => {
                list.soup("weights.theta1.soup", soup, true);
                self.greedy_problems(soup, list);
            }
            Some(source) => list.source("weights.theta1", source),
            None => list.when(true, "weights.theta1", "must be given for kind = \"evaluate\"".into()),
        }
        let given = [
            ("method", self.method.is_some()),
            ("captions", self.captions.is_some()),
            ("objective", self.objective.is_some()),
            ("retention", self.retention.is_some()),
            ("training", self.training.is_some()),
        ];
        for (field, given) in given {
            list.when(given, field, "has no meaning for kind = \"evaluate\"; leave it out".into());
        }
    }

    pub(super) fn evaluation_problems(&self, list: &mut Problems) {
        let evaluation = &self.evaluation;
        let datasets = &evaluation.datasets;
        list.within("evaluation.datasets", datasets.len() as f64, 1.0, DATASETS_MAX as f64);
        for (at, dataset) in datasets.iter().enumerate() {
            list.text(&format!("evaluation.datasets[{at}].asset"), &dataset.asset, 1);
            let again = datasets[..at].iter().any(|earlier| earlier.asset == dataset.asset);
            list.when(again, &format!("evaluation.datasets[{at}].asset"), "is named twice".into());
        }
        list.within("evaluation.refine", f64::from(evaluation.refine), 0.0, f64::from(REFINE_MAX));
        list.when(
            evaluation.refine > 0 && (evaluation.alphas.len() < 2 || evaluation.alphas[0] != Alpha::ZERO),
            "evaluation.refine",
            "needs α = 0 and one more among evaluation.alphas: it halves the steps beside the best of them, and the \
             best is what gains most against α = 0"
                .into(),
        );
        list.within("evaluation.parts", f64::from(evaluation.parts), 1.0, PARTS_MAX);
        let soup = matches!(self.weights.theta1, Some(WeightSource::Soup(_)));
        list.when(
            evaluation.parts > 1 && soup,
            "evaluation.parts",
            "must be 1 where θ1 is a soup: each part would cook its own; evaluate the soup's checkpoint instead".into(),
        );
        self.readout_problems(list);
        list.within("evaluation.alphas", evaluation.alphas.len() as f64, 1.0, ALPHAS_MAX as f64);
        let ascending = evaluation.alphas.windows(2).all(|pair| pair[0] < pair[1]);
        list.when(!ascending, "evaluation.alphas", "must ascend without repeats".into());
        list.within("evaluation.k", evaluation.k.len() as f64, 1.0, 16.0);
        let ascending = evaluation.k.windows(2).all(|pair| pair[0] < pair[1]);
        list.when(!ascending, "evaluation.k", "must ascend without repeats".into());
        list.when(
            evaluation.k.iter().any(|k| *k == 0 || *k > 10_000),
            "evaluation.k",
            "must be 1 to 10000".into(),
        );
        list.within("evaluation.temperature", evaluation.temperature, 0.01, 10.0);
        list.within("evaluation.image_size", f64::from(evaluation.image_size), 8.0, 2048.0);
        list.within("evaluation.batch_size", f64::from(evaluation.batch_size), 1.0, 65_536.0);
    }
}
