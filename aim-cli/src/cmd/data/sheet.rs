//! A contact sheet: samples as the model sees them in training.

use std::path::Path;
use std::sync::Arc;

use aim_data::augment::Transform;
use aim_data::loader::{BadSamplePolicy, EvalLoader, LoaderOptions, Pass};
use aim_data::source::Source;
use anyhow::{Context as _, Result, bail};
use image::{Rgb, RgbImage};

/// Pixels between images, and their colour.
const GAP: u32 = 4;
const BACKGROUND: Rgb<u8> = Rgb([255; 3]);
/// Largest side of the picture, in pixels.
const MAX_SIDE: u32 = 16_384;

/// Draws up to `count` samples, chosen at random with a fixed seed, after the default training crop
/// and flip at `size` pixels. Samples that cannot be used are left out.
pub(super) fn write(source: Arc<dyn Source>, count: u32, size: u32, path: &Path) -> Result<u64> {
    let options = LoaderOptions {
        bad_samples: BadSamplePolicy { max_fraction: 1.0, min_count: u64::MAX },
        ..LoaderOptions::new(16, size, Transform::train())
    };
    let pass = Pass { limit: Some(u64::from(count)), shuffle_seed: Some(0), augment_seed: 0 };
    let mut loader = EvalLoader::new(source, options, pass)?;
    let (mut images, mut size) = (Vec::new(), (0, 0));
    while let Some(batch) = loader.next_batch()? {
        let Some(pixels) = batch.images.as_u8() else {
            bail!("normalised tensors have no pixels to show: leave out --sheet");
        };
        size = (batch.height, batch.width);
        let one = batch.height as usize * batch.width as usize * 3;
        images.extend(pixels.chunks_exact(one.max(1)).map(<[u8]>::to_vec));
    }
    let sheet = compose(&images, size)
        .with_context(|| format!("{} images are too many for one picture", images.len()))?;
    sheet
        .save_with_format(path, image::ImageFormat::Png)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(images.len() as u64)
}

/// Images u8 `[height, width, 3]` in rows, about as many rows as columns; none when that would be
/// larger than a picture may be.
fn compose(images: &[Vec<u8>], (height, width): (u32, u32)) -> Option<RgbImage> {
    let count = u32::try_from(images.len()).ok()?;
    let columns = (1..=count.max(1)).find(|side| side * side >= count)?;
    let rows = count.div_ceil(columns);
    let side = |cells: u32, size: u32| cells.checked_mul(size.checked_add(GAP)?)?.checked_add(GAP);
    let (sheet_width, sheet_height) = (side(columns, width)?, side(rows, height)?);
    if sheet_width > MAX_SIDE || sheet_height > MAX_SIDE {
        return None;
    }
    let mut sheet = RgbImage::from_pixel(sheet_width, sheet_height, BACKGROUND);
    for (at, pixels) in (0..).zip(images) {
        let image = RgbImage::from_raw(width, height, pixels.clone())?;
        let left = GAP + at % columns * (width + GAP);
        let top = GAP + at / columns * (height + GAP);
        image::imageops::replace(&mut sheet, &image, i64::from(left), i64::from(top));
    }
    Some(sheet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_stand_in_rows() {
        let images: Vec<Vec<u8>> = (0..5u8).map(|n| vec![n; 2 * 3 * 3]).collect();
        let sheet = compose(&images, (2, 3)).unwrap();
        // Three columns, two rows.
        assert_eq!((sheet.width(), sheet.height()), (3 * 7 + 4, 2 * 6 + 4));
        assert_eq!(sheet.get_pixel(4, 4), &Rgb([0; 3]));
        assert_eq!(sheet.get_pixel(4 + 7, 4 + 6 + 1), &Rgb([4; 3]));
        assert_eq!(sheet.get_pixel(4 + 14, 4 + 6), &BACKGROUND);
        assert!(compose(&vec![Vec::new(); 40_000], (100, 100)).is_none());
    }
}
