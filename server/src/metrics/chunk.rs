//! A chunk: up to 1,024 values of one series and attempt that follow each other, and what they come to. Everything here
//! is arithmetic on values that were read; what is kept where is `store`'s.

use causeway_protocol::Number;

/// Most values of a chunk.
pub const CHUNK_MAX: usize = 1024;

/// Place of a value in an attempt's share of a series: its step, and which of the values at that step it is.
pub type Key = (i64, i32);

/// One value.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Value {
    /// Its step.
    pub step: i64,
    /// Which of the values at that step, from 0.
    pub n: i32,
    /// The number.
    pub number: f64,
}

impl Value {
    /// Its place.
    pub fn key(&self) -> Key {
        (self.step, self.n)
    }

    fn same(&self, number: f64) -> bool {
        Number(self.number).same(Number(number))
    }
}

/// The least or the greatest of some finite values, and the first step that has it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Extreme {
    /// The number.
    pub number: f64,
    /// Its step.
    pub step: i64,
}

impl Extreme {
    /// Of two columns of a row.
    pub fn of(number: Option<f64>, step: Option<i64>) -> Option<Extreme> {
        Some(Extreme { number: number?, step: step? })
    }
}

/// What values come to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rollup {
    /// Place of the first.
    pub first_key: Key,
    /// Place of the last.
    pub last_key: Key,
    /// The first.
    pub first: f64,
    /// The last.
    pub last: f64,
    /// How many, those that are not finite included.
    pub count: i64,
    /// How many are not finite.
    pub non_finite: i64,
    /// The least finite one.
    pub min: Option<Extreme>,
    /// The greatest finite one.
    pub max: Option<Extreme>,
}

impl Rollup {
    /// What one value comes to.
    pub fn of_one(value: &Value) -> Rollup {
        let finite = value.number.is_finite();
        let extreme = finite.then_some(Extreme { number: value.number, step: value.step });
        Rollup {
            first_key: value.key(),
            last_key: value.key(),
            first: value.number,
            last: value.number,
            count: 1,
            non_finite: i64::from(!finite),
            min: extreme,
            max: extreme,
        }
    }

    /// What values come to; none for no values.
    pub fn of(values: &[Value]) -> Option<Rollup> {
        values.iter().map(Rollup::of_one).reduce(Rollup::and)
    }

    /// What these and others come to, in whichever order.
    pub fn and(self, other: Rollup) -> Rollup {
        let (begin, end) = (
            if self.first_key <= other.first_key { self } else { other },
            if self.last_key > other.last_key { self } else { other },
        );
        Rollup {
            first_key: begin.first_key,
            first: begin.first,
            last_key: end.last_key,
            last: end.last,
            count: self.count + other.count,
            non_finite: self.non_finite + other.non_finite,
            min: better(self.min, other.min, |a, b| a < b),
            max: better(self.max, other.max, |a, b| a > b),
        }
    }
}

fn better(one: Option<Extreme>, other: Option<Extreme>, beats: fn(f64, f64) -> bool) -> Option<Extreme> {
    let (Some(a), Some(b)) = (one, other) else { return one.or(other) };
    let first = beats(a.number, b.number) || !beats(b.number, a.number) && a.step <= b.step;
    Some(if first { a } else { b })
}

/// A value that arrived again with another number.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Conflict {
    /// Place of both.
    pub key: Key,
    /// The number that was there first, and stays.
    pub kept: f64,
    /// The number that came last.
    pub refused: f64,
    /// How often another one came.
    pub times: i64,
}

/// Values after others have been put among them.
#[derive(Debug, Default)]
pub struct Merged {
    /// All, by place.
    pub values: Vec<Value>,
    /// Those that are new, by place.
    pub taken: Vec<Value>,
    /// Those that contradict, by place.
    pub conflicts: Vec<Conflict>,
}

/// Puts new values among those that are there. The first of a place stays; a later one of the same number is nothing.
/// Both lists go by place; the new one may name a place several times, in order of arrival.
pub fn merge(there: &[Value], new: &[Value]) -> Merged {
    let mut merged = Merged { values: Vec::with_capacity(there.len() + new.len()), ..Merged::default() };
    let mut there = there.iter().copied().peekable();
    for value in new {
        while let Some(kept) = there.next_if(|kept| kept.key() <= value.key()) {
            merged.values.push(kept);
        }
        match merged.values.last() {
            Some(kept) if kept.key() == value.key() => {
                if !kept.same(value.number) {
                    note(&mut merged.conflicts, kept, value.number);
                }
            }
            _ => {
                merged.values.push(*value);
                merged.taken.push(*value);
            }
        }
    }
    merged.values.extend(there);
    merged
}

fn note(conflicts: &mut Vec<Conflict>, kept: &Value, refused: f64) {
    match conflicts.last_mut() {
        Some(last) if last.key == kept.key() => (last.refused, last.times) = (refused, last.times + 1),
        _ => conflicts.push(Conflict { key: kept.key(), kept: kept.number, refused, times: 1 }),
    }
}

/// Cuts values into full chunks and what remains.
pub fn cut(values: &[Value]) -> std::slice::Chunks<'_, Value> {
    values.chunks(CHUNK_MAX)
}

/// Cuts values that have outgrown a chunk into even parts, so that each has room again.
pub fn split(values: &[Value]) -> std::slice::Chunks<'_, Value> {
    let parts = values.len().div_ceil(CHUNK_MAX).max(1);
    values.chunks(values.len().div_ceil(parts).max(1))
}

/// Places of a chunk's values as they are stored.
#[derive(Clone, PartialEq, Debug)]
pub struct Places {
    /// Distance between neighbouring steps, where it is always the same.
    pub stride: Option<i64>,
    /// The steps, where it is not.
    pub steps: Option<Vec<i64>>,
    /// Which of the values at its step each is, unless all are the only ones.
    pub ns: Option<Vec<i32>>,
}

impl Places {
    /// The places of some values.
    pub fn of(values: &[Value]) -> Places {
        let stride = match values {
            [first, second, ..] => second.step.saturating_sub(first.step),
            _ => 1,
        };
        let even = values.windows(2).all(|pair| pair[1].step.checked_sub(pair[0].step) == Some(stride));
        let plain = values.iter().all(|value| value.n == 0);
        Places {
            stride: even.then_some(stride),
            steps: (!even).then(|| values.iter().map(|value| value.step).collect()),
            ns: (!plain).then(|| values.iter().map(|value| value.n).collect()),
        }
    }

    /// The values at these places.
    pub fn values(&self, first_step: i64, numbers: &[f64]) -> Vec<Value> {
        let stride = self.stride.unwrap_or(0);
        let values = numbers.iter().enumerate().map(|(at, number)| Value {
            step: match &self.steps {
                Some(steps) => steps.get(at).copied().unwrap_or(first_step),
                None => first_step + stride * at as i64,
            },
            n: self.ns.as_ref().and_then(|ns| ns.get(at).copied()).unwrap_or(0),
            number: *number,
        });
        values.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(step: i64, number: f64) -> Value {
        Value { step, n: 0, number }
    }

    #[test]
    fn a_rollup_counts_what_is_not_finite_and_looks_past_it() {
        let values =
            [at(1, f64::NAN), at(2, 3.0), at(3, -1.0), at(4, f64::INFINITY), at(5, -1.0), at(6, 3.0)];
        let rollup = Rollup::of(&values).unwrap();
        assert_eq!((rollup.count, rollup.non_finite), (6, 2));
        assert_eq!(rollup.min, Some(Extreme { number: -1.0, step: 3 }), "the first of equal ones");
        assert_eq!(rollup.max, Some(Extreme { number: 3.0, step: 2 }));
        assert!(rollup.first.is_nan());
        assert_eq!((rollup.last, rollup.first_key, rollup.last_key), (3.0, (1, 0), (6, 0)));
        assert_eq!(Rollup::of(&[at(1, f64::NAN)]).unwrap().min, None);
    }

    #[test]
    fn rollups_add_up_in_any_order() {
        let values: Vec<Value> = (0..40).map(|step| at(step, f64::from((step as i32 * 7) % 11))).collect();
        let whole = Rollup::of(&values).unwrap();
        for cut in 1..values.len() {
            let (left, right) = (Rollup::of(&values[..cut]).unwrap(), Rollup::of(&values[cut..]).unwrap());
            assert_eq!(left.and(right), whole);
            assert_eq!(right.and(left), whole);
        }
    }

    #[test]
    fn the_first_of_a_place_stays_and_another_number_is_a_conflict() {
        let there = [at(1, 1.0), at(3, f64::NAN)];
        let new = [at(1, 1.0), at(2, 2.0), at(2, 2.5), at(2, 2.75), at(3, f64::NAN), at(3, 3.0), at(4, 4.0)];
        let merged = merge(&there, &new);
        let steps: Vec<i64> = merged.values.iter().map(|value| value.step).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
        assert_eq!(merged.taken, [at(2, 2.0), at(4, 4.0)]);
        assert_eq!(merged.conflicts.len(), 2);
        assert_eq!(merged.conflicts[0], Conflict { key: (2, 0), kept: 2.0, refused: 2.75, times: 2 });
        assert_eq!((merged.conflicts[1].key, merged.conflicts[1].refused), ((3, 0), 3.0));
    }

    #[test]
    fn values_at_one_step_are_told_apart_by_their_number() {
        let two = [Value { step: 5, n: 0, number: 1.0 }, Value { step: 5, n: 1, number: 2.0 }];
        assert_eq!(merge(&two[..1], &two[1..]).values, two);
        let places = Places::of(&two);
        assert_eq!((places.stride, &places.ns), (Some(0), &Some(vec![0, 1])));
        assert_eq!(places.values(5, &[1.0, 2.0]), two);
    }

    #[test]
    fn even_steps_are_a_stride_and_others_are_spelled_out() {
        let even = [at(10, 1.0), at(15, 2.0), at(20, 3.0)];
        let places = Places::of(&even);
        assert_eq!(places, Places { stride: Some(5), steps: None, ns: None });
        assert_eq!(places.values(10, &[1.0, 2.0, 3.0]), even);
        let uneven = [at(10, 1.0), at(11, 2.0), at(20, 3.0)];
        let places = Places::of(&uneven);
        assert_eq!(places.steps, Some(vec![10, 11, 20]));
        assert_eq!(places.values(10, &[1.0, 2.0, 3.0]), uneven);
    }

    #[test]
    fn what_outgrew_a_chunk_is_parted_evenly() {
        let values: Vec<Value> = (0..1025).map(|step| at(step, 0.0)).collect();
        assert_eq!(split(&values).map(<[Value]>::len).collect::<Vec<_>>(), [513, 512]);
        assert_eq!(split(&values[..1024]).len(), 1);
        assert_eq!(cut(&values).map(<[Value]>::len).collect::<Vec<_>>(), [1024, 1]);
    }
}
