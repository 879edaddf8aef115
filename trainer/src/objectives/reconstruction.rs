//! The masked autoencoder's loss (arXiv 2111.06377, §3): three quarters of an image's patches are removed, the encoder
//! sees the rest, and a small decoder has to say what was there.

use crate::models::mae::{self, DecoderConfig, Mask};
use crate::random::SplitMix64;
use crate::weights::{Backbone, Tensors, kind};
use anyhow::{Context, Result};
use causeway_protocol::{Decoder, Reconstruction, Training};
use tch::{Device, Kind, Tensor};

/// The decoder and what it is measured by.
pub struct Autoencoder {
    spec: Reconstruction,
    config: DecoderConfig,
    kind: Kind,
    /// f32; the trained ones are the optimiser's, the position table is fixed.
    tensors: Tensors,
    fresh: bool,
}

impl Autoencoder {
    /// The backbone's own decoder, or a fresh one where its weights bring none.
    ///
    /// # Errors
    /// A decoder that does not fit the encoder.
    pub fn new(
        spec: &Reconstruction,
        backbone: &Backbone,
        training: &Training,
        seed: u64,
        device: Device,
        train: &mut dyn FnMut(&str, &Tensor) -> Tensor,
    ) -> Result<Autoencoder> {
        let (encoder, image_size) = (&backbone.config, training.image_size);
        let fresh = backbone.decoder.is_empty();
        let (config, start) = if fresh {
            let Decoder { dim, depth, heads } = spec.decoder;
            let own = DecoderConfig::new(encoder, dim.into(), depth.into(), heads.into());
            // Its positions are those of the training images, whatever the encoder's were.
            let grid = i64::from(image_size) / encoder.patch;
            let config = DecoderConfig { grid, ..own.context("`objective.reconstruction.decoder`")? };
            let start = config.fresh(seed);
            (config, start)
        } else {
            let (own, heads) = (&backbone.decoder, backbone.decoder_heads);
            let config = DecoderConfig::infer(encoder, own, heads).context("the decoder of θ0")?;
            config.check_image_size(image_size).context("`training.image_size`")?;
            (config, own.share())
        };
        let tensors = start.iter().map(|(name, start)| {
            // MAE's positions are a fixed table.
            let value = match name {
                fixed if mae::FIXED.contains(&fixed) => start.to_device(device),
                _ => train(&format!("decoder/{name}"), start),
            };
            (name.to_owned(), value)
        });
        Ok(Autoencoder {
            spec: spec.clone(),
            config,
            kind: kind(training.dtype),
            tensors: tensors.collect(),
            fresh,
        })
    }

    /// Weight of the term.
    pub fn weight(&self) -> f64 {
        self.spec.weight
    }

    /// Whether the decoder started from random values.
    pub fn has_fresh_decoder(&self) -> bool {
        self.fresh
    }

    /// The decoder's architecture.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The decoder's tensors under the names of MAE's files.
    pub fn decoder(&self) -> &Tensors {
        &self.tensors
    }

    /// Which patches of a batch go.
    ///
    /// # Shapes
    /// `pixels` [batch, 3, height, width]
    pub fn mask(&self, pixels: &Tensor, mut noise: SplitMix64) -> Mask {
        let size = pixels.size();
        let (batch, patches) = (size[0], (size[2] / self.config.patch) * (size[3] / self.config.patch));
        let keep = ((patches as f64 * (1.0 - self.spec.mask_ratio)) as i64).clamp(1, (patches - 1).max(1));
        let noise: Vec<f64> = (0..batch * patches).map(|_| noise.uniform()).collect();
        let noise = Tensor::from_slice(&noise).reshape([batch, patches]);
        mae::random_masking(&noise.to_device(pixels.device()), keep)
    }

    /// Mean squared error over the removed patches of the batch.
    ///
    /// # Shapes
    /// `pixels` f32 [batch, 3, height, width], normalised; `tokens` [batch, 1 + visible, dim] → scalar
    pub fn loss(&self, pixels: &Tensor, tokens: &Tensor, mask: &Mask) -> Tensor {
        let tensors = self.tensors.to_kind(self.kind);
        let prediction = self.config.decode(&tensors, tokens, mask);
        mae::loss(&prediction, &mae::target(pixels, self.config.patch, self.spec.norm_pix), mask)
    }
}
