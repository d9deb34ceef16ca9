//! The order of samples as a pure function of seed and position.
//!
//! Sample `i` of a run is looked up, not iterated to: a [`Mixture`]'s integer schedule says which
//! source it comes from, and a keyed [`Permutation`] of that source which of its images. There is
//! no state beyond the seed and `i`, so a run continues anywhere at no cost and the order depends
//! on neither workers nor ranks.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::random::mix;
use crate::source::{Fingerprint, Source};

/// Largest period of a mixture's schedule; weights are rounded to multiples of its inverse.
const MAX_PERIOD: u32 = 10_000;

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

/// Several sources mixed in exact proportions.
///
/// With weights 0.8 and 0.2, every run of five samples that starts at a multiple of five holds
/// four of the first source and one of the second; each source is exhausted before it repeats, in
/// an order of its own for every epoch.
#[derive(Clone)]
pub struct Mixture {
    parts: Vec<Arc<dyn Source>>,
    /// For each place in the period: the source, and how many of its samples came before in it.
    schedule: Vec<(u16, u32)>,
    /// Samples of each source per period.
    counts: Vec<u32>,
    fingerprint: String,
}

/// Where one sample of a run comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// Which source of the mixture.
    pub source: u16,
    /// How many times the source has been gone through.
    pub epoch: u64,
    /// Place in this epoch's order.
    pub position: u64,
    /// The sample's index in the source.
    pub index: u64,
}

impl Mixture {
    /// A mixture of sources with positive weights, relative to each other.
    ///
    /// # Errors
    /// [`Error::Config`] without a source, with an empty one, more than 1,000 of them, or a weight
    /// that is not a positive number or too small beside the others to be scheduled.
    pub fn new(parts: Vec<(Arc<dyn Source>, f64)>) -> Result<Self> {
        if parts.is_empty() || parts.len() > 1000 {
            return Err(Error::Config(format!("{} data sources, expected 1..=1000", parts.len())));
        }
        if let Some(empty) = parts.iter().position(|(source, _)| source.is_empty()) {
            let reason = "it has no samples".to_owned();
            return Err(Error::Empty { location: format!("data source {empty}"), reason });
        }
        let weights: Vec<f64> = parts.iter().map(|(_, weight)| *weight).collect();
        let counts = integer_weights(&weights)?;
        let mut fingerprint = Fingerprint::new("mixture");
        for ((source, _), &count) in parts.iter().zip(&counts) {
            fingerprint.add(source.fingerprint().as_bytes(), u64::from(count));
        }
        Ok(Self {
            schedule: schedule(&counts),
            parts: parts.into_iter().map(|(source, _)| source).collect(),
            counts,
            fingerprint: fingerprint.finish(),
        })
    }

    /// A single source.
    ///
    /// # Errors
    /// When it is empty.
    pub fn single(source: Arc<dyn Source>) -> Result<Self> {
        Self::new(vec![(source, 1.0)])
    }

    /// The sources.
    #[must_use]
    pub fn sources(&self) -> &[Arc<dyn Source>] {
        &self.parts
    }

    /// Samples of each source in a period of the schedule: the weights as integers.
    #[must_use]
    pub fn proportions(&self) -> &[u32] {
        &self.counts
    }

    /// Samples in all sources together.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|source| source.len()).fold(0, u64::saturating_add)
    }

    /// Always false: empty sources are refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Hash over the sources' fingerprints and the proportions.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Sample `i` of the run with this seed.
    #[must_use]
    pub fn draw(&self, seed: u64, i: u64) -> Draw {
        let period = self.schedule.len() as u64;
        let (source, rank) = self.schedule[(i % period) as usize];
        let count = u64::from(self.counts[usize::from(source)]);
        let nth = (i / period).saturating_mul(count) + u64::from(rank);
        let len = self.parts[usize::from(source)].len();
        self.at(seed, source, nth / len, nth % len)
    }

    /// The `attempt`-th sample to try in place of a bad one: the next in the epoch's order, which
    /// is the same whoever asks and whenever.
    #[must_use]
    pub fn substitute(&self, seed: u64, draw: &Draw, attempt: u64) -> Draw {
        let len = self.parts[usize::from(draw.source)].len();
        self.at(seed, draw.source, draw.epoch, (draw.position + attempt) % len)
    }

    fn at(&self, seed: u64, source: u16, epoch: u64, position: u64) -> Draw {
        let len = self.parts[usize::from(source)].len();
        let index = Permutation::new(len, seed, u64::from(source), epoch).get(position);
        Draw { source, epoch, position, index }
    }
}

/// Weights as small integers: exact where a period of at most [`MAX_PERIOD`] makes them so.
fn integer_weights(weights: &[f64]) -> Result<Vec<u32>> {
    if let Some(bad) = weights.iter().find(|weight| !(weight.is_finite() && **weight > 0.0)) {
        return Err(Error::Config(format!("data weight {bad}: expected a number above 0")));
    }
    let total: f64 = weights.iter().sum();
    for period in 1..=MAX_PERIOD {
        let shares: Vec<f64> =
            weights.iter().map(|weight| weight / total * f64::from(period)).collect();
        // The last period is taken whatever the rounding; 1e-4 is then the resolution.
        let exact = shares.iter().all(|share| (share - share.round()).abs() < 1e-9);
        if (exact || period == MAX_PERIOD) && shares.iter().all(|share| share.round() >= 1.0) {
            return Ok(shares.iter().map(|share| share.round() as u32).collect());
        }
    }
    Err(Error::Config(format!(
        "data weights {weights:?}: the smallest is below 1/{MAX_PERIOD} of their sum"
    )))
}

/// Spreads each source evenly over a period: at every place, the source that is furthest behind
/// its share comes next (the first of them on a tie).
fn schedule(counts: &[u32]) -> Vec<(u16, u32)> {
    let period: u32 = counts.iter().sum();
    let mut behind = vec![0i64; counts.len()];
    let mut used = vec![0u32; counts.len()];
    let mut places = Vec::with_capacity(period as usize);
    for _ in 0..period {
        let mut next = 0;
        for (source, &count) in counts.iter().enumerate() {
            behind[source] += i64::from(count);
            if behind[source] > behind[next] {
                next = source;
            }
        }
        behind[next] -= i64::from(period);
        places.push((next as u16, used[next]));
        used[next] += 1;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SyntheticSource;
    use proptest::prelude::*;

    fn source(n: u64) -> Arc<dyn Source> {
        Arc::new(SyntheticSource::parse(&format!("n={n}"), (1, 1)).unwrap())
    }

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

    #[test]
    fn mixtures_are_exact_and_each_source_has_its_epochs() {
        let mixture = Mixture::new(vec![(source(7), 0.8), (source(3), 0.2)]).unwrap();
        assert_eq!(mixture.proportions(), [4, 1]);
        let draws: Vec<Draw> = (0..140).map(|i| mixture.draw(5, i)).collect();
        for five in draws.chunks(5) {
            assert_eq!(five.iter().filter(|draw| draw.source == 1).count(), 1);
        }
        for (part, len) in [(0, 7), (1, 3)] {
            let own: Vec<_> = draws.iter().filter(|draw| draw.source == part).collect();
            for (epoch, run) in own.chunks_exact(len).enumerate() {
                let mut indices: Vec<u64> = run.iter().map(|draw| draw.index).collect();
                indices.sort_unstable();
                assert_eq!(indices, (0..len as u64).collect::<Vec<_>>());
                assert!(run.iter().all(|draw| draw.epoch == epoch as u64));
            }
        }
    }

    #[test]
    fn weights_become_integers() {
        assert_eq!(integer_weights(&[1.0]).unwrap(), [1]);
        assert_eq!(integer_weights(&[2.0, 1.0, 1.0]).unwrap(), [2, 1, 1]);
        assert_eq!(integer_weights(&[0.1, 0.2, 0.7]).unwrap(), [1, 2, 7]);
        assert_eq!(integer_weights(&[std::f64::consts::PI, 1.0]).unwrap(), [7585, 2415]);
        for bad in [&[1.0, 0.0][..], &[1.0, f64::NAN], &[1.0, 1e-9], &[-1.0]] {
            assert!(integer_weights(bad).is_err(), "{bad:?}");
        }
        assert!(Mixture::new(Vec::new()).is_err());
    }
}
