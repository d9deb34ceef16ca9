//! Casts on CUDA.

use half::bf16;

use crate::cuda::{Args, CudaError, DeviceSlice, Gpu, SplitSlice, vector};

/// f32 `[rows, cols]` to bf16 `[rows, to_stride]`, rounded to the nearest, zero in the columns past `cols`.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn to_bf16(
    gpu: &Gpu,
    rows: usize,
    cols: usize,
    from: DeviceSlice<'_, f32>,
    to: DeviceSlice<'_, bf16>,
    to_stride: usize,
) -> Result<(), CudaError> {
    assert!(cols <= to_stride, "cast: {cols} columns in rows of {to_stride}");
    assert!(from.len() == rows * cols && to.len() == rows * to_stride, "cast: from and to");
    let aligned = vector::aligned([from.ptr(), to.ptr()]);
    if cols == to_stride {
        let args = Args::new().slice(from).slice(to).u64(to.len()).bool(aligned);
        // SAFETY: the kernel's arguments; it touches to.len() values of each.
        return unsafe { gpu.launch("cast_to_bf16", vector::each(to.len()), args) };
    }
    let wide = aligned && to_stride.is_multiple_of(vector::WIDTH) && cols.is_multiple_of(4);
    let width = if wide { to_stride / vector::WIDTH } else { to_stride };
    let (grid, span) = vector::rows(rows, width);
    let args = Args::new().slice(from).slice(to);
    let args = args.i32(rows).i32(cols).i32(width).i32(span).bool(wide);
    // SAFETY: the kernel's arguments; it reads [rows, cols] and writes [rows, to_stride].
    unsafe { gpu.launch("cast_pad_bf16", grid, args) }
}

/// bf16 to f32, exact.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn to_f32(
    gpu: &Gpu,
    from: DeviceSlice<'_, bf16>,
    to: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    assert_eq!(from.len(), to.len(), "cast: from and to");
    let wide = vector::aligned([from.ptr(), to.ptr()]);
    let args = Args::new().slice(from).slice(to).u64(to.len()).bool(wide);
    // SAFETY: the kernel's arguments; it touches to.len() values of each.
    unsafe { gpu.launch("cast_to_f32", vector::each(to.len()), args) }
}

/// f32 to its split form, exact for finite values.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn split(gpu: &Gpu, from: DeviceSlice<'_, f32>, to: SplitSlice<'_>) -> Result<(), CudaError> {
    assert!(to.hi.len() == from.len() && to.lo.len() == from.len(), "cast: from and to");
    let wide = vector::aligned([from.ptr(), to.hi.ptr(), to.lo.ptr()]);
    let args = Args::new().slice(from).slice(to.hi).slice(to.lo).u64(from.len()).bool(wide);
    // SAFETY: the kernel's arguments; it touches from.len() values of each.
    unsafe { gpu.launch("cast_split", vector::each(from.len()), args) }
}

/// A split form to its f32, exact.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn join(gpu: &Gpu, from: SplitSlice<'_>, to: DeviceSlice<'_, f32>) -> Result<(), CudaError> {
    assert!(from.hi.len() == to.len() && from.lo.len() == to.len(), "cast: from and to");
    let wide = vector::aligned([from.hi.ptr(), from.lo.ptr(), to.ptr()]);
    let args = Args::new().slice(from.hi).slice(from.lo).slice(to).u64(to.len()).bool(wide);
    // SAFETY: the kernel's arguments; it touches to.len() values of each.
    unsafe { gpu.launch("cast_join", vector::each(to.len()), args) }
}
