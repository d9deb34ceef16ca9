//! JPEG: by our own decoder where it applies, else by `zune-jpeg`.

use image::metadata::Orientation;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::baseline::{Area, Header};
use super::{DecodeError, DecodeLimits, check_size};
use crate::error::DefectKind;
use crate::image::Image;

/// Longest side the format can state.
const MAX_SIDE: usize = 65_535;

pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Image, DecodeError> {
    if !is_complete(bytes) {
        let reason = "the end-of-image marker is missing";
        return Err(DecodeError::new(DefectKind::Truncated, reason));
    }
    if let Some(image) = decode_baseline(bytes, limits)? {
        return Ok(image);
    }
    match decode_with(bytes, limits, true) {
        // Stray bytes between headers harm no pixel; every other strict complaint does.
        Err(error) if error.reason.contains("Extra bytes between headers") => {
            decode_with(bytes, limits, false)
        }
        result => result,
    }
}

/// Decodes a file of the usual kind; `None` for another, or a broken one.
fn decode_baseline(bytes: &[u8], limits: &DecodeLimits) -> Result<Option<Image>, DecodeError> {
    let Some(header) = Header::parse(bytes) else { return Ok(None) };
    let (width, height) = (header.width, header.height);
    check_size(width as u64, height as u64, limits)?;
    let mut pixels = Vec::new();
    if header.decode(Area { left: 0, top: 0, width, height }, &mut pixels).is_none() {
        return Ok(None);
    }
    let orientation = header.exif.and_then(Orientation::from_exif_chunk);
    oriented(width, height, 3, pixels, orientation).map(Some)
}

/// Whether an EXIF segment says that the image is stored turned or mirrored.
pub(super) fn is_turned(exif: Option<&[u8]>) -> bool {
    let orientation = exif.and_then(Orientation::from_exif_chunk);
    !matches!(orientation, None | Some(Orientation::NoTransforms))
}

/// Whether the image's end marker follows its last scan.
///
/// Scans hold no `FF` that is followed by these codes, so the last of start-of-scan and
/// end-of-image in the file tells; a thumbnail's end marker comes before the image's scan.
pub(super) fn is_complete(bytes: &[u8]) -> bool {
    let last = bytes.windows(2).rev().find(|pair| matches!(pair, [0xff, 0xd9 | 0xda]));
    last.is_some_and(|pair| pair[1] == 0xd9)
}

fn decode_with(bytes: &[u8], limits: &DecodeLimits, strict: bool) -> Result<Image, DecodeError> {
    let options = DecoderOptions::default()
        .set_strict_mode(strict)
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(DecodeError::corrupt)?;
    let (width, height) =
        decoder.dimensions().ok_or_else(|| DecodeError::corrupt("the header states no size"))?;
    check_size(width as u64, height as u64, limits)?;
    let gray = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let colorspace = if gray { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(options.jpeg_set_out_colorspace(colorspace));
    let pixels = decoder.decode().map_err(DecodeError::corrupt)?;
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    let channels = if gray { 1 } else { 3 };
    oriented(width, height, channels, pixels, orientation)
}

/// The upright image.
fn oriented(
    width: usize,
    height: usize,
    channels: usize,
    pixels: Vec<u8>,
    orientation: Option<Orientation>,
) -> Result<Image, DecodeError> {
    let (width, height, pixels) = match orientation {
        None | Some(Orientation::NoTransforms) => (width, height, pixels),
        Some(how) => orient(width, height, channels, &pixels, how),
    };
    Image::new(width as u32, height as u32, channels as u8, pixels)
        .ok_or_else(|| DecodeError::corrupt("the decoder gave another number of pixels"))
}

/// Applies an EXIF orientation; returns the new width, height and pixels.
fn orient(
    width: usize,
    height: usize,
    channels: usize,
    pixels: &[u8],
    how: Orientation,
) -> (usize, usize, Vec<u8>) {
    let (right, bottom) = (width - 1, height - 1);
    let swaps = matches!(
        how,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    );
    let (new_width, new_height) = if swaps { (height, width) } else { (width, height) };
    let mut out = Vec::with_capacity(pixels.len());
    for y in 0..new_height {
        for x in 0..new_width {
            // Where the pixel at (x, y) of the upright image is stored.
            let (from_x, from_y) = match how {
                Orientation::NoTransforms => (x, y),
                Orientation::FlipHorizontal => (right - x, y),
                Orientation::Rotate180 => (right - x, bottom - y),
                Orientation::FlipVertical => (x, bottom - y),
                Orientation::Rotate90FlipH => (y, x),
                Orientation::Rotate90 => (y, bottom - x),
                Orientation::Rotate270FlipH => (right - y, bottom - x),
                Orientation::Rotate270 => (right - y, x),
            };
            let at = (from_y * width + from_x) * channels;
            out.extend_from_slice(pixels.get(at..at + channels).unwrap_or_default());
        }
    }
    (new_width, new_height, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orientations_agree_with_the_image_crate() {
        let pixels: Vec<u8> = (0..3 * 2 * 3).collect();
        for exif in 1..=8 {
            let how = Orientation::from_exif(exif).unwrap();
            let buffer = image::RgbImage::from_raw(3, 2, pixels.clone()).unwrap();
            let mut expected = image::DynamicImage::from(buffer);
            expected.apply_orientation(how);
            let (width, height, found) = orient(3, 2, 3, &pixels, how);
            assert_eq!((width as u32, height as u32), (expected.width(), expected.height()));
            assert_eq!(found, expected.into_rgb8().into_raw(), "{exif}");
        }
    }

    #[test]
    fn completeness_is_told_by_the_last_marker() {
        assert!(is_complete(b"\xff\xd8\xff\xda..\xff\xd9"));
        assert!(is_complete(b"\xff\xd8\xff\xda..\xff\xd9trailing garbage"));
        // A thumbnail's end before a scan that never ends.
        assert!(!is_complete(b"\xff\xd8..\xff\xda.\xff\xd9..\xff\xda...."));
        assert!(!is_complete(b"\xff\xd8"));
    }
}
