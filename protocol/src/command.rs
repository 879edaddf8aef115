//! A lab's own program under the scheduler: what is run, with what around it, and the lines it may report.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Label of the workers that run commands (`causeway-trainer work --allow-commands`).
pub const COMMANDS_LABEL: &str = "commands";

/// A program to run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// The program and its arguments. `{asset:NAME}` stands for the folder of an asset; no shell is involved.
    pub argv: Vec<String>,
    /// Variables of its environment, beside PATH, HOME and what Causeway sets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Assets that the worker must hold; their folders are in `CAUSEWAY_ASSET_<NAME>`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assets: Vec<String>,
}

/// A line that a command appends to the file named in `CAUSEWAY_JOURNAL`: one JSON object, with one of these keys.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CommandLine {
    /// Values of metrics at a step.
    Metrics {
        /// The step.
        step: u64,
        /// The values by name.
        values: BTreeMap<String, f64>,
    },
    /// How far it is.
    Progress {
        /// Steps done.
        done: u64,
        /// Steps in all.
        total: u64,
    },
    /// A file to keep, a path relative to the working folder: what the run is about.
    Checkpoint {
        /// The file.
        path: String,
        /// Steps done.
        step: u64,
    },
    /// A file to go on from, should the attempt be interrupted: the next attempt finds its copy in `CAUSEWAY_RESUME`.
    Resume {
        /// The file.
        path: String,
        /// Steps done.
        step: u64,
    },
}
