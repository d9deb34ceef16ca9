//! Layer normalisation over the last dimension.
//!
//! `y = (x - mean) rstd weight + bias` with the row's mean, its biased variance and `rstd = 1 / sqrt(var + eps)`.
//!
//! - x, y: `[rows, dim]`; weight, bias: `[dim]`; mean and rstd: `[rows]`, kept for the backward pass
//! - backward, with `x^ = (x - mean) rstd` and `g = dy weight`:
//!   `dx = rstd (g - mean(g) - x^ mean(g x^))`, `dweight += sum dy x^`, `dbias += sum dy`

pub mod cpu;
pub mod cuda;

/// Shape of a layer norm's work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNorm {
    /// Rows, each normalised by itself.
    pub rows: usize,
    /// Values in a row.
    pub dim: usize,
    /// Added to the variance.
    pub eps: f32,
}
