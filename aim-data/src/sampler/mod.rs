//! The order of samples as a pure function of seed and position.
//!
//! Sample `i` of a run is looked up, not iterated to. A [`Mixture`]'s schedule says which source
//! it comes from: after any number of samples, each source has been drawn its exact share of them,
//! give or take less than one. A keyed [`Permutation`] says which of the source's images it is. There is
//! no state beyond the seed and `i`, so a run continues anywhere at no cost and the order depends
//! on neither workers nor ranks.
//!
//! **Epochs.** Each source is gone through at its own pace, and each of its epochs has an order of
//! its own. A source that has been gone through begins its next epoch with its next sample, in the
//! middle of a batch or not, whatever the other sources do; a mixture has no end.
//!
//! **Locality.** A source that says it is read [in windows of shards](Source::shuffle_window), as
//! remote ones are, is shuffled in two levels: its shards are permuted and cut into windows of `W`
//! neighbours, and the samples of one window are permuted among themselves. An epoch then needs
//! each shard during one window only. A reader that keeps the shards it has fetched keeps those of
//! two windows at most, the current one and, while batches are made ahead, the next: about
//! `2 * W` shards on disk or in memory. The order itself takes 16 bytes for each shard and
//! nothing for samples. All other sources are shuffled as a whole, which is `W` = all shards.

mod mixture;
mod permutation;
mod schedule;
mod window;

pub use mixture::{Draw, Mixture, SourceState};
pub use permutation::Permutation;

#[cfg(doc)]
use crate::source::Source;

/// How many neighbouring shards a source that is read shard by shard should be shuffled among
/// unless somebody says otherwise: at 10,000 images in a shard, as img2dataset writes them, the
/// shuffle is as good as one with a buffer of 160,000, and two windows of 350 MB shards are 11 GB.
pub const DEFAULT_WINDOW_SHARDS: usize = 16;

/// How a mixture spreads its sources; a loader's state remembers which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The source furthest behind comes next: states of the first version.
    Greedy,
    /// Never a whole sample off, whatever the number of sources.
    Even,
}
