//! The parsers of this crate as functions of bytes, for fuzzing. Not part of the interface.
//!
//! A function returns for any input; it must neither panic nor take more memory than the input and
//! its stated limits allow. `fuzz/` drives them with libFuzzer, `tests/mutations.rs` with the
//! standard library alone.

use std::io::Cursor;
use std::path::Path;

use crate::decode::{DecodeLimits, ImageFormat, decode};
use crate::source::ilsvrc::Classes;
use crate::source::mds::{Column, Encoding, Layout, image_payload, parse_index, read_table};
use crate::source::{Fields, idx, img2dataset, tar_index, tensors};

/// A parser and the name of its target.
pub type Target = (&'static str, fn(&[u8]));

/// All parsers.
pub const TARGETS: &[Target] = &[
    ("tar_index", tar),
    ("idx", idx_file),
    ("mds_index", mds_index),
    ("mds_shard", mds_shard),
    ("mat", mat),
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
