//! The values of one batch, series by series, as they come out of journal lines.

use super::chunk::Value;
use crate::{Error, Result};
use causeway_protocol::Number;
use std::collections::BTreeMap;

/// Most values in one batch.
pub const VALUES_MAX: usize = 100_000;
/// Longest name of a metric, bytes.
pub const NAME_MAX: usize = 500;

/// Values by the name of their metric, each series in order of arrival.
#[derive(Debug, Default)]
pub struct Batch {
    series: BTreeMap<String, Vec<Value>>,
    count: usize,
}

impl Batch {
    /// Adds the values of a line of `metrics`.
    ///
    /// # Errors
    /// 400 for a step, a name or a number of values beyond the limits.
    pub fn metrics(&mut self, step: u64, values: BTreeMap<String, f64>) -> Result<()> {
        let step = checked(step)?;
        for (name, number) in values {
            self.of(name, 1)?.push(Value { step, n: 0, number });
        }
        Ok(())
    }

    /// Adds the values of a line of `values`.
    ///
    /// # Errors
    /// 400 for columns of unequal length, or a step, a name or a number of values beyond the limits.
    pub fn values(&mut self, steps: &[u64], n: u32, values: BTreeMap<String, Vec<Number>>) -> Result<()> {
        let steps: Vec<i64> = steps.iter().map(|step| checked(*step)).collect::<Result<_>>()?;
        let n = i32::try_from(n).map_err(|_| Error::BadRequest(format!("n = {n} is too large")))?;
        for (name, column) in values {
            if column.len() != steps.len() {
                return Err(Error::BadRequest(format!(
                    "a line of values has {} steps but {} values of `{name}`: send one for each step",
                    steps.len(),
                    column.len()
                )));
            }
            if steps.is_empty() {
                continue;
            }
            let taken = self.of(name, column.len())?;
            taken.extend(steps.iter().zip(&column).map(|(step, number)| Value {
                step: *step,
                n,
                number: number.0,
            }));
        }
        Ok(())
    }

    fn of(&mut self, name: String, more: usize) -> Result<&mut Vec<Value>> {
        self.count += more;
        if self.count > VALUES_MAX {
            return Err(Error::BadRequest(format!(
                "a batch has at most {VALUES_MAX} values: send the rest in another"
            )));
        }
        if name.is_empty() || name.len() > NAME_MAX || name.contains('\0') {
            return Err(Error::BadRequest(format!(
                "a metric's name has 1 to {NAME_MAX} bytes and no NUL, `{name:.40}` has {}",
                name.len()
            )));
        }
        Ok(self.series.entry(name).or_default())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// The values by place, those of one place in order of arrival; the batch is empty afterwards.
    pub fn take(&mut self) -> BTreeMap<String, Vec<Value>> {
        self.count = 0;
        let mut series = std::mem::take(&mut self.series);
        for values in series.values_mut() {
            // Almost always sorted already, which the sort sees at once.
            values.sort_by_key(Value::key);
        }
        series
    }
}

fn checked(step: u64) -> Result<i64> {
    i64::try_from(step).map_err(|_| Error::BadRequest(format!("step {step} is beyond {}", i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_must_be_as_long_as_the_steps() {
        let mut batch = Batch::default();
        let columns = BTreeMap::from([("loss".to_owned(), vec![Number(1.0)])]);
        let error = batch.values(&[1, 2], 0, columns).unwrap_err().to_string();
        assert_eq!(error, "a line of values has 2 steps but 1 values of `loss`: send one for each step");
        assert!(batch.metrics(u64::MAX, BTreeMap::new()).is_err());
        assert!(batch.metrics(1, BTreeMap::from([(String::new(), 1.0)])).is_err());
    }

    #[test]
    fn values_come_out_by_place_and_equal_places_by_arrival() {
        let mut batch = Batch::default();
        for (step, number) in [(2, 1.0), (1, 5.0), (2, 3.0)] {
            batch.metrics(step, BTreeMap::from([("a".to_owned(), number)])).unwrap();
        }
        let taken = batch.take();
        let values: Vec<(i64, f64)> = taken["a"].iter().map(|value| (value.step, value.number)).collect();
        assert_eq!(values, [(1, 5.0), (2, 1.0), (2, 3.0)]);
        assert!(batch.is_empty());
    }
}
