//! A lab's own program under the scheduler: what is run, with what around it, and the lines it may report.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use utoipa::ToSchema;
use uuid::Uuid;

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

/// What a program reports through the API instead: lines without files.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// In order. All are taken, or none.
    pub lines: Vec<ReportLine>,
}

/// A line of a [`Report`]: an object with one of these keys, as in the file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ReportLine {
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
}

/// The right to report under one lease, for as long as that lasts: `cwr_<lease>.<epoch>`. A lease's id is random and known
/// to its worker alone, so nothing has to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReportToken {
    /// The lease.
    pub lease: Uuid,
    /// Its epoch.
    pub epoch: i64,
}

/// Begins such a token.
const REPORT_PREFIX: &str = "cwr_";

impl fmt::Display for ReportToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{REPORT_PREFIX}{}.{}", self.lease.simple(), self.epoch)
    }
}

impl FromStr for ReportToken {
    type Err = String;

    fn from_str(text: &str) -> Result<ReportToken, String> {
        let parts = text.strip_prefix(REPORT_PREFIX).and_then(|rest| rest.split_once('.'));
        let token = parts.and_then(|(lease, epoch)| {
            Some(ReportToken { lease: lease.parse().ok()?, epoch: epoch.parse().ok()? })
        });
        token.ok_or_else(|| "it is not the text in CAUSEWAY_REPORT_TOKEN".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_token_is_read_as_it_is_written() {
        let token = ReportToken { lease: Uuid::from_u128(7), epoch: 3 };
        assert_eq!(token.to_string(), "cwr_00000000000000000000000000000007.3");
        assert_eq!(token.to_string().parse(), Ok(token));
        for wrong in ["", "cwu_00000000000000000000000000000007.3", "cwr_7.3", "cwr_", "cwr_x.y"] {
            assert!(wrong.parse::<ReportToken>().is_err(), "{wrong}");
        }
    }
}
