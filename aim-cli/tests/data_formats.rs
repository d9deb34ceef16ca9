//! `data check`, `stats` and `pack` over the formats of other tools.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{aim, run};
use tempfile::tempdir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../aim-data/tests/fixtures/formats").join(name)
}

fn printed(args: &[&str]) -> String {
    let output = aim().args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn mds_is_checked_drawn_described_and_packed() {
    let dir = tempdir().unwrap();
    let spec = format!("mds:{}?metadata=extra", fixture("mds_zstd").display());
    let sheet = dir.path().join("sheet.png");
    let sheet_text = sheet.to_str().unwrap();
    let text = printed(&[
        "data",
        "check",
        &spec,
        "--sheet",
        sheet_text,
        "--sheet-size",
        "24",
        "--sheet-samples",
        "4",
    ]);
    assert!(text.contains("5 of 5 samples are good: jpeg 5"), "{text}");
    // Two rows of two images of 24 pixels, with gaps of 4.
    let drawn = image::open(&sheet).unwrap();
    assert_eq!((drawn.width(), drawn.height()), (60, 60));
    assert!(printed(&["data", "stats", &spec]).contains("5 classes"));
    let out = dir.path().join("packed");
    printed(&["data", "pack", &spec, "--out", out.to_str().unwrap(), "--json"]);
    let packed = aim_data::spec::open(out.to_str().unwrap()).unwrap();
    assert_eq!((packed.len(), packed.text(2).unwrap().unwrap()), (5, "number 2 é".to_owned()));
}

#[test]
fn a_sheet_leaves_out_what_cannot_be_used() {
    let dir = tempdir().unwrap();
    let good = fixture("../decode/lzw.tif");
    std::fs::copy(good, dir.path().join("a.tif")).unwrap();
    std::fs::write(dir.path().join("b.jpg"), b"<html>").unwrap();
    let sheet = dir.path().join("sheet.png");
    let mut command = aim();
    let folder = dir.path().to_str().unwrap();
    command.args([
        "data",
        "check",
        folder,
        "--sheet",
        sheet.to_str().unwrap(),
        "--sheet-size",
        "8",
    ]);
    let text = run(&mut command, 1);
    assert!(text.contains("1 samples drawn"), "{text}");
    assert_eq!(image::open(&sheet).unwrap().width(), 16);
}
