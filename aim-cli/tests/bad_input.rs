//! Input that cannot work, or only in part: a clear message with the place, no panic, nothing
//! written outside the run.
// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::*;

/// A picture that is the same for the same seed.
fn picture(seed: u32) -> image::RgbImage {
    image::RgbImage::from_fn(16, 12, |x, y| {
        image::Rgb([0, 1, 2].map(|c| ((x * 13 + y * 29 + seed * 71 + c * 50) % 256) as u8))
    })
}

fn encoded(seed: u32, format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture(seed).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn png(seed: u32) -> Vec<u8> {
    encoded(seed, image::ImageFormat::Png)
}

/// A folder of good images.
fn folder(dir: &Path, name: &str, count: u32) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir(&path).unwrap();
    for seed in 0..count {
        fs::write(path.join(format!("good-{seed}.png")), png(seed)).unwrap();
    }
    path
}

/// `pretrain` on `data`.
fn on(out: &Path, data: &str) -> std::process::Command {
    pretrain(out, 20, &["--data", data])
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn configurations_that_cannot_work() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    for (setting, expected) in [
        ("model.patc_size=4", &["model.patc_size", "did you mean model.patch_size?"][..]),
        ("trian.lr=1e-3", &["trian", "train"]),
        ("model.patch_size=3", &["model.img_size = 8", "multiple of patch_size 3"]),
        ("model.num_heads=3", &["model.num_heads = 3", "divisor of embed_dim 16"]),
        ("model.embed_dim=0", &["model.embed_dim = 0"]),
        ("model.patch_size=0", &["model.patch_size = 0"]),
        ("model.patch_size=8", &["model.img_size = 8", "two patches"]),
        ("train.batch_size=0", &["train.batch_size = 0"]),
        ("train.lr=fast", &["train.lr"]),
        ("train.lr=nan", &["train.lr"]),
        ("data.std=[0.0,0.2,0.2]", &["data.std"]),
        ("objective.prefix=4", &["objective.prefix"]),
    ] {
        refused(&mut pretrain_stripes(&out, 5, &["--set", setting]), 2, expected);
    }
    let file = dir.path().join("run.toml");
    fs::write(&file, "[train]\nlr = 1e-3\nbath_size = 4\n").unwrap();
    let more = ["--config", text(&file)];
    let expected = ["train.bath_size", "did you mean train.batch_size?", "run.toml"];
    refused(&mut pretrain_stripes(&out, 5, &more), 2, &expected);
    assert_eq!(listing(dir.path()), ["run.toml"], "no run is begun");
}

#[test]
fn data_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let missing = dir.path().join("missing");
    refused(&mut on(&out, text(&missing)), 1, &[text(&missing), "no such file or folder"]);
    refused(&mut on(&out, &format!("{}.tar", text(&missing))), 1, &["missing.tar"]);
    refused(&mut on(&out, &format!("idx:{}#train", text(&missing))), 1, &[text(&missing)]);
    refused(&mut on(&out, "parquet:x"), 1, &["parquet", "imagefolder:DIR"]);
    refused(&mut pretrain(&out, 5, &[]), 1, &["--data"]);
    let empty = folder(dir.path(), "empty", 0);
    refused(&mut on(&out, text(&empty)), 1, &["no images in", text(&empty)]);
    fs::write(empty.join("notes.txt"), "no image").unwrap();
    refused(&mut on(&out, text(&empty)), 1, &["no images in", "1 other file"]);
    assert_eq!(listing(dir.path()), ["empty"], "no run is begun");
}

#[test]
fn few_images_train_fine() {
    let dir = tempfile::tempdir().unwrap();
    for count in [1, 2, 3] {
        let data = folder(dir.path(), &format!("data-{count}"), count);
        let out = dir.path().join(format!("run-{count}"));
        // A batch holds 4 images.
        run(&mut on(&out, text(&data)), 0);
        let lines = metrics(&out);
        assert_eq!(lines.len(), 20);
        assert!(number(&lines[19], "val_loss").is_finite());
        assert_eq!(listing(&data).len() as u32, count, "data are only read");
    }
}

/// Writes images that cannot be used into a folder and returns their names.
fn bad_images(data: &Path) -> Vec<&'static str> {
    let whole = png(100);
    let mut flipped = whole.clone();
    let middle = whole.len() / 2;
    flipped[middle..middle + 8].iter_mut().for_each(|byte| *byte ^= 0x55);
    let files: [(&str, Vec<u8>); 6] = [
        ("corrupt.png", flipped),
        ("truncated.png", whole[..whole.len() / 2].to_vec()),
        ("signature.png", whole[..8].to_vec()),
        ("zero.png", Vec::new()),
        ("text.jpg", b"<html>not found</html>".to_vec()),
        ("huge.png", png_header(60_000, 60_000)),
    ];
    for (name, bytes) in &files {
        fs::write(data.join(name), bytes).unwrap();
    }
    files.map(|(name, _)| name).to_vec()
}

/// A PNG that claims a size and has no pixels.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    bytes.extend(13_u32.to_be_bytes());
    bytes.extend(&chunk);
    bytes.extend(crc32(&chunk).to_be_bytes());
    // The beginning of image data, so that a decoder has something to allocate for.
    bytes.extend(b"\0\0\x10\0IDAT\x78\x9c");
    bytes
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |mut crc: u32, &byte| {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1));
        }
        crc
    })
}

#[test]
fn bad_images_among_good_ones_are_named_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let data = folder(dir.path(), "data", 40);
    let bad = bad_images(&data);
    // PNG data under another name are no reason to complain.
    fs::write(data.join("really-a-png.jpg"), png(200)).unwrap();
    let before = listing(&data);
    let out = dir.path().join("run");
    let message = run(&mut on(&out, text(&data)), 0);
    for name in &bad {
        // Those held out for validation, such as the first, are named as well.
        let warned =
            message.lines().any(|line| line.starts_with("warning: ") && line.contains(name));
        assert!(warned, "{name} in {message}");
    }
    assert!(!message.contains("good-") && !message.contains("really-a-png"), "{message}");
    let reference = metrics(&out);
    assert_eq!(reference.len(), 20);
    // The same images take their places when the run goes on from half of it.
    fs::remove_dir_all(checkpoint(&out, 20)).unwrap();
    assert!(run(&mut on(&out, text(&data)), 0).contains("(step 10)"));
    assert_same_metrics(&out, &reference);
    assert_eq!(listing(&data), before);
    assert_eq!(listing(dir.path()), ["data", "run"]);

    let output = aim().args(["data", "check", text(&data)]).output().unwrap();
    let found = format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
    assert!(bad.iter().all(|name| found.contains(name)), "{found}");
}

#[test]
fn a_bad_image_where_one_is_held_out_is_no_reason_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let data = folder(dir.path(), "data", 5);
    // The first in order, which is the one held out of six.
    fs::write(data.join("a.png"), b"").unwrap();
    let out = dir.path().join("run");
    let message = run(&mut on(&out, text(&data)), 0);
    assert!(message.contains("a.png") && message.contains("--val"), "{message}");
    assert!(number(&metrics(&out)[19], "val_loss").is_finite());
}

#[test]
fn only_bad_images_end_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = folder(dir.path(), "data", 0);
    bad_images(&data);
    let out = dir.path().join("run");
    refused(&mut on(&out, text(&data)), 1, &["could not be used", text(&data)]);
    assert_eq!(checkpoint_steps(&out), []);
}

#[test]
fn a_huge_image_is_refused_by_its_header() {
    let dir = tempfile::tempdir().unwrap();
    let data = folder(dir.path(), "data", 0);
    let huge = data.join("huge.png");
    fs::write(&huge, png_header(60_000, 60_000)).unwrap();
    // Its pixels would take 10.8 GB; the address space is limited to a tenth of that.
    let limited = |arguments: &[&str]| {
        let mut command = std::process::Command::new("sh");
        command.args([
            "-c",
            "ulimit -v 1000000; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_aim-cli"),
        ]);
        command.args(arguments);
        command
    };
    let output = limited(&["data", "check", text(&data), "--workers", "1"]).output().unwrap();
    let found = format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
    assert!(found.contains("huge.png") && found.contains("60000"), "{found}");
    assert!(output.status.code().is_some() && !found.contains("panicked"), "{found}");

    let run_dir = dir.path().join("run");
    run(&mut pretrain_stripes(&run_dir, 5, &[]), 0);
    let picture = dir.path().join("picture.png");
    let arguments =
        ["reconstruct", "--checkpoint", text(&run_dir), "--out", text(&picture), text(&huge)];
    refused(&mut limited(&arguments), 1, &["huge.png", "60000"]);
    assert!(!picture.exists());
}

/// One member of a tar archive (POSIX ustar), with a name and type that a careful writer refuses.
fn member(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", data.len()).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = members.concat();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn image_member(name: &str, seed: u32) -> Vec<u8> {
    member(name, b'0', "", &png(seed))
}

#[test]
fn tar_shards_that_are_not_right() {
    let dir = tempfile::tempdir().unwrap();
    let parent = dir.path().join("data");
    fs::create_dir(&parent).unwrap();
    let good: Vec<Vec<u8>> = (0..8).map(|i| image_member(&format!("{i:04}.png"), i)).collect();
    let with = |more: Vec<Vec<u8>>| archive(&[good.clone(), more].concat());
    let whole = with(vec![]);
    let shards: [(&str, Vec<u8>, &[&str]); 7] = [
        ("dots", with(vec![image_member("../../outside.png", 1)]), &[".."]),
        ("absolute", with(vec![image_member("/tmp/outside.png", 1)]), &["/tmp/outside"]),
        ("symlink", with(vec![member("link.png", b'2', "/etc/passwd", b"")]), &["link"]),
        ("hardlink", with(vec![member("hard.png", b'1', "../outside.png", b"")]), &["link"]),
        (
            "interleaved",
            with(vec![member("0000.cls", b'0', "", b"1"), member("0001.cls", b'0', "", b"2")]),
            &["0000"],
        ),
        ("truncated", whole[..good[0].len() * 5 + 700].to_vec(), &["byte"]),
        ("header", [&whole[..2048], &[0x41; 512][..]].concat(), &["byte"]),
    ];
    for (name, bytes, expected) in shards {
        let shard = parent.join(format!("{name}.tar"));
        fs::write(&shard, bytes).unwrap();
        let run_dir = dir.path().join("run");
        let output = on(&run_dir, text(&shard)).output().unwrap();
        let message = stderr(&output);
        assert!(!message.contains("panicked"), "{name}: {message}");
        // Refused, or passed over with a remark: both name the shard or what is in it.
        assert!(matches!(output.status.code(), Some(0 | 1)), "{name}: {message}");
        let told = message.lines().any(|line| {
            ["error: ", "warning: ", "data: "].iter().any(|start| line.starts_with(start))
                && expected.iter().all(|part| line.contains(part))
        });
        assert!(told, "{name}: {message}");
        if output.status.success() {
            fs::remove_dir_all(&run_dir).unwrap();
        } else {
            assert!(message.contains(&format!("{name}.tar")), "{message}");
        }
        fs::remove_file(&shard).unwrap();
        assert_eq!(listing(dir.path()), ["data"], "{name}");
        assert_eq!(listing(&parent), Vec::<String>::new(), "{name}");
    }
    assert!(!Path::new("/tmp/outside.png").exists());
}

#[test]
fn a_probe_needs_labels() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    run(&mut pretrain_stripes(&run_dir, 5, &[]), 0);
    let data = folder(dir.path(), "data", 4);
    let out = dir.path().join("probe");
    let mut command = aim();
    command.args(["probe", "--checkpoint", text(&run_dir), "--out", text(&out)]);
    command.args(["--train", text(&data), "--val", text(&data), "--epochs", "1"]);
    refused(&mut command, 1, &["needs labels", "class folders"]);
    let mut command = aim();
    command.args(["probe", "--checkpoint", text(&data), "--out", text(&out)]);
    command.args(["--train", LABELLED, "--val", LABELLED, "--epochs", "1"]);
    refused(&mut command, 1, &[text(&data)]);
    assert_eq!(listing(&out), Vec::<String>::new());
}
