//! [`Mixture`]: several sources as one endless order.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::Rule;
use super::schedule::Schedule;
use super::window::{EpochKey, SourceOrder};
use crate::error::{Error, Result};
use crate::source::{Fingerprint, Source};

/// Most sources in a mixture.
const MAX_SOURCES: usize = 1000;

/// Several sources mixed in exact proportions.
///
/// With weights 0.8 and 0.2, every run of five samples that starts at a multiple of five holds
/// four of the first source and one of the second. For any weights, after `n` samples each of `k`
/// sources has been drawn `n * weight` times give or take `1 - 1 / (2k - 2)`, with weights taken
/// relative to their sum and rounded to millionths of it only where they are no fractions of a
/// smaller denominator (see [`proportions`](Self::proportions)). Each source is exhausted before
/// it repeats, in an order of its own for every epoch.
#[derive(Clone)]
pub struct Mixture {
    sources: Vec<Arc<dyn Source>>,
    orders: Vec<Arc<SourceOrder>>,
    weights: Vec<f64>,
    schedule: Arc<Schedule>,
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

/// What a loader's state remembers of a source, to tell later what has changed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceState {
    /// [`Source::fingerprint`].
    pub fingerprint: String,
    /// Number of samples.
    pub samples: u64,
    /// Samples of it in a period of the mixture.
    pub share: u32,
    /// Shards in a window of the shuffle; `None` where all samples are shuffled together.
    pub window_shards: Option<u64>,
}

impl Mixture {
    /// A mixture of sources with positive weights, relative to each other.
    ///
    /// # Errors
    /// [`Error::Config`] without a source, with more than 1,000 of them, or a weight that is not a
    /// positive number or too small beside the others to be scheduled; [`Error::Empty`] for a
    /// source without samples.
    pub fn new(parts: Vec<(Arc<dyn Source>, f64)>) -> Result<Self> {
        Self::with_window(parts, None)
    }

    /// A mixture whose sources are all shuffled in windows of so many shards, also those that
    /// would be shuffled as a whole: for the same order wherever the shards lie. `None` leaves it
    /// to each source.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_window(
        parts: Vec<(Arc<dyn Source>, f64)>,
        window_shards: Option<NonZeroUsize>,
    ) -> Result<Self> {
        if parts.is_empty() || parts.len() > MAX_SOURCES {
            let found = parts.len();
            return Err(Error::Config(format!("{found} data sources, expected 1..={MAX_SOURCES}")));
        }
        if let Some(empty) = parts.iter().position(|(source, _)| source.is_empty()) {
            let reason = "it has no samples".to_owned();
            return Err(Error::Empty { location: format!("data source {empty}"), reason });
        }
        let (sources, weights): (Vec<_>, Vec<f64>) = parts.into_iter().unzip();
        let window = window_shards.map(NonZeroUsize::get);
        let order = |source: &Arc<dyn Source>| Arc::new(SourceOrder::new(source.as_ref(), window));
        let orders = sources.iter().map(order).collect();
        Self::assemble(sources, orders, weights, Rule::Even)
    }

    /// A single source.
    ///
    /// # Errors
    /// When it is empty.
    pub fn single(source: Arc<dyn Source>) -> Result<Self> {
        Self::new(vec![(source, 1.0)])
    }

    /// The same sources spread by another rule.
    pub(crate) fn with_rule(self, rule: Rule) -> Result<Self> {
        Self::assemble(self.sources, self.orders, self.weights, rule)
    }

    /// The same sources in the windows that a state remembers: a run keeps its order when its
    /// shards have moved to where they would be shuffled otherwise.
    pub(crate) fn with_windows_of(self, states: &[SourceState]) -> Result<Self> {
        let same = |(order, state): (&Arc<SourceOrder>, &SourceState)| {
            order.window() == state.window_shards
        };
        if states.len() != self.orders.len() || self.orders.iter().zip(states).all(same) {
            return Ok(self);
        }
        let order = |(source, state): (&Arc<dyn Source>, &SourceState)| {
            let window = state.window_shards.and_then(|shards| usize::try_from(shards).ok());
            Arc::new(SourceOrder::new(source.as_ref(), Some(window.unwrap_or(usize::MAX))))
        };
        let orders = self.sources.iter().zip(states).map(order).collect();
        Self::assemble(self.sources, orders, self.weights, Rule::Even)
    }

    fn assemble(
        sources: Vec<Arc<dyn Source>>,
        orders: Vec<Arc<SourceOrder>>,
        weights: Vec<f64>,
        rule: Rule,
    ) -> Result<Self> {
        let schedule = Arc::new(Schedule::new(&weights, rule)?);
        let mut fingerprint = Fingerprint::new("mixture");
        for ((source, order), &count) in sources.iter().zip(&orders).zip(&schedule.counts) {
            fingerprint.add(source.fingerprint().as_bytes(), u64::from(count));
            order.identify(&mut fingerprint);
        }
        let fingerprint = fingerprint.finish();
        Ok(Self { sources, orders, weights, schedule, fingerprint })
    }

    /// The sources.
    #[must_use]
    pub fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    /// Samples of each source in a period of the schedule: the weights as integers.
    #[must_use]
    pub fn proportions(&self) -> &[u32] {
        &self.schedule.counts
    }

    /// Samples in all sources together.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.sources.iter().map(|source| source.len()).fold(0, u64::saturating_add)
    }

    /// Always false: empty sources are refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Hash over everything that the order depends on: the sources' fingerprints, the proportions
    /// and the windows.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What a state remembers of each source.
    #[must_use]
    pub fn source_states(&self) -> Vec<SourceState> {
        let parts = self.sources.iter().zip(&self.orders).zip(&self.schedule.counts);
        let state = |((source, order), &share): ((&Arc<dyn Source>, &Arc<SourceOrder>), &u32)| {
            SourceState {
                fingerprint: source.fingerprint().to_owned(),
                samples: source.len(),
                share,
                window_shards: order.window(),
            }
        };
        parts.map(state).collect()
    }

    /// In what the sources differ from those that a state remembers, in words.
    #[must_use]
    pub fn changes_since(&self, before: &[SourceState]) -> Vec<String> {
        let now = self.source_states();
        if before.len() != now.len() {
            return vec![format!("{} sources then, {} now", before.len(), now.len())];
        }
        let total =
            |states: &[SourceState]| states.iter().map(|state| u64::from(state.share)).sum();
        let (then, after): (u64, u64) = (total(before), total(&now));
        let mut changes = Vec::new();
        for (number, (before, now)) in before.iter().zip(&now).enumerate() {
            let place = self.sources[number].location(0);
            let mut say = |what: String| {
                changes.push(format!("source {number} (first sample {place}): {what}"))
            };
            if before.samples != now.samples {
                say(format!("{} samples then, {} now", before.samples, now.samples));
            } else if before.fingerprint != now.fingerprint {
                let samples = now.samples;
                say(format!("{samples} samples then and now, but other keys, sizes or order"));
            }
            if (before.share, then) != (now.share, after) {
                say(format!(
                    "weight {} of {then} then, {} of {after} now",
                    before.share, now.share
                ));
            }
        }
        changes
    }

    /// Sample `i` of the run with this seed.
    #[must_use]
    pub fn draw(&self, seed: u64, i: u64) -> Draw {
        let (source, nth) = self.schedule.get(i);
        let len = self.sources[usize::from(source)].len();
        self.at(seed, source, nth / len, nth % len)
    }

    /// The `attempt`-th sample to try in place of a bad one: the next in the epoch's order (in
    /// its window, where there are windows), which is the same whoever asks and whenever.
    #[must_use]
    pub fn substitute(&self, seed: u64, draw: &Draw, attempt: u64) -> Draw {
        let Draw { source, epoch, position, .. } = *draw;
        let key = EpochKey { seed, source: u64::from(source), epoch };
        let order = &self.orders[usize::from(source)];
        self.at(seed, source, epoch, order.substitute(key, position, attempt))
    }

    fn at(&self, seed: u64, source: u16, epoch: u64, position: u64) -> Draw {
        let key = EpochKey { seed, source: u64::from(source), epoch };
        let index = self.orders[usize::from(source)].get(key, position);
        Draw { source, epoch, position, index }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SyntheticSource;

    fn source(n: u64) -> Arc<dyn Source> {
        Arc::new(SyntheticSource::parse(&format!("n={n}"), (1, 1)).unwrap())
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
        assert!(Mixture::new(Vec::new()).is_err());
    }

    #[test]
    fn the_order_of_runs_already_begun_stays() {
        // Indices and fingerprints of the first version, whose checkpoints must go on.
        let single = Mixture::single(source(10)).unwrap();
        let order: Vec<u64> = (0..12).map(|i| single.draw(3, i).index).collect();
        assert_eq!(order, [8, 6, 7, 0, 2, 1, 5, 9, 3, 4, 7, 3]);
        assert_eq!(single.fingerprint(), "525307f8ad45c53ce35990437317536f");
        let two = Mixture::new(vec![(source(7), 0.8), (source(3), 0.2)]).unwrap();
        let order: Vec<(u16, u64)> =
            (0..8).map(|i| two.draw(3, i)).map(|draw| (draw.source, draw.index)).collect();
        assert_eq!(order, [(0, 3), (0, 6), (1, 0), (0, 4), (0, 0), (0, 2), (0, 1), (1, 2)]);
        assert_eq!(two.fingerprint(), "52a3c579ee7238206ceb4f0639c00f5a");
    }

    #[test]
    fn changes_are_named() {
        let before = Mixture::new(vec![(source(7), 0.8), (source(3), 0.2)]).unwrap();
        let states = before.source_states();
        assert!(before.changes_since(&states).is_empty());
        let after = Mixture::new(vec![(source(7), 0.7), (source(4), 0.3)]).unwrap();
        let text = after.changes_since(&states).join("; ");
        for part in
            ["source 0", "weight 4 of 5 then, 7 of 10 now", "source 1", "3 samples then, 4 now"]
        {
            assert!(text.contains(part), "{part} not in {text}");
        }
        let fewer = Mixture::single(source(7)).unwrap();
        assert_eq!(fewer.changes_since(&states), ["2 sources then, 1 now"]);
    }
}
