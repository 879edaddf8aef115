//! Token replay in its reading C (methods.md §10): θ0's tokens of a few images from elsewhere, computed once, are
//! replayed in training as what the adapted encoder is still to make of these images: ‖tokens_θ − tokens_θ0‖², a mean
//! over images and tokens.

use super::buffer::Pool;
use super::{Bare, Now, feature_distillation};
use tch::Tensor;

/// A buffer and what θ0 made of it.
pub struct Replay {
    pool: Pool,
    /// f32 [images, tokens, dim]
    tokens: Tensor,
}

impl Replay {
    /// Asks θ0 for the tokens, once.
    pub fn new(pool: Pool, bare: &Bare) -> Replay {
        let batches = pool.images.split(pool.batch(), 0).into_iter();
        let tokens = batches.map(|images| bare.tokens(&bare.config().normalise(&images)));
        let tokens = Tensor::cat(&tokens.collect::<Vec<_>>(), 0);
        Replay { pool, tokens }
    }

    /// Weight of the term.
    pub fn weight(&self) -> f64 {
        self.pool.weight
    }

    /// The loss on some images of the buffer.
    ///
    /// # Shapes
    /// → scalar
    pub fn loss(&self, now: &Now) -> Tensor {
        let chosen = self.pool.chosen(now.place);
        let pixels = now.vit.config.normalise(&self.pool.images.index_select(0, &chosen));
        let input = pixels.to_kind(now.encoder["cls_token"].kind());
        let tokens = now.vit.tokens(now.encoder, &input, None, None); // [batch, tokens, dim]
        feature_distillation::loss(&tokens, &self.tokens.index_select(0, &chosen))
    }
}
