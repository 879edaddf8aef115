//! A buffer of images from elsewhere, and which of them each batch looks at: epoch after epoch, each in an order of its
//! own, as the training images.

use crate::order::Order;
use crate::weights::initial;
use causeway_protocol::Buffer;
use tch::{Device, Tensor};

/// The images of a buffer.
pub struct Pool {
    /// Seeds what else is random about it.
    pub seed: u64,
    /// u8 [images, 3, side, side]
    pub images: Tensor,
    /// Weight of the term.
    pub weight: f64,
    order: Order,
}

impl Pool {
    /// The images of the buffer called `name`.
    ///
    /// # Shapes
    /// `images` u8 [images, 3, side, side]
    pub fn new(seed: u64, name: &str, images: &Tensor, buffer: &Buffer, device: Device) -> Pool {
        let pairs = images.size()[0] as usize;
        // Apart from the order of the training images, whose seed is the run's.
        let own = initial::stream(seed, name).next_u64();
        let order = Order { seed: own, pairs, batch: buffer.batch_size as usize };
        Pool { seed, images: images.to_device(device), weight: buffer.weight, order }
    }

    /// Images of a pass.
    pub fn batch(&self) -> i64 {
        self.order.batch as i64
    }

    /// Which images the batch of that number looks at. i64 [batch]
    pub fn chosen(&self, place: u64) -> Tensor {
        let chosen: Vec<i64> = self.order.batch(place).into_iter().map(|image| image as i64).collect();
        Tensor::from_slice(&chosen).to_device(self.images.device())
    }
}
