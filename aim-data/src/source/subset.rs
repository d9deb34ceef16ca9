//! [`Subset`]: every n-th sample of a source, or the others.

use std::sync::Arc;

use super::{Fingerprint, Sample, SampleFormat, Source};
use crate::error::Defect;

/// Part of a source, for holding images out of training. The two parts of one `every` share no sample, and both are
/// spread over the whole source, whatever its order.
pub struct Subset {
    source: Arc<dyn Source>,
    every: u64,
    held_out: bool,
    shard_starts: Option<Vec<u64>>,
    fingerprint: String,
}

impl Subset {
    /// Splits a source: samples 0, `every`, 2 `every`, ... are held out. Returns (the others, the held out ones).
    /// `every` is at least 2.
    #[must_use]
    pub fn split(source: &Arc<dyn Source>, every: u64) -> (Self, Self) {
        let part = |held_out| {
            let every = every.max(2);
            let mut fingerprint = Fingerprint::new(if held_out { "held out" } else { "others" });
            fingerprint.add(source.fingerprint().as_bytes(), every);
            let mut part = Self {
                source: source.clone(),
                every,
                held_out,
                shard_starts: None,
                fingerprint: fingerprint.finish(),
            };
            part.shard_starts = source
                .shard_starts()
                .map(|starts| starts.iter().map(|&start| part.count_before(start)).collect());
            part
        };
        (part(false), part(true))
    }

    /// How many samples of this part the whole source has before one of its indices.
    fn count_before(&self, whole: u64) -> u64 {
        let held_out = whole.div_ceil(self.every);
        if self.held_out { held_out } else { whole - held_out }
    }

    /// The sample's index in the whole source.
    fn whole(&self, index: u64) -> u64 {
        if self.held_out {
            index.saturating_mul(self.every)
        } else {
            // Each run of `every` samples gives all but its first.
            let runs = index / (self.every - 1);
            runs.saturating_mul(self.every).saturating_add(1 + index % (self.every - 1))
        }
    }
}

impl Source for Subset {
    fn len(&self) -> u64 {
        self.count_before(self.source.len())
    }

    fn format(&self) -> SampleFormat {
        self.source.format()
    }

    fn read(&self, index: u64, epoch: u64) -> Result<Sample, Defect> {
        self.source.read(self.whole(index), epoch)
    }

    fn key(&self, index: u64) -> String {
        self.source.key(self.whole(index))
    }

    fn key_hash(&self, index: u64) -> u64 {
        self.source.key_hash(self.whole(index))
    }

    fn text(&self, index: u64) -> Result<Option<String>, Defect> {
        self.source.text(self.whole(index))
    }

    fn metadata(&self, index: u64) -> Result<Option<String>, Defect> {
        self.source.metadata(self.whole(index))
    }

    fn location(&self, index: u64) -> String {
        self.source.location(self.whole(index))
    }

    fn label(&self, index: u64) -> Option<u32> {
        self.source.label(self.whole(index))
    }

    fn num_classes(&self) -> Option<u32> {
        self.source.num_classes()
    }

    fn class_names(&self) -> Option<&[String]> {
        self.source.class_names()
    }

    fn shard_starts(&self) -> Option<&[u64]> {
        self.shard_starts.as_deref()
    }

    fn shuffle_window(&self) -> Option<usize> {
        self.source.shuffle_window()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn notes(&self) -> &[String] {
        self.source.notes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SyntheticSource;

    #[test]
    fn parts_share_nothing_and_miss_nothing() {
        for (len, every) in [(2, 2), (10, 3), (11, 5), (100, 7)] {
            let source =
                SyntheticSource::parse(&format!("stripes,n={len},size=8"), (8, 8)).unwrap();
            let source: Arc<dyn Source> = Arc::new(source);
            let (others, held_out) = Subset::split(&source, every);
            let mut keys: Vec<String> = (0..others.len()).map(|i| others.key(i)).collect();
            keys.extend((0..held_out.len()).map(|i| held_out.key(i)));
            keys.sort();
            let mut all: Vec<String> = (0..source.len()).map(|i| source.key(i)).collect();
            all.sort();
            assert_eq!(keys, all, "{len} by {every}");
            assert_ne!(others.fingerprint(), held_out.fingerprint());
        }
    }
}
