//! Patches on CUDA: f32, the CPU's bits.

use super::{CHANNELS, PatchEmbed};
use crate::cuda::{Args, CudaError, DeviceSlice, Gpu, Grid, vector};

/// Values that a block writes.
const SPAN: usize = 4096;

struct Plan {
    grid: Grid,
    chunks: usize,
    wide: bool,
}

fn plan(shape: PatchEmbed, images: usize, patches: DeviceSlice<'_, f32>) -> Plan {
    let PatchEmbed { batch, height, width, patch } = shape;
    assert!(patch > 0, "patch_embed: patch of no pixels");
    assert!(
        height.is_multiple_of(patch) && width.is_multiple_of(patch),
        "patch_embed: {height}x{width} is not a whole number of patches of {patch}"
    );
    assert_eq!(images, shape.image_len(), "patch_embed: values of the images");
    assert_eq!(patches.len(), shape.image_len(), "patch_embed: values of the patches");
    let chunks = (width * patch * CHANNELS).div_ceil(SPAN);
    let grid = Grid::new(batch * shape.grid().0 * chunks, 256);
    let wide = shape.patch_dim().is_multiple_of(4) && vector::aligned([patches.ptr()]);
    Plan { grid, chunks, wide }
}

/// Writes the patches of u8 pixels `[batch, height, width, 3]`, normalised with each channel's `mean` and `std` (of
/// values in 0..1).
///
/// # Errors
/// [`CudaError::Driver`].
pub fn patchify_u8(
    gpu: &Gpu,
    shape: PatchEmbed,
    pixels: DeviceSlice<'_, u8>,
    mean: [f32; CHANNELS],
    std: [f32; CHANNELS],
    patches: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    let Plan { grid, chunks, wide } = plan(shape, pixels.len(), patches);
    let args = mean.into_iter().chain(std).fold(Args::new().slice(pixels), Args::f32);
    let args = args.slice(patches).i32(shape.width).i32(shape.patch).i32(chunks).bool(wide);
    // SAFETY: the kernel's arguments; every pixel is read and every value of the patches written once.
    unsafe { gpu.launch("patch_embed_patchify_u8", grid, args) }
}

/// Writes the patches of images `[batch, 3, height, width]`.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn patchify(
    gpu: &Gpu,
    shape: PatchEmbed,
    images: DeviceSlice<'_, f32>,
    patches: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    let Plan { grid, chunks, wide } = plan(shape, images.len(), patches);
    let args = Args::new().slice(images).slice(patches).i32(shape.grid().0);
    let args = args.i32(shape.width).i32(shape.patch).i32(chunks).bool(wide);
    // SAFETY: the kernel's arguments; every pixel is read and every value of the patches written once.
    unsafe { gpu.launch("patch_embed_patchify", grid, args) }
}
