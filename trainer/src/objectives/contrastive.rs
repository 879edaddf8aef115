//! The symmetric contrastive loss between images and captions (CLIP, arXiv 2103.00020, §2.3):
//! L = ½ [CE(s·V Tᵀ, I) + CE(s·T Vᵀ, I)], V and T the L2-normalised projections of features and caption embeddings, or
//! these themselves where both encoders share a space already, as CLIP's do.

use crate::weights::initial;
use anyhow::{Result, ensure};
use causeway_protocol::Contrastive;
use tch::{Kind, Reduction, Tensor};

/// Largest ln s: a similarity is scaled by 100 at most, as in CLIP.
const LOGIT_SCALE_MAX: f64 = 4.605_170_185_988_092; // ln 100

/// What the loss learns besides the encoder; not part of the checkpoint, since no feature depends on it.
#[derive(Debug)]
pub struct Heads {
    /// P_v [joint, dim], unless features are compared as they are.
    pub image: Option<Tensor>,
    /// P_t [joint, text], likewise.
    pub text: Option<Tensor>,
    /// ln s, a scalar.
    pub logit_scale: Tensor,
}

impl Heads {
    /// Bias-free projections with standard deviation 1 / √(their input's width), or none, and s = 1 / τ.
    ///
    /// # Errors
    /// Widths that differ, without projections.
    pub fn new(dim: i64, text_dim: i64, spec: &Contrastive, seed: u64) -> Result<Heads> {
        ensure!(
            spec.projections || dim == text_dim,
            "`objective.contrastive.projections` = false compares features of width {dim} with captions of width \
             {text_dim}, and only equal widths can be; leave it out, or name a text encoder of the same width"
        );
        let joint = i64::from(spec.projection_dim);
        let projection =
            |name: &str, width: i64| initial::normal(seed, name, &[joint, width], (width as f64).powf(-0.5));
        Ok(Heads {
            image: spec.projections.then(|| projection("heads/image", dim)),
            text: spec.projections.then(|| projection("heads/text", text_dim)),
            logit_scale: Tensor::from((-spec.temperature.ln()) as f32).clamp_max(LOGIT_SCALE_MAX),
        })
    }

    /// Keeps s at or below 100; called after each step.
    pub fn clamp(&mut self) {
        tch::no_grad(|| {
            let _ = self.logit_scale.clamp_max_(LOGIT_SCALE_MAX);
        });
    }

    /// τ = 1 / s.
    pub fn temperature(&self) -> f64 {
        (-self.logit_scale.double_value(&[])).exp()
    }

    /// The loss of a batch. `captions` tells equal captions by equal numbers: an image matches all captions that
    /// read the same, so equal ones off the diagonal are no negatives and are left out.
    ///
    /// # Shapes
    /// `features` [batch, dim], `embeddings` [batch, text], `captions` [batch] → scalar
    pub fn loss(&self, features: &Tensor, embeddings: &Tensor, captions: &Tensor) -> Tensor {
        let project = |x: &Tensor, projection: &Option<Tensor>| match projection {
            Some(projection) => unit(&x.linear(projection, None::<&Tensor>)),
            None => unit(x),
        };
        let images = project(features, &self.image); // [batch, joint]
        let texts = project(embeddings, &self.text); // [batch, joint]
        symmetric(&images, &texts, &self.logit_scale.exp(), captions)
    }
}

/// The loss of unit vectors.
///
/// # Shapes
/// `images` and `texts` [batch, joint], `scale` scalar, `captions` [batch] → scalar
pub fn symmetric(images: &Tensor, texts: &Tensor, scale: &Tensor, captions: &Tensor) -> Tensor {
    let batch = images.size()[0];
    let itself = Tensor::eye(batch, (Kind::Bool, images.device()));
    let equal = captions.unsqueeze(0).eq_tensor(&captions.unsqueeze(1)); // [batch, batch]
    let logits = images.matmul(&texts.transpose(0, 1)) * scale; // [batch of images, batch of texts]
    let logits = logits.masked_fill(&equal.logical_and(&itself.logical_not()), f64::NEG_INFINITY);
    let own = Tensor::arange(batch, (Kind::Int64, images.device()));
    let cross_entropy =
        |logits: &Tensor| logits.cross_entropy_loss(&own, None::<&Tensor>, Reduction::Mean, -100, 0.0);
    (cross_entropy(&logits) + cross_entropy(&logits.transpose(0, 1))) * 0.5
}

/// Rows scaled to length 1; a row of zeros stays.
fn unit(x: &Tensor) -> Tensor {
    x / x.norm_scalaropt_dim(2.0, [-1], true).clamp_min(1e-12)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;
    use crate::reference::{assert_near, numbers};

    fn rows(name: &str, batch: i64) -> Tensor {
        unit(&initial::normal(9, name, &[batch, 64], 1.0))
    }

    fn distinct(batch: i64) -> Tensor {
        Tensor::arange(batch, (Kind::Int64, tch::Device::Cpu))
    }

    fn value(loss: &Tensor) -> f64 {
        loss.double_value(&[])
    }

    #[test]
    fn loss_and_gradients_are_torch_s() {
        let mut draws = SplitMix64::new(31);
        let mut draw = || (draws.next_u64() >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
        let values: Vec<f32> = (0..40).map(|_| draw()).collect();
        let images = Tensor::from_slice(&values[..20]).reshape([5, 4]).set_requires_grad(true);
        let texts = Tensor::from_slice(&values[20..]).reshape([5, 4]);
        let scale = Tensor::from(10f32).set_requires_grad(true);
        let captions = Tensor::from_slice(&[3i64, 1, 4, 1, 5]);
        let loss = symmetric(&unit(&images), &unit(&texts), &scale, &captions);
        assert_near(&loss, &numbers("contrastive.loss"), 1e-5);
        let gradients = Tensor::run_backward(&[loss], &[&images, &scale], false, false);
        assert_near(&gradients[0], &numbers("contrastive.d_images"), 1e-5);
        assert_near(&gradients[1], &numbers("contrastive.d_scale"), 1e-5);
    }

    #[test]
    fn images_and_texts_may_swap_and_pairs_may_be_shuffled() {
        let (images, texts, scale) = (rows("images", 16), rows("texts", 16), Tensor::from(14f32));
        let captions = distinct(16);
        let loss = value(&symmetric(&images, &texts, &scale, &captions));
        assert!((value(&symmetric(&texts, &images, &scale, &captions)) - loss).abs() < 1e-5);
        let order = Tensor::from_slice(&[3i64, 1, 4, 15, 9, 2, 6, 5, 8, 7, 0, 10, 14, 13, 12, 11]);
        let shuffled =
            symmetric(&images.index_select(0, &order), &texts.index_select(0, &order), &scale, &captions);
        assert!((value(&shuffled) - loss).abs() < 1e-5);
    }

    #[test]
    fn unrelated_pairs_cost_about_ln_batch_and_perfect_ones_nothing() {
        let batch = 64;
        let (images, texts, one) = (rows("images", batch), rows("texts", batch), Tensor::from(1f32));
        let loss = value(&symmetric(&images, &texts, &one, &distinct(batch)));
        // Similarities of random directions in 64 dimensions have deviation 1/8.
        assert!((loss - (batch as f64).ln()).abs() < 0.1, "{loss}");
        let perfect = Tensor::eye(batch, (Kind::Float, tch::Device::Cpu));
        let loss = value(&symmetric(&perfect, &perfect, &Tensor::from(100f32), &distinct(batch)));
        assert!(loss < 1e-6, "{loss}");
    }

    #[test]
    fn an_equal_caption_is_no_negative() {
        let (images, scale) = (rows("images", 4), Tensor::from(14f32));
        let texts = rows("texts", 4).index_select(0, &Tensor::from_slice(&[0i64, 1, 1, 2]));
        let captions = Tensor::from_slice(&[0i64, 1, 1, 2]);
        let masked = value(&symmetric(&images, &texts, &scale, &captions));
        let naive = value(&symmetric(&images, &texts, &scale, &distinct(4)));
        assert!(masked < naive, "{masked} {naive}");
        // By hand: each row and column without its equal twin.
        let logits = images.matmul(&texts.transpose(0, 1)) * &scale;
        let at = |row: usize, column: usize| logits.double_value(&[row as i64, column as i64]);
        let twin = |a: usize, b: usize| a != b && (1..=2).contains(&a) && (1..=2).contains(&b);
        let expected: f64 = (0..4)
            .map(|own| {
                let others = || (0..4).filter(|other| !twin(own, *other));
                let row: f64 = others().map(|other| at(own, other).exp()).sum();
                let column: f64 = others().map(|other| at(other, own).exp()).sum();
                (row.ln() + column.ln()) / 2.0 - at(own, own)
            })
            .sum::<f64>()
            / 4.0;
        assert!((masked - expected).abs() < 1e-5, "{masked} {expected}");
    }

    #[test]
    fn the_temperature_starts_as_given_learns_and_is_bounded() {
        let spec: Contrastive = serde_json::from_value(serde_json::json!({"projection_dim": 16})).unwrap();
        let mut heads = Heads::new(64, 32, &spec, 1).unwrap();
        assert!((heads.temperature() - 0.07).abs() < 1e-7);
        let sizes = [&heads.image, &heads.text].map(|head| head.as_ref().unwrap().size());
        assert_eq!(sizes, [[16, 64], [16, 32]]);
        let scale = heads.logit_scale.copy().set_requires_grad(true);
        heads.logit_scale = scale.shallow_clone();
        let embeddings = initial::normal(2, "texts", &[8, 32], 1.0);
        let loss = heads.loss(&rows("images", 8), &embeddings, &distinct(8));
        let gradient = Tensor::run_backward(&[loss], &[&scale], false, false);
        assert!(value(&gradient[0]) != 0.0);
        let _ = tch::no_grad(|| heads.logit_scale.fill_(9.0));
        heads.clamp();
        assert!((heads.temperature() - 0.01).abs() < 1e-8);
    }
    #[test]
    fn without_projections_the_loss_is_clip_s_on_the_embeddings_themselves() {
        let spec: Contrastive =
            serde_json::from_value(serde_json::json!({"projections": false, "temperature": 0.1})).unwrap();
        let mut draws = SplitMix64::new(31);
        let mut draw = || (draws.next_u64() >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
        let values: Vec<f32> = (0..40).map(|_| draw()).collect();
        let images = Tensor::from_slice(&values[..20]).reshape([5, 4]);
        let texts = Tensor::from_slice(&values[20..]).reshape([5, 4]);
        let captions = Tensor::from_slice(&[3i64, 1, 4, 1, 5]);
        let loss = Heads::new(4, 4, &spec, 1).unwrap().loss(&images, &texts, &captions);
        assert_near(&loss, &numbers("contrastive.loss"), 1e-5);
        let error = Heads::new(4, 6, &spec, 1).unwrap_err().to_string();
        assert!(error.contains("width 4") && error.contains("width 6"), "{error}");
    }
}
