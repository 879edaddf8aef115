//! Few points that look like many values: each column of a chart keeps its first, least, greatest and last value at the
//! steps they have, never a sample, so that a spike of one value in ten million is drawn.

use super::chunk::Rollup;
use causeway_protocol::Number;

/// The points of a chart with so many columns, from what runs of values come to, which go by step.
pub fn points(rollups: &[Rollup], resolution: usize) -> Vec<(i64, f64)> {
    let (Some(first), Some(last)) = (rollups.first(), rollups.iter().map(|rollup| rollup.last_key.0).max())
    else {
        return Vec::new();
    };
    let begin = first.first_key.0;
    let width = (last.abs_diff(begin) / resolution.max(1) as u64).saturating_add(1);
    let column = |rollup: &Rollup| rollup.first_key.0.abs_diff(begin) / width;
    let mut points = Vec::new();
    for of_column in rollups.chunk_by(|one, next| column(one) == column(next)) {
        let Some(all) = of_column.iter().copied().reduce(Rollup::and) else { continue };
        let mut four = vec![(all.first_key.0, all.first)];
        four.extend([all.min, all.max].into_iter().flatten().map(|extreme| (extreme.step, extreme.number)));
        four.push((all.last_key.0, all.last));
        four.sort_by_key(|point| point.0);
        four.dedup_by(|one, other| one.0 == other.0 && Number(one.1).same(Number(other.1)));
        points.append(&mut four);
    }
    // A run of values may reach into the next column, and attempts into each other.
    points.sort_by_key(|point| point.0);
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::chunk::Value;

    fn rollups(numbers: impl Iterator<Item = f64>) -> Vec<Rollup> {
        let values: Vec<Value> =
            numbers.enumerate().map(|(step, number)| Value { step: step as i64, n: 0, number }).collect();
        values.chunks(100).filter_map(Rollup::of).collect()
    }

    #[test]
    fn one_spike_in_a_million_values_is_a_point_at_its_own_step() {
        let rollups = rollups((0..1_000_000).map(|step| if step == 654_321 { 9.0 } else { 1.0 }));
        let points = points(&rollups, 50);
        assert!(points.len() <= 4 * 50, "{}", points.len());
        assert!(points.contains(&(654_321, 9.0)));
        assert_eq!((points[0], points[points.len() - 1]), ((0, 1.0), (999_999, 1.0)));
        assert!(points.is_sorted_by_key(|point| point.0));
    }

    #[test]
    fn a_column_of_one_number_is_its_ends() {
        assert_eq!(points(&rollups((0..300).map(|_| 2.0)), 1), [(0, 2.0), (299, 2.0)]);
        assert_eq!(points(&[], 10), []);
    }

    #[test]
    fn columns_are_of_equal_width_whatever_the_values() {
        // 0 to 999, then nothing up to a million: the far end has its own column.
        let mut rollups = rollups((0..1000).map(f64::from));
        rollups.extend(Rollup::of(&[Value { step: 1_000_000, n: 0, number: 5.0 }]));
        assert_eq!(points(&rollups, 10), [(0, 0.0), (999, 999.0), (1_000_000, 5.0)]);
    }
}
