//! Rehearsal: images from elsewhere are reconstructed beside the captioned ones, by the run's own decoder, so that the
//! encoder goes on seeing what its training images do not show.

use super::Now;
use super::buffer::Pool;
use crate::objectives::reconstruction::Autoencoder;
use crate::weights::initial;
use tch::Tensor;

/// The masked autoencoder's loss on some images of the buffer. While the encoder stands still, its decoder learns on.
///
/// # Shapes
/// → scalar
pub fn loss(pool: &Pool, autoencoder: &Autoencoder, now: &Now) -> Tensor {
    let images = pool.images.index_select(0, &pool.chosen(now.place));
    let pixels = now.vit.config.normalise(&images); // f32 [batch, 3, side, side]
    let noise = initial::stream(pool.seed, &format!("rehearsal/mask/{}", now.place));
    let mask = autoencoder.mask(&pixels, noise);
    let encode = || {
        let input = pixels.to_kind(now.encoder["cls_token"].kind());
        now.vit.tokens(now.encoder, &input, Some(&mask.visible), None)
    };
    let tokens = if now.standing { tch::no_grad(encode) } else { encode() };
    autoencoder.loss(&pixels, &tokens, &mask)
}
