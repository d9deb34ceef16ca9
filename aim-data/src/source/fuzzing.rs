//! The parsers of this crate as functions of bytes, for fuzzing. Not part of the interface.
//!
//! A function returns for any input; it must neither panic nor take more memory than the input and
//! its stated limits allow. `fuzz/` drives them with libFuzzer, `tests/mutations.rs` with the
//! standard library alone.

use std::io::Cursor;
use std::path::Path;

use crate::decode::{DecodeLimits, ImageFormat, decode};
use crate::source::benchmark::parsers;
use crate::source::hdf5::Dataset;
use crate::source::ilsvrc::Classes;
use crate::source::mds::{Column, Encoding, Layout, image_payload, parse_index, read_table};
use crate::source::{Benchmark, Fields, idx, img2dataset, tar_index, tensors};

/// A parser and the name of its target.
pub type Target = (&'static str, fn(&[u8]));

/// All parsers.
pub const TARGETS: &[Target] = &[
    ("tar_index", tar),
    ("idx", idx_file),
    ("mds_index", mds_index),
    ("mds_shard", mds_shard),
    ("mat", mat),
    ("hdf5", hdf5_file),
    ("benchmark_lists", benchmark_lists),
    ("benchmark_tables", benchmark_tables),
    ("inat_json", inat_json),
    ("cifar", cifar),
    ("class_lists", class_lists),
    ("img2dataset_stats", stats),
    ("safetensors_header", safetensors),
    ("spec", spec),
    ("decode_jpeg", |bytes| image(bytes, ImageFormat::Jpeg)),
    ("decode_png", |bytes| image(bytes, ImageFormat::Png)),
    ("decode_webp", |bytes| image(bytes, ImageFormat::WebP)),
    ("decode_gif", |bytes| image(bytes, ImageFormat::Gif)),
    ("decode_bmp", |bytes| image(bytes, ImageFormat::Bmp)),
    ("decode_tiff", |bytes| image(bytes, ImageFormat::Tiff)),
];

const LIMITS: DecodeLimits = DecodeLimits { max_bytes: 1 << 20, max_pixels: 1 << 18 };

fn tar(bytes: &[u8]) {
    let index = |fields: &Fields| {
        let length = bytes.len() as u64;
        let index = tar_index::index_reader(Path::new("x.tar"), Cursor::new(bytes), length, fields);
        for sample in index.iter().flat_map(|index| &index.samples) {
            assert!(sample.offset + sample.size <= length, "{sample:?} of {length} bytes");
        }
    };
    index(&Fields::default());
    let chosen = Fields { image: vec!["seg.png".into(), "jpg".into()], ..Fields::default() };
    index(&chosen);
}

fn idx_file(bytes: &[u8]) {
    for dimensions in [1, 3] {
        let length = bytes.len() as u64;
        let _ = idx::parse_idx(Path::new("x"), Cursor::new(bytes), length, dimensions);
    }
}

fn mds_index(bytes: &[u8]) {
    for entry in parse_index(bytes).into_iter().flatten() {
        let inside = |part: &str| !matches!(part, "" | "..");
        assert!(entry.raw_name.split('/').all(inside), "{entry:?}");
        let _ = Layout::new(&entry.columns, &Fields::default());
    }
}

/// The first four bytes say which columns there are; the rest is a shard.
fn mds_shard(bytes: &[u8]) {
    let Some((kinds, shard)) = bytes.split_at_checked(4) else { return };
    let names = ["jpeg", "int", "str", "pil", "str_int", "uint8", "json", "other"];
    let columns = kinds.iter().enumerate().map(|(at, kind)| {
        let encoding = Encoding::parse(names[usize::from(kind % 8)]);
        let name = if at == 1 { "label".to_owned() } else { format!("c{at}") };
        Column { name, encoding, size: encoding.fixed_size() }
    });
    let fields = Fields { image: vec!["c0".into()], ..Fields::default() };
    let Ok(layout) = Layout::new(&columns.collect::<Vec<_>>(), &fields) else { return };
    let Ok(table) = read_table(shard, shard.len() as u64, 2) else { return };
    for pair in table.windows(2) {
        let label = layout.read_label(&shard, pair[0], pair[1]);
        let sample = &shard[pair[0] as usize..pair[1] as usize];
        if let Ok(slots) = layout.slots(sample) {
            let value = sample[slots[layout.image].clone()].to_vec();
            let _ = image_payload(layout.columns[layout.image].encoding, value, &LIMITS);
            if let (Some(column), Ok(Some(label))) = (layout.label, label) {
                assert_eq!(layout.label_value(sample, &slots, column), Ok(label));
            }
        }
    }
}

fn mat(bytes: &[u8]) {
    if let Ok(classes) = Classes::from_meta(bytes) {
        let sorted = classes.ids.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(sorted && classes.ids.len() == classes.words.len());
    }
    let _ = parsers::annotations(bytes);
    let _ = parsers::class_names(bytes);
}

fn hdf5_file(bytes: &[u8]) {
    let len = bytes.len() as u64;
    for name in ["x", "y"] {
        let Ok(array) = Dataset::open(&bytes, len, name) else { continue };
        let (rows, size) = (array.block_rows(), array.row_bytes());
        assert!(rows >= 1 && rows <= array.dims[0] && size >= 1);
        for block in [0, 1, (array.dims[0] - 1) / rows, u64::MAX] {
            if let Ok(read) = array.read_block(&bytes, len, block) {
                let expected = rows.min(array.dims[0] - block * rows) * size;
                assert_eq!(read.len() as u64, expected);
            }
        }
        if let Ok(values) = array.read_all(&bytes, len, 1 << 16) {
            assert_eq!(values.len() as u64, array.dims.iter().product::<u64>());
        }
    }
}

fn benchmark_lists(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let classes = ["apple_pie".to_owned(), "banded".to_owned()];
    let mut names = std::collections::BTreeMap::new();
    let mut paths = Vec::new();
    paths.extend(parsers::pets(&text, &mut names).unwrap_or_default());
    paths.extend(parsers::domainnet(&text, &mut names).unwrap_or_default());
    paths.extend(parsers::food101(&text, &classes).unwrap_or_default());
    let _ = parsers::dtd(&text);
    for (path, _) in paths {
        if parsers::safe_relative(&path).is_ok() {
            let joined = Path::new("root").join(&path);
            let inside = |part| !matches!(part, std::path::Component::ParentDir);
            assert!(joined.starts_with("root") && joined.components().all(inside), "{path}");
        }
    }
}

fn benchmark_tables(bytes: &[u8]) {
    for which in [Benchmark::IWildCam, Benchmark::Camelyon17, Benchmark::RxRx1] {
        for row in parsers::wilds(which, bytes).unwrap_or_default() {
            assert!(row.label < 1 << 20 && !row.split.is_empty(), "{row:?}");
        }
    }
    let _ = parsers::fmow(bytes);
}

fn inat_json(bytes: &[u8]) {
    if let Ok(parsed) = parsers::inat(bytes) {
        assert!(parsed.images.iter().all(|(_, label)| (*label as usize) < parsed.categories.len()));
    }
}

fn cifar(bytes: &[u8]) {
    for hundred in [false, true] {
        if let Ok(batch) = parsers::decode_pickle(bytes, hundred) {
            assert_eq!(batch.pixels.len(), batch.labels.len() * 3072);
        }
        let _ = parsers::records(bytes, 1 + usize::from(hundred), 10);
    }
}

fn class_lists(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(classes) = Classes::from_mapping(&text) {
        let _ = classes.solution(&text);
        let _ = classes.ground_truth(&text);
    }
}

fn stats(bytes: &[u8]) {
    if let Ok(rows) = img2dataset::parse_stats(bytes) {
        assert!(rows.successes <= rows.total);
    }
}

fn safetensors(bytes: &[u8]) {
    let _ = tensors::parse_header(bytes);
}

fn spec(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok((rest, _)) = Fields::split(&text) {
        let _ = crate::source::paths::split_list(rest);
        if rest.len() < 64 {
            let _ = crate::source::glob::expand_braces(rest);
        }
    }
}

/// Only files that announce this format: each decoder is a target of its own.
fn image(bytes: &[u8], format: ImageFormat) {
    if ImageFormat::detect(bytes) != Some(format) {
        return;
    }
    match decode(bytes, &LIMITS) {
        Ok(image) => {
            assert!(u64::from(image.width()) * u64::from(image.height()) <= LIMITS.max_pixels);
        }
        Err(error) => assert!(!error.reason.contains("panicked"), "{error}"),
    }
}
