//! Kinds of file that web-scale data hold, each with what becomes of it: decoded, left out with a
//! reason, or (for containers) an error that names the place.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use aim_data::check::check;
use aim_data::decode::{DecodeLimits, decode};
use aim_data::source::{ImageFolder, Source};
use aim_data::spec::open;
use aim_data::{DefectKind, ScanOptions};
use tempfile::tempdir;

use DefectKind::{Corrupt, Empty, TooLarge, Truncated, UnknownFormat};

const LIMITS: DecodeLimits = DecodeLimits { max_bytes: 1 << 20, max_pixels: 1 << 24 };

/// What must become of a file.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// Decoded to this width and height.
    Good(u32, u32),
    /// Left out, counted as this kind.
    Bad(DefectKind),
}
use Outcome::{Bad, Good};

fn fixture(name: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decode");
    fs::read(root.join(name)).unwrap()
}

/// A fixture with bytes replaced at a place.
fn with(name: &str, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = fixture(name);
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

fn cut(name: &str, len: usize) -> Vec<u8> {
    fixture(name)[..len].to_vec()
}

/// A fixture without its last bytes.
fn short(name: &str, by: usize) -> Vec<u8> {
    let file = fixture(name);
    cut(name, file.len() - by)
}

fn find(file: &[u8], pattern: &[u8]) -> usize {
    file.windows(pattern.len()).position(|window| window == pattern).unwrap()
}

/// A baseline JPEG with bytes replaced at an offset from its frame header.
fn jpeg_frame(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let at = find(&fixture("baseline.jpg"), &[0xff, 0xc0]);
    with("baseline.jpg", at + offset, bytes)
}

/// A TIFF of one gray pixel with the given entries (tag, type, value) in place of the usual ones.
fn tiff(changes: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut entries: BTreeMap<u16, (u16, u32)> = BTreeMap::new();
    for (tag, value) in
        [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1)]
    {
        entries.insert(tag, (4, value));
    }
    entries.extend(changes.iter().map(|&(tag, kind, value)| (tag, (kind, value))));
    // Four bytes of pixels at byte 8, the directory behind them.
    let mut file = b"II\x2a\0\x0c\0\0\0\x80\0\0\0".to_vec();
    file.extend_from_slice(&(entries.len() as u16).to_le_bytes());
    for (tag, (kind, value)) in entries {
        file.extend_from_slice(&tag.to_le_bytes());
        file.extend_from_slice(&kind.to_le_bytes());
        file.extend_from_slice(&1u32.to_le_bytes());
        file.extend_from_slice(&value.to_le_bytes());
    }
    file.extend_from_slice(&[0; 4]);
    file
}

type Case = (&'static str, Vec<u8>, Outcome);

/// Files that hold no image at all.
fn no_images() -> Vec<Case> {
    vec![
        ("nothing", Vec::new(), Bad(Empty)),
        ("one byte", vec![0xff], Bad(UnknownFormat)),
        ("zeros", vec![0; 4096], Bad(UnknownFormat)),
        ("an error page", b"<!DOCTYPE html><html>404".to_vec(), Bad(UnknownFormat)),
        ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(), Bad(UnknownFormat)),
        ("an error in JSON", b"{\"error\": \"gone\"}".to_vec(), Bad(UnknownFormat)),
        ("AVIF", b"\0\0\0\x20ftypavif\0\0\0\0".to_vec(), Bad(UnknownFormat)),
        ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0".to_vec(), Bad(UnknownFormat)),
        ("a video", b"\0\0\0\x20ftypisom\0\0\0\0".to_vec(), Bad(UnknownFormat)),
        ("JPEG XL", b"\xff\x0a\xfa\x1f\x01".to_vec(), Bad(UnknownFormat)),
        ("PDF", b"%PDF-1.7\n".to_vec(), Bad(UnknownFormat)),
        ("gzip", b"\x1f\x8b\x08\0\0\0\0\0".to_vec(), Bad(UnknownFormat)),
        ("a zip archive", b"PK\x03\x04\x14\0".to_vec(), Bad(UnknownFormat)),
        ("Photoshop", b"8BPS\0\x01".to_vec(), Bad(UnknownFormat)),
        ("BigTIFF", b"II\x2b\0\x08\0\0\0".to_vec(), Bad(UnknownFormat)),
        ("text that begins with BM", b"BMW, a maker of cars and more".to_vec(), Bad(UnknownFormat)),
    ]
}

/// Odd, but images.
fn images() -> Vec<Case> {
    let trailing = [fixture("baseline.jpg"), b"appended by a camera".to_vec()].concat();
    let with_exif_noise = {
        let mut file = fixture("rotated.jpg");
        let at = find(&file, b"Exif");
        file[at + 8..at + 16].fill(0xee);
        file
    };
    vec![
        ("PNG named jpg", fixture("rgba.png"), Good(26, 20)),
        ("WebP named jpg", fixture("lossy.webp"), Good(26, 20)),
        ("GIF named jpg", fixture("transparent.gif"), Good(26, 20)),
        ("BMP named jpg", fixture("rgb.bmp"), Good(26, 20)),
        ("TIFF named jpg", fixture("lzw.tif"), Good(26, 20)),
        ("animated GIF", fixture("animated.gif"), Good(26, 20)),
        ("CMYK JPEG", fixture("cmyk.jpg"), Good(26, 20)),
        ("YCCK JPEG", fixture("ycck.jpg"), Good(26, 20)),
        ("gray JPEG", fixture("gray.jpg"), Good(26, 20)),
        ("progressive JPEG", fixture("progressive.jpg"), Good(26, 20)),
        ("JPEG turned by EXIF", fixture("rotated.jpg"), Good(20, 26)),
        ("PNG turned by EXIF", fixture("turned.png"), Good(20, 26)),
        ("TIFF turned by its tag", fixture("turned.tif"), Good(20, 26)),
        ("JPEG with damaged EXIF", with_exif_noise, Good(26, 20)),
        ("JPEG with bytes after its end", trailing, Good(26, 20)),
        ("16-bit PNG", fixture("rgb16.png"), Good(26, 20)),
        ("PNG palette with transparency", fixture("palette_alpha.png"), Good(26, 20)),
        ("1-bit PNG", fixture("bits.png"), Good(26, 20)),
        ("BMP stored from the top", with("rgb.bmp", 22, &(-20i32).to_le_bytes()), Good(26, 20)),
        ("TIFF of one pixel", tiff(&[]), Good(1, 1)),
    ]
}

/// Damaged images.
fn damaged() -> Vec<Case> {
    let baseline = fixture("baseline.jpg");
    let tables = find(&baseline, &[0xff, 0xc4]);
    let idat = find(&fixture("rgba.png"), b"IDAT");
    let side = 60_000u32;
    let png_size = [side.to_be_bytes(), side.to_be_bytes()].concat();
    vec![
        ("JPEG: two bytes of it", cut("baseline.jpg", 3), Bad(Truncated)),
        ("JPEG cut in a header", cut("baseline.jpg", tables + 5), Bad(Truncated)),
        ("JPEG cut in its pixels", short("baseline.jpg", 40), Bad(Truncated)),
        ("JPEG without end marker", short("baseline.jpg", 2), Bad(Truncated)),
        ("progressive JPEG cut", short("progressive.jpg", 100), Bad(Truncated)),
        ("JPEG of no height", jpeg_frame(5, &[0, 0]), Bad(Corrupt)),
        ("JPEG of no width", jpeg_frame(7, &[0, 0]), Bad(Corrupt)),
        ("JPEG of 3.6 gigapixels", jpeg_frame(5, &[0xea, 0x60, 0xea, 0x60]), Bad(TooLarge)),
        ("12-bit JPEG", jpeg_frame(4, &[12]), Bad(Corrupt)),
        ("JPEG of two components", jpeg_frame(9, &[2]), Bad(Corrupt)),
        ("arithmetic JPEG", jpeg_frame(1, &[0xc9]), Bad(Corrupt)),
        ("lossless JPEG", jpeg_frame(1, &[0xc3]), Bad(Corrupt)),
        ("JPEG without its frame", jpeg_frame(1, &[0xfe]), Bad(Corrupt)),
        ("JPEG with damaged tables", with("baseline.jpg", tables + 5, &[255; 16]), Bad(Corrupt)),
        ("PNG: its signature", cut("rgba.png", 8), Bad(Truncated)),
        ("PNG cut", short("rgba.png", 60), Bad(Truncated)),
        ("PNG of 3.6 gigapixels", with("rgba.png", 16, &png_size), Bad(TooLarge)),
        ("PNG of no width", with("rgba.png", 16, &[0; 4]), Bad(Corrupt)),
        ("PNG without header", with("rgba.png", 12, b"tEXt"), Bad(Corrupt)),
        ("PNG of an unknown colour type", with("rgba.png", 25, &[5]), Bad(Corrupt)),
        ("PNG with a damaged byte", with("rgba.png", idat + 30, &[0x55, 0xaa]), Bad(Corrupt)),
        ("WebP: its signature", cut("lossy.webp", 12), Bad(Truncated)),
        ("WebP cut", short("lossy.webp", 20), Bad(Truncated)),
        ("WebP with an unknown chunk", with("lossy.webp", 12, b"XXXX"), Bad(Corrupt)),
        ("GIF: its signature", cut("animated.gif", 6), Bad(Truncated)),
        ("GIF cut in its first frame", cut("animated.gif", 80), Bad(Truncated)),
        ("GIF of 4 gigapixels", with("animated.gif", 6, &[0xff; 4]), Bad(TooLarge)),
        ("GIF of no width", with("animated.gif", 6, &[0; 2]), Bad(Corrupt)),
        ("BMP: its signature", cut("rgb.bmp", 2), Bad(Truncated)),
        ("BMP cut", short("rgb.bmp", 200), Bad(Truncated)),
        (
            "BMP of 3.6 gigapixels",
            with("rgb.bmp", 18, &[side.to_le_bytes(); 2].concat()),
            Bad(TooLarge),
        ),
        ("BMP of no width", with("rgb.bmp", 18, &[0; 4]), Bad(Corrupt)),
        ("BMP of 7 bits a pixel", with("rgb.bmp", 28, &[7]), Bad(Corrupt)),
        ("TIFF: its signature", cut("lzw.tif", 4), Bad(Truncated)),
        (
            "TIFF whose directory is past its end",
            with("lzw.tif", 4, &[0xff, 0xff, 0xff, 0]),
            Bad(Truncated),
        ),
        (
            "TIFF of 3.6 gigapixels",
            tiff(&[(256, 4, side), (257, 4, side), (278, 4, side)]),
            Bad(TooLarge),
        ),
        ("TIFF of no width", tiff(&[(256, 4, 0)]), Bad(Corrupt)),
        ("TIFF of unknown compression", tiff(&[(259, 4, 60_000)]), Bad(UnknownFormat)),
        ("TIFF of floats", tiff(&[(258, 4, 32), (339, 4, 3), (279, 4, 4)]), Bad(UnknownFormat)),
        ("TIFF whose pixels are past its end", tiff(&[(273, 4, 1 << 30)]), Bad(Truncated)),
    ]
}

fn all() -> Vec<Case> {
    [no_images(), images(), damaged()].concat()
}

#[test]
fn each_kind_of_file_has_its_outcome() {
    let cases = all();
    assert!(cases.len() >= 60, "{}", cases.len());
    let mut wrong = Vec::new();
    for (name, bytes, expected) in &cases {
        let found = decode(bytes, &LIMITS);
        let right = match (&found, expected) {
            (Ok(image), Good(width, height)) => {
                (image.width(), image.height()) == (*width, *height)
            }
            (Err(error), Bad(kind)) => error.kind == *kind && !error.reason.contains("panicked"),
            _ => false,
        };
        if !right {
            let found = found.map(|image| (image.width(), image.height()));
            wrong.push(format!("{name}: expected {expected:?}, found {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same files in a folder: one bad file never hides another, and each is named.
#[test]
fn a_folder_of_them_is_checked_to_the_end() {
    let dir = tempdir().unwrap();
    let cases = all();
    for (at, (_, bytes, _)) in cases.iter().enumerate() {
        fs::write(dir.path().join(format!("{at:03}.jpg")), bytes).unwrap();
    }
    // And two that only a folder can hold.
    let huge = fs::File::create(dir.path().join("huge.jpg")).unwrap();
    huge.set_len(1 << 40).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link.jpg")).unwrap();
    let source = ImageFolder::open(dir.path(), LIMITS).unwrap();
    let options = ScanOptions { workers: 2, limits: LIMITS };
    let report = check(&source, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let bad = cases.iter().filter(|case| matches!(case.2, Bad(_))).count() as u64 + 1;
    assert_eq!((report.samples, report.defects.len() as u64), (cases.len() as u64 + 1, bad));
    for defect in &report.defects {
        assert!(defect.location.ends_with(&format!("{}.jpg", defect.key)), "{defect}");
        assert!(!defect.reason.is_empty() && defect.reason.len() < 300, "{defect}");
    }
    #[cfg(unix)]
    assert!(source.notes()[0].contains("1 symbolic links"));
}

/// Writes a tar of these members, names unchecked.
fn tar_of(members: &[(u8, &str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, name, data) in members {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(data.len() as u64);
        header.set_entry_type(tar::EntryType::new(*kind));
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().div_ceil(512) * 512, 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// Containers that cannot be used: file name, content, and what the message must say beside the
/// file's name.
fn containers() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let image = fixture("baseline.jpg");
    let file = |name| (b'0', name, image.as_slice());
    let good = tar_of(&[file("a.jpg"), file("b.jpg")]);
    let mut flipped = good.clone();
    flipped[1] ^= 1;
    let mut cut = good.clone();
    cut.truncate(1500);
    let lie = {
        let mut bytes = tar_of(&[file("a.jpg")]);
        bytes[124..136].copy_from_slice(b"77777777777\0");
        bytes[148..156].fill(b' ');
        let sum: u32 = bytes[..512].iter().map(|&byte| u32::from(byte)).sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes
    };
    let idx = |count: u32| {
        let sizes = [count, 2, 2].map(u32::to_be_bytes).concat();
        [&[0, 0, 8, 3][..], &sizes, &[0; 8]].concat()
    };
    vec![
        ("empty.tar", Vec::new(), "truncated"),
        ("cut.tar", cut, "truncated"),
        ("flipped.tar", flipped, "checksum"),
        ("lie.tar", lie, "truncated"),
        ("gzipped.tar", gzip(&good), "uncompressed .tar"),
        ("page.tar", b"<html>404</html>".repeat(64), "not a valid tar header"),
        ("absolute.tar", tar_of(&[file("/etc/a.jpg")]), "absolute"),
        ("parent.tar", tar_of(&[file("../a.jpg")]), "`..`"),
        ("link.tar", tar_of(&[(b'2', "a.jpg", b"")]), "symbolic link"),
        ("device.tar", tar_of(&[(b'3', "a.jpg", b"")]), "character device"),
        ("twice.tar", tar_of(&[file("a.jpg"), file("a.jpg")]), "a second"),
        (
            "apart.tar",
            tar_of(&[file("a.jpg"), file("b.jpg"), (b'0', "a.cls", b"1")]),
            "not next to",
        ),
        ("two.tar", tar_of(&[file("a.jpg"), file("a.png")]), "two images"),
        ("label.tar", tar_of(&[file("a.jpg"), (b'0', "a.cls", b"cat")]), "class number"),
        ("text.tar", tar_of(&[(b'0', "a.txt", b"x")]), "none with an image"),
        ("short-idx3-ubyte", idx(3), "need 12 bytes"),
        ("long-idx3-ubyte", idx(1), "found more"),
        ("lie-idx3-ubyte", idx(u32::MAX), "need 17179869180 bytes, found 8"),
        ("cut-idx3-ubyte.gz", gzip(&idx(2))[..20].to_vec(), "byte"),
        ("cut.safetensors", b"\x10\0\0\0\0\0\0\0{}".to_vec(), "a header of 16 bytes"),
        ("page.safetensors", b"<html>404</html>".to_vec(), "not a safetensors file"),
    ]
}

#[test]
fn containers_that_cannot_be_used_are_errors_that_name_the_place() {
    let dir = tempdir().unwrap();
    for (name, bytes, what) in containers() {
        let path: PathBuf = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let Err(error) = open(path.to_str().unwrap()) else { panic!("{name} was opened") };
        let text = error.to_string();
        assert!(text.contains(name) && text.contains(what), "{name}: {text}");
    }
}

/// `BAD_FILES.md` lists all of them; `AIM_WRITE_TABLES=1 cargo test -p aim-data --test bad_files` writes it anew.
#[test]
fn the_table_lists_every_kind() {
    let mut table = String::from(
        "# Files that are not what they should be\n\n\
         What becomes of each kind, as `tests/bad_files.rs` makes and checks it. Nothing here ends a run by itself: \
         what is left out is\ncounted and named in `skipped.jsonl`, and only too large a share of it stops. Containers \
         are opened before a run starts.\n\n| file | outcome |\n|---|---|\n",
    );
    for (name, _, outcome) in all() {
        table += &match outcome {
            Good(width, height) => format!("| {name} | decoded, {width} x {height} |\n"),
            Bad(kind) => format!("| {name} | left out: {kind} |\n"),
        };
    }
    table += "\n| container | error that names it and says |\n|---|---|\n";
    for (name, _, what) in containers() {
        table += &format!("| `{name}` | {what} |\n");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("BAD_FILES.md");
    if std::env::var_os("AIM_WRITE_TABLES").is_some() {
        fs::write(&path, &table).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), table);
}
