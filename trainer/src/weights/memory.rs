//! Tensors as bytes, row by row, little-endian, where they lie: a copy of a ViT-B costs as much as reading it.

use anyhow::Result;
use std::slice;
use tch::{Device, Kind, Tensor};

const _: () = assert!(cfg!(target_endian = "little"), "weights are kept little-endian");

fn length(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

/// Shows the bytes of a tensor, which are copied only if it lies elsewhere or in another order.
pub fn with_bytes<T>(tensor: &Tensor, look: impl FnOnce(&[u8]) -> T) -> T {
    let tensor = tensor.to_device(Device::Cpu).contiguous();
    match length(&tensor) {
        // Nothing need lie anywhere.
        0 => look(&[]),
        // SAFETY: so many bytes of a contiguous tensor in main memory lie there, and as long as `tensor` does. Nobody writes to
        // weights or features that are being kept or hashed.
        length => look(unsafe { slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), length) }),
    }
}

/// A new tensor, whose bytes `fill` sets.
///
/// # Errors
/// What `fill` returns, and too little memory.
pub fn filled(shape: &[i64], kind: Kind, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Tensor> {
    // Zeroed here and not by libtorch, whose threads would wait for the next tensor with a core each.
    let tensor = Tensor::f_empty(shape, (kind, Device::Cpu))?;
    match length(&tensor) {
        0 => fill(&mut [])?,
        // SAFETY: so many bytes of a new tensor in main memory, which is contiguous, and nobody else's yet.
        length => fill(unsafe {
            let begin = tensor.data_ptr().cast::<u8>();
            begin.write_bytes(0, length);
            slice::from_raw_parts_mut(begin, length)
        })?,
    }
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_rows_in_order_whatever_the_tensor_views() {
        let tensor = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).reshape([2, 3]);
        let bytes =
            |numbers: &[f32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(with_bytes(&tensor, <[u8]>::to_vec), bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        assert_eq!(with_bytes(&tensor.tr(), <[u8]>::to_vec), bytes(&[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
        assert_eq!(with_bytes(&tensor.narrow(0, 1, 1), <[u8]>::to_vec), bytes(&[4.0, 5.0, 6.0]));
        assert_eq!(with_bytes(&tensor.narrow(0, 0, 0), <[u8]>::to_vec), bytes(&[]));
        assert_eq!(with_bytes(&Tensor::from(7f32), <[u8]>::to_vec), bytes(&[7.0]));
    }

    #[test]
    fn what_is_filled_is_there_and_a_failure_is_told() {
        let fill = |bytes: &mut [u8]| {
            bytes.copy_from_slice(&[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]);
            Ok(())
        };
        assert_eq!(
            filled(&[1, 2], Kind::Float, fill).unwrap(),
            Tensor::from_slice(&[1f32, -2.0]).reshape([1, 2])
        );
        let nothing = |bytes: &mut [u8]| {
            assert!(bytes.is_empty());
            Ok(())
        };
        assert_eq!(filled(&[3, 0], Kind::Half, nothing).unwrap().size(), [3, 0]);
        assert!(filled(&[2], Kind::Float, |_| anyhow::bail!("no")).is_err());
    }
}
