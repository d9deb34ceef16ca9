//! Batch norm on CUDA, f32.

use super::BatchNorm;
use crate::cuda::columns::{self, Parts, Tiles};
use crate::cuda::{Args, CudaError, DeviceSlice, Gpu};

/// Values of 16 bytes.
const LANE: usize = 4;

/// f32 values of scratch that [`forward_training`] and [`backward`] need: two sums of each column of each part, and
/// two of each column.
pub fn scratch_len(shape: BatchNorm) -> usize {
    (columns::parts(shape.rows, shape.dim).count + 1) * 2 * shape.dim
}

/// Normalises by the batch's own statistics; writes y, mean and rstd. Moving the running statistics is the caller's.
///
/// # Errors
/// [`CudaError::Driver`].
///
/// # Panics
/// If there are fewer than two rows: one value has no variance.
pub fn forward_training(
    gpu: &Gpu,
    shape: BatchNorm,
    x: DeviceSlice<'_, f32>,
    y: DeviceSlice<'_, f32>,
    mean: DeviceSlice<'_, f32>,
    rstd: DeviceSlice<'_, f32>,
    scratch: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    let BatchNorm { rows, dim, eps } = shape;
    assert!(rows > 1, "batch_norm: training needs at least two rows, not {rows}");
    assert!(x.len() == rows * dim && y.len() == x.len(), "batch_norm: x and y");
    assert!(mean.len() == dim && rstd.len() == dim, "batch_norm: mean and rstd");
    assert!(scratch.len() >= scratch_len(shape), "batch_norm: scratch");
    let Parts { rows: part_rows, count } = columns::parts(rows, dim);
    let tiles = Tiles::new(dim, LANE, dim, &[x.ptr(), y.ptr()]);
    let (over_x, over_columns) = (tiles.grid(count), columns::vector_grid(dim));
    let cut = |args: Args| args.i32(rows).i32(dim).i32(part_rows).bool(tiles.vector());
    let sums = |args: Args| args.slice(scratch).i32(count).i32(rows).i32(dim);

    let args = cut(Args::new().slice(x)).slice(scratch);
    // SAFETY: the kernel's arguments; lengths were checked, as for those that follow.
    unsafe { gpu.launch("batch_norm_shifts", over_x, args) }?;
    let args = sums(Args::new().slice(x)).slice(mean);
    // SAFETY: as above; it reads the sums that the one before wrote.
    unsafe { gpu.launch("batch_norm_mean", over_columns, args) }?;
    let args = cut(Args::new().slice(x).slice(mean)).slice(scratch);
    // SAFETY: as above.
    unsafe { gpu.launch("batch_norm_squares", over_x, args) }?;
    let args = sums(Args::new()).f32(eps).slice(mean).slice(rstd);
    // SAFETY: as above; it reads the sums that the one before wrote.
    unsafe { gpu.launch("batch_norm_rstd", over_columns, args) }?;
    let args = cut(Args::new().slice(x).slice(mean).slice(rstd)).slice(y);
    // SAFETY: as above.
    unsafe { gpu.launch("batch_norm_normalize", over_x, args) }
}

/// Normalises by the running statistics.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn forward_evaluation(
    gpu: &Gpu,
    shape: BatchNorm,
    x: DeviceSlice<'_, f32>,
    running_mean: DeviceSlice<'_, f32>,
    running_variance: DeviceSlice<'_, f32>,
    y: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    let BatchNorm { rows, dim, eps } = shape;
    assert!(x.len() == rows * dim && y.len() == x.len(), "batch_norm: x and y");
    assert!(
        running_mean.len() == dim && running_variance.len() == dim,
        "batch_norm: running statistics"
    );
    let Parts { rows: part_rows, count } = columns::parts(rows, dim);
    let tiles = Tiles::new(dim, LANE, dim, &[x.ptr(), y.ptr()]);
    let args = Args::new()
        .slice(x)
        .slice(running_mean)
        .slice(running_variance)
        .f32(eps)
        .i32(rows)
        .i32(dim)
        .i32(part_rows)
        .bool(tiles.vector())
        .slice(y);
    // SAFETY: the kernel's arguments; lengths were checked.
    unsafe { gpu.launch("batch_norm_evaluate", tiles.grid(count), args) }
}

/// Gradient of x through the batch's statistics, written or accumulated.
///
/// # Errors
/// [`CudaError::Driver`].
#[expect(clippy::too_many_arguments, reason = "the same order as on the CPU")]
pub fn backward(
    gpu: &Gpu,
    shape: BatchNorm,
    x: DeviceSlice<'_, f32>,
    mean: DeviceSlice<'_, f32>,
    rstd: DeviceSlice<'_, f32>,
    dy: DeviceSlice<'_, f32>,
    dx: DeviceSlice<'_, f32>,
    accumulate: bool,
    scratch: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    let BatchNorm { rows, dim, .. } = shape;
    assert!(
        x.len() == rows * dim && dy.len() == x.len() && dx.len() == x.len(),
        "batch_norm: x, dy and dx"
    );
    assert!(mean.len() == dim && rstd.len() == dim, "batch_norm: mean and rstd");
    assert!(scratch.len() >= scratch_len(shape), "batch_norm: scratch");
    let Parts { rows: part_rows, count } = columns::parts(rows, dim);
    let tiles = Tiles::new(dim, LANE, dim, &[x.ptr(), dy.ptr(), dx.ptr()]);
    let means = scratch.range(count * 2 * dim..(count + 1) * 2 * dim);
    let inputs = || Args::new().slice(x).slice(mean).slice(rstd).slice(dy);
    let cut = |args: Args| args.i32(rows).i32(dim).i32(part_rows).bool(tiles.vector());

    let args = cut(inputs()).slice(scratch);
    // SAFETY: the kernel's arguments; lengths were checked, as for those that follow.
    unsafe { gpu.launch("batch_norm_gradients", tiles.grid(count), args) }?;
    let args = Args::new().slice(scratch).i32(count).i32(rows).i32(dim).slice(means);
    // SAFETY: as above; it reads the sums that the one before wrote, and writes behind them.
    unsafe { gpu.launch("batch_norm_gradient_means", columns::vector_grid(dim), args) }?;
    let args = cut(inputs().slice(means)).slice(dx).bool(accumulate);
    // SAFETY: as above.
    unsafe { gpu.launch("batch_norm_backward", tiles.grid(count), args) }
}
