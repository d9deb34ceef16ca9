//! [`SourceOrder`]: the order of one source in each of its epochs.
//!
//! A source whose samples cost the same wherever they lie is shuffled as a whole. One that is read
//! shard by shard is shuffled in two levels: its shards are permuted and cut into windows of
//! neighbours in that permutation, and the samples of one window are permuted among themselves.
//! All samples of a shard then come within one window, so an epoch fetches each shard once, and
//! whoever keeps fetched shards keeps at most two windows of them: batches are made ahead, so the
//! next window begins while the last samples of this one are still being decoded.

use std::sync::{Arc, Mutex, PoisonError};

use super::Permutation;
use crate::random::mix;
use crate::source::{Fingerprint, Source};

/// Keys of the two levels, so that they share no numbers with each other or with a whole shuffle.
const SHARDS: u64 = 0x7368_6172_6473;
const SAMPLES: u64 = 0x7361_6d70_6c65;
/// Epochs whose tables are kept: the current one and, while batches are made ahead, the next.
const KEPT: usize = 2;

/// The order of a source.
#[derive(Debug)]
pub(super) enum SourceOrder {
    /// A permutation of all samples.
    Whole { len: u64 },
    /// Windows of shards.
    Windows { starts: Box<[u64]>, len: u64, window: u64, tables: Mutex<Vec<Arc<Table>>> },
}

/// Which epoch of which source under which seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EpochKey {
    pub(super) seed: u64,
    pub(super) source: u64,
    pub(super) epoch: u64,
}

/// An epoch's permuted shards: 16 bytes for each shard.
#[derive(Debug)]
pub(super) struct Table {
    key: EpochKey,
    /// Shards in the order of this epoch.
    shards: Box<[u64]>,
    /// Number of samples in the shards up to and including each of them.
    ends: Box<[u64]>,
}

impl SourceOrder {
    /// The order of `source` in windows of `window` shards, or of what the source prefers.
    pub(super) fn new(source: &dyn Source, window: Option<usize>) -> Self {
        let len = source.len();
        let starts = source.shard_starts().unwrap_or_default();
        let window = window.or_else(|| source.shuffle_window()).unwrap_or(usize::MAX).max(1);
        let ordered =
            starts.first() == Some(&0) && starts.is_sorted() && starts.last() <= Some(&len);
        debug_assert!(ordered || starts.is_empty(), "shard starts out of order");
        if window >= starts.len() || !ordered {
            return Self::Whole { len };
        }
        Self::Windows {
            starts: starts.into(),
            len,
            window: window as u64,
            tables: Mutex::new(Vec::new()),
        }
    }

    /// Shards in a window; `None` where all samples are shuffled together.
    pub(super) fn window(&self) -> Option<u64> {
        match self {
            Self::Whole { .. } => None,
            Self::Windows { window, .. } => Some(*window),
        }
    }

    /// Adds what the order depends on beside the samples: nothing for a whole shuffle.
    pub(super) fn identify(&self, fingerprint: &mut Fingerprint) {
        if let Self::Windows { starts, window, .. } = self {
            fingerprint.add(b"window", *window);
            starts.iter().for_each(|&start| fingerprint.add(b"shard", start));
        }
    }

    /// The sample at a place of an epoch; `at` is taken modulo the number of samples.
    pub(super) fn get(&self, key: EpochKey, at: u64) -> u64 {
        match self {
            Self::Whole { len } => Permutation::new(*len, key.seed, key.source, key.epoch).get(at),
            Self::Windows { starts, len, window, .. } => {
                let table = self.table(key);
                let at = at % (*len).max(1);
                let (number, start, end) = table.window_at(*window, at);
                let seed = mix(key.seed ^ SAMPLES) ^ mix(number);
                let order = Permutation::new(end - start, seed, key.source, key.epoch);
                table.index(starts, start + order.get(at - start))
            }
        }
    }

    /// The place to go to from place `at` after `attempt` bad samples: the next ones of the same
    /// window, so that no other shard is needed, and after all of those the next windows.
    pub(super) fn substitute(&self, key: EpochKey, at: u64, attempt: u64) -> u64 {
        match self {
            Self::Whole { len } => (at + attempt) % (*len).max(1),
            Self::Windows { len, window, .. } => {
                let (_, start, end) = self.table(key).window_at(*window, at % (*len).max(1));
                let size = end - start;
                match attempt.checked_sub(size) {
                    None => start + (at - start + attempt) % size,
                    Some(beyond) => (end + beyond) % (*len).max(1),
                }
            }
        }
    }

    /// The epoch's table, made when it is first asked for.
    fn table(&self, key: EpochKey) -> Arc<Table> {
        let Self::Windows { starts, len, tables, .. } = self else {
            return Arc::new(Table { key, shards: Box::default(), ends: Box::default() });
        };
        // A table is complete before it is stored: a panic elsewhere cannot spoil one.
        let mut tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.iter().find(|table| table.key == key) {
            return Arc::clone(table);
        }
        let table = Arc::new(Table::new(key, starts, *len));
        if tables.len() >= KEPT {
            tables.remove(0);
        }
        tables.push(Arc::clone(&table));
        table
    }
}

impl Table {
    fn new(key: EpochKey, starts: &[u64], len: u64) -> Self {
        let count = starts.len() as u64;
        let order = Permutation::new(count, mix(key.seed ^ SHARDS), key.source, key.epoch);
        let shards: Box<[u64]> = (0..count).map(|at| order.get(at)).collect();
        let mut end = 0;
        let ends = shards
            .iter()
            .map(|&shard| {
                end += size(starts, len, shard);
                end
            })
            .collect();
        Self { key, shards, ends }
    }

    /// The place in the permuted shards of the one that holds place `at`.
    fn shard_at(&self, at: u64) -> usize {
        self.ends.partition_point(|&end| end <= at)
    }

    fn start(&self, place: usize) -> u64 {
        place.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// Number, first place and end of the window around place `at`. The last window is not left
    /// small: windows differ by one shard at most, and none has more than `window`.
    fn window_at(&self, window: u64, at: u64) -> (u64, u64, u64) {
        let shards = self.shards.len() as u64;
        let windows = shards.div_ceil(window);
        let shard = self.shard_at(at) as u64;
        // The window whose range of shards, [k * shards / windows, (k + 1) * shards / windows),
        // holds this one.
        let number = ((shard + 1) * windows - 1) / shards;
        let bound = |number: u64| self.start((number * shards / windows) as usize);
        (number, bound(number), bound(number + 1))
    }

    /// The index in the source of what lies at a place of the shards in this epoch's order.
    fn index(&self, starts: &[u64], place: u64) -> u64 {
        let shard = self.shard_at(place);
        starts[self.shards[shard] as usize] + (place - self.start(shard))
    }
}

/// Samples in a shard.
fn size(starts: &[u64], len: u64, shard: u64) -> u64 {
    let next = starts.get(shard as usize + 1).copied().unwrap_or(len);
    next.saturating_sub(starts[shard as usize])
}
