//! Images as the tensors an encoder is given: u8, channels first, decoded and resized once.

use super::dataset::Source;
use super::image::RgbImage;
use super::resize;
use anyhow::Result;
use causeway_protocol::Preprocess;
use tch::{Kind, Tensor};

/// Most bytes of resized images that are kept; beyond it they are made again each time.
const KEEP_BYTES: usize = 2 << 30;

/// `[3, height, width]`, u8.
pub fn tensor(image: &RgbImage) -> Tensor {
    let (height, width) = (image.height as i64, image.width as i64);
    let rows = Tensor::from_data_size(&image.pixels, &[height, width, 3], Kind::Uint8);
    rows.permute([2, 0, 1]).contiguous()
}

/// Decodes and resizes some images. `[batch, 3, size, size]`, u8.
pub fn batch<'a>(
    images: impl IntoIterator<Item = &'a Source>,
    how: Preprocess,
    size: usize,
) -> Result<Tensor> {
    let one = |source: &Source| anyhow::Ok(tensor(&resize::preprocess(&source.decode()?, how, size)));
    let images = images.into_iter().map(one).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::stack(&images, 0))
}

/// The images of a training set, each as `[3, size, size]` u8.
pub struct TrainingPixels<'a> {
    images: &'a [Source],
    size: usize,
    kept: Vec<Tensor>,
}

impl<'a> TrainingPixels<'a> {
    /// Decodes all images that fit into memory, so that a corrupt one is found before the first step.
    pub fn new(images: &'a [Source], size: usize) -> Result<TrainingPixels<'a>> {
        let fit = KEEP_BYTES / (3 * size * size).max(1);
        let mut pixels = TrainingPixels { images, size, kept: Vec::new() };
        pixels.kept = (0..images.len().min(fit)).map(|at| pixels.make(at)).collect::<Result<_>>()?;
        Ok(pixels)
    }

    /// The image at a place. `[3, size, size]`
    pub fn get(&self, at: usize) -> Result<Tensor> {
        match self.kept.get(at) {
            Some(kept) => Ok(kept.shallow_clone()),
            None => self.make(at),
        }
    }

    fn make(&self, at: usize) -> Result<Tensor> {
        let image = self.images[at].decode()?;
        Ok(tensor(&resize::preprocess(&image, Preprocess::Direct, self.size)))
    }
}
