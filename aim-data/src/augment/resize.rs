//! Resampling, and the evaluation transform [`ResizeCenterCrop`].

use super::CropBox;
use super::resample::{Resampler, Span};
use crate::error::{Error, Result};
use crate::image::View;

/// Resize so that the centre crop of the output's size is `crop_ratio` of the resized image's
/// shorter side, then crop it: 224 pixels are cut from 256 with the usual 0.875.
///
/// An image that has the output's size already is taken as it is, so that small images (28 x 28,
/// 32 x 32) are validated on whole and unchanged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResizeCenterCrop {
    /// Output side over resized side, above 0 and at most 1.
    pub crop_ratio: f64,
}

impl Default for ResizeCenterCrop {
    fn default() -> Self {
        Self { crop_ratio: 0.875 }
    }
}

impl ResizeCenterCrop {
    pub(super) fn validate(&self) -> Result<()> {
        if self.crop_ratio >= 0.1 && self.crop_ratio <= 1.0 {
            return Ok(());
        }
        Err(Error::Config(format!("crop ratio {}: expected 0.1 to 1", self.crop_ratio)))
    }

    /// What to resample for an output of `out_height` x `out_width`.
    pub(super) fn region(
        &self,
        width: u32,
        height: u32,
        out_height: u32,
        out_width: u32,
    ) -> Region {
        if (width, height) == (out_width, out_height) {
            return Region::Crop(CropBox { left: 0, top: 0, width, height });
        }
        let enlarged = |side: u32| (f64::from(side) / self.crop_ratio).ceil() as u64;
        let (need_width, need_height) = (enlarged(out_width), enlarged(out_height));
        let (wide, high) = (u64::from(width), u64::from(height));
        // The side that needs the larger factor gets its size exactly, the other one is cut down
        // to whole pixels as torchvision's Resize does.
        let (resized_width, resized_height) = if need_width * high >= need_height * wide {
            (need_width, (need_width * high / wide).max(need_height))
        } else {
            ((need_height * wide / high).max(need_width), need_height)
        };
        // CenterCrop takes halves to the even neighbour, as Python's round.
        let margin =
            |resized: u64, out: u32| ((resized - u64::from(out)) as f64 / 2.0).round_ties_even();
        let scale_x = f64::from(width) / resized_width as f64;
        let scale_y = f64::from(height) / resized_height as f64;
        let span = |resized, out, scale| Span {
            start: margin(resized, out) * scale,
            length: f64::from(out) * scale,
        };
        Region::Window {
            x: span(resized_width, out_width, scale_x),
            y: span(resized_height, out_height, scale_y),
        }
    }
}

/// What part of an image becomes the output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Region {
    /// A box of whole pixels, cut out before resampling.
    Crop(CropBox),
    /// A window on the whole image: pixels around it take part in filtering at its edges. It gives
    /// what resizing the whole image and then cropping gives, without computing what is cut off.
    Window { x: Span, y: Span },
}

impl Region {
    /// The pixels that resampling to `width` x `height` reads, of an image of `whole` pixels.
    pub(crate) fn needs(&self, whole: (u32, u32), width: u32, height: u32) -> CropBox {
        let (x, y) = match *self {
            Self::Crop(part) => return part,
            Self::Window { x, y } => (x, y),
        };
        let ((left, width), (top, height)) =
            (x.reach(whole.0, width as usize), y.reach(whole.1, height as usize));
        CropBox { left, top, width, height }
    }
}

/// Resamples regions of images, keeping its working memory between them.
pub(crate) struct Resizer(Resampler);

impl Resizer {
    pub(crate) fn new() -> Self {
        Self(Resampler::new())
    }

    /// One that uses no instructions beyond the build's baseline in its main loop.
    #[cfg(test)]
    pub(crate) fn without_vectors() -> Self {
        Self(Resampler::without_vectors())
    }

    /// Resamples a region to `width` x `height` pixels of the image's channels. `out` has room for
    /// exactly that, and the region lies inside the image.
    pub(crate) fn resize(
        &mut self,
        image: View<'_>,
        region: &Region,
        width: u32,
        height: u32,
        out: &mut [u8],
    ) {
        let (whole_width, whole_height) = image.whole;
        let whole = CropBox { left: 0, top: 0, width: whole_width, height: whole_height };
        let (part, spans) = match *region {
            Region::Crop(part) => {
                if part == whole && (part.width, part.height) == (width, height) {
                    out.copy_from_slice(image.pixels);
                    return;
                }
                let span = |length| Span { start: 0.0, length: f64::from(length) };
                (part, (span(part.width), span(part.height)))
            }
            Region::Window { x, y } => (whole, (x, y)),
        };
        self.0.run(image, part, spans, (width as usize, height as usize), out);
    }
}
