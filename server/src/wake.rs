//! Waking those who wait. A held request sleeps until something changed or a second has passed, then looks at the
//! database again: the database is the truth, and a lost wake-up costs a second at most. Who need not look is not woken:
//! a hundred workers that wait for work do not all ask the database whenever a run comes in.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use uuid::Uuid;

/// The longest sleep between two looks.
const POLL: Duration = Duration::from_secs(1);

/// The bells.
#[derive(Clone, Debug, Default)]
pub struct Wake(Arc<Bells>);

#[derive(Debug, Default)]
struct Bells {
    everyone: watch::Sender<()>,
    scheduler: watch::Sender<()>,
    /// Of workers with a held request.
    workers: Mutex<HashMap<Uuid, watch::Sender<()>>>,
}

/// One listener; hears every ring since it was made.
#[derive(Debug)]
pub struct Listener {
    everyone: watch::Receiver<()>,
    own: Option<watch::Receiver<()>>,
}

impl Wake {
    /// Something changed that anyone may wait for: a run was cancelled, paused or taken back.
    pub fn ring(&self) {
        self.0.everyone.send_replace(());
    }

    /// There may be something to assign: a run was posted, a device became free.
    pub fn ring_scheduler(&self) {
        self.0.scheduler.send_replace(());
    }

    /// Something was assigned to these workers.
    pub fn ring_workers(&self, workers: &[Uuid]) {
        let mut bells = self.workers();
        for worker in workers {
            if bells.get(worker).is_some_and(|bell| bell.send(()).is_err()) {
                bells.remove(worker); // nobody listens any more
            }
        }
    }

    /// Starts listening. Do so before looking at the database, or a ring in between is lost.
    pub fn listen(&self) -> Listener {
        Listener { everyone: self.0.everyone.subscribe(), own: None }
    }

    /// Listens as the scheduler.
    pub fn listen_as_scheduler(&self) -> Listener {
        Listener { own: Some(self.0.scheduler.subscribe()), ..self.listen() }
    }

    /// Listens on behalf of a worker.
    pub fn listen_as_worker(&self, worker: Uuid) -> Listener {
        let own = self.workers().entry(worker).or_default().subscribe();
        Listener { own: Some(own), ..self.listen() }
    }

    fn workers(&self) -> MutexGuard<'_, HashMap<Uuid, watch::Sender<()>>> {
        self.0.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    /// Sleeps until a ring, at most a second.
    pub async fn heard(&mut self) {
        let own = async {
            match &mut self.own {
                Some(own) => drop(own.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.everyone.changed() => {}
            () = own => {}
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn hears(listener: &mut Listener) -> bool {
        tokio::time::timeout(POLL / 10, listener.heard()).await.is_ok()
    }

    #[tokio::test]
    async fn each_hears_its_own_bell_and_everyone_the_great_one() {
        let wake = Wake::default();
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let (mut first, mut second) = (wake.listen_as_worker(one), wake.listen_as_worker(two));
        let (mut scheduler, mut other) = (wake.listen_as_scheduler(), wake.listen());
        wake.ring_workers(&[one]);
        assert!(hears(&mut first).await);
        assert!(!hears(&mut second).await && !hears(&mut scheduler).await && !hears(&mut other).await);
        wake.ring_scheduler();
        assert!(hears(&mut scheduler).await);
        assert!(!hears(&mut first).await && !hears(&mut other).await);
        wake.ring();
        assert!(hears(&mut first).await && hears(&mut second).await);
        assert!(hears(&mut scheduler).await && hears(&mut other).await);
    }

    #[tokio::test]
    async fn a_worker_that_stopped_listening_hears_nothing_old_and_listens_again() {
        let wake = Wake::default();
        let worker = Uuid::from_u128(1);
        drop(wake.listen_as_worker(worker));
        wake.ring_workers(&[worker]);
        let mut again = wake.listen_as_worker(worker);
        assert!(!hears(&mut again).await);
        wake.ring_workers(&[worker]);
        assert!(hears(&mut again).await);
    }
}
