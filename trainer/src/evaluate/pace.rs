//! How far a sweep is. It counts forward passes of one image, as many as its datasets and α make; they advance with the
//! work that they stand for, since what all α share is computed once. So the share that is done is a share of the time,
//! and what is left at the present rate is what it will take, also behind a resume.

use causeway_protocol::{Phase, RunProgress};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Time between two reports: they are for the eye, and every line is shipped and stored.
const EVERY: Duration = Duration::from_secs(1);
/// The rate is that of the last so many reports: long enough for a dataset's scoring not to look like a standstill.
const REPORTS: usize = 20;

/// Counts work.
pub struct Pace {
    /// Operations done and in all.
    done: f64,
    total: f64,
    /// Forward passes in all.
    passes: f64,
    /// Operations of this process.
    fresh: f64,
    /// Forward passes that were told last.
    told: u64,
    /// When the last reports were, and what was done by then in this process.
    reports: VecDeque<(Instant, f64)>,
}

impl Pace {
    /// Begins to count.
    pub fn new() -> Pace {
        let reports = VecDeque::from([(Instant::now(), 0.0)]);
        Pace { done: 0.0, total: 0.0, passes: 0.0, fresh: 0.0, told: 0, reports }
    }

    /// There is so much more to do, or less.
    pub fn expect(&mut self, operations: f64, passes: f64) {
        self.total += operations;
        self.passes += passes;
    }

    /// So much was there already.
    pub fn found(&mut self, operations: f64) {
        self.done += operations;
    }

    /// So much has been computed: how far the sweep is, now and then and at its end.
    pub fn computed(&mut self, operations: f64, doing: impl FnOnce() -> String) -> Option<RunProgress> {
        self.done += operations;
        self.fresh += operations;
        let (now, left) = (Instant::now(), self.total - self.done);
        // Sums of shares are not exact.
        let over = left < 1e-9 * self.total;
        let recent = self.reports.back().is_some_and(|(last, _)| now - *last < EVERY);
        if recent && !over {
            return None;
        }
        let passes_per_operation = self.passes / self.total.max(1.0);
        let (since, before) = self.reports.front().copied().unwrap_or((now, self.fresh));
        let seconds = (now - since).as_secs_f64().max(1e-9);
        let images_per_second = (self.fresh - before) * passes_per_operation / seconds;
        self.reports.push_back((now, self.fresh));
        if self.reports.len() > REPORTS {
            self.reports.pop_front();
        }
        let total = self.passes as u64;
        let done = if over { total } else { (self.done * passes_per_operation) as u64 };
        self.told = done;
        Some(RunProgress { phase: Phase::Evaluate, done, total, images_per_second, doing: doing() })
    }

    /// The end, where it came before what was expected and has not been told.
    pub fn ended(&mut self) -> Option<RunProgress> {
        if self.fresh == 0.0 || self.told == self.passes as u64 {
            return None;
        }
        self.done = self.total;
        self.computed(0.0, || "done".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_advance_with_their_work_and_end_at_their_number() {
        let mut pace = Pace::new();
        // Ten images at four α: 6 shared and 1 for each α make 100 operations for 40 passes.
        pace.expect(100.0, 40.0);
        pace.found(50.0);
        assert!(pace.computed(20.0, String::new).is_none(), "a second has not passed");
        pace.reports = VecDeque::from([(Instant::now() - Duration::from_secs(10), 0.0)]);
        let report = pace.computed(5.0, || "a".to_owned()).unwrap();
        assert_eq!((report.done, report.total, report.doing.as_str()), (30, 40, "a"));
        // 25 operations in 10 s, which is the work of 10 passes; what was found is no rate. Half a percent for the clock.
        assert!((report.images_per_second - 1.0).abs() < 0.005, "{}", report.images_per_second);
        let left = report.seconds_left(None).unwrap();
        assert!((left - 10.0).abs() < 0.05, "{left}");
        let last = pace.computed(25.0, String::new).unwrap();
        assert_eq!((last.done, last.total), (40, 40));
    }

    #[test]
    fn what_turns_out_not_to_be_needed_leaves_the_total() {
        let mut pace = Pace::new();
        pace.expect(100.0, 40.0);
        pace.expect(-50.0, -20.0);
        let last = pace.computed(50.0, String::new).unwrap();
        assert_eq!((last.done, last.total), (20, 20));
        assert!(pace.ended().is_none(), "it has been told");
        // A last round that comes to nothing, behind all that is computed.
        let mut pace = Pace::new();
        pace.expect(100.0, 40.0);
        assert!(pace.computed(50.0, String::new).is_none());
        pace.expect(-50.0, -20.0);
        let last = pace.ended().unwrap();
        assert_eq!((last.done, last.total, last.doing.as_str()), (20, 20, "done"));
        assert!(Pace::new().ended().is_none(), "nothing was computed");
    }
}
