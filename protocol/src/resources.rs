//! What a run asks of the cluster, and what workers offer.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most workers of one run.
pub const NODES_MAX: u32 = 1024;
/// Most devices of one worker.
pub const DEVICES_MAX: u32 = 64;

/// Where a run may go and what it gets there.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Devices on each worker; a device is a GPU, or a CPU slot of a worker that has none.
    #[serde(default = "one")]
    pub gpus: u32,
    /// Memory that each device must have, GB (10⁹ bytes). A CPU slot has the host's share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_gb: Option<f64>,
    /// Labels that the workers must have, as given to `causeway-trainer work --labels`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Workers at once, all or none.
    #[serde(default = "one")]
    pub nodes: u32,
    /// Minutes of work after which an attempt is stopped and the run has failed. Told in advance it lets a run slip in
    /// before one that waits for more devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minutes: Option<u32>,
}

impl Default for Resources {
    fn default() -> Resources {
        Resources { gpus: 1, memory_gb: None, labels: Vec::new(), nodes: 1, minutes: None }
    }
}

impl Resources {
    /// Whether nothing is asked for but one device.
    pub fn is_default(&self) -> bool {
        *self == Resources::default()
    }

    /// Memory that each device must have, bytes.
    pub fn memory_bytes(&self) -> i64 {
        self.memory_gb.map_or(0, |gb| (gb * 1e9) as i64)
    }
}

/// A device of a worker.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceReport {
    /// Name, for example `cpu:0` or `cuda:1`.
    pub name: String,
    /// What it is, for example `NVIDIA H100 80GB HBM3`; empty if unknown.
    #[serde(default)]
    pub model: String,
    /// Memory, bytes; 0 if unknown.
    #[serde(default)]
    pub memory: u64,
    /// Memory nobody uses, bytes; 0 if unknown.
    #[serde(default)]
    pub free_memory: u64,
    /// CUDA compute capability, for example `9.0`; empty for what has none.
    #[serde(default)]
    pub capability: String,
}

/// A member's place in an attempt that runs on several workers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Gang {
    /// Which worker this is, from 0.
    pub rank: u32,
    /// How many there are.
    pub nodes: u32,
    /// Address of rank 0.
    pub address: String,
    /// Port that rank 0 is to listen on for the others.
    pub port: u16,
}

fn one() -> u32 {
    1
}
