//! The symmetric contrastive loss between images and captions (CLIP, arXiv 2103.00020, §2.3):
//! L = ½ [CE(s·V Tᵀ, I) + CE(s·T Vᵀ, I)], V and T the L2-normalised projections of features and caption embeddings.

use crate::weights::initial;
use causeway_protocol::Contrastive;
use tch::{Kind, Reduction, Tensor};

/// Largest ln s: a similarity is scaled by 100 at most, as in CLIP.
const LOGIT_SCALE_MAX: f64 = 4.605_170_185_988_092; // ln 100

/// What the loss learns besides the encoder; not part of the checkpoint, since no feature depends on it.
#[derive(Debug)]
pub struct Heads {
    /// P_v [joint, dim].
    pub image: Tensor,
    /// P_t [joint, text].
    pub text: Tensor,
    /// ln s, a scalar.
    pub logit_scale: Tensor,
}

impl Heads {
    /// Bias-free projections with standard deviation 1 / √(their input's width), and s = 1 / τ.
    pub fn new(dim: i64, text_dim: i64, spec: &Contrastive, seed: u64) -> Heads {
        let joint = i64::from(spec.projection_dim);
        let projection =
            |name: &str, width: i64| initial::normal(seed, name, &[joint, width], (width as f64).powf(-0.5));
        Heads {
            image: projection("heads/image", dim),
            text: projection("heads/text", text_dim),
            logit_scale: Tensor::from((-spec.temperature.ln()) as f32).clamp_max(LOGIT_SCALE_MAX),
        }
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
        let images = unit(&features.linear(&self.image, None::<&Tensor>)); // [batch, joint]
        let texts = unit(&embeddings.linear(&self.text, None::<&Tensor>)); // [batch, joint]
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
