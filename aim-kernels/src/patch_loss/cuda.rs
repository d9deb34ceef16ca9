//! Patch loss on CUDA: f32 throughout. A target outside the patches is not noticed here.

use super::PatchLoss;
use crate::cuda::{Args, CudaError, DeviceSlice, Gpu, Grid, vector};

/// Bytes of shared memory that any block may have; larger patches are read again instead.
const SHARED: usize = 48 << 10;
/// Most warps of a block, a row each.
const WARPS: usize = 8;

struct Plan {
    grid: Grid,
    staged: bool,
    wide: bool,
}

fn plan(
    shape: PatchLoss,
    pred: DeviceSlice<'_, f32>,
    patches: DeviceSlice<'_, f32>,
    targets: DeviceSlice<'_, i32>,
    out: u64,
) -> Plan {
    let dim = shape.dim();
    assert!(shape.patch > 0, "patch_loss: patch of no pixels");
    assert_eq!(pred.len(), shape.rows * dim, "patch_loss: pred");
    assert!(patches.len().is_multiple_of(dim), "patch_loss: patches");
    assert_eq!(targets.len(), shape.rows, "patch_loss: targets");
    let wide = dim.is_multiple_of(4) && vector::aligned([pred.ptr(), patches.ptr(), out]);
    let bytes = dim * size_of::<f32>();
    let fit = (SHARED / bytes).min(WARPS);
    let (staged, warps) = if fit > 0 { (true, fit) } else { (false, WARPS) };
    let grid = Grid::new(shape.rows.div_ceil(warps), 32 * warps as u32);
    let shared = if staged { (warps * bytes) as u32 } else { 0 };
    Plan { grid: Grid { shared, ..grid }, staged, wide }
}

/// Writes the loss of each row.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn forward(
    gpu: &Gpu,
    shape: PatchLoss,
    pred: DeviceSlice<'_, f32>,
    patches: DeviceSlice<'_, f32>,
    targets: DeviceSlice<'_, i32>,
    loss: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    assert_eq!(loss.len(), shape.rows, "patch_loss: loss");
    let Plan { grid, staged, wide } = plan(shape, pred, patches, targets, 0);
    let args = Args::new().slice(pred).slice(patches).slice(targets).slice(loss);
    let args = args.i32(shape.rows).i32(shape.dim()).bool(shape.normalize).bool(staged).bool(wide);
    // SAFETY: the kernel's arguments; it reads a row of pred and the patch that the target names, which is one of
    // them, and writes a value of the loss per row.
    unsafe { gpu.launch("patch_loss_forward", grid, args) }
}

/// `dpred = scale * 2 / n * (pred - target)`; dpred may be pred.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn backward(
    gpu: &Gpu,
    shape: PatchLoss,
    pred: DeviceSlice<'_, f32>,
    patches: DeviceSlice<'_, f32>,
    targets: DeviceSlice<'_, i32>,
    scale: f32,
    dpred: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    assert_eq!(dpred.len(), pred.len(), "patch_loss: dpred");
    let Plan { grid, staged, wide } = plan(shape, pred, patches, targets, dpred.ptr());
    let args = Args::new().slice(pred).slice(patches).slice(targets).f32(scale).slice(dpred);
    let args = args.i32(shape.rows).i32(shape.dim()).bool(shape.normalize).bool(staged).bool(wide);
    // SAFETY: as in `forward`; it writes the rows of dpred.
    unsafe { gpu.launch("patch_loss_backward", grid, args) }
}
