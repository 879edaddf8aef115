//! The order in which waiting runs are looked at: priority, then the project that has had least for its weight, then the
//! place in the queue, then the run's id. Total, and the same however the queue was read.

use super::plan::{Project, Waiting};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use uuid::Uuid;

/// Device-seconds that a run is expected to use, for each device it holds: what is charged in advance, so that a project
/// does not take the whole cluster before its first second is counted.
const PLEDGE: f64 = 3600.0;

/// Runs of one priority, by project.
struct Level<'a> {
    lines: BTreeMap<Uuid, VecDeque<&'a Waiting>>,
}

/// Hands out waiting runs one after the other; what starts is charged to its project at once.
pub struct Order<'a> {
    levels: VecDeque<Level<'a>>,
    /// What each project has had for its weight.
    shares: HashMap<Uuid, f64>,
    weights: HashMap<Uuid, f64>,
}

impl<'a> Order<'a> {
    /// Over this queue; `held` are the devices that projects hold now.
    pub fn new(projects: &[Project], queue: &'a [Waiting], held: &HashMap<Uuid, usize>) -> Order<'a> {
        let mut sorted: Vec<&Waiting> = queue.iter().collect();
        sorted.sort_by_key(|waiting| (Reverse(waiting.priority), waiting.position, waiting.run));
        let mut levels: VecDeque<Level> = VecDeque::new();
        let mut priority = None;
        for waiting in sorted {
            if priority != Some(waiting.priority) {
                levels.push_back(Level { lines: BTreeMap::new() });
                priority = Some(waiting.priority);
            }
            if let Some(level) = levels.back_mut() {
                level.lines.entry(waiting.project).or_default().push_back(waiting);
            }
        }
        let weights: HashMap<Uuid, f64> =
            projects.iter().map(|project| (project.id, project.weight)).collect();
        let shares = projects
            .iter()
            .map(|project| {
                let held = held.get(&project.id).copied().unwrap_or(0) as f64;
                (project.id, (project.usage + PLEDGE * held) / project.weight)
            })
            .collect();
        Order { levels, shares, weights }
    }

    /// The next run, if any is left.
    pub fn next(&mut self) -> Option<&'a Waiting> {
        loop {
            let level = self.levels.front_mut()?;
            let share = |project: &Uuid| self.shares.get(project).copied().unwrap_or(0.0);
            let least = level
                .lines
                .iter()
                .filter_map(|(project, line)| line.front().map(|first| (project, first)))
                .min_by(|(a, first), (b, second)| {
                    let place = |waiting: &Waiting| (waiting.position, waiting.run);
                    share(a).total_cmp(&share(b)).then_with(|| place(first).cmp(&place(second)))
                })
                .map(|(project, _)| *project);
            match least {
                Some(project) => return level.lines.get_mut(&project).and_then(VecDeque::pop_front),
                None => drop(self.levels.pop_front()),
            }
        }
    }

    /// A run has got its devices.
    pub fn started(&mut self, waiting: &Waiting) {
        let weight = self.weights.get(&waiting.project).copied().unwrap_or(1.0);
        *self.shares.entry(waiting.project).or_default() += PLEDGE * waiting.size() as f64 / weight;
    }
}
