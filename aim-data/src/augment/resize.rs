//! Resampling, and the evaluation transform [`ResizeCenterCrop`].

use fast_image_resize as fir;
use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions};

use super::CropBox;
use crate::error::{Error, Result};
use crate::image::Image;

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
        Region::Window {
            left: margin(resized_width, out_width) * scale_x,
            top: margin(resized_height, out_height) * scale_y,
            width: f64::from(out_width) * scale_x,
            height: f64::from(out_height) * scale_y,
            scale_y,
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
    Window {
        left: f64,
        top: f64,
        width: f64,
        height: f64,
        /// Source pixels per output pixel, down the columns.
        scale_y: f64,
    },
}

/// The antialiased bicubic filter (a = -1/2) of PIL, along rows first and columns second as there.
///
/// The two passes are two calls on purpose. In one call, `fast_image_resize` 6.1 filters columns
/// first, which rounds differently from PIL, and it takes the first output's first weight for the
/// leftmost of all, which it is not where that weight vanished: an overflow in debug builds, a read
/// outside the image in release builds. A call that filters one direction has no such offset.
pub(crate) struct Resizer {
    inner: fir::Resizer,
    options: ResizeOptions,
    rows: Vec<u8>,
}

/// Reach of the filter in source pixels when enlarging.
const SUPPORT: f64 = 2.0;

impl Resizer {
    pub(crate) fn new() -> Self {
        let filter = ResizeAlg::Convolution(FilterType::CatmullRom);
        let options = ResizeOptions::new().resize_alg(filter).use_alpha(false);
        Self { inner: fir::Resizer::new(), options, rows: Vec::new() }
    }

    /// Resamples a region to `width` x `height` pixels of the image's channels.
    pub(crate) fn resize(
        &mut self,
        image: &Image,
        region: &Region,
        width: u32,
        height: u32,
        out: &mut [u8],
    ) -> Result<()> {
        let whole = CropBox { left: 0, top: 0, width: image.width(), height: image.height() };
        if *region == Region::Crop(whole) && (whole.width, whole.height) == (width, height) {
            out.copy_from_slice(image.pixels());
            return Ok(());
        }
        // Two typed calls and not one on `dyn` pixels, which would compile fifteen kinds of them.
        let done = if image.channels() == 3 {
            self.resample::<U8x3>(image, region, width, height, out)
        } else {
            self.resample::<U8>(image, region, width, height, out)
        };
        done.map_err(|reason| {
            Error::Config(format!("cannot take {region:?} of {whole:?}: {reason}"))
        })
    }

    fn resample<P: PixelTrait>(
        &mut self,
        image: &Image,
        region: &Region,
        width: u32,
        height: u32,
        out: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error>> {
        let (part, window) = parts(image, region);
        let source =
            TypedImageRef::<P>::from_buffer(image.width(), image.height(), image.pixels())?;
        let source = TypedCroppedImage::new(source, part.left, part.top, part.width, part.height)?;
        let row = width as usize * usize::from(image.channels());
        self.rows.resize(part.height as usize * row, 0);

        let rows_len = f64::from(part.height);
        let across = self.options.crop(window.left, 0.0, window.width, rows_len);
        let mut rows = TypedImage::<P>::from_buffer(width, part.height, &mut self.rows)?;
        self.inner.resize_typed(&source, &mut rows, &across)?;

        let rows = TypedImageRef::<P>::from_buffer(width, part.height, &self.rows)?;
        let down = self.options.crop(0.0, window.top, f64::from(width), window.height);
        let mut target = TypedImage::<P>::from_buffer(width, height, out)?;
        self.inner.resize_typed(&rows, &mut target, &down)?;
        Ok(())
    }
}

/// A place within a part of an image, in that part's own pixels.
struct Window {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

/// The part of the image that takes part in filtering, and the region within it.
fn parts(image: &Image, region: &Region) -> (CropBox, Window) {
    match *region {
        Region::Crop(part) => {
            let (width, height) = (f64::from(part.width), f64::from(part.height));
            (part, Window { left: 0.0, top: 0.0, width, height })
        }
        Region::Window { left, top, width, height, scale_y } => {
            let (image_width, image_height) = (image.width(), image.height());
            // Rows that the filter reaches from the window, and one more against rounding.
            let reach = SUPPORT * scale_y.max(1.0) + 1.0;
            let first = (top - reach).floor().max(0.0);
            let last = (top + height + reach).ceil().min(f64::from(image_height));
            let rows = ((last - first) as u32).max(1);
            let part = CropBox { left: 0, top: first as u32, width: image_width, height: rows };
            let top = top - first;
            let width = clip(left, width, f64::from(image_width));
            let height = clip(top, height, f64::from(rows));
            (part, Window { left, top, width, height })
        }
    }
}

/// `length`, cut so that rounding does not carry `start + length` past `end`.
fn clip(start: f64, length: f64, end: f64) -> f64 {
    let length = length.min(end - start);
    if start + length > end { length - end * f64::EPSILON } else { length }
}
