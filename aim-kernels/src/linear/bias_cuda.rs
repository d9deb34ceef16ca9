//! A linear layer's bias on CUDA: added where the matrix product cannot, and its gradient.

use bytemuck::Pod;
use half::bf16;

use crate::cuda::columns::{self, Parts, Tiles};
use crate::cuda::{Args, CudaError, DeviceSlice, Gpu, SplitSlice};

/// Values of 16 bytes.
const BF16: usize = 8;
const F32: usize = 4;
/// Rows of a block of the adding kernels.
const ROWS: usize = 32;

/// `y += bias`, y `[rows, outputs]` without gaps, in f32 and rounded once.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn add_bf16(
    gpu: &Gpu,
    rows: usize,
    outputs: usize,
    bias: SplitSlice<'_>,
    y: DeviceSlice<'_, bf16>,
) -> Result<(), CudaError> {
    add(gpu, "bias_add_bf16", BF16, [rows, outputs], bias, y)
}

/// `y += bias`, y `[rows, outputs]` without gaps.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn add_f32(
    gpu: &Gpu,
    rows: usize,
    outputs: usize,
    bias: SplitSlice<'_>,
    y: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    add(gpu, "bias_add_f32", F32, [rows, outputs], bias, y)
}

fn add<T: Pod>(
    gpu: &Gpu,
    kernel: &'static str,
    lane: usize,
    [rows, outputs]: [usize; 2],
    bias: SplitSlice<'_>,
    y: DeviceSlice<'_, T>,
) -> Result<(), CudaError> {
    assert_eq!(y.len(), rows * outputs, "linear: y");
    assert!(bias.hi.len() == outputs && bias.lo.len() == outputs, "linear: bias");
    let tiles = Tiles::new(outputs, lane, outputs, &[y.ptr()]);
    let args = Args::new()
        .slice(y)
        .slice(bias.hi)
        .slice(bias.lo)
        .i32(rows)
        .i32(outputs)
        .bool(tiles.vector());
    // SAFETY: the arguments of both kernels; they touch y of the asserted length and read the bias.
    unsafe { gpu.launch(kernel, tiles.grid(rows.div_ceil(ROWS)), args) }
}

/// f32 values of scratch that the backward functions need.
pub fn backward_scratch(rows: usize, outputs: usize) -> usize {
    columns::parts(rows, outputs).count * outputs
}

/// `dbias += sum over rows of dy`; the rows of dy start `dy_stride` values apart.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn backward_bf16(
    gpu: &Gpu,
    rows: usize,
    outputs: usize,
    dy: DeviceSlice<'_, bf16>,
    dy_stride: usize,
    dbias: DeviceSlice<'_, f32>,
    scratch: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    let kernel = ("bias_backward_bf16", BF16);
    backward(gpu, kernel, [rows, outputs], dy, dy_stride, dbias, scratch)
}

/// As [`backward_bf16`], of f32 values.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn backward_f32(
    gpu: &Gpu,
    rows: usize,
    outputs: usize,
    dy: DeviceSlice<'_, f32>,
    dy_stride: usize,
    dbias: DeviceSlice<'_, f32>,
    scratch: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    let kernel = ("bias_backward_f32", F32);
    backward(gpu, kernel, [rows, outputs], dy, dy_stride, dbias, scratch)
}

fn backward<T: Pod>(
    gpu: &Gpu,
    (kernel, lane): (&'static str, usize),
    [rows, outputs]: [usize; 2],
    dy: DeviceSlice<'_, T>,
    stride: usize,
    dbias: DeviceSlice<'_, f32>,
    scratch: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    assert!(
        stride >= outputs && dy.len() >= (rows - 1) * stride + outputs,
        "linear: dy has {} values for {rows} rows of {outputs} with stride {stride}",
        dy.len()
    );
    assert_eq!(dbias.len(), outputs, "linear: dbias");
    assert!(scratch.len() >= backward_scratch(rows, outputs), "linear: scratch of dbias");
    let Parts { rows: part_rows, count } = columns::parts(rows, outputs);
    let tiles = Tiles::new(outputs, lane, stride, &[dy.ptr()]);
    let args = Args::new()
        .slice(dy)
        .u64(stride)
        .i32(rows)
        .i32(outputs)
        .i32(part_rows)
        .bool(tiles.vector())
        .slice(scratch);
    // SAFETY: the arguments of both kernels; dy and scratch are at least as long as asserted.
    unsafe { gpu.launch(kernel, tiles.grid(count), args) }?;
    let args = Args::new().slice(scratch).i32(count).i32(outputs).slice(dbias);
    // SAFETY: the kernel's arguments; it reads what the one before wrote.
    unsafe { gpu.launch("bias_backward_sum", columns::vector_grid(outputs), args) }
}
