//! Linear layer: `y = x W^T + bias + residual`.
//!
//! - x: `[rows, inputs]`, weight: `[outputs, inputs]` (PyTorch's layout), bias: `[outputs]`
//! - y, residual: `[rows, outputs]`
//! - backward: `dx = dy W`, `dW += dy^T x`, `dbias += sum over rows of dy`; the residual's gradient is `dy` itself.

#[path = "bias_cuda.rs"]
pub mod bias;
pub mod cpu;
pub mod cuda;

/// Shape of a linear layer's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Rows of x and y: tokens or images.
    pub rows: usize,
    /// Width of x.
    pub inputs: usize,
    /// Width of y.
    pub outputs: usize,
}
