//! What an evaluation measures and under which protocol: everything that decides a number besides weights and
//! data. Two points compare only under one protocol, so its id spells all of it out.

use crate::{Alpha, sha256_hex};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// "20 usually best", as DINO's eval_knn.py has it.
const CHOOSING_K: u32 = 20;

/// Which datasets a checkpoint is scored on, at which α, and how.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// The datasets, in the order in which figures show them inside a role.
    #[serde(default)]
    pub datasets: Vec<EvaluatedDataset>,
    /// The α of the sweep, ascending. α = 0 is the bare backbone and is computed once for all runs.
    #[serde(default = "default_alphas")]
    pub alphas: Vec<Alpha>,
    /// Numbers of neighbours; one top-k serves them all.
    #[serde(default = "default_k")]
    pub k: Vec<u32>,
    /// Temperature T of the vote exp(sim / T); DINO's is 0.07.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
    /// Beside k-NN: a linear classifier trained on the bank's features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linear_probe: Option<LinearProbe>,
    /// Beside k-NN, for encoders with a text tower: the class whose name is nearest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_shot: Option<ZeroShot>,
    /// After the α given, so many rounds that each halve the steps on either side of the best α.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refine: u32,
    /// Spread over so many runs, each of which computes the features of a share of the images on whichever worker is
    /// free; the run itself waits for them and counts the votes.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub parts: u32,
    /// How an image becomes the encoder's input.
    #[serde(default)]
    pub preprocess: Preprocess,
    /// Side of the encoder's input, pixels; a multiple of the patch size.
    #[serde(default = "default_image_size")]
    pub image_size: u32,
    /// Which output of the encoder is compared.
    #[serde(default)]
    pub feature: Feature,
    /// How the position table is resized where the images have another grid than it has.
    #[serde(default)]
    pub positions: Positions,
    /// Arithmetic of the forward pass. Similarities are always f32, sums of votes f64.
    #[serde(default)]
    pub dtype: Dtype,
    /// Images per forward pass; part of the numerics stamp, not of the protocol.
    #[serde(default = "default_batch_size")]
    pub batch_size: u32,
}

/// Multinomial logistic regression on L2-normalised features, fitted to convergence with an L2 penalty on its weights.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LinearProbe {
    /// Inverse strengths C of the penalty, as scikit-learn counts it: C·Σ loss + ½·|W|². Of several, the one that is best
    /// on a seeded fifth of the bank when fitted to the rest. A bank that is scored against itself is scored in fifths,
    /// each by a classifier that was fitted to the other four.
    #[serde(default = "default_c")]
    pub c: Vec<f64>,
}

/// CLIP's zero-shot classification (arXiv 2103.00020, §3.1): the class whose text embedding is most similar.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ZeroShot {
    /// Name of the text encoder asset whose embeddings share a space with the encoder's features.
    pub text_encoder: String,
    /// sha256 of the text encoder's weights, `model.safetensors`: a point belongs to them and not to their name.
    #[serde(default)]
    pub digest: String,
    /// Sentences with `{}` in the class name's place. A class is the mean of their normalised embeddings.
    #[serde(default = "default_templates")]
    pub templates: Vec<String>,
}

/// A dataset and the part it plays in one evaluation.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluatedDataset {
    /// Name of the dataset asset.
    pub asset: String,
    /// What the dataset is to this backbone and these captions.
    pub role: Role,
}

/// What a dataset is to the backbone and the captions of a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Near the backbone's pretraining data: the talk's in-distribution.
    Id,
    /// The distribution of the captions the encoder was fine-tuned on: what WiSE-FT calls ID.
    Target,
    /// Neither.
    Ood,
}

/// How an image becomes a square of `image_size` pixels. All resizing is bicubic and bit-exact with Pillow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preprocess {
    /// The whole image straight to the square, aspect ratio given up.
    #[default]
    Direct,
    /// DINO's: short side to 256/224 of `image_size`, then the centre square.
    ResizeCrop,
}

/// Which output of the encoder is compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// The class token after the final LayerNorm.
    #[default]
    Cls,
}

/// How an encoder's position table is resized for images of another size. All are bicubic with corners not aligned, and
/// all leave the table as it is at its own size; elsewhere their features differ visibly.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// To the grid's size itself: Hugging Face's.
    #[default]
    HfSize,
    /// By the factor (size + 0.1) / table, which shifts where the kernel samples: DINO's and DINOv2's own.
    DinoScaleOffset,
    /// To the grid's size, smoothed where it shrinks: timm's.
    TimmAntialias,
}

/// Arithmetic of the forward pass.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// IEEE single precision.
    #[default]
    F32,
    /// Eight bits of mantissa, the range of f32.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// Everything that decides one number besides weights and data.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Protocol {
    /// The id: readable, and equal exactly when all other fields are.
    pub id: String,
    /// How features become a class.
    pub readout: Readout,
    /// How an image becomes the encoder's input.
    pub preprocess: Preprocess,
    /// Side of the encoder's input, pixels.
    pub image_size: u32,
    /// Which output is compared.
    pub feature: Feature,
    /// Arithmetic of the forward pass.
    pub dtype: Dtype,
    /// How the position table is resized to another grid.
    pub positions: Positions,
}

/// How features become a class.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Readout {
    /// DINO's weighted vote of the nearest images of the bank.
    Knn {
        /// Number of neighbours.
        k: u32,
        /// Temperature of the vote.
        temperature: f64,
        /// How equal similarities and equal scores are ordered, in words.
        ties: String,
    },
    /// A linear classifier trained on the bank.
    LinearProbe(LinearProbe),
    /// The class whose name is nearest.
    ZeroShot(ZeroShot),
}

impl Readout {
    /// As pages and tables name it: "k 20", "linear probe", "zero-shot".
    pub fn label(&self) -> String {
        match self {
            Readout::Knn { k, .. } => format!("k {k}"),
            Readout::LinearProbe(_) => "linear probe".to_owned(),
            Readout::ZeroShot(_) => "zero-shot".to_owned(),
        }
    }

    /// The number of neighbours of a vote.
    pub fn k(&self) -> Option<u32> {
        match self {
            Readout::Knn { k, .. } => Some(*k),
            Readout::LinearProbe(_) | Readout::ZeroShot(_) => None,
        }
    }

    /// Begins the id.
    fn id(&self) -> String {
        match self {
            Readout::Knn { k, temperature, .. } => format!("knn{k}-t{temperature}"),
            Readout::LinearProbe(probe) => {
                let c: Vec<String> = probe.c.iter().map(f64::to_string).collect();
                format!("linear-c{}-fifths", c.join("_"))
            }
            Readout::ZeroShot(zero_shot) => {
                let templates = sha256_hex(zero_shot.templates.join("\n").as_bytes());
                let weights = zero_shot.digest.get(..12).unwrap_or(&zero_shot.digest);
                format!("zeroshot-{}-{weights}-{}", zero_shot.text_encoder, &templates[..8])
            }
        }
    }
}

impl Default for Evaluation {
    /// Nothing is measured.
    fn default() -> Evaluation {
        Evaluation {
            datasets: Vec::new(),
            alphas: default_alphas(),
            k: default_k(),
            temperature: default_temperature(),
            linear_probe: None,
            zero_shot: None,
            refine: 0,
            parts: 1,
            preprocess: Preprocess::default(),
            image_size: default_image_size(),
            feature: Feature::default(),
            positions: Positions::default(),
            dtype: Dtype::default(),
            batch_size: default_batch_size(),
        }
    }
}

impl Evaluation {
    /// Whether nothing is measured.
    pub fn is_none(&self) -> bool {
        *self == Evaluation::default()
    }

    /// Where the protocol by which an α is chosen stands among [`Evaluation::protocols`]: k = 20, or the largest k below
    /// it, or the smallest above.
    pub fn choosing(&self) -> usize {
        self.k.iter().rposition(|k| *k <= CHOOSING_K).unwrap_or(0)
    }

    /// The protocols of this evaluation: k-NN for each k in the order given, then the linear probe, then zero-shot.
    pub fn protocols(&self) -> Vec<Protocol> {
        let votes = self.k.iter().map(|k| Readout::Knn {
            k: *k,
            temperature: self.temperature,
            ties: "neighbours by similarity, then index; classes by score, then id".to_owned(),
        });
        let probe = self.linear_probe.clone().map(Readout::LinearProbe);
        let zero_shot = self.zero_shot.clone().map(Readout::ZeroShot);
        votes.chain(probe).chain(zero_shot).map(|readout| self.protocol(readout)).collect()
    }

    fn protocol(&self, readout: Readout) -> Protocol {
        Protocol {
            id: format!("{}-{}", readout.id(), self.feature_id()),
            readout,
            preprocess: self.preprocess,
            image_size: self.image_size,
            feature: self.feature,
            dtype: self.dtype,
            positions: self.positions,
        }
    }

    /// Everything that decides a feature besides weights and pixels, as the id of each protocol ends.
    pub fn feature_id(&self) -> String {
        let preprocess = match self.preprocess {
            Preprocess::Direct => "direct",
            Preprocess::ResizeCrop => "crop",
        };
        let dtype = match self.dtype {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
        };
        let positions = match self.positions {
            Positions::HfSize => "",
            Positions::DinoScaleOffset => "-dinopos",
            Positions::TimmAntialias => "-timmpos",
        };
        format!("{preprocess}{}-cls-{dtype}{positions}", self.image_size)
    }
}

impl Role {
    /// The word used in SQL, JSON and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Id => "id",
            Role::Target => "target",
            Role::Ood => "ood",
        }
    }
}

fn default_alphas() -> Vec<Alpha> {
    (0..=10).filter_map(|tenth| Alpha::from_ten_thousandths(tenth * 1000)).collect()
}

fn default_k() -> Vec<u32> {
    vec![1, 5, 10, 20]
}

fn default_c() -> Vec<f64> {
    vec![1.0]
}

fn default_templates() -> Vec<String> {
    vec!["a photo of a {}.".to_owned()]
}

fn one() -> u32 {
    1
}

fn is_one(parts: &u32) -> bool {
    *parts == 1
}

fn is_zero(rounds: &u32) -> bool {
    *rounds == 0
}

fn default_temperature() -> f64 {
    0.07
}

fn default_image_size() -> u32 {
    224
}

fn default_batch_size() -> u32 {
    32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alpha_is_chosen_by_twenty_neighbours_or_the_nearest_number_that_is_asked() {
        let choosing = |k: &[u32]| {
            let document = serde_json::json!({"datasets": [], "k": k});
            let evaluation: Evaluation = serde_json::from_value(document).unwrap();
            evaluation.protocols()[evaluation.choosing()].readout.k()
        };
        assert_eq!(choosing(&[1, 5, 10, 20, 100]), Some(20));
        assert_eq!(choosing(&[1, 10, 200]), Some(10));
        assert_eq!(choosing(&[100, 200]), Some(100));
    }
}
