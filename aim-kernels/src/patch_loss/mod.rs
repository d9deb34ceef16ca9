//! Mean squared error of predicted patches (paper 4.1, equation 2), against raw or normalised pixels.
//!
//! With `n = 3 * patch * patch`: `loss[r] = sum over i of (pred[r, i] - target[r, i])^2 / n`. The target of row r is
//! patch `targets[r]`; normalised, `(x - mean) / sqrt(var + 1e-6)` with the mean and the unbiased variance of the
//! patch's n values (paper 5.2, after He et al. 2022).
//!
//! - pred, dpred: `[rows, n]`, values in (row, column, channel) order, channel fastest
//! - patches: `[batch * tokens, n]`, values in (channel, row, column) order, as [`patch_embed`](crate::patch_embed)
//!   writes them
//! - targets: i32 `[rows]`, a row of patches each; loss: `[rows]`
//! - backward: `dpred = scale * 2 / n * (pred - target)`, where the loss of a step is `scale * sum(loss)`

pub mod cpu;
pub mod cuda;

/// Added to a patch's variance.
pub const EPS: f32 = 1e-6;

/// Shape of a patch loss's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchLoss {
    /// Predictions.
    pub rows: usize,
    /// Rows and columns of pixels in a patch.
    pub patch: usize,
    /// Whether each target patch is normalised by its own mean and variance.
    pub normalize: bool,
}

impl PatchLoss {
    /// Values of a patch: `3 * patch * patch`.
    pub fn dim(&self) -> usize {
        crate::patch_embed::CHANNELS * self.patch * self.patch
    }
}
