//! Loss and gradients of every method against a plain PyTorch reference that was written from the equations alone:
//! `goldens/methods.py`.

use super::testing::{Fixture, WIDTHS, fixture, method, pixels, text};
use super::{Site, Widths, tuner};
use crate::models::vit::{VitConfig, tiny};
use crate::weights::{Tensors, initial};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tch::{Device, Kind, Tensor};

/// The reference computes in f64, the trainer in f32: of 24 bits, some ten are left to the sums of a pass and of its way
/// back.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    method: Value,
    /// Of the sum of squared features, no captions given.
    features: Numbers,
    /// Of the sum of squared tokens, the caption of the second image missing; for a method that reads captions.
    captioned: Option<Captioned>,
}

#[derive(Deserialize)]
struct Captioned {
    lengths: Vec<i64>,
    #[serde(flatten)]
    numbers: Numbers,
}

#[derive(Deserialize)]
struct Numbers {
    loss: f64,
    /// Norm and first values of the gradient by each trained tensor; none where the loss does not rest on it.
    gradients: BTreeMap<String, Option<Vec<f64>>>,
}

#[test]
fn loss_and_gradients_are_those_of_a_plain_reference() {
    let golden: Golden = serde_json::from_str(include_str!("../../goldens/methods.json")).unwrap();
    let (backbone, pixels) = (tiny(true), pixels(3));
    let mut differences = Vec::new();
    for case in &golden.cases {
        let fixture = with_given(fixture(&backbone, case.method.clone()).moved(0.1));
        let vit = &fixture.vit;
        let mut compare = |what, expected: &Numbers, (loss, gradients): (Tensor, Vec<(String, _)>)| {
            for difference in expected.differences(&loss, &gradients.into_iter().collect()) {
                differences.push(format!("{} {what} {difference}", case.method));
            }
        };
        let sum = |y: Tensor| y.square().sum(Kind::Float);
        compare(
            "features",
            &case.features,
            fixture.gradients_of(|tensors| sum(vit.features(tensors, &pixels))),
        );
        if let Some(Captioned { lengths, numbers }) = &case.captioned {
            let text = text(lengths);
            let loss = |tensors: &_| sum(vit.tokens(tensors, &pixels, None, Some(&text)));
            compare("captioned", numbers, fixture.gradients_of(loss));
        }
    }
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
}

impl Numbers {
    fn differences(&self, loss: &Tensor, gradients: &BTreeMap<String, Option<Tensor>>) -> Vec<String> {
        let (expected, found): (BTreeSet<_>, BTreeSet<_>) =
            (self.gradients.keys().collect(), gradients.keys().collect());
        if expected != found {
            let names: Vec<_> = expected.symmetric_difference(&found).collect();
            return vec![format!("trains other tensors: {names:?} are on one side only")];
        }
        let loss = loss.double_value(&[]);
        let mut differences = Vec::new();
        if (loss - self.loss).abs() > TOLERANCE * self.loss {
            differences.push(format!("loss {loss}, the reference's is {}", self.loss));
        }
        for (name, expected) in &self.gradients {
            let found: Vec<f64> = match &gradients[name] {
                None => Vec::new(),
                Some(gradient) => {
                    let norm = gradient.norm().double_value(&[]);
                    let first = gradient.flatten(0, -1).slice(0, 0, 3, 1);
                    std::iter::once(norm)
                        .chain((0..first.size()[0]).map(|at| first.double_value(&[at])))
                        .collect()
                }
            };
            let expected = expected.clone().unwrap_or_default();
            // A gradient that is the small rest of large terms keeps their rounding.
            let scale = expected.first().copied().unwrap_or_default().max(1e-3 * self.loss);
            let near = |(found, expected): (&f64, &f64)| (found - expected).abs() <= TOLERANCE * scale;
            if found.len() != expected.len() || !found.iter().zip(&expected).all(near) {
                differences.push(format!("{name}: {found:?}, the reference's are {expected:?}"));
            }
        }
        differences
    }
}

#[test]
fn the_numbers_of_values_are_those_of_the_docs() {
    let config = VitConfig::default();
    let widths = Widths { text: 512, word: 576 };
    // One zero, shown as often as there are values.
    let shapes = config.shapes().into_iter();
    let backbone: Tensors = shapes
        .map(|(name, shape)| (name, Tensor::zeros([1], (Kind::Float, Device::Cpu)).expand(shape, false)))
        .collect();
    let mut rows = 0;
    for line in include_str!("../../../docs/methods.md").lines() {
        let Some((snippet, number)) =
            line.strip_prefix("| `{ kind").and_then(|line| line.split_once("}` | "))
        else {
            continue;
        };
        let mut document: toml::Table = format!("method = {{ kind{snippet}}}").parse().unwrap();
        let mut document = serde_json::to_value(document.remove("method")).unwrap();
        if document["kind"] == "selective" {
            // Which they are makes no difference to the number.
            let k = document["k"].as_u64().unwrap();
            document["chosen"] = (0..k).collect();
        }
        let tuner = tuner(&method(document));
        let site = Site { config: &config, tensors: &backbone, image_size: 224, widths };
        let added = tuner.added(&site, 0).unwrap().start;
        let all = backbone.iter().chain(added.iter());
        let values: usize =
            all.filter(|(name, _)| tuner.trains(name)).map(|(_, tensor)| tensor.numel()).sum();
        let expected = number.trim_end_matches(" |").replace(',', "");
        assert_eq!(values.to_string(), expected, "{line}");
        rows += 1;
    }
    assert!(rows > 11, "{rows}");
}

/// What a training would be given from captions and from a language model.
fn with_given(mut fixture: Fixture) -> Fixture {
    if let Some(memory) = fixture.tensors.get("replay.memory") {
        let memory = initial::normal(13, "replay.memory", &memory.size(), 1.0);
        fixture.tensors.insert("replay.memory", memory);
    }
    if let Some(table) = fixture.tensors.get("words.table") {
        let table = initial::normal(13, "words.table", &[table.size()[0], WIDTHS.word], 1.0);
        let lengths = table.square().sum_dim_intlist(1, true, Kind::Float).sqrt();
        fixture.tensors.insert("words.table", table / lengths);
    }
    fixture
}
