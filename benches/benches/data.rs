//! Decoding and augmentation, one thread, files in memory.
//!
//! `AIM_BENCH_DATA` names the images (SPEC, such as `wds:/tmp/photos/*.tar` from `benches/data/make_shards.py`); without
//! it, small pictures from the tests stand in, whose times say little about photographs. For CPU time of one core beside
//! other programs, see `benches/data/peers.py`.
#![allow(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;
use std::time::Duration;

use aim_data::augment::{AugmentKey, ColorJitter, Preprocessor, TrainTransform, Transform};
use aim_data::decode::{DecodeLimits, decode};
use aim_data::image::Image;
use aim_data::source::Payload;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Most images kept in memory.
const MOST: u64 = 128;

fn files() -> Vec<Vec<u8>> {
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/../aim-data/tests/fixtures/baseline");
    let spec = std::env::var("AIM_BENCH_DATA").unwrap_or_else(|_| format!("imagefolder:{tests}"));
    let source = aim_data::spec::open(&spec).expect("AIM_BENCH_DATA names images");
    (0..source.len().min(MOST))
        .filter_map(|index| match source.read(index, 0).ok()?.payload {
            Payload::Encoded(bytes) if bytes.starts_with(&[0xff, 0xd8]) => Some(bytes),
            _ => None,
        })
        .collect()
}

fn data(c: &mut Criterion) {
    let files = files();
    let limits = DecodeLimits::default();
    let mut group = c.benchmark_group("data");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    group.throughput(Throughput::Elements(files.len() as u64));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            for bytes in &files {
                black_box(decode(bytes, &limits).expect("a whole image"));
            }
        });
    });
    let jitter = ColorJitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 };
    let transforms = [
        ("train", Transform::train()),
        (
            "train_jitter",
            TrainTransform { color_jitter: jitter, ..TrainTransform::default() }.into(),
        ),
        ("probe_train", Transform::probe_train([0.485, 0.456, 0.406])),
        ("eval", Transform::eval()),
    ];
    for (name, transform) in transforms {
        let mut preprocessor = Preprocessor::new(transform, 224, 224).expect("a transform");
        let mut out = vec![0; preprocessor.output_len()];
        let key = |index: usize| AugmentKey { index: index as u64, ..AugmentKey::default() };
        group.bench_function(format!("{name}/file"), |bencher| {
            bencher.iter(|| {
                for (index, bytes) in files.iter().enumerate() {
                    preprocessor.decode(bytes, &limits, key(index)).expect("a whole image");
                    preprocessor.render(black_box(&mut out)).expect("an output of the right size");
                }
            });
        });
        let decoded = |bytes: &Vec<u8>| decode(bytes, &limits).expect("a whole image");
        let images: Vec<Image> = files.iter().map(decoded).collect();
        group.bench_function(format!("{name}/decoded"), |bencher| {
            bencher.iter(|| {
                for (index, image) in images.iter().enumerate() {
                    preprocessor.apply(image, key(index), black_box(&mut out)).expect("an output");
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, data);
criterion_main!(benches);
