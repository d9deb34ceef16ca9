//! Positions on CUDA: bf16 rows, an f32 table.

use half::bf16;

use super::Positions;
use crate::cuda::{Args, CudaError, DeviceSlice, Gpu, vector};

/// `y[r] = x[r] + table[index[r]]`; y may be x. An index outside the table is not noticed here.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn forward(
    gpu: &Gpu,
    shape: Positions,
    x: DeviceSlice<'_, bf16>,
    table: DeviceSlice<'_, f32>,
    index: DeviceSlice<'_, i32>,
    y: DeviceSlice<'_, bf16>,
) -> Result<(), CudaError> {
    let Positions { rows, dim } = shape;
    assert!(x.len() == rows * dim && y.len() == x.len(), "positions: x and y");
    assert_eq!(index.len(), rows, "positions: index");
    assert!(dim > 0 && table.len().is_multiple_of(dim), "positions: table");
    let wide =
        dim.is_multiple_of(vector::WIDTH) && vector::aligned([x.ptr(), table.ptr(), y.ptr()]);
    let width = if wide { dim / vector::WIDTH } else { dim };
    let (grid, span) = vector::rows(rows, width);
    let args = Args::new().slice(x).slice(table).slice(index).slice(y);
    let args = args.i32(rows).i32(width).i32(span).bool(wide);
    // SAFETY: the kernel's arguments; it touches `rows` rows of x and y, and the rows of the table that the index
    // names, which lie inside it.
    unsafe { gpu.launch("positions_forward", grid, args) }
}
