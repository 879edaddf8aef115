//! How fast training goes and what it costs: progress for the eye, and the system's metrics.

use causeway_protocol::{Phase, RunProgress, Training};
use std::fs;
use std::time::{Duration, Instant};

/// Time between two reports of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Counts images and waiting.
pub struct Pace {
    total: u64,
    per_step: u64,
    /// Since the last report of progress.
    lately: Window,
    /// Since the last metrics.
    measured: Window,
}

struct Window {
    since: Instant,
    steps: u64,
    waited: Duration,
}

/// What the last steps took.
pub struct Usage {
    images_per_second: f64,
    waiting: f64,
    memory_bytes: u64,
    memory_peak_bytes: u64,
}

impl Usage {
    /// As metrics. They depend on the machine and the moment: no two runs agree in them.
    pub fn values(self) -> [(String, f64); 4] {
        [
            ("system/images_per_second".to_owned(), self.images_per_second),
            ("system/share_waiting_for_data".to_owned(), self.waiting),
            ("system/memory_bytes".to_owned(), self.memory_bytes as f64),
            ("system/memory_peak_bytes".to_owned(), self.memory_peak_bytes as f64),
        ]
    }
}

impl Window {
    fn new() -> Window {
        Window { since: Instant::now(), steps: 0, waited: Duration::ZERO }
    }

    fn add(&mut self, waited: Duration) {
        self.steps += 1;
        self.waited += waited;
    }

    fn images_per_second(&self, per_step: u64) -> f64 {
        (self.steps * per_step) as f64 / self.since.elapsed().as_secs_f64().max(1e-9)
    }
}

impl Pace {
    /// Begins to count.
    pub fn new(training: &Training) -> Pace {
        let per_step = u64::from(training.batch_size) * u64::from(training.accumulate);
        Pace { total: training.steps, per_step, lately: Window::new(), measured: Window::new() }
    }

    /// After a step that waited so long for its images: how far training is, now and then.
    pub fn after(&mut self, done: u64, waited: Duration) -> Option<RunProgress> {
        self.lately.add(waited);
        self.measured.add(waited);
        if self.lately.since.elapsed() < PROGRESS_EVERY && done < self.total {
            return None;
        }
        let images_per_second = self.lately.images_per_second(self.per_step);
        self.lately = Window::new();
        let doing = format!("step {done} of {}", self.total);
        Some(RunProgress { phase: Phase::Train, done, total: self.total, images_per_second, doing })
    }

    /// What the steps since the last call took; none if there was none.
    pub fn usage(&mut self) -> Option<Usage> {
        let window = std::mem::replace(&mut self.measured, Window::new());
        (window.steps > 0).then(|| Usage {
            images_per_second: window.images_per_second(self.per_step),
            waiting: window.waited.as_secs_f64() / window.since.elapsed().as_secs_f64().max(1e-9),
            memory_bytes: memory_bytes("VmRSS:"),
            memory_peak_bytes: memory_bytes("VmHWM:"),
        })
    }
}

/// Memory of this process that is in RAM, now (VmRSS) or at its most (VmHWM); 0 where the system does not tell.
fn memory_bytes(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}
