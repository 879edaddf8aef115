//! The one source of randomness: SplitMix64 (Steele, Lea, Flood 2014). Eight lines that anyone can repeat in another
//! language, so that a subset, an order or an initial value can be checked without this program.

/// A stream of pseudo-random numbers, decided by its seed alone.
#[derive(Clone, Debug)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> SplitMix64 {
        SplitMix64 { state: seed }
    }

    /// The stream of several numbers together, such as (seed, step, rank): each step has its own stream, so a resumed
    /// run needs no generator state.
    pub fn from_parts(parts: &[u64]) -> SplitMix64 {
        let mut state = 0;
        for part in parts {
            state = SplitMix64::new(state ^ part).next_u64();
        }
        SplitMix64 { state }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// 0, 1, … n − 1; 0 where n is 0. The bias of the remainder is below n / 2⁶⁴.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next_u64() % n }
    }

    /// Fisher and Yates, from the end.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_published_one() {
        // The first outputs of Vigna's splitmix64.c with seed 1234567.
        let mut random = SplitMix64::new(1_234_567);
        assert_eq!(random.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(random.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn a_shuffle_keeps_every_item_and_repeats() {
        let shuffled = |seed| {
            let mut items: Vec<u32> = (0..100).collect();
            SplitMix64::new(seed).shuffle(&mut items);
            items
        };
        assert_eq!(shuffled(3), shuffled(3));
        assert_ne!(shuffled(3), shuffled(4));
        let mut sorted = shuffled(3);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<u32>>());
    }

    #[test]
    fn streams_of_different_parts_differ() {
        let first = |parts: &[u64]| SplitMix64::from_parts(parts).next_u64();
        assert_ne!(first(&[1, 2, 0]), first(&[2, 1, 0]));
        assert_ne!(first(&[1, 2, 0]), first(&[1, 2, 1]));
        let uniform = SplitMix64::new(9).uniform();
        assert!((0.0..1.0).contains(&uniform));
    }
}
