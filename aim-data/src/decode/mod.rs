//! Image files to pixels, with limits on everything.
//!
//! The format is told by the first bytes, never by a file's name. Sizes are read from the header
//! and checked before anything is allocated, and a decoder that panics costs one sample.

mod baseline;
mod jpeg;
mod other;
mod part;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::DefectKind;
use crate::image::Image;

pub(crate) use part::Part;

/// Limits that hold for every image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Largest encoded image, in bytes.
    pub max_bytes: u64,
    /// Largest decoded image, in pixels.
    pub max_pixels: u64,
}

impl Default for DecodeLimits {
    /// 64 MiB encoded, 67 million pixels (8192 x 8192) decoded.
    fn default() -> Self {
        Self { max_bytes: 64 << 20, max_pixels: 1 << 26 }
    }
}

/// The supported formats, for messages.
pub(crate) const FORMATS: &str = "JPEG, PNG, WebP, GIF, BMP or TIFF";

/// Why an image could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {reason}")]
pub struct DecodeError {
    /// Kind of defect.
    pub kind: DefectKind,
    /// What was expected and what was found.
    pub reason: String,
}

impl DecodeError {
    fn new(kind: DefectKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }

    fn corrupt(reason: impl ToString) -> Self {
        Self::new(DefectKind::Corrupt, reason.to_string())
    }
}

/// Supported file formats.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ImageFormat {
    /// JPEG: baseline and progressive; gray, YCbCr, RGB, CMYK, YCCK.
    Jpeg,
    /// PNG: all colour types and bit depths.
    Png,
    /// WebP: lossy and lossless; the first frame of an animation.
    WebP,
    /// GIF: the first frame.
    Gif,
    /// BMP: 1 to 32 bits a pixel, run-length coded ones included.
    Bmp,
    /// TIFF: the first page; 8 or 16 bits a sample; gray, RGB, CMYK.
    Tiff,
}

impl ImageFormat {
    /// The format that the first bytes announce.
    #[must_use]
    pub fn detect(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            // Two letters are little to go by: the size of the second header must fit as well.
            [b'B', b'M', rest @ ..] if other::has_bmp_header(rest) => Some(Self::Bmp),
            [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Some(Self::Tiff),
            _ => None,
        }
    }

    /// The format's name, lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Gif => "gif",
            Self::Bmp => "bmp",
            Self::Tiff => "tiff",
        }
    }

    /// The usual file name extension.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Gif => "gif",
            Self::Bmp => "bmp",
            Self::Tiff => "tif",
        }
    }
}

/// Decodes an image file to 8 bits per channel, gray or RGB.
///
/// CMYK is converted as `(255 - C)(255 - K) / 255`, transparency is composed over white, 16-bit
/// samples are rounded to 8 bits, palettes are looked up, the first frame of an animation and the
/// first page of a TIFF are taken, and the EXIF orientation is applied (torchvision's `ImageFolder`
/// shows such images as stored). Colour profiles (ICC) are ignored.
///
/// # Errors
/// A [`DecodeError`] for anything that is not a whole image within the limits.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Image, DecodeError> {
    check_bytes(bytes, limits)?;
    let Some(format) = ImageFormat::detect(bytes) else {
        let reason = format!("expected {FORMATS}, found {}", describe(bytes));
        return Err(DecodeError::new(DefectKind::UnknownFormat, reason));
    };
    contained(format, || match format {
        ImageFormat::Jpeg => jpeg::decode(bytes, limits),
        ImageFormat::Png => other::decode_png(bytes, limits),
        ImageFormat::WebP => other::decode_webp(bytes, limits),
        ImageFormat::Gif => other::decode_gif(bytes, limits),
        ImageFormat::Bmp => other::decode_bmp(bytes, limits),
        ImageFormat::Tiff => other::decode_tiff(bytes, limits),
    })
}

/// Checks the size of a file.
fn check_bytes(bytes: &[u8], limits: &DecodeLimits) -> Result<(), DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::new(DefectKind::Empty, "0 bytes"));
    }
    if bytes.len() as u64 > limits.max_bytes {
        let reason = format!("{} bytes, at most {} are accepted", bytes.len(), limits.max_bytes);
        return Err(DecodeError::new(DefectKind::TooLarge, reason));
    }
    Ok(())
}

/// Runs a decoder; its panic becomes an error.
fn contained<T>(
    format: ImageFormat,
    run: impl FnOnce() -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    // The decoders are safe Rust, and what they leave in kept memory is overwritten before it is
    // read, so that a panic leaves nothing half-changed behind.
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(DecodeError::corrupt(format!("the {format:?} decoder panicked"))))
}

/// Checks a header's size against the limits.
fn check_size(width: u64, height: u64, limits: &DecodeLimits) -> Result<(), DecodeError> {
    if width == 0 || height == 0 {
        return Err(DecodeError::corrupt(format!("the header says {width} x {height} pixels")));
    }
    if width.saturating_mul(height) > limits.max_pixels {
        let most = limits.max_pixels;
        let reason = format!("{width} x {height} pixels, at most {most} pixels are accepted");
        return Err(DecodeError::new(DefectKind::TooLarge, reason));
    }
    Ok(())
}

/// What bytes of no supported format look like.
fn describe(bytes: &[u8]) -> String {
    let known = match bytes {
        [b'I', b'I', 43, 0, ..] | [b'M', b'M', 0, 43, ..] => "a BigTIFF",
        [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => "a JPEG XL file",
        [b'%', b'P', b'D', b'F', ..] => "a PDF",
        [0x1f, 0x8b, ..] => "gzip data",
        [b'P', b'K', 3, 4, ..] => "a zip archive",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "an AVIF, HEIC or video file",
        [b'<', ..] => "SVG, XML or HTML text",
        _ => "",
    };
    if known.is_empty() {
        let start = &bytes[..bytes.len().min(16)];
        format!("bytes beginning with `{}`", start.escape_ascii())
    } else {
        known.to_owned()
    }
}
