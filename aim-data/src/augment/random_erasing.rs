//! [`RandomErasing`].

use crate::error::{Error, Result};
use crate::random::Rng;

/// What an erased box is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum EraseMode {
    /// The mean colour, which normalisation makes 0.
    Const,
    /// One random colour for the box.
    Rand,
    /// A random colour for each pixel.
    #[default]
    Pixel,
}

/// Boxes of an image replaced by noise, after everything else.
///
/// timm's definition (Zhong et al., 2017): with some probability, 1 to `max_count` boxes with an
/// area share uniform in `area` (divided by the count) and a height over width log-uniform in
/// `aspect`, each placed within the image, ten tries for a box that fits.
///
/// timm erases normalised images with normal numbers. Images leave the loader as bytes and are
/// normalised later, so here a value is `255 (mean + std z)` with `z` from N(0, 1), rounded and cut
/// off at 0 and 255. Normalised again it is `z`, except that it lies on the 256 levels that bytes
/// have, and that about 3 % of the values, those beyond the range of pixels (`z` below -2.12 or
/// above 2.25 in ImageNet's red), lie on its ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomErasing {
    /// Share of the images that lose something.
    pub probability: f64,
    /// Share of the image's area, lower and upper bound.
    pub area: (f64, f64),
    /// Height over width, lower and upper bound.
    pub aspect: (f64, f64),
    /// What the boxes are filled with.
    pub mode: EraseMode,
    /// Most boxes in an image.
    pub max_count: u32,
    /// Mean of each channel, on a scale of 0 to 1: that of the normalisation.
    pub mean: [f64; 3],
    /// Standard deviation of each channel, on a scale of 0 to 1.
    pub std: [f64; 3],
}

/// Tries to place a box.
const TRIES: usize = 10;
/// Most boxes in an image.
const MAX_COUNT: u32 = 64;

impl RandomErasing {
    /// timm's boxes: probability 0.25 (its recipes'), one box of 2 % to a third of the area, aspect
    /// 0.3 to 1 / 0.3, noise for each pixel; for images normalised with `mean` and `std`.
    #[must_use]
    pub fn new(mean: [f64; 3], std: [f64; 3]) -> Self {
        Self {
            probability: 0.25,
            area: (0.02, 1.0 / 3.0),
            aspect: (0.3, 1.0 / 0.3),
            mode: EraseMode::default(),
            max_count: 1,
            mean,
            std,
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        let Self { probability, area, aspect, mode: _, max_count, mean, std } = *self;
        let refuse = |what: String, expected: &str| {
            Err(Error::Config(format!("random erasing: {what}, expected {expected}")))
        };
        if !(0.0..=1.0).contains(&probability) {
            return refuse(format!("probability {probability}"), "0 to 1");
        }
        if !(0.0 < area.0 && area.0 <= area.1 && area.1 <= 1.0) {
            return refuse(format!("area {area:?}"), "0 < low <= high <= 1");
        }
        if !(0.01 <= aspect.0 && aspect.0 <= aspect.1 && aspect.1 <= 100.0) {
            return refuse(format!("aspect {aspect:?}"), "0.01 <= low <= high <= 100");
        }
        if !(1..=MAX_COUNT).contains(&max_count) {
            return refuse(format!("count {max_count}"), "1 to 64");
        }
        if !mean.iter().all(|mean| (0.0..=1.0).contains(mean)) {
            return refuse(format!("mean {mean:?}"), "0 to 1");
        }
        if !std.iter().all(|std| (0.0..=1.0).contains(std)) {
            return refuse(format!("standard deviation {std:?}"), "0 to 1");
        }
        Ok(())
    }

    /// Erases boxes of an RGB image `[height, width, 3]`.
    pub(super) fn apply(&self, pixels: &mut [u8], width: usize, rng: &mut Rng) {
        if rng.unit() >= self.probability {
            return;
        }
        let height = pixels.len() / (3 * width.max(1));
        let count = 1 + rng.below(self.max_count);
        for _ in 0..count {
            let place = self.place(width as u32, height as u32, count, rng);
            let Some([left, top, wide, high]) = place.map(|sides| sides.map(|side| side as usize))
            else {
                continue;
            };
            let color = self.color(rng);
            for row in pixels.chunks_exact_mut(3 * width).skip(top).take(high) {
                let (row, _) = row[3 * left..3 * (left + wide)].as_chunks_mut::<3>();
                match self.mode {
                    EraseMode::Pixel => row.iter_mut().for_each(|pixel| *pixel = self.color(rng)),
                    EraseMode::Const | EraseMode::Rand => row.fill(color),
                }
            }
        }
    }

    /// Left, top, width and height of a box.
    fn place(&self, width: u32, height: u32, count: u32, rng: &mut Rng) -> Option<[u32; 4]> {
        let (low, high) = (self.aspect.0.ln(), self.aspect.1.ln());
        for _ in 0..TRIES {
            let share = rng.uniform(self.area.0, self.area.1) / f64::from(count);
            let area = share * f64::from(width) * f64::from(height);
            let aspect = rng.uniform(low, high).exp();
            let box_height = (area * aspect).sqrt().round_ties_even() as u32;
            let box_width = (area / aspect).sqrt().round_ties_even() as u32;
            if box_width < width && box_height < height {
                let top = rng.below(height - box_height + 1);
                let left = rng.below(width - box_width + 1);
                return Some([left, top, box_width, box_height]);
            }
        }
        None
    }

    /// A colour: the mean, or random about it.
    fn color(&self, rng: &mut Rng) -> [u8; 3] {
        std::array::from_fn(|channel| {
            let noise = if self.mode == EraseMode::Const { 0.0 } else { rng.normal() };
            // Conversion saturates.
            (255.0 * (self.mean[channel] + self.std[channel] * noise)).round() as u8
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{AugmentKey, Purpose};

    const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
    const STD: [f64; 3] = [0.229, 0.224, 0.225];

    fn rng(index: u64) -> Rng {
        Rng::new(Purpose::Erase, AugmentKey { index, ..AugmentKey::default() })
    }

    /// Boxes are found by their colour, which the image has not.
    #[test]
    fn one_image_in_four_loses_a_box_of_the_right_size() {
        let erasing = RandomErasing { mode: EraseMode::Const, ..RandomErasing::new(MEAN, STD) };
        let fill = [124, 116, 104];
        let (mut hit, mut total) = (0, 0.0);
        for index in 0..4000 {
            let mut pixels = vec![0; 40 * 30 * 3];
            erasing.apply(&mut pixels, 40, &mut rng(index));
            let (pixels, _) = pixels.as_chunks::<3>();
            let erased: Vec<usize> = (0..1200).filter(|&at| pixels[at] == fill).collect();
            assert!(pixels.iter().all(|pixel| *pixel == fill || *pixel == [0; 3]));
            let Some(&first) = erased.first() else { continue };
            // A solid box, neither as wide nor as high as the image.
            let wide = erased.iter().take_while(|&&at| at / 40 == first / 40).count();
            let high = erased.len() / wide;
            assert!(wide < 40 && high < 30);
            for (number, &at) in erased.iter().enumerate() {
                assert_eq!(at, first + number / wide * 40 + number % wide);
            }
            let share = erased.len() as f64 / 1200.0;
            assert!((0.01..0.36).contains(&share), "{share}");
            hit += 1;
            total += share;
        }
        assert!((880..1120).contains(&hit), "{hit}");
        // Uniform in [0.02, 1/3], a little less because some large boxes do not fit.
        let mean = total / f64::from(hit);
        assert!((0.15..0.18).contains(&mean), "{mean}");
    }

    #[test]
    fn noise_has_the_mean_and_deviation_of_the_normalisation() {
        let sure = RandomErasing { probability: 1.0, ..RandomErasing::new(MEAN, STD) };
        let mut sums = [[0.0; 3]; 3];
        for index in 0..40 {
            let mut pixels = vec![1; 64 * 64 * 3];
            sure.apply(&mut pixels, 64, &mut rng(index));
            // Left as it was: exactly [1, 1, 1].
            for pixel in pixels.as_chunks::<3>().0.iter().filter(|pixel| **pixel != [1; 3]) {
                for (channel, sums) in sums.iter_mut().enumerate() {
                    let value = f64::from(pixel[channel]) / 255.0;
                    let z = (value - MEAN[channel]) / STD[channel];
                    sums[0] += 1.0;
                    sums[1] += z;
                    sums[2] += z * z;
                }
            }
        }
        for [count, sum, squares] in sums {
            assert!(count > 20_000.0);
            let mean = sum / count;
            let deviation = (squares / count - mean * mean).sqrt();
            // Cutting off both ends takes about 1.5 % from the deviation.
            assert!(mean.abs() < 0.02 && (0.96..1.0).contains(&deviation), "{mean} {deviation}");
        }
    }

    #[test]
    fn a_box_has_one_color_in_the_mode_for_that_and_several_boxes_are_smaller() {
        let rand = RandomErasing {
            probability: 1.0,
            mode: EraseMode::Rand,
            max_count: 3,
            ..RandomErasing::new(MEAN, STD)
        };
        let mut most = 0;
        for index in 0..200 {
            let mut pixels = vec![1; 32 * 32 * 3];
            rand.apply(&mut pixels, 32, &mut rng(index));
            let mut colors = pixels.as_chunks::<3>().0.to_vec();
            colors.sort_unstable();
            colors.dedup();
            assert!((2..=4).contains(&colors.len()), "{}", colors.len());
            most = most.max(colors.len());
        }
        assert_eq!(most, 4);
    }

    #[test]
    fn any_size_goes_and_nonsense_is_refused() {
        let sure = RandomErasing { probability: 1.0, ..RandomErasing::new(MEAN, STD) };
        for (width, height) in [(1, 1), (1, 9), (9, 1), (2, 2), (3, 200)] {
            for index in 0..50 {
                sure.apply(&mut vec![0; width * height * 3], width, &mut rng(index));
            }
        }
        assert!(sure.validate().is_ok());
        for bad in [
            RandomErasing { probability: 1.5, ..sure },
            RandomErasing { area: (0.0, 0.5), ..sure },
            RandomErasing { area: (0.5, 0.2), ..sure },
            RandomErasing { aspect: (f64::NAN, 1.0), ..sure },
            RandomErasing { max_count: 0, ..sure },
            RandomErasing { mean: [124.0, 116.0, 104.0], ..sure },
            RandomErasing { std: [f64::NAN; 3], ..sure },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
