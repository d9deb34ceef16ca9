//! L2 norm on CUDA.

use crate::cuda::{Args, CudaError, DeviceSlice, Gpu, Grid, columns};

/// Most blocks, each with a partial sum.
const BLOCKS: usize = 1024;
/// Values that a block takes at least: four a thread.
const BLOCK: usize = 1024;

/// f64 values of scratch that [`sum_of_squares`] of `len` values needs.
pub fn scratch_len(len: usize) -> usize {
    len.div_ceil(BLOCK).min(BLOCKS)
}

/// `sum x^2`, to be added up where a norm goes over several slices. Waits for the device.
///
/// # Errors
/// [`CudaError::Driver`].
///
/// # Panics
/// If scratch is shorter than [`scratch_len`].
pub fn sum_of_squares(
    gpu: &Gpu,
    x: DeviceSlice<'_, f32>,
    scratch: DeviceSlice<'_, f64>,
) -> Result<f64, CudaError> {
    let blocks = scratch_len(x.len());
    assert!(scratch.len() >= blocks, "global_norm: scratch");
    let scratch = scratch.range(0..blocks);
    let args = Args::new().slice(x).u64(x.len()).bool(columns::at_16(&[x.ptr()])).slice(scratch);
    // SAFETY: the kernel's arguments; it reads x and writes one sum a block.
    unsafe { gpu.launch("global_norm_sum_of_squares", Grid::new(blocks, 256), args) }?;
    let mut sums = [0f64; BLOCKS];
    scratch.download(gpu, &mut sums[..blocks])?;
    Ok(sums[..blocks].iter().sum())
}
