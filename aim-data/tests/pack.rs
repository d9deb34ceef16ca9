//! Packing, checking and describing.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use aim_data::check::check;
use aim_data::decode::{DecodeLimits, decode};
use aim_data::pack::{PackOptions, encode_png, pack};
use aim_data::source::{IdxSource, ImageFolder, Payload, Source, SyntheticSource, WebDataset};
use aim_data::stats::stats;
use aim_data::{DefectKind, Error, Progress, ScanOptions};
use tempfile::tempdir;

fn stripes(n: u64) -> SyntheticSource {
    SyntheticSource::parse(&format!("stripes,n={n},size=9"), (1, 1)).unwrap()
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn packed_pixels_come_back_with_keys_and_labels() {
    let source = stripes(25);
    let options = PackOptions { samples_per_shard: 10, prefix: "val".into() };
    let (first, second) = (tempdir().unwrap(), tempdir().unwrap());
    let report = pack(&source, first.path(), &options, &mut go_on).unwrap();
    assert_eq!((report.samples, report.shards.len()), (25, 3));
    assert_eq!(names(first.path()), ["val-000000.tar", "val-000001.tar", "val-000002.tar"]);
    pack(&source, second.path(), &options, &mut go_on).unwrap();
    for name in names(first.path()) {
        let read = |dir: &Path| fs::read(dir.join(&name)).unwrap();
        assert_eq!(read(first.path()), read(second.path()), "{name}");
    }
    let packed = WebDataset::open(first.path().to_str().unwrap(), DecodeLimits::default()).unwrap();
    assert_eq!(packed.len(), 25);
    for index in 0..25 {
        assert_eq!(packed.key(index), source.key(index));
        let (a, b) = (packed.read(index, 0).unwrap(), source.read(index, 0).unwrap());
        assert_eq!(a.label, b.label);
        let Payload::Encoded(bytes) = a.payload else { panic!() };
        let Payload::Pixels(image) = b.payload else { panic!() };
        assert_eq!(decode(&bytes, &DecodeLimits::default()).unwrap(), image);
    }
}

#[test]
fn stored_files_are_packed_byte_for_byte_under_safe_keys() {
    let dir = tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decode");
    let class = dir.path().join("in/class.a");
    fs::create_dir_all(&class).unwrap();
    for (from, to) in
        [("baseline.jpg", "x.y.jpg"), ("rgba.png", "x_y.png"), ("lossy.webp", "w.jpeg")]
    {
        fs::copy(fixtures.join(from), class.join(to)).unwrap();
    }
    fs::write(class.join("z.jpg"), b"no image").unwrap();
    let source = ImageFolder::open(dir.path().join("in"), DecodeLimits::default()).unwrap();
    let out = dir.path().join("out");
    let report = pack(&source, &out, &PackOptions::default(), &mut go_on).unwrap();
    assert_eq!((report.samples, report.skipped.len()), (3, 1));
    assert_eq!(report.skipped[0].kind, DefectKind::UnknownFormat);
    let packed = WebDataset::open(out.to_str().unwrap(), DecodeLimits::default()).unwrap();
    let keys: Vec<String> = (0..3).map(|index| packed.key(index)).collect();
    assert_eq!(keys, ["class_a/w", "class_a/x_y", "class_a/x_y-2"]);
    for (index, name) in ["lossy.webp", "baseline.jpg", "rgba.png"].iter().enumerate() {
        let Payload::Encoded(bytes) = packed.read(index as u64, 0).unwrap().payload else {
            panic!()
        };
        assert_eq!(bytes, fs::read(fixtures.join(name)).unwrap());
    }
    assert_eq!(packed.num_classes(), Some(1));
}

#[test]
fn nothing_is_overwritten_and_nothing_half_written_stays() {
    let dir = tempdir().unwrap();
    let options = PackOptions { samples_per_shard: 4, ..PackOptions::default() };
    let mut stop_at_six = |progress: Progress| {
        if progress.done == 6 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stopped = pack(&stripes(20), dir.path(), &options, &mut stop_at_six);
    assert!(matches!(stopped, Err(Error::Cancelled { done: 6, total: 20 })));
    assert_eq!(names(dir.path()), ["train-000000.tar"]);
    let again = pack(&stripes(20), dir.path(), &options, &mut go_on);
    assert!(again.unwrap_err().to_string().contains("train-000000.tar"));
    for prefix in ["", "../x", "a/b", ".x"] {
        let options = PackOptions { prefix: prefix.into(), ..PackOptions::default() };
        assert!(pack(&stripes(2), dir.path(), &options, &mut go_on).is_err(), "{prefix}");
    }
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(matches!(pack(&stripes(2), &file, &options, &mut go_on), Err(Error::Io { .. })));
}

#[test]
fn check_lists_every_defect() {
    let dir = tempdir().unwrap();
    let Payload::Pixels(image) = stripes(1).read(0, 0).unwrap().payload else { panic!() };
    let png = encode_png(&image).unwrap();
    for number in 0..200 {
        let bytes: &[u8] = match number % 50 {
            7 => b"",
            8 => b"text",
            9 => &png[..40],
            _ => &png,
        };
        fs::write(dir.path().join(format!("{number:03}.png")), bytes).unwrap();
    }
    let source = ImageFolder::open(dir.path(), DecodeLimits::default()).unwrap();
    let mut calls = Vec::new();
    let options = ScanOptions { workers: 3, ..ScanOptions::default() };
    let report = check(&source, &options, &mut |progress| {
        calls.push(progress);
        ControlFlow::Continue(())
    });
    let report = report.unwrap();
    assert_eq!((report.samples, report.good, report.defects.len()), (200, 188, 12));
    assert_eq!(report.formats["png"], 188);
    let indices: Vec<u64> = report.defects.iter().map(|defect| defect.index).collect();
    let expected = [7, 8, 9].map(|first| [0, 50, 100, 150].map(|add| add + first));
    let mut expected = expected.concat();
    expected.sort_unstable();
    assert_eq!(indices, expected);
    assert_eq!(calls.last().unwrap(), &Progress { done: 200, total: 200 });
    let one = check(&source, &ScanOptions::default(), &mut go_on).unwrap();
    assert_eq!(one, report);
    let stopped = check(&source, &ScanOptions::default(), &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Cancelled { .. })));
    let described = stats(&source, &options, &mut go_on).unwrap();
    assert_eq!((described.samples, described.bad, described.unlabelled), (200, 12, 188));
    assert_eq!(described.width.unwrap().max, 9);
}

#[test]
fn fashion_mnist_has_the_mean_and_deviation_known_for_it() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/fashion-mnist");
    let source = IdxSource::open_split(&dir, "train").unwrap();
    let described = stats(&source, &ScanOptions::default(), &mut go_on).unwrap();
    // 0.2860 and 0.3530 for all 60,000.
    let (mean, std) = (described.mean.unwrap()[0], described.std.unwrap()[0]);
    assert!((mean - 0.2860).abs() < 0.005 && (std - 0.3530).abs() < 0.005, "{mean} {std}");
    assert_eq!(described.labels.len(), 10);
    let workers = ScanOptions { workers: 4, ..ScanOptions::default() };
    assert_eq!(stats(&source, &workers, &mut go_on).unwrap(), described);
}
