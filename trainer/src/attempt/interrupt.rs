//! SIGTERM to a process that trains, or runs a command: its time on this machine is up. The training loop then writes its
//! state after the step it is in and ends, and another attempt goes on from there. At any other time nothing is lost by dying at once, and a
//! process dies of the signal as usual.

use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// From here on SIGTERM is noted.
pub fn listen() {
    handle(note as extern "C" fn(libc::c_int) as libc::sighandler_t);
}

/// Whether it has come.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// From here on SIGTERM ends the process again, also one that has come already.
pub fn obey() {
    handle(libc::SIG_DFL);
    if asked() {
        // SAFETY: raise takes an integer.
        unsafe { libc::raise(libc::SIGTERM) };
    }
}

extern "C" fn note(_: libc::c_int) {
    ASKED.store(true, Ordering::Relaxed);
}

fn handle(action: libc::sighandler_t) {
    // SAFETY: the handler stores to an atomic and does nothing else.
    unsafe { libc::signal(libc::SIGTERM, action) };
}

/// The attempt was told to leave, and has: what it has done is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupted {
    /// Steps of training done; none for a command, whose state is its own.
    pub step: Option<u64>,
}

impl std::error::Error for Interrupted {}

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.step {
            Some(step) => write!(f, "told to end; its state after step {step} is kept"),
            None => write!(f, "told to end"),
        }
    }
}
