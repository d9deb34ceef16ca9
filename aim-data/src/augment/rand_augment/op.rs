//! The changes that RandAugment knows, and how strong each is at a magnitude.

use super::super::affine::{Affine, Filter, Interpolation};
use super::super::pixel_ops;
use crate::random::Rng;

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    Posterize,
    Solarize,
    SolarizeAdd,
    Color,
    Contrast,
    Brightness,
    Sharpness,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
}

/// A change with its strength.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Op {
    AutoContrast,
    Equalize,
    Invert,
    /// Degrees, counter-clockwise.
    Rotate(f64),
    /// Bits kept.
    Posterize(u8),
    /// Least value that is inverted, 0 to 256.
    Solarize(u16),
    /// What is added to values below 128.
    SolarizeAdd(u8),
    /// Factors: 1 is no change.
    Color(f32),
    Contrast(f32),
    Brightness(f32),
    Sharpness(f32),
    /// Columns for each row.
    ShearX(f64),
    /// Rows for each column.
    ShearY(f64),
    /// Shares of the width and of the height, to the left and upwards.
    TranslateX(f64),
    TranslateY(f64),
}

/// Working memory, kept between images.
pub(in super::super) type Scratch = Vec<u8>;

/// Magnitude at which the argument of a change reaches the end of its range.
const FULL: f64 = 10.0;

impl Kind {
    /// All, in timm's order.
    pub(super) const ALL: [Self; 15] = [
        Self::AutoContrast,
        Self::Equalize,
        Self::Invert,
        Self::Rotate,
        Self::Posterize,
        Self::Solarize,
        Self::SolarizeAdd,
        Self::Color,
        Self::Contrast,
        Self::Brightness,
        Self::Sharpness,
        Self::ShearX,
        Self::ShearY,
        Self::TranslateX,
        Self::TranslateY,
    ];

    /// Their shares in timm's set `weights`.
    pub(super) const WEIGHTS: [f64; 15] =
        [0.25, 0.05, 0.05, 3.0, 0.05, 0.05, 0.05, 0.25, 0.05, 0.05, 0.25, 2.0, 2.0, 1.0, 1.0];

    /// The change at a level from 0 to 10 (or more); `negative` turns those that can go both ways.
    pub(super) fn op(self, level: f64, increasing: bool, negative: bool) -> Op {
        let share = level / FULL;
        let signed = |value: f64| if negative { -value } else { value };
        let factor = || {
            if increasing {
                (1.0 + signed(share * 0.9)).max(0.1) as f32
            } else {
                (share * 1.8 + 0.1) as f32
            }
        };
        match self {
            Self::AutoContrast => Op::AutoContrast,
            Self::Equalize => Op::Equalize,
            Self::Invert => Op::Invert,
            Self::Rotate => Op::Rotate(signed(share * 30.0)),
            // Conversions truncate and saturate.
            Self::Posterize => {
                let bits = (share * 4.0) as u8;
                Op::Posterize(if increasing { 4u8.saturating_sub(bits) } else { bits })
            }
            Self::Solarize => {
                let threshold = ((share * 256.0) as u16).min(256);
                Op::Solarize(if increasing { 256 - threshold } else { threshold })
            }
            Self::SolarizeAdd => Op::SolarizeAdd(((share * 110.0) as u8).min(128)),
            Self::Color => Op::Color(factor()),
            Self::Contrast => Op::Contrast(factor()),
            Self::Brightness => Op::Brightness(factor()),
            Self::Sharpness => Op::Sharpness(factor()),
            Self::ShearX => Op::ShearX(signed(share * 0.3)),
            Self::ShearY => Op::ShearY(signed(share * 0.3)),
            Self::TranslateX => Op::TranslateX(signed(share * 0.45)),
            Self::TranslateY => Op::TranslateY(signed(share * 0.45)),
        }
    }
}

/// The filter for one change.
pub(super) fn filter(interpolation: Interpolation, rng: &mut Rng) -> Filter {
    match interpolation {
        Interpolation::Bilinear => Filter::Bilinear,
        Interpolation::Bicubic => Filter::Bicubic,
        Interpolation::Random if rng.unit() < 0.5 => Filter::Bilinear,
        Interpolation::Random => Filter::Bicubic,
    }
}

impl Op {
    /// Changes an RGB image `[height, width, 3]`.
    pub(super) fn apply(
        self,
        pixels: &mut [u8],
        width: usize,
        filter: Filter,
        fill: [u8; 3],
        scratch: &mut Scratch,
    ) {
        let height = pixels.len() / (3 * width.max(1));
        let matrix = match self {
            Self::Rotate(degrees) => Affine::rotation(degrees, width, height),
            Self::ShearX(factor) => Affine([1.0, factor, 0.0, 0.0, 1.0, 0.0]),
            Self::ShearY(factor) => Affine([1.0, 0.0, 0.0, factor, 1.0, 0.0]),
            Self::TranslateX(share) => Affine([1.0, 0.0, share * width as f64, 0.0, 1.0, 0.0]),
            Self::TranslateY(share) => Affine([1.0, 0.0, 0.0, 0.0, 1.0, share * height as f64]),
            Self::Sharpness(factor) => {
                return pixel_ops::sharpness(pixels, width, factor, scratch);
            }
            _ => return self.recolor(pixels.as_chunks_mut().0),
        };
        scratch.clear();
        scratch.extend_from_slice(pixels);
        matrix.apply(filter, scratch, width, fill, pixels);
    }

    /// The changes that look at no place.
    fn recolor(self, pixels: &mut [[u8; 3]]) {
        match self {
            Self::AutoContrast => pixel_ops::auto_contrast(pixels),
            Self::Equalize => pixel_ops::equalize(pixels),
            Self::Invert => pixel_ops::invert(pixels),
            Self::Posterize(bits) => pixel_ops::posterize(pixels, bits),
            Self::Solarize(threshold) => pixel_ops::solarize(pixels, threshold),
            Self::SolarizeAdd(add) => pixel_ops::solarize_add(pixels, add),
            Self::Color(factor) => pixel_ops::color(pixels, factor),
            Self::Contrast(factor) => pixel_ops::contrast(pixels, factor),
            Self::Brightness(factor) => pixel_ops::brightness(pixels, factor),
            // The rest is for `apply`.
            _ => {}
        }
    }
}
