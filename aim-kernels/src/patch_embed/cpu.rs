//! Patches on the CPU: copies, cut by rows of patches.

use super::{CHANNELS, PatchEmbed};
use crate::cpu::pool;

fn check(shape: PatchEmbed, images: usize, patches: usize) {
    let PatchEmbed { height, width, patch, .. } = shape;
    assert!(patch > 0, "patch_embed: patch of no pixels");
    assert!(
        height.is_multiple_of(patch) && width.is_multiple_of(patch),
        "patch_embed: {height}x{width} is not a whole number of patches of {patch}"
    );
    assert_eq!(images, shape.image_len(), "patch_embed: values of the images");
    assert_eq!(patches, shape.image_len(), "patch_embed: values of the patches");
}

/// Writes the patches of u8 pixels `[batch, height, width, 3]`, normalised with each channel's `mean` and `std` (of
/// values in 0..1).
pub fn patchify_u8(
    shape: PatchEmbed,
    pixels: &[u8],
    mean: [f32; CHANNELS],
    std: [f32; CHANNELS],
    patches: &mut [f32],
) {
    check(shape, pixels.len(), patches.len());
    let PatchEmbed { width, patch, .. } = shape;
    // A byte has 256 values. Looked up, they are the same bits as torchvision's three f32 operations.
    let table: [[f32; 256]; CHANNELS] = std::array::from_fn(|channel| {
        std::array::from_fn(|v| (v as f32 / 255.0 - mean[channel]) / std[channel])
    });
    let band = width * patch * CHANNELS;
    pool::for_each_chunk(patches, band, |i, patches| {
        let band = &pixels[i * band..][..band];
        for (column, out) in patches.chunks_exact_mut(shape.patch_dim()).enumerate() {
            for row in 0..patch {
                let line = &band[(row * width + column * patch) * CHANNELS..][..patch * CHANNELS];
                for (channel, table) in table.iter().enumerate() {
                    let out = &mut out[(channel * patch + row) * patch..][..patch];
                    for (out, pixel) in out.iter_mut().zip(line.as_chunks::<CHANNELS>().0) {
                        *out = table[usize::from(pixel[channel])];
                    }
                }
            }
        }
    });
}

/// Writes the patches of images `[batch, 3, height, width]`.
pub fn patchify(shape: PatchEmbed, images: &[f32], patches: &mut [f32]) {
    check(shape, images.len(), patches.len());
    let PatchEmbed { height, width, patch, .. } = shape;
    let (grid_rows, _) = shape.grid();
    pool::for_each_chunk(patches, width * patch * CHANNELS, |i, patches| {
        let (image, grid_row) = (i / grid_rows, i % grid_rows);
        for (column, out) in patches.chunks_exact_mut(shape.patch_dim()).enumerate() {
            for (line, out) in out.chunks_exact_mut(patch).enumerate() {
                let (channel, row) = (line / patch, line % patch);
                let y = (image * CHANNELS + channel) * height + grid_row * patch + row;
                out.copy_from_slice(&images[y * width + column * patch..][..patch]);
            }
        }
    });
}

/// Gradient of the images of [`patchify`] from the gradient of their patches, written or accumulated.
pub fn unpatchify(shape: PatchEmbed, dpatches: &[f32], dimages: &mut [f32], accumulate: bool) {
    check(shape, dimages.len(), dpatches.len());
    let PatchEmbed { width, patch, .. } = shape;
    let (grid_rows, grid_columns) = shape.grid();
    // A piece is the part of one channel that a row of patches covers.
    pool::for_each_chunk(dimages, width * patch, |i, band| {
        let (image, channel) = (i / grid_rows / CHANNELS, i / grid_rows % CHANNELS);
        let token = image * shape.tokens() + i % grid_rows * grid_columns;
        for (row, line) in band.chunks_exact_mut(width).enumerate() {
            for (column, out) in line.chunks_exact_mut(patch).enumerate() {
                let at = (token + column) * shape.patch_dim() + (channel * patch + row) * patch;
                let from = &dpatches[at..][..patch];
                if accumulate {
                    out.iter_mut().zip(from).for_each(|(sum, v)| *sum += v);
                } else {
                    out.copy_from_slice(from);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_land_where_the_convolution_weight_expects_them() {
        let shape = PatchEmbed { batch: 2, height: 4, width: 6, patch: 2 };
        let images: Vec<f32> = (0..shape.image_len()).map(|i| i as f32).collect();
        let mut patches = vec![f32::NAN; images.len()];
        patchify(shape, &images, &mut patches);
        // Image 1, grid row 1, grid column 2: token 5. Channel 2, row 1, column 0 of it: pixel (3, 4).
        let at = (6 + 5) * 12 + (2 * 2 + 1) * 2;
        assert_eq!(patches[at], (((3 + 2) * 4 + 3) * 6 + 4) as f32);
        let mut back = vec![f32::NAN; images.len()];
        unpatchify(shape, &patches, &mut back, false);
        assert_eq!(back, images);
    }

    #[test]
    fn bytes_and_floats_give_the_same_patches() {
        let shape = PatchEmbed { batch: 2, height: 6, width: 9, patch: 3 };
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let pixels: Vec<u8> = (0..shape.image_len()).map(|i| (i * 37 % 256) as u8).collect();
        let mut images = vec![0.0; pixels.len()];
        for (i, pixel) in pixels.chunks_exact(3).enumerate() {
            let (image, at) = (i / 54, i % 54);
            for channel in 0..3 {
                let v = f32::from(pixel[channel]) / 255.0;
                images[(image * 3 + channel) * 54 + at] = (v - mean[channel]) / std[channel];
            }
        }
        let (mut a, mut b) = (vec![f32::NAN; pixels.len()], vec![f32::NAN; pixels.len()]);
        patchify_u8(shape, &pixels, mean, std, &mut a);
        patchify(shape, &images, &mut b);
        assert_eq!(a, b);
    }
}
