//! Where to compute. One build serves both: it links libtorch's CPU library alone and loads the CUDA library while it
//! runs, where a full libtorch lies beside it.

use crate::attempt::environment::cpu_model;
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::DeviceReport;
use nvml_wrapper::Nvml;
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

/// What a worker tells of its devices: a GPU as NVIDIA's management library knows it, a CPU slot with its share of the
/// host's memory. What cannot be found out is left empty: it keeps nobody from working.
pub fn reports(names: &[String]) -> Vec<DeviceReport> {
    let slots = names.iter().filter(|name| name.starts_with("cpu")).count().max(1) as u64;
    let gpus = Nvml::init().ok();
    let bare = |name: &String| DeviceReport {
        name: name.clone(),
        model: String::new(),
        memory: 0,
        free_memory: 0,
        capability: String::new(),
    };
    let report = |name: &String| match name.strip_prefix("cuda") {
        Some(index) => {
            let index = index.trim_start_matches(':').parse().unwrap_or(0);
            gpus.as_ref().and_then(|gpus| gpu(gpus, name, index)).unwrap_or_else(|| bare(name))
        }
        None => DeviceReport {
            model: cpu_model(),
            memory: memory_info("MemTotal:") / slots,
            free_memory: memory_info("MemAvailable:") / slots,
            ..bare(name)
        },
    };
    names.iter().map(report).collect()
}

/// `cpu` or the GPU's model, whatever the slot: those of one kind compute the same bits, and what one of them has computed is
/// there for all. A GPU that the management library does not tell keeps its name.
pub fn kind(name: &str) -> String {
    if name.starts_with("cpu") {
        return "cpu".to_owned();
    }
    let model = reports(&[name.to_owned()]).pop().map(|report| report.model);
    model.filter(|model| !model.is_empty()).unwrap_or_else(|| name.to_owned())
}

/// The GPU that CUDA calls `index`: `CUDA_VISIBLE_DEVICES` renumbers for CUDA and not for the management library.
fn gpu(gpus: &Nvml, name: &str, index: usize) -> Option<DeviceReport> {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let device = match visible.as_deref().map(|visible| visible.split(',').nth(index).map(str::trim)) {
        None => gpus.device_by_index(index as u32).ok()?,
        Some(Some(known)) => match known.parse() {
            Ok(number) => gpus.device_by_index(number).ok()?,
            Err(_) => gpus.device_by_uuid(known).ok()?,
        },
        Some(None) => return None,
    };
    let memory = device.memory_info().ok()?;
    let capability = device.cuda_compute_capability().ok();
    Some(DeviceReport {
        name: name.to_owned(),
        model: device.name().unwrap_or_default(),
        memory: memory.total,
        free_memory: memory.free,
        capability: capability.map(|it| format!("{}.{}", it.major, it.minor)).unwrap_or_default(),
    })
}

/// A number of /proc/meminfo, bytes; 0 where it is not told.
fn memory_info(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attempt::environment;

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
    fn slots_of_one_kind_have_one_stamp() {
        let stamp = |device| environment::stamp(&environment::environment(device, 1), 32);
        assert_eq!(stamp("cpu:0"), stamp("cpu:1"));
        assert_eq!((kind("cpu").as_str(), kind("cpu:1").as_str()), ("cpu", "cpu"));
        // Of processors, one name is not enough.
        assert_eq!(stamp("cpu").device, environment::processor());
        assert!(environment::processor().starts_with(&cpu_model()));
    }

    #[test]
    fn cpu_slots_share_the_memory_of_the_host() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let [one] = &reports(&names(&["cpu"]))[..] else { panic!() };
        assert!(one.memory > 1 << 28 && !one.model.is_empty() && one.free_memory <= one.memory);
        let two = reports(&names(&["cpu:0", "cpu:1"]));
        assert_eq!((two.len(), two[1].name.as_str(), two[1].memory), (2, "cpu:1", one.memory / 2));
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_that_says_what_to_do() {
        if !Cuda::is_available() {
            let error = format!("{:#}", open("cuda:0").unwrap_err());
            assert!(error.contains("CUDA"), "{error}");
        }
    }
}
