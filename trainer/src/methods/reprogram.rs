//! Adversarial reprogramming (arXiv 1806.11146): one learned image, the same for every input, is laid over it or around
//! it. Bounded by tanh and in the units that the encoder is given, pixels with the mean off and the deviation divided out:
//!
//! - additive: x + tanh(W). W = 0 is the exact identity, and the backbone.
//! - border: X̃ + tanh(W ⊙ M), X̃ the image shrunk into the middle of zeros, M = 0 on it and 1 around it. Zero is the mean
//!   colour. W = 0 is the identity of its own kind, the shrunk image in an empty frame. The sweep's α = 0 is the bare
//!   backbone on the whole image, so between α = 0 and the first α above it such a line jumps.
//!
//! The image is shrunk bilinearly with antialiasing, which unlike bicubic leaves the range of its values. That, and what
//! classes there are mapped onto classes, has no graph and no counterpart here: features are compared, not labels.

use super::{Added, Pass, Site, Start, Tuner};
use crate::weights::Tensors;
use anyhow::{Result, ensure};
use causeway_protocol::{Program, Reprogram};
use tch::{Device, Kind, Tensor};

/// Name of W.
const PROGRAM: &str = "program";

/// The program that a spec describes.
pub struct Reprogramming(pub Reprogram);

impl Tuner for Reprogramming {
    /// W = 0, [1, 3, size, size]. The values of a border's W that lie on the image stay 0.
    fn added(&self, site: &Site, _seed: u64) -> Result<Added> {
        let size = site.image_size;
        if self.0.program == Program::Border {
            let inner = i64::from(self.0.inner_side(size as u32));
            ensure!(
                0 < inner && inner < size,
                "`method.inner` = {inner} px leaves no frame in images of {size} px; take less"
            );
            ensure!(
                (size - inner) % 2 == 0,
                "an image of `method.inner` = {inner} px cannot stand in the middle of {size} px; take {} or {}",
                inner - 1,
                inner + 1
            );
        }
        let mut added = Added::default();
        added.add(PROGRAM, Tensor::zeros([1, 3, size, size], (Kind::Float, Device::Cpu)));
        Ok(added)
    }

    fn trains(&self, name: &str) -> bool {
        name == PROGRAM
    }

    fn takes(&self, added: &Tensors, image_size: u32) -> Result<()> {
        let made_for = added.get(PROGRAM).map_or(0, |program| program.size()[3]);
        ensure!(
            made_for == i64::from(image_size),
            "the program was made for images of {made_for} px and cannot be laid over {image_size} px; take {made_for}"
        );
        Ok(())
    }

    fn begin<'a>(&'a self, start: Start<'a>) -> Box<dyn Pass + 'a> {
        Box::new(Laying { own: &self.0, program: &start.tensors[PROGRAM] })
    }
}

struct Laying<'a> {
    own: &'a Reprogram,
    /// W. [1, 3, size, size]
    program: &'a Tensor,
}

impl Pass for Laying<'_> {
    fn pixels(&mut self, x: Tensor) -> Tensor {
        if self.own.program == Program::Additive {
            return x + self.program.tanh();
        }
        let size = self.program.size()[3];
        let inner = i64::from(self.own.inner_side(size as u32));
        let options = (self.program.kind(), self.program.device());
        let around: Tensor = 1.0 - framed(&Tensor::ones([1, 1, inner, inner], options), size);
        framed(&shrunk(&x, inner), size) + (self.program * &around).tanh()
    }
}

/// The image at another size, smaller: bilinear, antialiased, in f32 whatever the arithmetic.
///
/// # Shapes
/// [batch, 3, height, width] → [batch, 3, inner, inner]
fn shrunk(x: &Tensor, inner: i64) -> Tensor {
    let resized = x.to_kind(Kind::Float).internal_upsample_bilinear2d_aa([inner, inner], false, None, None);
    resized.to_kind(x.kind())
}

/// The image in the middle of zeros.
///
/// # Shapes
/// [batch, channels, inner, inner] → [batch, channels, size, size]
fn framed(x: &Tensor, size: i64) -> Tensor {
    let edge = (size - x.size()[3]) / 2;
    x.constant_pad_nd([edge, edge, edge, edge])
}

#[cfg(test)]
mod tests;
