//! Rows picked by index: `y[r] = x[index[r]]`.
//!
//! - x, dx: `[sources, dim]`; y, dy: `[rows, dim]`; index: i32 `[rows]`, each in `0..sources`, repeats allowed
//! - backward: `dx[index[r]] += dy[r]`, rows that nobody picked get no gradient

pub mod cpu;
pub mod cuda;

/// Shape of a gather's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatherRows {
    /// Rows of x.
    pub sources: usize,
    /// Rows of y.
    pub rows: usize,
    /// Values in a row.
    pub dim: usize,
}
