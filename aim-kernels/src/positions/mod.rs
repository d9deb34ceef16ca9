//! Fixed position vectors added to rows: `y[r] = x[r] + table[index[r]]`.
//!
//! - x, y: `[rows, dim]`; table: `[n, dim]`, not trained; index: i32 `[rows]`, each in `0..n`
//! - backward: the gradient of x is dy itself

pub mod cpu;
pub mod cuda;

/// Shape of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    /// Rows of x and y.
    pub rows: usize,
    /// Values in a row.
    pub dim: usize,
}
