//! [`EvalLoader`]: every sample once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::engine::Engine;
use super::plan::{Order, Plan};
use super::skipped::{Account, Skipped};
use super::{Batch, LoaderOptions, fill_batch};
use crate::error::{DefectKind, Result};
use crate::sampler::{Mixture, Permutation};
use crate::source::Source;

/// Which samples a pass covers and in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pass {
    /// Only this many samples: the first ones, of the shuffled order where there is one.
    pub limit: Option<u64>,
    /// Shuffles the samples with this seed; without it they come in the source's order.
    pub shuffle_seed: Option<u64>,
    /// Seed for the random choices of a training transform.
    pub augment_seed: u64,
}

/// One pass over a source: for validation, features and probes.
///
/// Every good sample comes exactly once; the last batch may be short, and so is any batch with a
/// bad sample in it, which is left out and reported. Empty batches are not delivered.
pub struct EvalLoader {
    engine: Engine,
    account: Account,
    batches: u64,
    num_samples: u64,
}

impl EvalLoader {
    /// A loader at the beginning of a pass.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for options that contradict each other or the data.
    pub fn new(source: Arc<dyn Source>, options: LoaderOptions, pass: Pass) -> Result<Self> {
        let len = source.len();
        let total = pass.limit.map_or(len, |limit| limit.min(len));
        let shuffle = pass.shuffle_seed.map(|seed| Permutation::new(len, seed, 0, 0));
        let order = Order::Once { total, shuffle };
        let plan = Plan::new(Mixture::single(source)?, order, pass.augment_seed, options)?;
        let account = Account::new(options.bad_samples, 1, 0, 0);
        Ok(Self { engine: Engine::new(plan)?, account, batches: 0, num_samples: total })
    }

    /// Samples in the pass over all ranks, bad ones included.
    #[must_use]
    pub fn num_samples(&self) -> u64 {
        self.num_samples
    }

    /// The next batch in reused memory; `false`, and an empty batch, at the end.
    ///
    /// # Errors
    /// As [`Loader::next_into`](super::Loader::next_into); also when the pass ends without a
    /// single usable sample.
    pub fn next_into(&mut self, batch: &mut Batch) -> Result<bool> {
        loop {
            let more = fill_batch(&mut self.engine, &mut self.account, self.batches, batch)?;
            if !more {
                self.account.check_any_used()?;
                return Ok(false);
            }
            self.batches += 1;
            if !batch.is_empty() {
                return Ok(true);
            }
        }
    }

    /// The next batch in memory of its own; `None` at the end.
    ///
    /// # Errors
    /// As [`next_into`](Self::next_into).
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        let mut batch = Batch::default();
        Ok(self.next_into(&mut batch)?.then_some(batch))
    }

    /// The source.
    #[must_use]
    pub fn source(&self) -> &dyn Source {
        // A plan's mixture has at least one source; an eval plan's exactly one.
        self.engine.plan().mixture.sources()[0].as_ref()
    }

    /// Skipped samples that have not been fetched yet.
    pub fn take_skipped(&mut self) -> Vec<Skipped> {
        self.account.take()
    }

    /// How many samples were skipped so far, by kind.
    #[must_use]
    pub fn skipped_counts(&self) -> &BTreeMap<DefectKind, u64> {
        self.account.counts()
    }
}
