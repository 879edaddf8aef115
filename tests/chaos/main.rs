//! `make chaos`: FAULTS faults from SEED, and the exit code says whether every promise was kept.

use anyhow::{Context, Result};
use causeway_tests::chaos::{Kind, Options, rampage};
use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

/// Nothing is broken after so long, however many faults are left: what follows ends within the hour.
const AT_MOST: Duration = Duration::from_secs(45 * 60);

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let number = |name: &str| match std::env::var(name) {
        Ok(text) if !text.is_empty() => {
            text.parse::<u64>().map(Some).with_context(|| format!("{name}={text}"))
        }
        _ => Ok(None),
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let report = rampage(Options {
        faults: number("FAULTS")?.unwrap_or(500) as usize,
        seed: number("SEED")?.unwrap_or(now),
        pace: Duration::from_millis(number("PACE_MS")?.unwrap_or(2500)),
        at_most: AT_MOST,
        servers: 3,
        agents: &[Kind::Plain, Kind::Plain, Kind::Two, Kind::Two, Kind::SmallDisk],
        tunings: true,
    })
    .await?;
    report.print();
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
