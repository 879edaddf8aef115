//! Images as the tensors an encoder is given: u8, channels first, decoded and resized once.

use super::dataset::Source;
use super::image::RgbImage;
use super::resize;
use anyhow::Result;
use causeway_protocol::Preprocess;
use tch::{Kind, Tensor};

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
