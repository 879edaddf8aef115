//! Every state that a model can reach, breadth first, so that what goes wrong is shown on a shortest way to it. The library
//! for this, `stateright`, judges states and not the steps between them, has no "from everywhere an end can be reached", and
//! brings a web server along; these sixty lines have both and need nothing.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Debug,
    hash::{BuildHasherDefault, Hash, Hasher},
};

/// Something with states and steps between them.
pub trait Model {
    /// All of it at one moment.
    type State: Clone + Eq + Hash;
    /// What takes it from one moment to the next.
    type Action: Copy + Debug;
    /// Where it begins.
    fn start(&self) -> Self::State;
    /// Every step from there.
    fn steps(&self, state: &Self::State) -> Vec<(Self::Action, Self::State)>;
    /// What must not be, if the step has brought it about.
    fn wrong(&self, before: &Self::State, after: &Self::State) -> Option<&'static str>;
    /// Whether it has come to its end.
    fn ended(&self, state: &Self::State) -> bool;
}

/// How large a model is.
#[derive(Debug)]
pub struct Explored {
    /// States that can be reached.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
}

/// What a model does wrong, and a shortest way there.
#[derive(Debug)]
pub struct Counterexample {
    /// What.
    pub what: &'static str,
    /// The steps.
    pub way: Vec<String>,
    /// States that were looked at before it was found.
    pub states: usize,
}

/// Looks at every state. Also wrong, and looked for when all are known, is a state from which no end can be reached.
pub fn explore<M: Model>(model: &M) -> Result<Explored, Counterexample> {
    let start = model.start();
    let mut known: HashMap<M::State, usize, BuildHasherDefault<Quick>> = HashMap::default();
    known.insert(start.clone(), 0);
    // How each state was reached first, and the steps the other way round.
    let mut from: Vec<Option<(usize, M::Action)>> = vec![None];
    let mut back: Vec<Vec<u32>> = vec![Vec::new()];
    let mut ends: Vec<usize> = Vec::new();
    let mut steps = 0;
    let mut queue = VecDeque::from([(0, start)]);
    while let Some((at, state)) = queue.pop_front() {
        if model.ended(&state) {
            ends.push(at);
        }
        for (action, next) in model.steps(&state) {
            steps += 1;
            if let Some(what) = model.wrong(&state, &next) {
                let mut way = way(&from, at);
                way.push(format!("{action:?}"));
                return Err(Counterexample { what, way, states: known.len() });
            }
            let to = match known.get(&next) {
                Some(to) => *to,
                None => {
                    let to = known.len();
                    known.insert(next.clone(), to);
                    from.push(Some((at, action)));
                    back.push(Vec::new());
                    queue.push_back((to, next));
                    to
                }
            };
            back[to].push(at as u32);
        }
    }
    let mut hopeful = vec![false; back.len()];
    while let Some(at) = ends.pop() {
        if !std::mem::replace(&mut hopeful[at], true) {
            ends.extend(back[at].iter().map(|before| *before as usize));
        }
    }
    match hopeful.iter().position(|hope| !hope) {
        None => Ok(Explored { states: known.len(), steps }),
        Some(at) => Err(Counterexample {
            what: "from here no run can end any more",
            way: way(&from, at),
            states: known.len(),
        }),
    }
}

/// A hash for states that nobody chooses to our harm; the standard library's took half of the time.
#[derive(Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

fn way<A: Debug>(from: &[Option<(usize, A)>], mut at: usize) -> Vec<String> {
    let mut way = Vec::new();
    while let Some((before, action)) = &from[at] {
        way.push(format!("{action:?}"));
        at = *before;
    }
    way.reverse();
    way
}
