//! Where to compute. One build serves both: it links libtorch's CPU library alone and loads the CUDA library while it
//! runs, where a full libtorch lies beside it.

use anyhow::{Context, Result, bail, ensure};
use std::ffi::{CStr, CString};
use tch::{Cuda, Device};

/// libtorch's CUDA library: loading it registers the CUDA kernels and allocator with the CPU library.
const CUDA_LIBRARY: &str = "libtorch_cuda.so";

/// The device of that name: `cpu` (also `cpu:0`, `cpu:1` … where a worker offers several), `cuda` or `cuda:N`.
///
/// # Errors
/// A name that is none of these; a GPU that this machine or this libtorch does not have, with what to do.
pub fn open(name: &str) -> Result<Device> {
    let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
    let index: usize =
        index.parse().with_context(|| format!("the device `{name}` has no number after `:`"))?;
    match kind {
        "cpu" => Ok(Device::Cpu),
        "cuda" => {
            load_cuda()?;
            let count = Cuda::device_count().max(0) as usize;
            ensure!(index < count, "there is no device `{name}`: libtorch sees {count} GPUs");
            // cuDNN computes f32 convolutions in TF32, which changes neighbours, and tch cannot tell it not to. Without
            // it the patch embedding, the only convolution here, is a product in f32 like all others.
            Cuda::set_user_enabled_cudnn(false);
            Ok(Device::Cuda(index))
        }
        _ => bail!("`{name}` is no device; `cpu`, `cuda:0`, `cuda:1` … are"),
    }
}

fn load_cuda() -> Result<()> {
    let library = CString::new(CUDA_LIBRARY).context("the library's name")?;
    // SAFETY: the library is libtorch's own, found where libtorch_cpu was; its constructors register kernels.
    let loaded = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if loaded.is_null() {
        // SAFETY: dlerror returns a string of its own, or null.
        let reason = unsafe {
            let text = libc::dlerror();
            if text.is_null() { "no reason given".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        bail!(
            "this machine's libtorch has no CUDA ({reason}); beside an NVIDIA GPU `python3 setup/install.py build` \
             fetches one that has"
        );
    }
    ensure!(Cuda::is_available(), "libtorch's CUDA library is loaded, but it finds no usable GPU or driver");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_workers_offer_them() {
        assert_eq!(open("cpu").unwrap(), Device::Cpu);
        assert_eq!(open("cpu:3").unwrap(), Device::Cpu);
        for (name, part) in [("gpu", "is no device"), ("cpu:x", "no number"), ("", "is no device")] {
            let error = format!("{:#}", open(name).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_that_says_what_to_do() {
        if !Cuda::is_available() {
            let error = format!("{:#}", open("cuda:0").unwrap_err());
            assert!(error.contains("CUDA"), "{error}");
        }
    }
}
