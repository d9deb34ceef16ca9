//! Counter-based random numbers: every draw is a pure function of a few integers.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// What a stream of random numbers is for; different purposes never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Purpose {
    Augment = 1,
    Synthetic = 2,
    RandAugment = 3,
    Erase = 4,
}

/// Names the random numbers of one sample in one epoch.
///
/// Two equal keys give the same crop and flip, on any thread, in any order, before and after a
/// resume; keys that differ in any field give independent ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AugmentKey {
    /// Seed of the run.
    pub seed: u64,
    /// Epoch of the source.
    pub epoch: u64,
    /// Index of the sample in its source.
    pub index: u64,
    /// Position of the source in the mixture.
    pub source: u16,
    /// 0, or how many bad samples this one stands in for: a substitute gets its own crop.
    pub attempt: u16,
}

/// Random numbers in the forms the transforms need.
pub(crate) struct Rng(ChaCha8Rng);

impl Rng {
    pub(crate) fn new(purpose: Purpose, key: AugmentKey) -> Self {
        let tag =
            u64::from(purpose as u32) << 32 | u64::from(key.source) << 16 | u64::from(key.attempt);
        let mut seed = [0; 32];
        for (bytes, word) in seed.chunks_exact_mut(8).zip([key.seed, key.epoch, key.index, tag]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(seed))
    }

    /// Uniform in `[0, 1)` with 53 random bits.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `[low, high)`; `low` when they are equal.
    pub(crate) fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in `0..bound` (multiply-shift: the bias is below 2^-32 for any image size).
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        ((u128::from(self.0.next_u64()) * u128::from(bound)) >> 64) as u32
    }

    /// Normal with mean 0 and standard deviation 1 (Box and Muller's way: always two draws, so that
    /// what is drawn next does not depend on the value).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}

/// One round of a well-mixing integer hash (the finaliser of `SplitMix64`).
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_the_key_matters() {
        let base = AugmentKey { seed: 1, epoch: 2, index: 3, source: 4, attempt: 5 };
        let draw = |purpose, key| Rng::new(purpose, key).unit();
        let reference = draw(Purpose::Augment, base);
        assert_eq!(reference, draw(Purpose::Augment, base));
        for key in [
            AugmentKey { seed: 9, ..base },
            AugmentKey { epoch: 9, ..base },
            AugmentKey { index: 9, ..base },
            AugmentKey { source: 9, ..base },
            AugmentKey { attempt: 9, ..base },
        ] {
            assert_ne!(reference, draw(Purpose::Augment, key));
        }
        assert_ne!(reference, draw(Purpose::Synthetic, base));
    }

    #[test]
    fn normal_numbers_have_their_moments() {
        let mut rng = Rng::new(Purpose::RandAugment, AugmentKey::default());
        let values: Vec<f64> = (0..20_000).map(|_| rng.normal()).collect();
        let moment = |power| values.iter().map(|value| value.powi(power)).sum::<f64>() / 20_000.0;
        assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.03);
        assert!(moment(3).abs() < 0.1 && (moment(4) - 3.0).abs() < 0.2);
    }

    #[test]
    fn below_covers_its_range_evenly() {
        let mut rng = Rng::new(Purpose::Augment, AugmentKey::default());
        let mut counts = [0u32; 7];
        for _ in 0..7000 {
            counts[rng.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (850..1150).contains(&count)), "{counts:?}");
        assert_eq!(rng.below(1), 0);
    }
}
