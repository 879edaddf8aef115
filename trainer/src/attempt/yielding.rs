//! Giving way: an agent asks the training process to save its state and end by SIGUSR1. The process looks at this between
//! steps and batches, where its state is whole. SIGTERM means the end at once, as ever.

use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set once the process has been asked.
#[derive(Clone, Debug, Default)]
pub struct Asked(Arc<AtomicBool>);

impl Asked {
    /// Listens for the signal.
    pub fn listen() -> Result<Asked> {
        let asked = Asked::default();
        signal_hook::flag::register(libc::SIGUSR1, asked.0.clone()).context("listening for SIGUSR1")?;
        Ok(asked)
    }

    /// Whether the process has been asked to give way.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks, as the signal does.
    #[cfg(test)]
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// [`Yielded`] if the process has been asked: everything up to here is on disk.
    pub fn check(&self) -> Result<()> {
        if self.is_set() { Err(Yielded.into()) } else { Ok(()) }
    }
}

/// The state is saved, and the attempt ends here; another goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Yielded;

impl std::fmt::Display for Yielded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "asked to give way; the state is saved")
    }
}

impl std::error::Error for Yielded {}
