//! Mean pooling on CUDA, f32.

use super::MeanPool;
use crate::cuda::columns::Tiles;
use crate::cuda::{Args, CudaError, DeviceSlice, Gpu};

/// Values of 16 bytes.
const LANE: usize = 4;
/// Tokens of a block of the backward kernel.
const ROWS: usize = 32;

fn check(shape: MeanPool, x: usize, y: usize) {
    let MeanPool { batch, tokens, dim } = shape;
    assert!(tokens > 0, "mean_pool: mean of no tokens");
    assert!(x == batch * tokens * dim && y == batch * dim, "mean_pool: tokens and pooled");
}

/// Writes the mean of each image's tokens.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn forward(
    gpu: &Gpu,
    shape: MeanPool,
    x: DeviceSlice<'_, f32>,
    y: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    check(shape, x.len(), y.len());
    let MeanPool { batch, tokens, dim } = shape;
    let tiles = Tiles::new(dim, LANE, dim, &[x.ptr()]);
    let args = Args::new().slice(x).i32(tokens).i32(dim).bool(tiles.vector()).slice(y);
    // SAFETY: the kernel's arguments; lengths were checked.
    unsafe { gpu.launch("mean_pool_forward", tiles.grid(batch), args) }
}

/// `dx = dy / tokens`, written or accumulated.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn backward(
    gpu: &Gpu,
    shape: MeanPool,
    dy: DeviceSlice<'_, f32>,
    dx: DeviceSlice<'_, f32>,
    accumulate: bool,
) -> Result<(), CudaError> {
    check(shape, dx.len(), dy.len());
    let MeanPool { batch, tokens, dim } = shape;
    let tiles = Tiles::new(dim, LANE, dim, &[dy.ptr(), dx.ptr()]);
    let args =
        Args::new().slice(dy).i32(tokens).i32(dim).bool(tiles.vector()).slice(dx).bool(accumulate);
    // SAFETY: the kernel's arguments; lengths were checked.
    unsafe { gpu.launch("mean_pool_backward", tiles.grid(batch * tokens.div_ceil(ROWS)), args) }
}
