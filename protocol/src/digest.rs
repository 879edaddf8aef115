//! Digests, and what is drawn from them.

use sha2::{Digest, Sha256};

/// Bytes as lower-case hex, the way every digest is written.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// sha256 of some bytes, 64 hex digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Which of a dataset's `n` queries an α may be chosen on: half of them, the odd one not among them, always the same
/// ones. An accuracy on those that are left says what the choice is worth.
pub fn selection_half(dataset: &str, n: usize) -> Vec<bool> {
    let digest = Sha256::digest(dataset.as_bytes());
    let seed = digest[..8].iter().fold(0u64, |seed, byte| seed << 8 | u64::from(*byte));
    let mut order: Vec<(u64, usize)> = (0..n).map(|query| (mixed(seed, query as u64), query)).collect();
    order.sort_unstable();
    let mut half = vec![false; n];
    order.iter().take(n / 2).for_each(|(_, query)| half[*query] = true);
    half
}

/// One value of SplitMix64 (Steele et al. 2014).
fn mixed(seed: u64, at: u64) -> u64 {
    let z = seed.wrapping_add((at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_half_is_a_half_that_depends_on_the_dataset_alone() {
        for n in [0, 1, 2, 9, 1000] {
            let half = selection_half("a", n);
            assert_eq!(half.iter().filter(|chosen| **chosen).count(), n / 2);
            assert_eq!(half, selection_half("a", n));
        }
        assert_ne!(selection_half("a", 1000), selection_half("b", 1000));
        // Neither the first nor every second one: 500 drawn of 1,000 change sides about 500 times, σ = 16.
        let half = selection_half("a", 1000);
        let changes = half.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!((420..580).contains(&changes), "{changes}");
    }
}
