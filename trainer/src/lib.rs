//! Causeway's trainer. `work` is the agent: it leases runs, starts a process for each attempt and ships its
//! journal. `attempt`, `train` and `evaluate` are that process: fine-tune, keep the checkpoint, sweep α.

pub mod agent;
pub mod analysis;
pub mod attempt;
pub mod data;
pub mod device;
pub mod evaluate;
pub mod journal;
pub mod local;
pub mod methods;
pub mod models;
pub mod objectives;
pub mod optim;
pub mod order;
pub mod plan;
pub mod random;
pub mod retention;
pub mod spec_file;
pub mod train;
pub mod weights;

#[cfg(test)]
mod reference;
