//! Which pairs a step sees: a function of (seed, step) alone, so that a resumed run needs no generator state.

use crate::weights::initial;

/// The order of the pairs: epoch after epoch, each its own permutation, cut into batches that may straddle two.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Decides everything.
    pub seed: u64,
    /// Number of pairs.
    pub pairs: usize,
    /// Pairs per step.
    pub batch: usize,
}

impl Order {
    /// Indices of the pairs of a step; steps count from 0.
    pub fn batch(&self, step: u64) -> Vec<usize> {
        let first = step as u128 * self.batch as u128;
        let mut permutation = (u128::MAX, Vec::new());
        (first..first + self.batch as u128)
            .map(|place| {
                let epoch = place / self.pairs as u128;
                if permutation.0 != epoch {
                    permutation = (epoch, self.permutation(epoch));
                }
                permutation.1[(place % self.pairs as u128) as usize]
            })
            .collect()
    }

    fn permutation(&self, epoch: u128) -> Vec<usize> {
        let mut indices: Vec<usize> = (0..self.pairs).collect();
        initial::stream(self.seed, &format!("order/{epoch}")).shuffle(&mut indices);
        indices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_sees_every_pair_once_and_the_next_in_another_order() {
        let order = Order { seed: 5, pairs: 10, batch: 4 };
        let seen: Vec<usize> = (0..5).flat_map(|step| order.batch(step)).collect();
        for epoch in seen.chunks(10) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(seen[..10], seen[10..]);
        assert_ne!(seen[..10], (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_step_is_the_same_whichever_came_before() {
        let order = Order { seed: 5, pairs: 7, batch: 3 };
        let far = order.batch(1_000_000);
        let _ = order.batch(2);
        assert_eq!(order.batch(1_000_000), far);
        assert_ne!(Order { seed: 6, ..order }.batch(0), order.batch(0));
    }
}
