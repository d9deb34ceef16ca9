//! Loading batches in the background.
//!
//! [`Loader`] delivers the endless shuffled stream that training takes, [`EvalLoader`] every
//! sample once. What they deliver is a pure function of sources, options and seed: the number of
//! workers, the queue lengths, and where a run was interrupted change nothing in it.

mod batch;
mod engine;
mod eval;
mod plan;
mod skipped;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::augment::Transform;
use crate::decode::DecodeLimits;
use crate::error::{DefectKind, Error, Result};
use crate::sampler::Mixture;

pub use batch::{Batch, Images};
pub use eval::{EvalLoader, Pass};
pub use skipped::{BadSamplePolicy, Skipped};

use engine::Engine;
use plan::{Order, Plan};
use skipped::Account;

/// How to load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoaderOptions {
    /// Samples in a batch (of one rank).
    pub batch_size: usize,
    /// Height of the images, in pixels.
    pub height: u32,
    /// Width of the images, in pixels.
    pub width: u32,
    /// What is done to them. Sources of final pixels or tensors are left as they are.
    pub transform: Transform,
    /// Loading threads; 0 loads in the calling thread.
    pub workers: usize,
    /// Batches that are made ahead (at least two chunks of 16 samples per worker are).
    pub prefetch_batches: usize,
    /// Limits for decoding.
    pub limits: DecodeLimits,
    /// When bad samples end the run.
    pub bad_samples: BadSamplePolicy,
    /// This process among `world_size`.
    pub rank: usize,
    /// Number of processes that share each global batch, consecutive slices of it by rank.
    pub world_size: usize,
}

impl LoaderOptions {
    /// Options for square images of `size` pixels: one process, no threads, two batches ahead.
    #[must_use]
    pub fn new(batch_size: usize, size: u32, transform: Transform) -> Self {
        Self {
            batch_size,
            height: size,
            width: size,
            transform,
            workers: 0,
            prefetch_batches: 2,
            limits: DecodeLimits::default(),
            bad_samples: BadSamplePolicy::default(),
            rank: 0,
            world_size: 1,
        }
    }
}

/// Where a loader stands: all it takes to continue a run, on any number of workers or ranks.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Seed of order and augmentation.
    pub seed: u64,
    /// Number of the next sample, over all ranks.
    pub next_sample: u64,
    /// Bad samples met so far by this rank.
    pub bad_samples: u64,
    /// [`Mixture::fingerprint`] of the data; empty in a state that was never used.
    pub fingerprint: String,
}

impl LoaderState {
    /// The beginning of a run.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, next_sample: 0, bad_samples: 0, fingerprint: String::new() }
    }
}

/// Endless shuffled batches for training.
///
/// Each epoch of each source is a new permutation; a batch runs on into the next epoch where one
/// ends, so that every batch is full, also from fewer images than it holds. A sample that cannot
/// be used is replaced by the next one in the epoch's order and reported.
pub struct Loader {
    engine: Engine,
    account: Account,
    state: LoaderState,
    batches: u64,
}

impl Loader {
    /// A loader that continues at `state`.
    ///
    /// # Errors
    /// [`Error::StateMismatch`] when the state belongs to other data, [`Error::Config`] for
    /// options that contradict each other or the data.
    pub fn new(mixture: Mixture, options: LoaderOptions, state: LoaderState) -> Result<Self> {
        if !state.fingerprint.is_empty() && state.fingerprint != mixture.fingerprint() {
            return Err(Error::StateMismatch {
                expected: state.fingerprint,
                found: mixture.fingerprint().to_owned(),
            });
        }
        let state = LoaderState { fingerprint: mixture.fingerprint().to_owned(), ..state };
        let order = Order::Endless { first_sample: state.next_sample };
        let plan = Plan::new(mixture, order, state.seed, options)?;
        // The plan has checked that there is at least one rank.
        let used = state.next_sample / options.world_size as u64;
        let account = Account::new(options.bad_samples, used, state.bad_samples);
        Ok(Self { engine: Engine::new(plan)?, account, state, batches: 0 })
    }

    /// The next batch, in memory that is reused: once `batch` has been filled before, this
    /// allocates nothing in the calling thread (with workers).
    ///
    /// # Errors
    /// [`Error::TooManyBad`] or [`Error::NoUsableSample`] when the data are too bad to go on,
    /// [`Error::WorkerPanic`] after a panic; every later call fails too.
    pub fn next_into(&mut self, batch: &mut Batch) -> Result<()> {
        fill_batch(&mut self.engine, &mut self.account, self.batches, batch)?;
        self.batches += 1;
        self.state.next_sample = match self.engine.plan().order {
            Order::Endless { first_sample } => {
                let options = &self.engine.plan().options;
                let global_batch = options.batch_size as u64 * options.world_size as u64;
                first_sample + self.batches * global_batch
            }
            Order::Once { .. } => self.state.next_sample,
        };
        self.state.bad_samples = self.account.bad();
        Ok(())
    }

    /// The next batch, in memory of its own.
    ///
    /// # Errors
    /// As [`next_into`](Self::next_into).
    pub fn next_batch(&mut self) -> Result<Batch> {
        let mut batch = Batch::default();
        self.next_into(&mut batch)?;
        Ok(batch)
    }

    /// The state after the last batch that was delivered, whatever has been loaded ahead.
    #[must_use]
    pub fn state(&self) -> &LoaderState {
        &self.state
    }

    /// The data.
    #[must_use]
    pub fn mixture(&self) -> &Mixture {
        &self.engine.plan().mixture
    }

    /// Skipped samples that have not been fetched yet, each reported once in the loader's life.
    pub fn take_skipped(&mut self) -> Vec<Skipped> {
        self.account.take()
    }

    /// How many samples were skipped since the loader was made, by kind.
    #[must_use]
    pub fn skipped_counts(&self) -> &BTreeMap<DefectKind, u64> {
        self.account.counts()
    }
}

/// Puts a batch together; `false` when there are no more.
fn fill_batch(
    engine: &mut Engine,
    account: &mut Account,
    number: u64,
    batch: &mut Batch,
) -> Result<bool> {
    batch.reset(engine.plan().layout);
    batch.first_sample = engine.plan().first_sample(number);
    for _ in 0..engine.plan().chunks_per_batch() {
        let entered = engine.next_chunk(|chunk| {
            batch.append(&chunk.batch);
            account.enter(chunk.batch.len(), &mut chunk.skipped);
        })?;
        if entered.is_none() {
            return Ok(false);
        }
    }
    account.check().inspect_err(|_| engine.fail())?;
    Ok(true)
}
