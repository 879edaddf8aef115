//! From where the right class stands among all to what a point says. Every readout orders the classes; only the place of
//! the right one counts, so no order is ever sorted out.

use causeway_protocol::Hits;
use tch::{Kind, Tensor};

/// Classes whose first members count as a top-5 hit.
const TOP: usize = 5;
/// Rows whose scores are copied out of a tensor at once.
const ROWS: i64 = 4096;

/// Which queries are right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Score {
    /// Those whose first class is right.
    pub hits: Hits,
    /// How many have their label among the first five classes.
    pub correct_top5: u32,
}

impl Score {
    /// From how many classes stand before each query's own.
    pub fn of(standings: Vec<usize>) -> Score {
        let first: Vec<bool> = standings.iter().map(|standing| *standing == 0).collect();
        let correct_top5 = standings.iter().filter(|standing| **standing < TOP).count() as u32;
        Score { hits: Hits::from_flags(&first), correct_top5 }
    }
}

/// How many classes stand before each row's label: by (score descending, label ascending).
///
/// # Shapes
/// `scores` [rows, classes]
pub fn standings(scores: &Tensor, labels: &[u32]) -> Vec<usize> {
    let classes = scores.size()[1] as usize;
    let mut standings = Vec::with_capacity(labels.len());
    for begin in (0..labels.len() as i64).step_by(ROWS as usize) {
        let rows = ROWS.min(labels.len() as i64 - begin);
        let some = scores.narrow(0, begin, rows).to_kind(Kind::Double).contiguous();
        let mut values = vec![0f64; (rows as usize) * classes];
        let count = values.len();
        some.copy_data(&mut values, count);
        let labels = &labels[begin as usize..(begin + rows) as usize];
        standings.extend(values.chunks_exact(classes).zip(labels).map(|(row, label)| {
            let label = *label as usize;
            let before = |(class, score): &(usize, &f64)| {
                **score > row[label] || (**score == row[label] && *class < label)
            };
            row.iter().enumerate().filter(before).count()
        }));
    }
    standings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_stand_by_score_and_then_by_label() {
        let scores = Tensor::from_slice2(&[[0.5f32, 2.0, 0.5, -1.0], [1.0, 1.0, 1.0, 1.0]]);
        for (label, expected) in [(0, 1), (1, 0), (2, 2), (3, 3)] {
            assert_eq!(standings(&scores, &[label, label]), [expected, label as usize]);
        }
    }

    #[test]
    fn the_first_is_a_hit_and_the_first_five_count() {
        let score = Score::of(vec![0, 4, 5, 0, 1]);
        assert_eq!(score.hits, Hits::from_flags(&[true, false, false, true, false]));
        assert_eq!(score.correct_top5, 4);
    }
}
