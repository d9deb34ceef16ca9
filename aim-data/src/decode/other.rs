//! PNG, WebP, GIF, BMP and TIFF, by the `image` crate.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::tiff::TiffDecoder;
use image::codecs::webp::WebPDecoder;
use image::error::ImageError;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, GrayImage, ImageDecoder, Limits, RgbImage};

use super::{DecodeError, DecodeLimits, check_size};
use crate::error::DefectKind;
use crate::image::Image;

pub(super) fn decode_png(bytes: &[u8], limits: &DecodeLimits) -> Result<Image, DecodeError> {
    // The size stands at a fixed place of the first chunk, so that it can be checked before the
    // decoder sees the file.
    let field = |at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        Some(bytes.iter().fold(0u64, |value, &byte| value << 8 | u64::from(byte)))
    };
    match (bytes.get(12..16), field(16), field(20)) {
        (Some(b"IHDR"), Some(width), Some(height)) => check_size(width, height, limits)?,
        (Some(b"IHDR"), ..) | (None, ..) => {
            return Err(DecodeError::new(DefectKind::Truncated, "the header is cut short"));
        }
        _ => return Err(DecodeError::corrupt("the first chunk is not IHDR")),
    }
    let decoder = PngDecoder::with_limits(Cursor::new(bytes), decoder_limits(limits));
    pixels(decoder.map_err(image_error)?, limits)
}

pub(super) fn decode_webp(bytes: &[u8], limits: &DecodeLimits) -> Result<Image, DecodeError> {
    // The container states its own length; a shorter file would decode to a partial image.
    let stated = bytes.get(4..8).and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)));
    let stated = stated.map_or(0, |size| u64::from(size) + 8);
    if (bytes.len() as u64) < stated {
        let reason = format!("the header states {stated} bytes, there are {}", bytes.len());
        return Err(DecodeError::new(DefectKind::Truncated, reason));
    }
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(image_error)?;
    let (width, height) = decoder.dimensions();
    check_size(u64::from(width), u64::from(height), limits)?;
    decoder.set_limits(decoder_limits(limits)).map_err(image_error)?;
    pixels(decoder, limits)
}

pub(super) fn decode_gif(bytes: &[u8], limits: &DecodeLimits) -> Result<Image, DecodeError> {
    // The canvas is allocated with the first frame: its size is checked before.
    let field =
        |at: usize| Some(u64::from(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])));
    match (field(6), field(8)) {
        (Some(width), Some(height)) => check_size(width, height, limits)?,
        _ => return Err(DecodeError::new(DefectKind::Truncated, "the header is cut short")),
    }
    let mut decoder = GifDecoder::new(Cursor::new(bytes)).map_err(image_error)?;
    decoder.set_limits(decoder_limits(limits)).map_err(image_error)?;
    pixels(decoder, limits)
}

/// Whether what follows `BM` holds a header of one of the sizes there are.
pub(super) fn has_bmp_header(rest: &[u8]) -> bool {
    let size = rest.get(12..16).and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)));
    size.is_none_or(|size| matches!(size, 12 | 16 | 40 | 52 | 56 | 64 | 108 | 124))
}

pub(super) fn decode_bmp(bytes: &[u8], limits: &DecodeLimits) -> Result<Image, DecodeError> {
    // Sides are signed: a negative height means that rows are stored from the top. The oldest header
    // has 16 bits for each and is left to the decoder.
    let side = |at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u64::from(i32::from_le_bytes(bytes.try_into().ok()?).unsigned_abs()))
    };
    if let (Some(40..), Some(width), Some(height)) = (side(14), side(18), side(22)) {
        check_size(width, height, limits)?;
    }
    let mut decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(image_error)?;
    let (width, height) = decoder.dimensions();
    check_size(u64::from(width), u64::from(height), limits)?;
    decoder.set_limits(decoder_limits(limits)).map_err(image_error)?;
    pixels(decoder, limits)
}

pub(super) fn decode_tiff(bytes: &[u8], limits: &DecodeLimits) -> Result<Image, DecodeError> {
    let mut decoder = TiffDecoder::new(Cursor::new(bytes)).map_err(image_error)?;
    let (width, height) = decoder.dimensions();
    check_size(u64::from(width), u64::from(height), limits)?;
    decoder.set_limits(decoder_limits(limits)).map_err(image_error)?;
    pixels(decoder, limits)
}

/// Limits for the decoder itself: what eight bytes a pixel need, plus room for its tables.
fn decoder_limits(limits: &DecodeLimits) -> Limits {
    let mut inner = Limits::no_limits();
    inner.max_alloc = Some(limits.max_pixels.saturating_mul(8).saturating_add(64 << 20));
    inner
}

fn image_error(error: ImageError) -> DecodeError {
    let kind = match &error {
        ImageError::Limits(_) => DefectKind::TooLarge,
        ImageError::Unsupported(_) => DefectKind::UnknownFormat,
        ImageError::IoError(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            DefectKind::Truncated
        }
        error if error.to_string().to_lowercase().contains("unexpected end") => {
            DefectKind::Truncated
        }
        _ => DefectKind::Corrupt,
    };
    DecodeError::new(kind, error.to_string())
}

/// Decodes and converts to gray or RGB bytes.
fn pixels(mut decoder: impl ImageDecoder, limits: &DecodeLimits) -> Result<Image, DecodeError> {
    let (width, height) = decoder.dimensions();
    check_size(u64::from(width), u64::from(height), limits)?;
    let color = decoder.color_type();
    // A damaged EXIF block harms no pixel.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let bytes = u64::from(width) * u64::from(height) * u64::from(color.bytes_per_pixel());
    let mut raw = vec![0; bytes as usize];
    decoder.read_image(&mut raw).map_err(image_error)?;
    let (channels, has_alpha) = match color {
        ColorType::L8 | ColorType::L16 => (1, false),
        ColorType::La8 | ColorType::La16 => (1, true),
        ColorType::Rgb8 | ColorType::Rgb16 => (3, false),
        ColorType::Rgba8 | ColorType::Rgba16 => (3, true),
        other => {
            let reason = format!("expected 8 or 16 bits a sample, found colour type {other:?}");
            return Err(DecodeError::new(DefectKind::UnknownFormat, reason));
        }
    };
    let samples = channels + usize::from(has_alpha);
    if usize::from(color.bytes_per_pixel()) == 2 * samples {
        raw = raw
            .chunks_exact(2)
            .map(|pair| narrow(u16::from_ne_bytes([pair[0], pair[1]])))
            .collect();
    }
    if has_alpha {
        raw = over_white(&raw, channels);
    }
    let (width, height, raw) = match orientation {
        Orientation::NoTransforms => (width, height, raw),
        how => orient(width, height, channels, raw, how),
    };
    Image::new(width, height, channels as u8, raw)
        .ok_or_else(|| DecodeError::corrupt("the decoder gave another number of pixels"))
}

/// Turns an image as its EXIF block says; returns the new width, height and pixels.
fn orient(
    width: u32,
    height: u32,
    channels: usize,
    raw: Vec<u8>,
    how: Orientation,
) -> (u32, u32, Vec<u8>) {
    let image = if channels == 1 {
        GrayImage::from_raw(width, height, raw).map(DynamicImage::from)
    } else {
        RgbImage::from_raw(width, height, raw).map(DynamicImage::from)
    };
    // Never none: the buffer was made for this size. An empty one is refused by the caller.
    let mut image = image.unwrap_or_default();
    image.apply_orientation(how);
    (image.width(), image.height(), image.into_bytes())
}

/// 16 bits to 8, rounded to nearest: `value * 255 / 65535`.
fn narrow(value: u16) -> u8 {
    ((u32::from(value) + 128) / 257) as u8
}

/// Composes `channels` colour samples and an alpha over white, rounded to nearest.
fn over_white(pixels: &[u8], channels: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(pixels.len() / (channels + 1) * channels);
    for pixel in pixels.chunks_exact(channels + 1) {
        let alpha = u32::from(pixel[channels]);
        for &value in &pixel[..channels] {
            out.push(((u32::from(value) * alpha + 255 * (255 - alpha) + 127) / 255) as u8);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrowing_and_compositing_round_to_nearest() {
        for value in 0..=u16::MAX {
            let exact = f64::from(value) * 255.0 / 65535.0;
            assert!((f64::from(narrow(value)) - exact).abs() <= 0.5);
        }
        assert_eq!(over_white(&[10, 20, 30, 0, 10, 20, 30, 255], 3), [255, 255, 255, 10, 20, 30]);
        assert_eq!(over_white(&[0, 128], 1), [127]);
    }
}
