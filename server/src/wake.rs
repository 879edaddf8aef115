//! Waking those who wait. A held request sleeps until something changed or a second has passed, then looks at the
//! database again: the database is the truth, and a lost wake-up costs a second at most.

use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// The longest sleep between two looks.
const POLL: Duration = Duration::from_secs(1);

/// A bell that everyone hears.
#[derive(Clone, Debug)]
pub struct Wake(Arc<watch::Sender<u64>>);

/// One listener; hears every ring since it was made.
#[derive(Debug)]
pub struct Listener(watch::Receiver<u64>);

impl Default for Wake {
    fn default() -> Self {
        Wake(Arc::new(watch::Sender::new(0)))
    }
}

impl Wake {
    /// Something changed: a run was posted, cancelled or assigned, a device became free.
    pub fn ring(&self) {
        self.0.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Starts listening. Do so before looking at the database, or a ring in between is lost.
    pub fn listen(&self) -> Listener {
        Listener(self.0.subscribe())
    }
}

impl Listener {
    /// Sleeps until a ring, at most a second.
    pub async fn heard(&mut self) {
        let _ = tokio::time::timeout(POLL, self.0.changed()).await;
    }
}
