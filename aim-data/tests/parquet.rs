//! Parquet files as Hugging Face's `datasets` and img2dataset write them (see
//! `fixtures/make_formats.py`).

#![cfg(feature = "parquet")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use aim_data::DefectKind;
use aim_data::source::{Source as _, WebDataset};
use aim_data::spec::open;
use common::{LIMITS, first, fixture, img2dataset, labels};
use tempfile::tempdir;

#[test]
fn hugging_face_files_are_read_as_datasets_wrote_them() {
    for name in ["hf_snappy.parquet", "hf_zstd.parquet"] {
        let source = open(fixture(name).to_str().unwrap()).unwrap();
        assert_eq!(source.len(), 7, "{name}");
        let expected = [Some(0), Some(1), Some(2), Some(0), None, None, Some(2)];
        assert_eq!(labels(&*source), expected);
        assert_eq!(source.class_names().unwrap(), ["ant", "bee", "zebra"]);
        for index in [6, 0, 4, 2, 1] {
            assert_eq!(u64::from(first(&*source, index)), index * 10, "{name}");
        }
        assert_eq!(source.text(0).unwrap(), None);
        assert_eq!(source.text(5).unwrap().as_deref(), Some("text 5"));
        let null = source.read(3, 0).unwrap_err();
        assert_eq!(null.kind, DefectKind::Empty);
        assert!(null.location.contains("row 3 (row group 1)"), "{null}");
        let path_only = source.read(5, 0).unwrap_err();
        assert_eq!(path_only.kind, DefectKind::Empty);
        assert!(source.read(7, 0).is_err());
        assert!(source.key(6).ends_with("/000006"));
        assert_eq!(source.shard_starts().unwrap(), [0, 3, 6]);
    }
}

#[test]
fn files_are_joined_and_columns_chosen() {
    let root = fixture("");
    let both = open(&format!("parquet:{}/hf_{{snappy,zstd}}.parquet", root.display())).unwrap();
    assert_eq!(both.len(), 14);
    assert_eq!((first(&*both, 13), both.label(13)), (60, Some(2)));
    let plain = format!("{}/plain.parquet", root.display());
    let source = open(&plain).unwrap();
    assert_eq!((source.len(), source.label(0), first(&*source, 2)), (3, None, 20));
    let unlabelled = open(&format!("{}/hf_zstd.parquet?label=none&text=none", root.display()));
    let unlabelled = unlabelled.unwrap();
    assert_eq!((unlabelled.label(0), unlabelled.text(5).unwrap()), (None, None));
    for bad in [
        format!("{plain}?image=nope"),
        format!("{plain}?label=jpg"),
        format!("{}/img2dataset.parquet", root.display()),
        format!("{plain},{}/hf_zstd.parquet", root.display()),
    ] {
        assert!(open(&format!("parquet:{bad}")).is_err(), "{bad}");
    }
}

#[test]
fn threads_read_rows_at_random() {
    let source = open(fixture("hf_zstd.parquet").to_str().unwrap()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let source = &source;
            scope.spawn(move || {
                for step in 0..50 {
                    let index = [0, 1, 2, 4, 6][((thread * 7 + step * 3) % 5) as usize];
                    assert_eq!(u64::from(first(&**source, index)), index * 10);
                }
            });
        }
    });
}

#[test]
fn damaged_files_are_errors_or_defects() {
    let bytes = fs::read(fixture("hf_zstd.parquet")).unwrap();
    let dir = tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let read_all = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        if let Ok(source) = open(path.to_str().unwrap()) {
            for index in 0..source.len().min(20) {
                let _ = source.read(index, 0);
                let _ = source.text(index);
            }
        }
    };
    for len in (0..bytes.len()).step_by(37) {
        read_all(&bytes[..len]);
    }
    let mut state = 7u64;
    for _ in 0..300 {
        let mut changed = bytes.clone();
        for _ in 0..3 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (state >> 33) as usize % changed.len();
            changed[at] = (state >> 24) as u8;
        }
        read_all(&changed);
    }
}

#[test]
fn rows_of_img2dataset_are_counted_from_its_table() {
    let dir = tempdir().unwrap();
    img2dataset(dir.path());
    fs::remove_file(dir.path().join("00000_stats.json")).unwrap();
    fs::copy(fixture("img2dataset.parquet"), dir.path().join("00000.parquet")).unwrap();
    let source = WebDataset::open(dir.path().to_str().unwrap(), LIMITS).unwrap();
    let notes = source.notes().join("\n");
    assert!(notes.contains("3 of 7 rows have no image (2 failed to download, 1"), "{notes}");
}
