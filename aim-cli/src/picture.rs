//! Reconstructions as pictures: rows of image, visible prefix and prediction.
//!
//! Images are u8 `[height, width, 3]`; patches count row by row from the top left. Predictions are
//! f32 `[patches, patch_size * patch_size * 3]` with the channel fastest, as the objective has them.

use image::{Rgba, RgbaImage};

/// Sizes that all images of a picture share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Pixels from top to bottom.
    pub(crate) height: usize,
    /// Pixels from left to right.
    pub(crate) width: usize,
    /// Side of a patch in pixels.
    pub(crate) patch_size: usize,
}

/// How pixels were normalised, and whether each patch was standardised on top.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Normalization {
    /// Mean of each channel on a scale of 0 to 1.
    pub(crate) mean: [f64; 3],
    /// Standard deviation of each channel on a scale of 0 to 1.
    pub(crate) std: [f64; 3],
    /// Whether predictions are of patches with mean 0 and variance 1.
    pub(crate) per_patch: bool,
}

impl Normalization {
    /// Normalised values `[3, height, width]` as pixels, u8 `[height, width, 3]`.
    pub(crate) fn to_bytes(self, values: &[f32]) -> Vec<u8> {
        let plane = values.len() / 3;
        let mut bytes = vec![0; 3 * plane];
        for (i, byte) in bytes.iter_mut().enumerate() {
            let channel = i % 3;
            let value = f64::from(values[channel * plane + i / 3]);
            let pixel = value * self.std[channel] + self.mean[channel];
            *byte = (pixel * 255.0).round().clamp(0.0, 255.0) as u8;
        }
        bytes
    }

    /// Pixels, u8 `[height, width, 3]`, as normalised values `[3, height, width]`.
    pub(crate) fn to_values(self, bytes: &[u8]) -> Vec<f32> {
        let plane = bytes.len() / 3;
        let value = |i: usize| {
            let (channel, pixel) = (i / plane.max(1), i % plane.max(1));
            let value = f64::from(bytes[pixel * 3 + channel]) / 255.0;
            ((value - self.mean[channel]) / self.std[channel]) as f32
        };
        (0..3 * plane).map(value).collect()
    }
}

/// One row of the picture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    /// The image, u8 `[height, width, 3]`.
    pub(crate) image: &'a [u8],
    /// Patches that the model saw.
    pub(crate) prefix: usize,
    /// Predicted pixels, each u8 `[height, width, 3]`; those of the prefix are not looked at.
    pub(crate) predictions: &'a [&'a [u8]],
}

/// Transparent, so that it suits light and dark pages.
const BACKGROUND: Rgba<u8> = Rgba([0; 4]);
const HIDDEN: [u8; 3] = [150; 3];
/// Cells are enlarged by whole numbers until they are at least this wide.
const CELL: usize = 160;
const GAP: usize = 8;

impl Layout {
    fn patches_across(&self) -> usize {
        self.width / self.patch_size.max(1)
    }

    /// Number of the patch that a pixel is in.
    fn patch_at(&self, y: usize, x: usize) -> usize {
        let side = self.patch_size.max(1);
        y / side * self.patches_across() + x / side
    }

    fn len(&self) -> usize {
        self.height * self.width * 3
    }
}

/// Predicted patches as pixels, u8 `[height, width, 3]`.
///
/// A standardised patch has lost its own mean and contrast; they are taken from the image, as
/// pictures of masked autoencoders do. Patches beyond the end of `predictions` stay grey.
pub(crate) fn prediction_pixels(
    layout: Layout,
    image: &[u8],
    predictions: &[f32],
    normalization: &Normalization,
) -> Vec<u8> {
    let side = layout.patch_size;
    let mut pixels = HIDDEN.repeat(layout.height * layout.width);
    for (patch, values) in predictions.chunks_exact(side * side * 3).enumerate() {
        let (top, left) =
            (patch / layout.patches_across() * side, patch % layout.patches_across() * side);
        let offset = |i: usize| {
            let (y, x) = (top + i / 3 / side, left + i / 3 % side);
            (y * layout.width + x) * 3 + i % 3
        };
        let Normalization { mean, std, per_patch } = *normalization;
        let truth = |i: usize| {
            let value = f64::from(image.get(offset(i)).copied().unwrap_or(0)) / 255.0;
            (value - mean[i % 3]) / std[i % 3]
        };
        let (shift, scale) = if per_patch {
            let n = values.len() as f64;
            let center = (0..values.len()).map(truth).sum::<f64>() / n;
            let squares = (0..values.len()).map(|i| (truth(i) - center).powi(2)).sum::<f64>();
            // Unbiased variance and 1e-6, as the target has them (paper 4.1, ml-l3m).
            (center, (squares / (n - 1.0) + 1e-6).sqrt())
        } else {
            (0.0, 1.0)
        };
        for (i, value) in values.iter().enumerate() {
            let pixel = (f64::from(*value) * scale + shift) * std[i % 3] + mean[i % 3];
            if let Some(slot) = pixels.get_mut(offset(i)) {
                *slot = (pixel * 255.0).round().clamp(0.0, 255.0) as u8;
            }
        }
    }
    pixels
}

/// The picture: one row per image; columns are image, prefix with the rest grey, and prefix with
/// each of the predictions. `None` when a buffer is not `[height, width, 3]`.
pub(crate) fn compose(layout: Layout, rows: &[Row<'_>]) -> Option<RgbaImage> {
    let all = |row: &Row<'_>| row.predictions.iter().all(|p| p.len() == layout.len());
    if rows.iter().any(|row| row.image.len() != layout.len() || !all(row)) {
        return None;
    }
    let columns = 2 + rows.iter().map(|row| row.predictions.len()).max().unwrap_or(0);
    let zoom = CELL.div_ceil(layout.width.max(1)).max(1);
    let (cell_width, cell_height) = (layout.width * zoom, layout.height * zoom);
    let total = |cells: usize, size: usize| u32::try_from(cells * (size + GAP) + GAP).ok();
    let (width, height) = (total(columns, cell_width)?, total(rows.len(), cell_height)?);
    let mut picture = RgbaImage::from_pixel(width, height, BACKGROUND);
    for (index, row) in rows.iter().enumerate() {
        let top = GAP + index * (cell_height + GAP);
        for column in 0..2 + row.predictions.len() {
            let left = GAP + column * (cell_width + GAP);
            for y in 0..cell_height {
                for x in 0..cell_width {
                    let [r, g, b] = cell_pixel(layout, row, column, y / zoom, x / zoom);
                    let color = Rgba([r, g, b, 255]);
                    picture.put_pixel((left + x) as u32, (top + y) as u32, color);
                }
            }
        }
    }
    Some(picture)
}

fn cell_pixel(layout: Layout, row: &Row<'_>, column: usize, y: usize, x: usize) -> [u8; 3] {
    let at = |pixels: &[u8]| {
        let start = (y * layout.width + x) * 3;
        pixels.get(start..start + 3).and_then(|p| p.try_into().ok()).unwrap_or(HIDDEN)
    };
    let visible = layout.patch_at(y, x) < row.prefix;
    match column {
        0 => at(row.image),
        _ if visible => at(row.image),
        1 => HIDDEN,
        _ => row.predictions.get(column - 2).map_or(HIDDEN, |prediction| at(prediction)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { height: 4, width: 6, patch_size: 2 };

    fn image() -> Vec<u8> {
        (0..72).map(|i| (i * 3) as u8).collect()
    }

    /// The image's own patches, normalised as a target is.
    fn targets(normalization: &Normalization) -> Vec<f32> {
        let image = image();
        let mut all = Vec::new();
        for patch in 0..6 {
            let mut values = Vec::new();
            for i in 0..12 {
                let (y, x) = (patch / 3 * 2 + i / 6, patch % 3 * 2 + i / 3 % 2);
                let value = f64::from(image[(y * 6 + x) * 3 + i % 3]) / 255.0;
                values.push((value - normalization.mean[i % 3]) / normalization.std[i % 3]);
            }
            if normalization.per_patch {
                let mean = values.iter().sum::<f64>() / 12.0;
                let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 11.0;
                values.iter_mut().for_each(|v| *v = (*v - mean) / (var + 1e-6).sqrt());
            }
            all.extend(values.iter().map(|v| *v as f32));
        }
        all
    }

    #[test]
    fn a_perfect_prediction_is_the_image() {
        for per_patch in [false, true] {
            let normalization =
                Normalization { mean: [0.5, 0.4, 0.3], std: [0.2, 0.25, 0.3], per_patch };
            let predicted =
                prediction_pixels(LAYOUT, &image(), &targets(&normalization), &normalization);
            assert_eq!(predicted, image(), "per patch: {per_patch}");
        }
    }

    #[test]
    fn pixels_survive_normalisation() {
        let normalization =
            Normalization { mean: [0.5, 0.4, 0.3], std: [0.2, 0.25, 0.3], per_patch: false };
        let values = normalization.to_values(&image());
        assert_eq!(values.len(), 72);
        assert!((f64::from(values[24]) - (3.0 / 255.0 - 0.4) / 0.25).abs() < 1e-6);
        assert_eq!(normalization.to_bytes(&values), image());
    }

    #[test]
    fn cells_show_image_prefix_and_prediction() {
        let (image, prediction, other) = (image(), vec![7; 72], vec![9; 72]);
        let row = Row { image: &image, prefix: 4, predictions: &[&prediction, &other] };
        let picture = compose(LAYOUT, &[row, row]).unwrap();
        let zoom = CELL.div_ceil(6);
        assert_eq!(picture.width() as usize, 4 * 6 * zoom + 5 * GAP);
        assert_eq!(picture.height() as usize, 2 * 4 * zoom + 3 * GAP);
        let pixel = |column: usize, y: usize, x: usize| {
            let left = GAP + column * (6 * zoom + GAP) + x * zoom;
            let [r, g, b, _] = picture.get_pixel(left as u32, (GAP + y * zoom) as u32).0;
            [r, g, b]
        };
        let truth = |y: usize, x: usize| [0, 1, 2].map(|c| image[(y * 6 + x) * 3 + c]);
        // Patch 3 (row 1, column 0) is the last of the prefix, patch 4 the first predicted.
        assert_eq!(
            [pixel(0, 2, 2), pixel(1, 2, 1), pixel(2, 2, 1)],
            [truth(2, 2), truth(2, 1), truth(2, 1)]
        );
        assert_eq!([pixel(1, 2, 2), pixel(2, 2, 2), pixel(3, 2, 2)], [HIDDEN, [7; 3], [9; 3]]);
        assert_eq!(pixel(3, 2, 1), truth(2, 1));
    }

    #[test]
    fn buffers_of_another_size_are_refused() {
        let row = Row { image: &[0; 71], prefix: 1, predictions: &[&[0; 72]] };
        assert!(compose(LAYOUT, &[row]).is_none());
    }
}
