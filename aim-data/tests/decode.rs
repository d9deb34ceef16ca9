//! Decoding: every kind of file against Pillow, and every kind of damage.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use aim_data::DefectKind;
use aim_data::decode::{DecodeLimits, decode};
use aim_data::image::Image;
use proptest::prelude::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decode")
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).unwrap()
}

fn decoded(bytes: &[u8]) -> Image {
    decode(bytes, &DecodeLimits::default()).unwrap().into_rgb()
}

/// Mean and largest difference to the expected pixels.
fn difference(name: &str) -> (f64, u8) {
    let found = decoded(&read(name));
    let expected = decoded(&read(&format!("{name}.expected.png")));
    assert_eq!((found.width(), found.height()), (expected.width(), expected.height()), "{name}");
    let pairs = found.pixels().iter().zip(expected.pixels());
    let differences: Vec<u8> = pairs.map(|(a, b)| a.abs_diff(*b)).collect();
    let sum: f64 = differences.iter().map(|&d| f64::from(d)).sum();
    (sum / differences.len() as f64, *differences.iter().max().unwrap())
}

#[test]
fn lossless_files_decode_exactly() {
    for name in [
        "palette.png",
        "palette_alpha.png",
        "bits.png",
        "rgba.png",
        "gray_alpha.png",
        "rgb16.png",
        "gray16.png",
        "lossless.webp",
        "animated.gif",
        "transparent.gif",
        "rgb.bmp",
        "palette.bmp",
        "lzw.tif",
        "gray.tif",
        "gray16.tif",
        "turned.tif",
        "turned.png",
    ] {
        let (mean, largest) = difference(name);
        // Composing over white may round the other way.
        let tolerance = u8::from(name.contains("alpha") || name.contains("rgba"))
            | u8::from(name == "lossless.webp");
        assert!(largest <= tolerance, "{name}: mean {mean}, largest {largest}");
    }
}

#[test]
fn lossy_files_decode_as_pillow_does() {
    for name in [
        "baseline.jpg",
        "progressive.jpg",
        "gray.jpg",
        "cmyk.jpg",
        "ycck.jpg",
        "rotated.jpg",
        "lossy.webp",
    ] {
        let (mean, largest) = difference(name);
        assert!(mean < 1.0 && largest <= 5, "{name}: mean {mean}, largest {largest}");
    }
}

#[test]
fn gray_files_stay_gray() {
    for (name, channels) in [("gray.jpg", 1), ("gray16.png", 1), ("bits.png", 1), ("rgba.png", 3)] {
        let image = decode(&read(name), &DecodeLimits::default()).unwrap();
        assert_eq!(image.channels(), channels, "{name}");
    }
}

fn kind(bytes: &[u8], limits: &DecodeLimits) -> DefectKind {
    decode(bytes, limits).unwrap_err().kind
}

#[test]
fn a_header_of_3_6_gigapixels_is_refused_before_anything_is_allocated() {
    for (name, at) in [("rgba.png", 16), ("rgb16.png", 16)] {
        let mut bytes = read(name);
        bytes[at..at + 4].copy_from_slice(&60_000u32.to_be_bytes());
        bytes[at + 4..at + 8].copy_from_slice(&60_000u32.to_be_bytes());
        let error = decode(&bytes, &DecodeLimits::default()).unwrap_err();
        assert_eq!(error.kind, DefectKind::TooLarge);
        assert!(error.reason.contains("60000 x 60000"), "{}", error.reason);
    }
    let mut jpeg = read("baseline.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xea, 0x60, 0xea, 0x60]);
    assert_eq!(kind(&jpeg, &DecodeLimits::default()), DefectKind::TooLarge);
}

#[test]
fn limits_hold_for_every_format() {
    for name in ["baseline.jpg", "rgba.png", "lossy.webp", "animated.gif", "rgb.bmp", "lzw.tif"] {
        let bytes = read(name);
        let few_pixels = DecodeLimits { max_pixels: 26 * 20 - 1, ..DecodeLimits::default() };
        assert_eq!(kind(&bytes, &few_pixels), DefectKind::TooLarge, "{name}");
        let few_bytes = DecodeLimits { max_bytes: 100, ..DecodeLimits::default() };
        assert_eq!(kind(&bytes, &few_bytes), DefectKind::TooLarge, "{name}");
    }
}

#[test]
fn what_is_no_image_is_named() {
    let limits = DecodeLimits::default();
    assert_eq!(kind(b"", &limits), DefectKind::Empty);
    for (bytes, what) in [
        (&b"<html>404</html>"[..], "HTML"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x20ftypavif", "AVIF"),
        (b"hello", "`hello`"),
    ] {
        let error = decode(bytes, &limits).unwrap_err();
        assert_eq!(error.kind, DefectKind::UnknownFormat);
        assert!(error.reason.contains(what), "{}", error.reason);
    }
}

#[test]
fn truncated_files_are_errors_at_every_length() {
    for name in [
        "baseline.jpg",
        "progressive.jpg",
        "cmyk.jpg",
        "rgba.png",
        "lossy.webp",
        "transparent.gif",
        "rgb.bmp",
        "palette.bmp",
        "lzw.tif",
    ] {
        let bytes = read(name);
        // The last bytes carry no pixel: a PNG's empty end chunk, a GIF's last codes and trailer,
        // a BMP's padding, what follows the pixels in a TIFF.
        let end = bytes.len()
            - match name.rsplit('.').next() {
                Some("png") => 13,
                Some("gif") => 8,
                Some("bmp" | "tif") => 3,
                _ => 1,
            };
        for len in 1..end {
            assert!(
                decode(&bytes[..len], &DecodeLimits::default()).is_err(),
                "{name} cut to {len}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Damage is an error or other pixels, never a panic, a hang or a large allocation.
    #[test]
    fn damaged_files_never_panic(
        which in 0usize..10,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let names = [
            "baseline.jpg", "progressive.jpg", "ycck.jpg", "palette.png", "rgb16.png", "lossy.webp",
            "animated.gif", "palette.bmp", "lzw.tif", "turned.tif",
        ];
        let mut bytes = read(names[which]);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let limits = DecodeLimits { max_pixels: 1 << 20, ..DecodeLimits::default() };
        if let Err(error) = decode(&bytes, &limits) {
            prop_assert!(!error.reason.contains("panicked"), "{}", error);
        }
    }
}
