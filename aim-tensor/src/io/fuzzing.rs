//! Entry points for fuzzing the readers of this crate; not part of the interface.

use super::torch;

/// A name and what it does with bytes: any panic is a bug.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// Every reader that has one.
pub const FUZZ_TARGETS: &[FuzzTarget] =
    &[("torch_pickle", torch::fuzz_pickle), ("torch_file", torch::fuzz_file)];
