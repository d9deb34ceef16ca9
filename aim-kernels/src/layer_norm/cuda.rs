//! Layer norm on CUDA: bf16 rows, split weight and bias, statistics and sums in f32.

use half::bf16;

use super::LayerNorm;
use crate::cuda::{Args, CudaError, DeviceSlice, Gpu, Grid, SplitSlice, vector};

/// Multiprocessors of an H100 or H200. The grid of the backward pass decides the order of its sums, so that it must not
/// ask the device; on a chip with another number it is merely a less even share.
const PROCESSORS: usize = 132;
/// Warps of a block of which each has a row.
const WARPS: usize = 8;
/// Most rows that a block, or each of its warps, takes in the forward pass: what reading the weights is shared by.
const SPAN: usize = 8;

/// A kernel that suits a row length.
#[derive(Clone, Copy)]
struct Plan {
    kernel: &'static str,
    threads: usize,
    /// Rows that a block has at a time.
    rows: usize,
    /// Blocks that a multiprocessor holds, by their registers; only the backward pass asks.
    resident: usize,
}

impl Plan {
    fn warps(kernel: &'static str, resident: usize) -> Self {
        Self { kernel, threads: 32 * WARPS, rows: WARPS, resident }
    }

    /// A block a row; `resident`: threads that a multiprocessor holds.
    fn block(kernel: &'static str, threads: usize, resident: usize) -> Self {
        let threads = threads.next_multiple_of(32);
        Self { kernel, threads, rows: 1, resident: resident / threads }
    }
}

/// Kernels that go over the row again: for any length and alignment.
const FORWARD_ANY: &str = "layer_norm_forward_any";
const BACKWARD_ANY: &str = "layer_norm_backward_any";

/// The kernel for rows of that many values: one that keeps the row in registers where there is one. Two vectors a
/// thread share the work of the sums; a single one makes more warps of a shorter row.
fn forward_plan(dim: usize, aligned: bool) -> Plan {
    match vectors(dim, aligned) {
        0..=32 => Plan::warps("layer_norm_forward_warp1", 0),
        33..=64 => Plan::warps("layer_norm_forward_warp2", 0),
        count @ 65..=128 => Plan::block("layer_norm_forward_block1", count, 0),
        count @ 129..=1024 => Plan::block("layer_norm_forward_block2", count.div_ceil(2), 0),
        _ => Plan::block(FORWARD_ANY, 256, 0),
    }
}

/// As [`forward_plan`]; here registers are dearer.
fn backward_plan(dim: usize, aligned: bool) -> Plan {
    match vectors(dim, aligned) {
        0..=32 => Plan::warps("layer_norm_backward_warp1", 3),
        33..=64 => Plan::warps("layer_norm_backward_warp2", 2),
        count @ 65..=256 => Plan::block("layer_norm_backward_block1", count, 768),
        count @ 257..=1024 => Plan::block("layer_norm_backward_block2", count.div_ceil(2), 512),
        _ => Plan::block(BACKWARD_ANY, 256, 1024),
    }
}

/// Vectors of a row, or more than any kernel takes.
fn vectors(dim: usize, aligned: bool) -> usize {
    let divide = aligned && dim.is_multiple_of(vector::WIDTH);
    if divide { dim / vector::WIDTH } else { usize::MAX }
}

/// Blocks of the backward pass, each of which leaves a partial sum of the weight's and the bias's gradient. Few enough
/// that the partial sums are a small part of the traffic.
fn parts(shape: LayerNorm) -> usize {
    // Not a matter of alignment, so that the scratch is known beforehand.
    let plan = backward_plan(shape.dim, true);
    let enough = shape.rows.div_ceil(plan.rows * 8).max(1);
    enough.min(PROCESSORS * plan.resident)
}

fn check(shape: LayerNorm, x: DeviceSlice<'_, bf16>, other: DeviceSlice<'_, bf16>) {
    assert!(shape.dim > 0, "layer_norm: rows of no values");
    assert!(x.len() == shape.rows * shape.dim && other.len() == x.len(), "layer_norm: x, y or dy");
}

/// Normalises each row; writes y, mean and rstd. y may be x.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn forward(
    gpu: &Gpu,
    shape: LayerNorm,
    x: DeviceSlice<'_, bf16>,
    weight: SplitSlice<'_>,
    bias: SplitSlice<'_>,
    y: DeviceSlice<'_, bf16>,
    mean: DeviceSlice<'_, f32>,
    rstd: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    let LayerNorm { rows, dim, eps } = shape;
    check(shape, x, y);
    assert!(weight.len() == dim && bias.len() == dim, "layer_norm: weight and bias");
    assert!(mean.len() == rows && rstd.len() == rows, "layer_norm: mean and rstd");
    let [w, b] = [weight, bias].map(|split| vector::aligned([split.hi.ptr(), split.lo.ptr()]));
    let aligned = w && b && vector::aligned([x.ptr(), y.ptr()]);
    let plan = forward_plan(dim, aligned);
    // Short work is spread first; the kernel for any row takes one row a block.
    let spread = rows / (plan.rows * PROCESSORS * 8);
    let span = if plan.kernel == FORWARD_ANY { 1 } else { spread.clamp(1, SPAN) };
    let grid = Grid::new(rows.div_ceil(plan.rows * span), plan.threads as u32);
    let args = Args::new().slice(x).slice(weight.hi).slice(weight.lo).slice(bias.hi).slice(bias.lo);
    let args = args.slice(y).slice(mean).slice(rstd).i32(rows).i32(dim).f32(eps).i32(span);
    // SAFETY: the kernel's arguments; it touches `rows` rows of x and y, their statistics, and `dim` values of the
    // weight and the bias.
    unsafe { gpu.launch(plan.kernel, grid, args) }
}

/// f32 values of scratch that [`backward`] needs: partial sums of the parameters' gradients.
pub fn backward_scratch(shape: LayerNorm) -> usize {
    parts(shape) * 2 * shape.dim
}

/// Gradients of x, weight and bias from dy. dx comes with whether it is added to what is there, in the same pass;
/// `parameters` are the gradients of weight and bias, accumulated. `scratch` holds [`backward_scratch`] values of any
/// content. dx may be dy.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn backward(
    gpu: &Gpu,
    shape: LayerNorm,
    x: DeviceSlice<'_, bf16>,
    weight: SplitSlice<'_>,
    mean: DeviceSlice<'_, f32>,
    rstd: DeviceSlice<'_, f32>,
    dy: DeviceSlice<'_, bf16>,
    dx: Option<(DeviceSlice<'_, bf16>, bool)>,
    parameters: Option<(DeviceSlice<'_, f32>, DeviceSlice<'_, f32>)>,
    scratch: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    let LayerNorm { rows, dim, .. } = shape;
    check(shape, x, dy);
    assert_eq!(weight.len(), dim, "layer_norm: weight");
    assert!(mean.len() == rows && rstd.len() == rows, "layer_norm: mean and rstd");
    if rows == 0 || (dx.is_none() && parameters.is_none()) {
        return Ok(());
    }
    let (dx, accumulate) = dx.map_or((None, false), |(dx, accumulate)| (Some(dx), accumulate));
    assert!(dx.is_none_or(|dx| dx.len() == x.len()), "layer_norm: dx");
    let parts = parts(shape);
    let scratch = parameters.map(|_| scratch.range(0..parts * 2 * dim));
    let addresses = [x.ptr(), dy.ptr(), weight.hi.ptr(), weight.lo.ptr()];
    let optional = [dx.map_or(0, DeviceSlice::ptr), scratch.map_or(0, DeviceSlice::ptr)];
    let aligned = vector::aligned(addresses) && vector::aligned(optional);
    let plan = backward_plan(dim, aligned);
    let args = Args::new().slice(x).slice(weight.hi).slice(weight.lo).slice(mean).slice(rstd);
    let args = args.slice(dy).optional(dx).bool(accumulate).optional(scratch).i32(rows).i32(dim);
    // SAFETY: the kernel's arguments; it touches `rows` rows of x, dy and dx, their statistics, `dim` values of the
    // weight, and 2 dim values of the scratch per block.
    unsafe { gpu.launch(plan.kernel, Grid::new(parts, plan.threads as u32), args)? };
    let (Some((dweight, dbias)), Some(scratch)) = (parameters, scratch) else { return Ok(()) };
    assert!(dweight.len() == dim && dbias.len() == dim, "layer_norm: dweight and dbias");
    let args = Args::new().slice(scratch).i32(parts).i32(dim).slice(dweight).slice(dbias);
    // SAFETY: the kernel's arguments; it reads what the blocks before left and adds to `dim` values of each gradient.
    unsafe { gpu.launch("layer_norm_backward_sum", Grid::new((2 * dim).div_ceil(32), 512), args) }
}
