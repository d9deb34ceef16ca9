//! Patches.

use super::lab::{Check, Lab, compare};
use crate::cuda::CudaError;
use crate::patch_embed::{PatchEmbed, cuda};

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let shapes = [
        (1, 1, 1, 1),
        (2, 6, 9, 3),
        (1, 28, 42, 14),
        (3, 16, 32, 16),
        (1, 14, 112, 14),
        (0, 4, 4, 2),
    ];
    for (batch, height, width, patch) in shapes {
        images(lab, checks, PatchEmbed { batch, height, width, patch })?;
    }
    Ok(())
}

/// Where value `at` of the patches comes from: image, channel, row, column.
fn place(shape: PatchEmbed, at: usize) -> [usize; 4] {
    let (token, at) = (at / shape.patch_dim(), at % shape.patch_dim());
    let (image, token) = (token / shape.tokens(), token % shape.tokens());
    let (line, x) = (at / shape.patch, at % shape.patch);
    let (grid_row, grid_column) = (token / shape.grid().1, token % shape.grid().1);
    let (channel, y) = (line / shape.patch, line % shape.patch);
    [image, channel, grid_row * shape.patch + y, grid_column * shape.patch + x]
}

fn images(lab: &mut Lab, checks: &mut Vec<Check>, shape: PatchEmbed) -> Result<(), CudaError> {
    let PatchEmbed { height, width, .. } = shape;
    let len = shape.image_len();
    let pixels: Vec<_> = (0..len).map(|_| lab.bits() as u8).collect();
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    let (from, patches) = (lab.upload(&pixels)?, lab.poisoned(len)?);
    cuda::patchify_u8(lab.gpu(), shape, from.slice(), mean, std, patches.slice())?;
    let normalised = |at: usize| {
        let [image, channel, y, x] = place(shape, at);
        let v = pixels[((image * height + y) * width + x) * 3 + channel];
        // In f32: the divisions are rounded like the CPU's, so that the bits are the same.
        f64::from((f32::from(v) / 255.0 - mean[channel]) / std[channel])
    };
    let expected: Vec<_> = (0..len).map(normalised).collect();
    checks.push(compare(format!("patch_embed u8 {shape:?}"), &patches, &expected, 0.0)?);

    let values = lab.normal(len, 1.0);
    let (from, patches) = (lab.upload(&values)?, lab.poisoned(len)?);
    cuda::patchify(lab.gpu(), shape, from.slice(), patches.slice())?;
    let moved = |at: usize| {
        let [image, channel, y, x] = place(shape, at);
        f64::from(values[((image * 3 + channel) * height + y) * width + x])
    };
    let expected: Vec<_> = (0..len).map(moved).collect();
    checks.push(compare(format!("patch_embed f32 {shape:?}"), &patches, &expected, 0.0)?);
    Ok(())
}
