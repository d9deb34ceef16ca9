//! Softmax cross-entropy on CUDA, f32.

use super::SoftmaxCrossEntropy;
use crate::cuda::{Args, CudaError, DeviceSlice, Gpu, Grid, columns};

/// Values of 16 bytes.
const LANE: usize = 4;
/// Classes up to which one warp takes a row.
const FEW: usize = 256;

fn check(shape: SoftmaxCrossEntropy, logits: usize, labels: usize) {
    assert!(shape.classes > 0, "softmax_cross_entropy: no classes");
    assert_eq!(logits, shape.rows * shape.classes, "softmax_cross_entropy: logits");
    assert_eq!(labels, shape.rows, "softmax_cross_entropy: labels");
}

/// One block a row.
fn grid(shape: SoftmaxCrossEntropy) -> Grid {
    Grid::new(shape.rows, if shape.classes <= FEW { 32 } else { 128 })
}

/// Writes the loss of each row. A label that is not below the number of classes gives NaN.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn forward(
    gpu: &Gpu,
    shape: SoftmaxCrossEntropy,
    logits: DeviceSlice<'_, f32>,
    labels: DeviceSlice<'_, i32>,
    loss: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    check(shape, logits.len(), labels.len());
    assert_eq!(loss.len(), shape.rows, "softmax_cross_entropy: loss");
    let vector = shape.classes.is_multiple_of(LANE) && columns::at_16(&[logits.ptr()]);
    let args = Args::new()
        .slice(logits)
        .slice(labels)
        .i32(shape.classes)
        .f32(shape.label_smoothing)
        .bool(vector)
        .slice(loss);
    // SAFETY: the kernel's arguments; lengths were checked.
    unsafe { gpu.launch("softmax_cross_entropy_forward", grid(shape), args) }
}

/// `dlogits = scale * (softmax - t)`, written or accumulated. A label that is not below the number of classes gives
/// NaN in its row.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn backward(
    gpu: &Gpu,
    shape: SoftmaxCrossEntropy,
    logits: DeviceSlice<'_, f32>,
    labels: DeviceSlice<'_, i32>,
    scale: f32,
    dlogits: DeviceSlice<'_, f32>,
    accumulate: bool,
) -> Result<(), CudaError> {
    check(shape, logits.len(), labels.len());
    assert_eq!(dlogits.len(), logits.len(), "softmax_cross_entropy: dlogits");
    let vector =
        shape.classes.is_multiple_of(LANE) && columns::at_16(&[logits.ptr(), dlogits.ptr()]);
    let args = Args::new()
        .slice(logits)
        .slice(labels)
        .i32(shape.classes)
        .f32(shape.label_smoothing)
        .f32(scale)
        .bool(vector)
        .slice(dlogits)
        .bool(accumulate);
    // SAFETY: the kernel's arguments; lengths were checked.
    unsafe { gpu.launch("softmax_cross_entropy_backward", grid(shape), args) }
}

fn check_soft(shape: SoftmaxCrossEntropy, logits: usize, targets: usize) {
    assert!(shape.classes > 0, "softmax_cross_entropy: no classes");
    assert_eq!(logits, shape.rows * shape.classes, "softmax_cross_entropy: logits");
    assert_eq!(targets, logits, "softmax_cross_entropy: targets");
}

/// Writes the loss of each row against soft targets; label smoothing is the targets' own.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn forward_soft(
    gpu: &Gpu,
    shape: SoftmaxCrossEntropy,
    logits: DeviceSlice<'_, f32>,
    targets: DeviceSlice<'_, f32>,
    loss: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    check_soft(shape, logits.len(), targets.len());
    assert_eq!(loss.len(), shape.rows, "softmax_cross_entropy: loss");
    let addresses = [logits.ptr(), targets.ptr()];
    let vector = shape.classes.is_multiple_of(LANE) && columns::at_16(&addresses);
    let args = Args::new().slice(logits).slice(targets).i32(shape.classes).bool(vector).slice(loss);
    // SAFETY: the kernel's arguments; lengths were checked.
    unsafe { gpu.launch("softmax_cross_entropy_soft_forward", grid(shape), args) }
}

/// `dlogits = scale * (sum(t) softmax - t)`, written or accumulated.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn backward_soft(
    gpu: &Gpu,
    shape: SoftmaxCrossEntropy,
    logits: DeviceSlice<'_, f32>,
    targets: DeviceSlice<'_, f32>,
    scale: f32,
    dlogits: DeviceSlice<'_, f32>,
    accumulate: bool,
) -> Result<(), CudaError> {
    check_soft(shape, logits.len(), targets.len());
    assert_eq!(dlogits.len(), logits.len(), "softmax_cross_entropy: dlogits");
    let addresses = [logits.ptr(), targets.ptr(), dlogits.ptr()];
    let vector = shape.classes.is_multiple_of(LANE) && columns::at_16(&addresses);
    let args = Args::new().slice(logits).slice(targets).i32(shape.classes).f32(scale);
    let args = args.bool(vector).slice(dlogits).bool(accumulate);
    // SAFETY: the kernel's arguments; lengths were checked.
    unsafe { gpu.launch("softmax_cross_entropy_soft_backward", grid(shape), args) }
}
