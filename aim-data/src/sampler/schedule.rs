//! [`Schedule`]: which source each sample of a mixture comes from.
//!
//! Weights become whole numbers: samples of each source in a period, exact where a period of at
//! most [`MAX_PERIOD`] makes them so (weights of up to six decimals always), else rounded to
//! multiples of one millionth. Over a period the sources are spread by Tijdeman's solution of the
//! chairman assignment problem (*Discrete Mathematics* 32, 1980): after any number `n` of samples,
//! each of `k >= 2` sources has been drawn `n * weight` times give or take `1 - 1 / (2k - 2)`,
//! which no schedule can improve on. For two sources that is half a sample.

use super::Rule;
use crate::error::{Error, Result};

/// Longest period of a schedule.
const MAX_PERIOD: u32 = 1_000_000;
/// Most places times sources that are worked through for a schedule: a second at most.
const MAX_WORK: usize = 100_000_000;
/// [`MAX_PERIOD`] of [`Rule::Greedy`].
const MAX_PERIOD_GREEDY: u32 = 10_000;

/// One period.
#[derive(Debug)]
pub(super) struct Schedule {
    /// For each place: the source, and how many of its samples came before it.
    places: Vec<(u16, u32)>,
    /// Samples of each source.
    pub(super) counts: Vec<u32>,
}

impl Schedule {
    pub(super) fn new(weights: &[f64], rule: Rule) -> Result<Self> {
        let counts = integer_weights(weights, rule)?;
        let places = match rule {
            Rule::Greedy => greedy(&counts),
            Rule::Even if counts.len() <= 2 => greedy(&counts),
            Rule::Even => even(&counts),
        };
        Ok(Self { places, counts })
    }

    /// The source of sample `i`, and how many samples of that source came before.
    pub(super) fn get(&self, i: u64) -> (u16, u64) {
        let period = self.places.len() as u64;
        let (source, rank) = self.places[(i % period) as usize];
        let count = u64::from(self.counts[usize::from(source)]);
        (source, (i / period).saturating_mul(count).saturating_add(u64::from(rank)))
    }
}

/// Weights as whole numbers.
fn integer_weights(weights: &[f64], rule: Rule) -> Result<Vec<u32>> {
    let total: f64 = weights.iter().sum();
    let bad = weights.iter().position(|weight| !(weight.is_finite() && *weight > 0.0));
    if let Some(source) = bad {
        let found = weights[source];
        let text = format!("data source {source}: weight {found}, expected a number above 0");
        return Err(Error::Config(text));
    }
    if !total.is_finite() {
        return Err(Error::Config(format!("data weights {weights:?}: their sum is too large")));
    }
    let longest = match rule {
        Rule::Greedy => MAX_PERIOD_GREEDY,
        Rule::Even => MAX_PERIOD.min((MAX_WORK / weights.len().max(1)) as u32),
    };
    let share = |weight: f64, period: u32| weight / total * f64::from(period);
    let exact = (1..=longest).find(|&period| {
        weights
            .iter()
            .map(|&weight| share(weight, period))
            .all(|share| share.round() >= 1.0 && (share - share.round()).abs() < 1e-9)
    });
    // The longest period is taken whatever the rounding, which is then its resolution.
    let period = exact.unwrap_or(longest);
    let counts: Vec<u32> =
        weights.iter().map(|&weight| share(weight, period).round() as u32).collect();
    if let Some(source) = counts.iter().position(|&count| count == 0) {
        let found = weights[source] / total;
        return Err(Error::Config(format!(
            "data source {source}: its weight is {found:e} of the sum of all, expected at least \
             1/{longest}: leave it out or raise its weight"
        )));
    }
    Ok(counts)
}

/// At every place, the source that is furthest behind its share comes next (the first of them on
/// a tie). For two sources the same as [`even`].
fn greedy(counts: &[u32]) -> Vec<(u16, u32)> {
    let period: u32 = counts.iter().sum();
    let mut behind = vec![0i64; counts.len()];
    fill(counts, period, |counts| {
        let mut next = 0;
        for (source, &count) in counts.iter().enumerate() {
            behind[source] += i64::from(count);
            if behind[source] > behind[next] {
                next = source;
            }
        }
        behind[next] -= i64::from(period);
        next
    })
}

/// At every place, of the sources that may be drawn without coming too far ahead of their share,
/// the one comes next that would soonest be too far behind it (the first of them on a tie).
fn even(counts: &[u32]) -> Vec<(u16, u32)> {
    let period: u32 = counts.iter().sum();
    // All in units of 1 / (period * scale) of a sample.
    let scale = 2 * counts.len() as i64 - 2;
    let unit = i64::from(period);
    let mut behind = vec![0i64; counts.len()];
    fill(counts, period, |counts| {
        let mut next: Option<(usize, i64)> = None;
        for (source, &count) in counts.iter().enumerate() {
            behind[source] += i64::from(count) * scale;
            if behind[source] < unit {
                continue;
            }
            // Samples until it is too far behind: room / (count * scale); compared by
            // cross-multiplication, below 2e15 for any period and number of sources accepted.
            let room = (scale - 1) * unit - behind[source];
            let sooner = next.is_none_or(|(other, least)| {
                room * i64::from(counts[other]) < least * i64::from(count)
            });
            if sooner {
                next = Some((source, room));
            }
        }
        // Tijdeman's theorem: there always is one. The fallback keeps this total.
        let next = next.map_or(0, |(source, _)| source);
        behind[next] -= unit * scale;
        next
    })
}

/// A period of choices, with the number of each among those of its source.
fn fill(counts: &[u32], period: u32, mut choose: impl FnMut(&[u32]) -> usize) -> Vec<(u16, u32)> {
    let mut used = vec![0u32; counts.len()];
    (0..period)
        .map(|_| {
            let next = choose(counts);
            used[next] += 1;
            (next as u16, used[next] - 1)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn weights_become_integers() {
        let even = |weights: &[f64]| integer_weights(weights, Rule::Even);
        assert_eq!(even(&[1.0]).unwrap(), [1]);
        assert_eq!(even(&[2.0, 1.0, 1.0]).unwrap(), [2, 1, 1]);
        assert_eq!(even(&[0.1, 0.2, 0.7]).unwrap(), [1, 2, 7]);
        assert_eq!(even(&[8.0, 2.0]).unwrap(), [4, 1]);
        assert_eq!(even(&[0.123456, 0.876544]).unwrap(), [1929, 13696]);
        assert_eq!(even(&[1e-300, 3e-300]).unwrap(), [1, 3]);
        assert_eq!(even(&[std::f64::consts::PI, 1.0]).unwrap(), [758_547, 241_453]);
        let greedy = integer_weights(&[std::f64::consts::PI, 1.0], Rule::Greedy);
        assert_eq!(greedy.unwrap(), [7585, 2415]);
        for bad in [&[1.0, 0.0][..], &[1.0, f64::NAN], &[1.0, 1e-9], &[-1.0], &[f64::INFINITY, 1.0]]
        {
            assert!(even(bad).is_err(), "{bad:?}");
        }
        assert!(even(&[f64::MAX, f64::MAX]).is_err());
        let text = even(&[1.0, -2.0]).unwrap_err().to_string();
        assert!(text.contains("data source 1") && text.contains("-2"), "{text}");
        let text = even(&[1e9, 1.0]).unwrap_err().to_string();
        assert!(text.contains("data source 1") && text.contains("1/1000000"), "{text}");
    }

    /// Greatest distance between what was drawn and the share, in samples.
    fn worst(counts: &[u32], places: &[(u16, u32)]) -> f64 {
        let period = f64::from(counts.iter().sum::<u32>());
        let mut drawn = vec![0u32; counts.len()];
        let mut worst = 0f64;
        for (n, &(source, rank)) in places.iter().enumerate() {
            assert_eq!(rank, drawn[usize::from(source)]);
            drawn[usize::from(source)] += 1;
            for (&drawn, &count) in drawn.iter().zip(counts) {
                let share = (n + 1) as f64 * f64::from(count) / period;
                worst = worst.max((f64::from(drawn) - share).abs());
            }
        }
        assert_eq!(drawn, counts);
        worst
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn every_source_keeps_within_the_bound(counts in prop::collection::vec(1u32..60, 2..9)) {
            let bound = 1.0 - 1.0 / (2.0 * counts.len() as f64 - 2.0);
            let found = worst(&counts, &even(&counts));
            prop_assert!(found <= bound + 1e-9, "{found} above {bound}");
        }

        #[test]
        fn two_sources_are_the_same_under_both_rules(a in 1u32..300, b in 1u32..300) {
            prop_assert_eq!(greedy(&[a, b]), even(&[a, b]));
        }
    }

    #[test]
    fn very_unequal_counts_keep_within_the_bound_too() {
        for counts in [vec![1, 999, 1], vec![500, 1, 1, 1, 1, 1, 300, 7], vec![1; 200]] {
            assert!(worst(&counts, &even(&counts)) < 1.0, "{counts:?}");
        }
    }
}
