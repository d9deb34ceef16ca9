//! [`Tail`]: a source from some sample on.

use std::sync::Arc;

use aim_data::source::{Sample, SampleFormat, Source};
use aim_data::{Defect, DefectKind};

/// What is left of a source; defects count in the whole.
pub(super) struct Tail {
    source: Arc<dyn Source>,
    start: u64,
}

impl Tail {
    pub(super) fn new(source: Arc<dyn Source>, start: u64) -> Self {
        Self { source, start }
    }

    fn whole(&self, index: u64) -> u64 {
        self.start.saturating_add(index)
    }
}

impl Source for Tail {
    fn len(&self) -> u64 {
        self.source.len().saturating_sub(self.start)
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

    fn location(&self, index: u64) -> String {
        self.source.location(self.whole(index))
    }

    fn label(&self, index: u64) -> Option<u32> {
        self.source.label(self.whole(index))
    }

    fn num_classes(&self) -> Option<u32> {
        self.source.num_classes()
    }

    fn fingerprint(&self) -> &str {
        // Of the whole: nothing continues a state of a tail.
        self.source.fingerprint()
    }

    fn defect(&self, index: u64, kind: DefectKind, reason: String) -> Defect {
        self.source.defect(self.whole(index), kind, reason)
    }
}
