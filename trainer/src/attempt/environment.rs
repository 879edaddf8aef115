//! What an attempt runs on, so that every number can be traced to a build and a machine.

use crate::device;
use causeway_protocol::{Environment, NumericsStamp};
use std::fs;

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit it was built from, or `unknown`.
pub const COMMIT: &str = env!("CAUSEWAY_COMMIT");
/// Version of libtorch it was built with.
pub const LIBTORCH: &str = env!("CAUSEWAY_LIBTORCH");

/// This process's environment, on the device of that name.
pub fn environment(device: &str, threads: u32) -> Environment {
    Environment {
        version: VERSION.to_owned(),
        commit: COMMIT.to_owned(),
        libtorch: LIBTORCH.to_owned(),
        host: host(),
        device: device::kind(device),
        cpu: cpu_model(),
        threads,
    }
}

/// What computes the numbers of a sweep.
pub fn stamp(environment: &Environment, batch_size: u32) -> NumericsStamp {
    NumericsStamp {
        device: environment.device.clone(),
        libtorch: environment.libtorch.clone(),
        threads: environment.threads,
        batch_size,
    }
}

/// What a stamp does not tell: the program, and the processor, whose instructions decide which kernels compute.
pub fn made_by(environment: &Environment) -> String {
    format!("causeway-trainer {} ({}) on {}", environment.version, environment.commit, environment.cpu)
}

/// Name of this machine.
pub fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "unknown".to_owned() } else { name.trim().to_owned() }
}

/// What this machine computes with.
pub fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Threads that this machine can run at once.
pub fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)
}
