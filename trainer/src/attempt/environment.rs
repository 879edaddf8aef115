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
        cpu: processor(),
        threads,
    }
}

/// What computes the numbers of a sweep.
pub fn stamp(environment: &Environment, batch_size: u32) -> NumericsStamp {
    let device = if environment.device == "cpu" { &environment.cpu } else { &environment.device };
    NumericsStamp {
        device: device.clone(),
        version: environment.version.clone(),
        libtorch: environment.libtorch.clone(),
        threads: environment.threads,
        batch_size,
    }
}

/// What features are kept under besides a stamp: the build, and the processor that feeds a GPU.
pub fn made_by(environment: &Environment) -> String {
    format!("causeway-trainer {} ({}) on {}", environment.version, environment.commit, environment.cpu)
}

/// Name of this machine.
pub fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "unknown".to_owned() } else { name.trim().to_owned() }
}

/// What this machine computes with, as its maker calls it.
pub fn cpu_model() -> String {
    cpu_field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The same, told apart from other generations that a virtual machine gives one name.
pub fn processor() -> String {
    match (cpu_field("cpu family"), cpu_field("model")) {
        (Some(family), Some(model)) => format!("{}, family {family} model {model}", cpu_model()),
        _ => cpu_model(),
    }
}

/// What /proc/cpuinfo says of the first processor.
fn cpu_field(name: &str) -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let of = |line: &str| {
        line.split_once(':').map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
    };
    info.lines().filter_map(of).find_map(|(field, value)| (field == name).then_some(value))
}

/// Threads that this machine can run at once.
pub fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)
}
