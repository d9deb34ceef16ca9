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
use crate::sampler::{Mixture, Rule, SourceState};

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
    /// Number of processes that share each global batch, consecutive slices of it by rank; see
    /// [`for_rank`](Self::for_rank).
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

impl LoaderOptions {
    /// The part of rank `rank` of `world_size` in batches of `self.batch_size` samples over all
    /// ranks. The ranks' parts, put together in the order of ranks, are the same samples in the
    /// same order for every number of ranks, so a run may go on with another number.
    ///
    /// # Errors
    /// [`Error::Config`] when the batch does not split into equal parts: ranks with fewer samples
    /// than others would wait for them in every step.
    pub fn for_rank(self, rank: usize, world_size: usize) -> Result<Self> {
        if rank >= world_size {
            return Err(Error::Config(format!("rank {rank} of {world_size}: ranks count from 0")));
        }
        if !self.batch_size.is_multiple_of(world_size) {
            let batch = self.batch_size;
            let less = match batch / world_size * world_size {
                0 => String::new(),
                less => format!("{less} or "),
            };
            return Err(Error::Config(format!(
                "a global batch of {batch} samples does not split evenly over {world_size} ranks: \
                 take {less}{}, or a number of ranks that divides {batch}",
                batch.div_ceil(world_size) * world_size
            )));
        }
        Ok(Self { batch_size: self.batch_size / world_size, rank, world_size, ..self })
    }
}

/// How samples are ordered by a state of this version.
const ORDER: u32 = 1;

/// Where a loader stands: all it takes to continue a run, on any number of workers or ranks.
///
/// To continue is to look up the next sample: it costs no more in the middle of an epoch than at
/// its beginning.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Seed of order and augmentation.
    pub seed: u64,
    /// Number of the next sample, over all ranks.
    pub next_sample: u64,
    /// Bad samples met so far, counted by this rank and taken for the other ranks as well.
    pub bad_samples: u64,
    /// [`Mixture::fingerprint`] of the data; empty in a state that was never used.
    pub fingerprint: String,
    /// Version of the order: 0 in states of the first version, which go on in theirs.
    #[serde(default)]
    pub order: u32,
    /// The data, to name what has changed; empty in states of the first version.
    #[serde(default)]
    pub sources: Vec<SourceState>,
}

impl LoaderState {
    /// The beginning of a run.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            next_sample: 0,
            bad_samples: 0,
            fingerprint: String::new(),
            order: ORDER,
            sources: Vec::new(),
        }
    }

    /// The mixture in the order of this state.
    fn ordered(&self, mixture: Mixture) -> Result<Mixture> {
        let mixture = match self.order {
            0 => mixture.with_rule(Rule::Greedy)?,
            ORDER => mixture.with_windows_of(&self.sources)?,
            newer => {
                return Err(Error::Config(format!(
                    "the loader state has an order of version {newer}, this program knows versions \
                     up to {ORDER}: continue the run with the program that began it"
                )));
            }
        };
        if self.fingerprint.is_empty() || self.fingerprint == mixture.fingerprint() {
            return Ok(mixture);
        }
        let before = &self.sources;
        let mut changes =
            if before.is_empty() { Vec::new() } else { mixture.changes_since(before) };
        if changes.is_empty() && !before.is_empty() {
            changes.push("the same samples are divided into shards in another way".into());
        }
        Err(Error::StateMismatch {
            expected: self.fingerprint.clone(),
            found: mixture.fingerprint().to_owned(),
            changes,
        })
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
    /// A loader that continues at `state`, in the order that the run began with: also where the
    /// sources would be shuffled in other windows by now.
    ///
    /// # Errors
    /// [`Error::StateMismatch`] when the state belongs to other data, [`Error::Config`] for
    /// options that contradict each other or the data.
    pub fn new(mixture: Mixture, options: LoaderOptions, state: LoaderState) -> Result<Self> {
        let mixture = state.ordered(mixture)?;
        let fingerprint = mixture.fingerprint().to_owned();
        let state = LoaderState { fingerprint, sources: mixture.source_states(), ..state };
        let order = Order::Endless { first_sample: state.next_sample };
        let plan = Plan::new(mixture, order, state.seed, options)?;
        let (ranks, used) = (options.world_size as u64, state.next_sample);
        let account = Account::new(options.bad_samples, ranks, used, state.bad_samples);
        Ok(Self { engine: Engine::new(plan)?, account, state, batches: 0 })
    }

    /// The next batch, in memory that is reused: once `batch` has been filled before, this
    /// allocates nothing in the calling thread (with workers).
    ///
    /// # Errors
    /// [`Error::TooManyBad`] or [`Error::NoUsableSample`] when the data are too bad to go on,
    /// [`Error::Unavailable`] when storage cannot be reached, [`Error::WorkerPanic`] after a panic;
    /// every later call fails too.
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

    /// Takes these samples (source, index) for reported already: those that a run reported before
    /// it was interrupted.
    pub fn remember_skipped(&mut self, reported: impl IntoIterator<Item = (u16, u64)>) {
        self.account.remember(reported);
    }

    /// How many samples this rank skipped since the loader was made, by kind.
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
