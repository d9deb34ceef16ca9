//! GELU on CUDA: bf16 values, computed in f32; the exact (erf) form, and the tanh form that cuBLASLt fuses into products
//! ([`linear::cuda::forward_gelu`](crate::linear::cuda::forward_gelu)), for those that it cannot.

use half::bf16;

use crate::cuda::{Args, CudaError, DeviceSlice, Gpu, vector};

/// `y = x Phi(x)`, element by element; y may be x.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn forward(
    gpu: &Gpu,
    x: DeviceSlice<'_, bf16>,
    y: DeviceSlice<'_, bf16>,
) -> Result<(), CudaError> {
    assert_eq!(x.len(), y.len(), "gelu: x and y");
    let wide = vector::aligned([x.ptr(), y.ptr()]);
    let args = Args::new().slice(x).slice(y).u64(y.len()).bool(wide);
    // SAFETY: the kernel's arguments; it touches y.len() values of each.
    unsafe { gpu.launch("gelu_forward", vector::map(y.len()), args) }
}

/// `dx = dy (Phi(x) + x phi(x))`, or `dx += ...` when `accumulate`; dx may be dy.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn backward(
    gpu: &Gpu,
    x: DeviceSlice<'_, bf16>,
    dy: DeviceSlice<'_, bf16>,
    dx: DeviceSlice<'_, bf16>,
    accumulate: bool,
) -> Result<(), CudaError> {
    assert!(x.len() == dx.len() && dy.len() == dx.len(), "gelu: x, dy and dx");
    let wide = vector::aligned([x.ptr(), dy.ptr(), dx.ptr()]);
    let args = Args::new().slice(x).slice(dy).slice(dx).u64(dx.len()).bool(accumulate).bool(wide);
    // SAFETY: the kernel's arguments; it touches dx.len() values of each.
    unsafe { gpu.launch("gelu_backward", vector::map(dx.len()), args) }
}

/// `y = x (1 + tanh(u)) / 2` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`; y may be x.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn forward_tanh(
    gpu: &Gpu,
    x: DeviceSlice<'_, bf16>,
    y: DeviceSlice<'_, bf16>,
) -> Result<(), CudaError> {
    assert_eq!(x.len(), y.len(), "gelu: x and y");
    let wide = vector::aligned([x.ptr(), y.ptr()]);
    let args = Args::new().slice(x).slice(y).u64(y.len()).bool(wide);
    // SAFETY: the kernel's arguments; it touches y.len() values of each.
    unsafe { gpu.launch("gelu_tanh_forward", vector::map(y.len()), args) }
}

/// `dx = dy` times the slope of [`forward_tanh`]; dx may be dy.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn backward_tanh(
    gpu: &Gpu,
    x: DeviceSlice<'_, bf16>,
    dy: DeviceSlice<'_, bf16>,
    dx: DeviceSlice<'_, bf16>,
) -> Result<(), CudaError> {
    assert!(x.len() == dx.len() && dy.len() == dx.len(), "gelu: x, dy and dx");
    let wide = vector::aligned([x.ptr(), dy.ptr(), dx.ptr()]);
    let args = Args::new().slice(x).slice(dy).slice(dx).u64(dx.len()).bool(wide);
    // SAFETY: the kernel's arguments; it touches dx.len() values of each.
    unsafe { gpu.launch("gelu_tanh_backward", vector::map(dx.len()), args) }
}
