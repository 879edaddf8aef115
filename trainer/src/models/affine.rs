//! x·Wᵀ + b, which is nearly all that an encoder computes. libtorch multiplies f32 matrices on CPUs by MKL, which goes no
//! further than AVX2 on processors that are not Intel's: less than half of what a Zen 5 does. oneDNN, which libtorch carries
//! too, uses what the processor has. Here it is asked by the C interface that libtorch has for compiled models
//! (torch/csrc/inductor/aoti_torch/c/shim_cpu.h). That knows no gradients: where one is wanted, libtorch's way it is. In bf16
//! libtorch's way leads to oneDNN too, but through a product that is some percent slower.

use std::ffi::{c_char, c_void};
use std::ptr::null;
use tch::{Device, Kind, Tensor};

/// `at::Tensor *`, as tch has it too.
type Handle = *mut c_void;

unsafe extern "C" {
    /// `mkldnn::_linear_pointwise`. 0 if it went well; `y` is a new tensor then.
    fn aoti_torch_cpu__linear_pointwise(
        x: Handle,
        weight: Handle,
        bias: *const Handle,
        then: *const c_char,
        scalars: *const *const f64,
        scalars_len: i64,
        algorithm: *const *const c_char,
        y: *mut Handle,
    ) -> i32;
}

/// x·Wᵀ + b.
///
/// # Shapes
/// `x` […, in], `weight` [out, in], `bias` [out] → […, out]
pub fn affine(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let kind = x.kind();
    let plain =
        |tensor: &Tensor| tensor.device() == Device::Cpu && tensor.kind() == kind && !tensor.requires_grad();
    let onednn = multiplies(kind)
        && [Some(x), Some(weight), bias].into_iter().flatten().all(plain)
        && fits(x, weight, bias);
    onednn.then(|| by_onednn(x, weight, bias)).flatten().unwrap_or_else(|| x.linear(weight, bias))
}

/// Whether oneDNN has products of this arithmetic here that are not emulated.
fn multiplies(kind: Kind) -> bool {
    match kind {
        Kind::Float => true,
        #[cfg(target_arch = "x86_64")]
        Kind::BFloat16 => std::is_x86_feature_detected!("avx512bf16"),
        _ => false,
    }
}

/// Whether the shapes go together; what does not, libtorch shall explain.
fn fits(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> bool {
    let (x, weight) = (x.size(), weight.size());
    x.len() >= 2
        && weight.len() == 2
        && x.last() == weight.last()
        && bias.is_none_or(|bias| bias.size() == weight[..1])
}

/// `None` if oneDNN has nothing for these.
fn by_onednn(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Option<Tensor> {
    let handle = |tensor: &Tensor| tensor.as_ptr().cast_mut().cast::<c_void>();
    let bias = bias.map(handle);
    let bias = bias.as_ref().map_or(null(), std::ptr::from_ref);
    let mut y: Handle = std::ptr::null_mut();
    // SAFETY: the handles are those of living tensors and are only read, as the function's declaration in libtorch says;
    // exceptions are caught there.
    let failed = unsafe {
        let (x, weight, none) = (handle(x), handle(weight), c"none".as_ptr());
        aoti_torch_cpu__linear_pointwise(x, weight, bias, none, null(), 0, null(), &mut y)
    };
    // SAFETY: a tensor that libtorch made by `new`, as tch's own, and gave away.
    (failed == 0 && !y.is_null()).then(|| unsafe { Tensor::from_ptr(y.cast()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn near(found: &Tensor, expected: &Tensor) {
        assert_eq!((found.size(), found.kind()), (expected.size(), expected.kind()));
        if found.numel() > 0 {
            let apart = (found - expected).abs().max().double_value(&[]);
            assert!(apart < 1e-4, "{apart}");
        }
    }

    #[test]
    fn it_is_what_libtorch_computes_for_every_shape_that_an_encoder_has() {
        tch::manual_seed(0);
        let (weight, bias) = (random(&[48, 96]), random(&[48]));
        for shape in [&[1, 96][..], &[5, 96], &[32, 50, 96], &[2, 1, 96], &[0, 7, 96], &[2, 3, 4, 96]] {
            let x = random(shape);
            for bias in [None, Some(&bias)] {
                let found = by_onednn(&x, &weight, bias).expect("oneDNN takes f32");
                near(&found, &x.linear(&weight, bias));
            }
        }
        // Views: some rows of a weight, one token of many, a transposed batch.
        let (x, part) = (random(&[4, 9, 96]), weight.narrow(0, 16, 16));
        let bias = bias.narrow(0, 16, 16);
        for x in [x.narrow(1, 0, 1), x.transpose(0, 1), x.shallow_clone()] {
            near(&by_onednn(&x, &part, Some(&bias)).unwrap(), &x.linear(&part, Some(&bias)));
        }
    }

    #[test]
    fn equal_rows_of_equal_batches_are_equal_bit_for_bit() {
        tch::manual_seed(1);
        let (x, weight, bias) = (random(&[8, 50, 96]), random(&[64, 96]), random(&[64]));
        let once = affine(&x, &weight, Some(&bias));
        for _ in 0..3 {
            assert_eq!(affine(&x.copy(), &weight.copy(), Some(&bias.copy())), once);
        }
    }

    #[test]
    fn where_a_gradient_is_wanted_there_is_one() {
        let (x, weight) = (random(&[3, 8]), random(&[4, 8]).set_requires_grad(true));
        affine(&x, &weight, None).sum(Kind::Float).backward();
        near(&weight.grad(), &x.sum_dim_intlist(0, false, Kind::Float).expand([4, 8], false));
        let x = x.set_requires_grad(true);
        assert!(affine(&x, &random(&[4, 8]), None).requires_grad());
    }

    #[test]
    fn in_bf16_it_is_rounded_once_where_the_processor_has_it_and_other_arithmetic_is_libtorchs() {
        let (x, weight, bias) = (random(&[3, 5, 64]), random(&[4, 64]), random(&[4]));
        let [x, weight, bias] = [x, weight, bias].map(|tensor| tensor.to_kind(Kind::BFloat16));
        let found = affine(&x, &weight, Some(&bias));
        let exact =
            x.to_kind(Kind::Double).linear(&weight.to_kind(Kind::Double), Some(&bias.to_kind(Kind::Double)));
        assert_eq!(found.kind(), Kind::BFloat16);
        if multiplies(Kind::BFloat16) {
            // Half a step of bf16, which has eight bits, and f32's rounding of the sums.
            let apart = (found.to_kind(Kind::Double) - &exact).abs() - exact.abs() * (1.0 / 256.0 + 1e-4);
            assert!(apart.max().double_value(&[]) < 1e-5, "{apart}");
        } else {
            assert_eq!(found, x.linear(&weight, Some(&bias)));
        }
        let (x, weight) = (x.to_kind(Kind::Double), weight.to_kind(Kind::Double));
        assert_eq!(affine(&x, &weight, None), x.linear(&weight, None::<&Tensor>));
    }
}
