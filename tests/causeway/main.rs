//! Tests of the whole, one module for each side of it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod access;
mod analysis;
mod api;
mod bad_input;
mod browser;
mod chaos;
mod command;
mod commands;
mod end_to_end;
mod kills;
mod metrics;
mod model;
mod queue;
mod scheduler;
mod search;
mod tls;
mod uploads;
mod yields;
mod zero_shot;
