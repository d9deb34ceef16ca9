//! Batch normalisation without weight and bias (PyTorch's `BatchNorm1d(affine=False)`).
//!
//! Training: `y = (x - mean) rstd` with each column's mean, its biased variance and `rstd = 1 / sqrt(var + eps)`; the
//! running statistics move by `running += momentum (batch - running)`, the variance there being the unbiased one.
//! Evaluation: the same with the running statistics.
//!
//! - x, y, dx, dy: `[rows, dim]`; mean, rstd and the running statistics: `[dim]`
//! - backward of training, with `x^ = (x - mean) rstd`: `dx = rstd (dy - mean(dy) - x^ mean(dy x^))`, means by column

pub mod cpu;
pub mod cuda;

/// Shape of a batch norm's work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    /// Rows, over which the statistics are taken.
    pub rows: usize,
    /// Values in a row, each normalised by itself.
    pub dim: usize,
    /// Added to the variance.
    pub eps: f32,
}
