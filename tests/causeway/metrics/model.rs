//! What a run's values must be: every value by itself, in maps. What the server keeps by the chunk is compared with it.

use causeway_protocol::Number;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Numbers from a seed (Marsaglia's xorshift with a multiplier).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % end
    }

    /// Mostly halves, so that sums and comparisons are exact; now and then none that is finite.
    pub fn number(&mut self) -> f64 {
        match self.below(40) {
            0 => f64::NAN,
            1 => f64::INFINITY,
            2 => f64::NEG_INFINITY,
            _ => self.below(2000) as f64 / 2.0 - 300.0,
        }
    }
}

type Key = (i64, i32);

#[derive(Default)]
pub struct Attempt {
    /// By name and place.
    standing: BTreeMap<String, BTreeMap<Key, f64>>,
    through: Option<i64>,
}

#[derive(Default)]
pub struct Model {
    /// From number 1.
    pub attempts: Vec<Attempt>,
    pub taken_back: usize,
    /// By attempt, name and place: what stays, what came last, how often.
    pub conflicts: BTreeMap<(usize, String, Key), (f64, f64, i64)>,
}

impl Model {
    /// The next attempt takes over at a step.
    pub fn resume(&mut self, step: i64) {
        for attempt in &mut self.attempts {
            attempt.through = Some(attempt.through.map_or(step, |through| through.min(step)));
        }
        self.attempts.push(Attempt::default());
    }

    pub fn value(&mut self, name: &str, step: i64, n: i32, number: f64) {
        let at = self.attempts.len();
        let attempt = self.attempts.last_mut().unwrap();
        let values = attempt.standing.entry(name.to_owned()).or_default();
        let kept = *values.entry((step, n)).or_insert(number);
        if !Number(kept).same(Number(number)) {
            let conflict =
                self.conflicts.entry((at, name.to_owned(), (step, n))).or_insert((kept, number, 0));
            *conflict = (kept, number, conflict.2 + 1);
        }
    }

    pub fn roll_back(&mut self, step: i64) {
        for values in self.attempts.last_mut().unwrap().standing.values_mut() {
            self.taken_back += values.split_off(&(step + 1, i32::MIN)).len();
        }
    }

    /// Visible values by name, each with step, attempt, n and number.
    pub fn visible(&self) -> BTreeMap<String, Vec<(i64, usize, i32, f64)>> {
        let mut visible: BTreeMap<String, Vec<(i64, usize, i32, f64)>> = BTreeMap::new();
        for (attempt, at) in self.attempts.iter().zip(1..) {
            for (name, values) in &attempt.standing {
                let through = attempt.through.unwrap_or(i64::MAX);
                let shown = values.iter().filter(|((step, _), _)| *step <= through);
                let shown: Vec<_> = shown.map(|((step, n), number)| (*step, at, *n, *number)).collect();
                if !shown.is_empty() {
                    visible.entry(name.clone()).or_default().extend(shown);
                }
            }
        }
        visible
    }

    /// What `GET metrics` must answer.
    pub fn series(&self) -> Value {
        let series = self.visible().into_iter().map(|(name, mut values)| {
            values.sort_by_key(|value| value.0);
            let steps: Vec<i64> = values.iter().map(|value| value.0).collect();
            let numbers: Vec<Number> = values.iter().map(|value| Number(value.3)).collect();
            json!({"name": name, "steps": steps, "values": numbers})
        });
        series.collect()
    }

    /// What `GET metrics.csv` must answer.
    pub fn csv(&self) -> String {
        let mut text = "name,step,value,attempt,n\n".to_owned();
        for (name, values) in self.visible() {
            let name = if name.contains(',') { format!("\"{name}\"") } else { name };
            for (step, attempt, n, number) in values {
                text += &format!("{name},{step},{},{attempt},{n}\n", Number(number));
            }
        }
        text
    }

    /// What `GET summary` must answer.
    pub fn summary(&self) -> Value {
        let series = self.visible().into_iter().map(|(name, values)| {
            let finite = || values.iter().filter(|value| value.3.is_finite());
            let min = finite().map(|value| value.3).reduce(f64::min);
            let max = finite().map(|value| value.3).reduce(f64::max);
            let first = |number: Option<f64>| {
                finite().filter(|value| Some(value.3) == number).map(|value| value.0).min()
            };
            let last = values.last().unwrap();
            json!({
                "name": name, "count": values.len(), "non_finite": values.len() - finite().count(),
                "last": Number(last.3), "last_step": last.0, "min": min, "min_step": first(min), "max": max,
                "max_step": first(max)
            })
        });
        series.collect()
    }

    /// What `GET conflicts` must answer, without its ids and times of day.
    pub fn conflicts(&self) -> Vec<Value> {
        let conflicts = self.conflicts.iter().map(|((attempt, name, (step, n)), (kept, refused, times))| {
            json!({"name": name, "attempt": attempt, "step": step, "n": n, "kept": Number(*kept),
                   "refused": Number(*refused), "times": times})
        });
        conflicts.collect()
    }
}
