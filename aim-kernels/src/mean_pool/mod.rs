//! Mean over the tokens of each image: `y[b] = mean over t of x[b, t]`.
//!
//! - x, dx: `[batch, tokens, dim]`; y, dy: `[batch, dim]`
//! - backward: `dx[b, t] = dy[b] / tokens`

pub mod cpu;
pub mod cuda;

/// Shape of a mean pooling's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeanPool {
    /// Images.
    pub batch: usize,
    /// Tokens of an image.
    pub tokens: usize,
    /// Values in a token.
    pub dim: usize,
}
