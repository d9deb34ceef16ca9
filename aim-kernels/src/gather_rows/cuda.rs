//! Gather on CUDA: bf16 rows. An index outside the rows is not noticed here.

use half::bf16;

use super::GatherRows;
use crate::cuda::{Args, CudaError, DeviceSlice, Gpu, Grid, vector};

/// Source rows of a block of the backward kernel.
const SPAN: usize = 16;

fn check(
    shape: GatherRows,
    sources: DeviceSlice<'_, bf16>,
    picks: DeviceSlice<'_, bf16>,
    index: DeviceSlice<'_, i32>,
) -> (bool, usize) {
    let GatherRows { sources: count, rows, dim } = shape;
    let lengths = sources.len() == count * dim && picks.len() == rows * dim;
    assert!(lengths, "gather_rows: rows of the sources and of the picks");
    assert_eq!(index.len(), rows, "gather_rows: index");
    let wide = dim.is_multiple_of(vector::WIDTH) && vector::aligned([sources.ptr(), picks.ptr()]);
    (wide, if wide { dim / vector::WIDTH } else { dim })
}

/// `y[r] = x[index[r]]`.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn forward(
    gpu: &Gpu,
    shape: GatherRows,
    x: DeviceSlice<'_, bf16>,
    index: DeviceSlice<'_, i32>,
    y: DeviceSlice<'_, bf16>,
) -> Result<(), CudaError> {
    let (wide, width) = check(shape, x, y, index);
    let (grid, span) = vector::rows(shape.rows, width);
    let args = Args::new().slice(x).slice(index).slice(y);
    let args = args.i32(shape.rows).i32(width).i32(span).bool(wide);
    // SAFETY: the kernel's arguments; it writes `rows` rows of y and reads the rows of x that the index names, which
    // lie inside it.
    unsafe { gpu.launch("gather_rows_forward", grid, args) }
}

/// `dx[s] = sum of dy[r] over index[r] == s`, or `dx[s] += ...` when `accumulate`. The index must be ascending (repeats
/// allowed): each row of dx finds its picks by binary search and adds them in order, so that nothing is set to zero
/// beforehand and the same inputs give the same bits.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn backward(
    gpu: &Gpu,
    shape: GatherRows,
    dy: DeviceSlice<'_, bf16>,
    index: DeviceSlice<'_, i32>,
    dx: DeviceSlice<'_, bf16>,
    accumulate: bool,
) -> Result<(), CudaError> {
    let (wide, width) = check(shape, dx, dy, index);
    let threads = (SPAN * width).next_multiple_of(32).clamp(32, 256);
    let grid = Grid::new(shape.sources.div_ceil(SPAN), threads as u32);
    let args = Args::new().slice(dy).slice(index).slice(dx);
    let args = args.i32(shape.sources).i32(shape.rows).i32(width).bool(accumulate).bool(wide);
    // SAFETY: the kernel's arguments; it writes `sources` rows of dx and reads the index and `rows` rows of dy.
    unsafe { gpu.launch("gather_rows_backward", grid, args) }
}
