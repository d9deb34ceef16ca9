//! AdamW on CUDA: one launch over a flat range, bound by memory (28 bytes a parameter).

use super::AdamW;
use crate::cuda::{Args, CudaError, DeviceSlice, Gpu, Grid, SplitSlice};

/// Values that a thread takes in one access of each array.
const GROUP: usize = 4;
/// Groups of a block: two for each of 256 threads.
const GROUPS: usize = 512;
const THREADS: usize = 256;

/// Updates params, m and v from grads, on exact fp32 masters.
///
/// # Errors
/// [`CudaError::Driver`].
///
/// # Panics
/// If the step is 0: steps count from 1.
pub fn step(
    gpu: &Gpu,
    settings: AdamW,
    params: SplitSlice<'_>,
    grads: DeviceSlice<'_, f32>,
    m: DeviceSlice<'_, f32>,
    v: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    let c = settings.constants();
    let len = params.len();
    assert_eq!(params.lo.len(), len, "adamw: halves of params");
    assert!(grads.len() == len && m.len() == len && v.len() == len, "adamw: grads, m and v");
    // The values before the first that is aligned in every array; there is none where they are shifted differently.
    let head = (params.hi.ptr() / 2).wrapping_neg() as usize % GROUP;
    let aligned = [(params.hi.ptr(), 2), (params.lo.ptr(), 2)]
        .into_iter()
        .chain([grads.ptr(), m.ptr(), v.ptr()].map(|address| (address, 4)))
        .all(|(address, size)| {
            (address + (head * size) as u64).is_multiple_of((GROUP * size) as u64)
        });
    let groups = if aligned { len.saturating_sub(head) / GROUP } else { 0 };
    let single = len - groups * GROUP;
    let blocks = groups.div_ceil(GROUPS).max(single.div_ceil(THREADS));
    let args = Args::new()
        .slice(params.hi)
        .slice(params.lo)
        .slice(grads)
        .slice(m)
        .slice(v)
        .u64(len)
        .u64(groups)
        .i32(head)
        .f32(c.decay)
        .f32(c.grad_scale)
        .f32(c.one_minus_beta1)
        .f32(c.beta2)
        .f32(c.one_minus_beta2)
        .f32(c.step_size)
        .f32(c.root_correction)
        .f32(c.eps);
    // SAFETY: the kernel's arguments; it touches `len` values of each slice, and all have as many.
    unsafe { gpu.launch("adamw_step", Grid::new(blocks, THREADS as u32), args) }
}
