//! Element-wise sums on CUDA: computed in f32 and rounded once; of bf16 values where a name says nothing.

use bytemuck::Pod;
use half::bf16;

use crate::cuda::{Args, CudaError, DeviceSlice, Gpu, Grid, vector};

/// `y = a + b`; y may be a or b.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn add(
    gpu: &Gpu,
    a: DeviceSlice<'_, bf16>,
    b: DeviceSlice<'_, bf16>,
    y: DeviceSlice<'_, bf16>,
) -> Result<(), CudaError> {
    assert!(a.len() == y.len() && b.len() == y.len(), "add: a, b and y");
    let wide = vector::aligned([a.ptr(), b.ptr(), y.ptr()]);
    let args = Args::new().slice(a).slice(b).slice(y).u64(y.len()).bool(wide);
    // SAFETY: the kernel's arguments; it touches y.len() values of each.
    unsafe { gpu.launch("elementwise_add", vector::map(y.len()), args) }
}

/// `y += x`.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn accumulate(
    gpu: &Gpu,
    x: DeviceSlice<'_, bf16>,
    y: DeviceSlice<'_, bf16>,
) -> Result<(), CudaError> {
    add(gpu, y, x, y)
}

/// `y = factor x`, or `y += factor x` when `accumulate`; y may be x.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn scale(
    gpu: &Gpu,
    x: DeviceSlice<'_, bf16>,
    factor: f32,
    y: DeviceSlice<'_, bf16>,
    accumulate: bool,
) -> Result<(), CudaError> {
    scaled(gpu, "elementwise_scale", vector::map(y.len()), x, factor, y, accumulate)
}

/// As [`scale`], into f32.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn scale_to_f32(
    gpu: &Gpu,
    x: DeviceSlice<'_, bf16>,
    factor: f32,
    y: DeviceSlice<'_, f32>,
    accumulate: bool,
) -> Result<(), CudaError> {
    scaled(gpu, "elementwise_scale_to_f32", vector::each(y.len()), x, factor, y, accumulate)
}

/// As [`scale`], from f32.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn scale_to_bf16(
    gpu: &Gpu,
    x: DeviceSlice<'_, f32>,
    factor: f32,
    y: DeviceSlice<'_, bf16>,
    accumulate: bool,
) -> Result<(), CudaError> {
    scaled(gpu, "elementwise_scale_to_bf16", vector::each(y.len()), x, factor, y, accumulate)
}

fn scaled<X: Pod, Y: Pod>(
    gpu: &Gpu,
    kernel: &'static str,
    grid: Grid,
    x: DeviceSlice<'_, X>,
    factor: f32,
    y: DeviceSlice<'_, Y>,
    accumulate: bool,
) -> Result<(), CudaError> {
    assert_eq!(x.len(), y.len(), "scale: x and y");
    let wide = vector::aligned([x.ptr(), y.ptr()]);
    let args = Args::new().slice(x).f32(factor).slice(y).u64(y.len()).bool(accumulate).bool(wide);
    // SAFETY: the three kernels' arguments; they touch y.len() values of each.
    unsafe { gpu.launch(kernel, grid, args) }
}
