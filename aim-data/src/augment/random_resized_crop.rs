//! [`RandomResizedCrop`].

use super::CropBox;
use super::resize::Region;
use crate::error::{Error, Result};
use crate::random::Rng;

/// A random part of the image, resized to the output with an antialiased bicubic filter.
///
/// torchvision's definition: an area share uniform in `scale` and an aspect ratio log-uniform in
/// `ratio`; ten tries to fit such a box into the image, else the largest centred box within the
/// ratios. The box is cut out before it is resampled, so nothing outside it shows through.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomResizedCrop {
    /// Share of the image's area, lower and upper bound.
    pub scale: (f64, f64),
    /// Width over height, lower and upper bound.
    pub ratio: (f64, f64),
}

impl Default for RandomResizedCrop {
    /// AIM's setting: scale 0.4 to 1, ratio 3/4 to 4/3.
    fn default() -> Self {
        Self { scale: (0.4, 1.0), ratio: (3.0 / 4.0, 4.0 / 3.0) }
    }
}

const TRIES: usize = 10;

impl RandomResizedCrop {
    pub(super) fn validate(&self) -> Result<()> {
        let (low, high) = self.scale;
        if !(0.0 < low && low <= high && high <= 1.0) {
            return Err(Error::Config(format!(
                "crop scale {:?}: expected 0 < low <= high <= 1",
                self.scale
            )));
        }
        let (low, high) = self.ratio;
        if !(0.01 <= low && low <= high && high <= 100.0) {
            return Err(Error::Config(format!(
                "crop ratio {:?}: expected 0.01 <= low <= high <= 100",
                self.ratio
            )));
        }
        Ok(())
    }

    pub(super) fn sample(&self, width: u32, height: u32, rng: &mut Rng) -> Region {
        Region::Crop(self.sample_box(width, height, rng))
    }

    pub(super) fn sample_box(&self, width: u32, height: u32, rng: &mut Rng) -> CropBox {
        let (full_width, full_height) = (f64::from(width), f64::from(height));
        for _ in 0..TRIES {
            let area = full_width * full_height * rng.uniform(self.scale.0, self.scale.1);
            let ratio = rng.uniform(self.ratio.0.ln(), self.ratio.1.ln()).exp();
            // Python's round, which torchvision uses, takes halves to the even neighbour.
            let crop_width = (area * ratio).sqrt().round_ties_even();
            let crop_height = (area / ratio).sqrt().round_ties_even();
            let fits = 0.0 < crop_width && crop_width <= full_width;
            if fits && 0.0 < crop_height && crop_height <= full_height {
                let (crop_width, crop_height) = (crop_width as u32, crop_height as u32);
                let top = rng.below(height - crop_height + 1);
                let left = rng.below(width - crop_width + 1);
                return CropBox { left, top, width: crop_width, height: crop_height };
            }
        }
        let full_ratio = full_width / full_height;
        let (mut crop_width, mut crop_height) = (full_width, full_height);
        if full_ratio < self.ratio.0 {
            crop_height = (full_width / self.ratio.0).round_ties_even();
        } else if full_ratio > self.ratio.1 {
            crop_width = (full_height * self.ratio.1).round_ties_even();
        }
        // Of an image one pixel wide, a wide ratio would leave no row at all.
        let crop_width = (crop_width as u32).clamp(1, width);
        let crop_height = (crop_height as u32).clamp(1, height);
        CropBox {
            left: (width - crop_width) / 2,
            top: (height - crop_height) / 2,
            width: crop_width,
            height: crop_height,
        }
    }
}
