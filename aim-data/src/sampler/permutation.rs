//! [`Permutation`]: a shuffle that is looked up, not carried out.

use crate::random::mix;

/// A pseudo-random permutation of `0..len`, evaluated at any point in constant time and memory.
///
/// A Feistel network over the smallest even number of bits that covers `len`, keyed by seed,
/// source and epoch; results outside `0..len` are sent through again until they fall inside
/// (cycle walking), which keeps it a bijection.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; Self::ROUNDS],
}

impl Permutation {
    const ROUNDS: usize = 8;
    /// Halves of fewer bits mix too little; small sets walk a few steps more instead.
    const MIN_HALF_BITS: u32 = 4;

    /// The permutation of `0..len` for an epoch of a source. `len` is at most 2^62.
    #[must_use]
    pub fn new(len: u64, seed: u64, source: u64, epoch: u64) -> Self {
        let len = len.min(1 << 62);
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let half_bits = bits.div_ceil(2).max(Self::MIN_HALF_BITS);
        let mut state = mix(seed) ^ mix(mix(source) ^ epoch.rotate_left(32));
        let keys = std::array::from_fn(|_| {
            state = mix(state);
            state
        });
        Self { len, half_bits, keys }
    }

    /// Where position `at` goes; `at` is taken modulo `len`. 0 for an empty range.
    #[must_use]
    pub fn get(&self, at: u64) -> u64 {
        if self.len == 0 {
            return 0;
        }
        let mut value = self.encrypt(at % self.len);
        while value >= self.len {
            value = self.encrypt(value);
        }
        value
    }

    fn encrypt(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn permutation_is_a_bijection(
            len in prop_oneof![1u64..40, 1u64..5000],
            seed: u64,
            source in 0u64..9,
            epoch: u64,
        ) {
            let permutation = Permutation::new(len, seed, source, epoch);
            let mut seen = vec![false; len as usize];
            for at in 0..len {
                let value = permutation.get(at);
                prop_assert!(value < len);
                prop_assert!(!std::mem::replace(&mut seen[value as usize], true));
            }
        }
    }

    #[test]
    fn permutation_of_a_huge_range_stays_inside() {
        for len in [1 << 40, (1 << 40) + 1, u64::MAX] {
            let permutation = Permutation::new(len, 1, 2, 3);
            assert!((0..1000).all(|at| permutation.get(at) < len));
        }
    }

    #[test]
    fn places_are_evenly_shuffled() {
        // Chi-square of where index 0 lands, over 4,000 epochs: 99 degrees of freedom, so a mean
        // of 99 and a standard deviation of 14.
        for len in [10u64, 100] {
            let mut counts = vec![0f64; len as usize];
            for epoch in 0..4000 {
                counts[Permutation::new(len, 7, 0, epoch).get(0) as usize] += 1.0;
            }
            let expected = 4000.0 / len as f64;
            let chi: f64 = counts.iter().map(|c| (c - expected).powi(2) / expected).sum();
            assert!(chi < len as f64 + 5.0 * (2.0 * len as f64).sqrt(), "{len}: {chi}");
        }
        // Neighbours must not stay neighbours: mean distance of a random pair is len / 3.
        let permutation = Permutation::new(3000, 1, 0, 0);
        let distance: u64 =
            (1..3000).map(|at| permutation.get(at).abs_diff(permutation.get(at - 1))).sum();
        assert!((900.0..1100.0).contains(&(distance as f64 / 2999.0)));
    }
}
