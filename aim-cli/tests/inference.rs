//! Using a model: features that survive everything, classes, attention, sampling.
// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use aim_data::source::Payload;
use aim_tensor::io::safetensors::SafeTensors;
use common::*;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A run of two blocks, and 24 images of which two are damaged.
fn prepared(dir: &Path) -> (PathBuf, PathBuf) {
    let run_dir = dir.join("run");
    run(&mut pretrain_stripes(&run_dir, 2, &["--set", "model.num_blocks=2"]), 0);
    let images = dir.join("images");
    fs::create_dir(&images).unwrap();
    let stripes = aim_data::spec::open("synthetic:stripes,n=24,size=8").unwrap();
    for index in 0..24 {
        let Payload::Pixels(image) = stripes.read(index, 0).unwrap().payload else {
            panic!("stripes are pixels");
        };
        let mut bytes = aim_data::pack::encode_png(&image).unwrap();
        if [5, 17].contains(&index) {
            bytes.truncate(50);
        }
        fs::write(images.join(format!("{index:02}.png")), bytes).unwrap();
    }
    (run_dir, images)
}

fn features(run_dir: &Path, images: &Path, out: &Path) -> Command {
    let mut command = aim();
    command.args(["features", "--checkpoint", text(run_dir), "--data", text(images)]);
    command.args(["--layers", "0,1", "--batch-size", "5", "--sync-seconds", "0"]);
    command.args(["--device", "cpu", "--out", text(out)]);
    command
}

/// The files of a directory with their bytes.
fn content(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let names = listing(dir).into_iter();
    names.map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}

#[test]
fn features_killed_at_any_operation_are_the_same_in_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (run_dir, images) = prepared(dir.path());
    let whole = dir.path().join("whole");
    let trace = dir.path().join("trace.txt");
    let mut command = features(&run_dir, &images, &whole.join("f.safetensors"));
    let said = run(command.env("AIM_FAULT_TRACE", &trace), 0);
    assert!(said.contains("22 images, 2 left out: block_0, block_1 of shape [22, 16]"), "{said}");
    assert!(said.contains("05.png") && said.contains("17.png"), "{said}");
    let expected = content(&whole);
    assert_eq!(
        expected.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["f.safetensors", "f.safetensors.keys.txt", "f.safetensors.skipped.jsonl"]
    );
    let points = fs::read_to_string(&trace).unwrap().lines().count();
    assert!(points > 40, "{points}");
    // A step that shares no factor with the few operations of a batch: every kind of operation is met.
    for point in (1..=points).step_by(3) {
        let parts = dir.path().join(format!("{point}"));
        let out = parts.join("f.safetensors");
        let mut command = features(&run_dir, &images, &out);
        let killed = command.env("AIM_FAULT_KILL_AT", point.to_string()).output().unwrap();
        assert_eq!(killed.status.signal(), Some(9), "point {point}: {}", stderr(&killed));
        let complete = out.exists();
        run(&mut features(&run_dir, &images, &out), 0);
        assert!(content(&parts) == expected, "killed at {point} (complete: {complete})");
    }
}

#[test]
fn features_go_on_after_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (run_dir, images) = prepared(dir.path());
    let out = dir.path().join("whole/f.npy");
    let tokens = |out: &Path, images: &str| {
        let mut command = aim();
        command.args(["features", "--checkpoint", text(&run_dir), "--data", images]);
        command.args(["--layers", "1", "--pool", "none", "--batch-size", "64"]);
        command.args(["--sync-seconds", "0", "--device", "cpu", "--out", text(out)]);
        command
    };
    let many = "synthetic:stripes,n=1500,size=8";
    run(&mut tokens(&out, many), 0);
    let small = dir.path().join("small");
    fs::create_dir(&small).unwrap();
    // 384 kB of features.
    let Some(disk) = Tmpfs::mount(&small, "200k") else { return };
    let full = small.join("f.npy");
    let said =
        refused(&mut tokens(&full, many), 1, &["the disk is full", "run the same command again"]);
    assert!(!full.exists(), "{said}");
    disk.remount("size=2m");
    let said = run(&mut tokens(&full, many), 0);
    assert!(said.contains("going on behind"), "{said}");
    assert!(fs::read(&full).unwrap() == fs::read(&out).unwrap());
    let _ = images;
}

#[test]
fn features_refuse_what_a_format_cannot_hold() {
    let dir = tempfile::tempdir().unwrap();
    let (run_dir, images) = prepared(dir.path());
    let with = |name: &str, more: &[&str]| {
        let mut command = features(&run_dir, &images, &dir.path().join(name));
        command.args(more);
        command
    };
    refused(&mut with("f.npy", &[]), 2, &["--average"]);
    refused(&mut with("f.npy", &["--average", "--dtype", "bf16"]), 2, &["bf16", ".safetensors"]);
    refused(&mut with("f.csv", &[]), 2, &[".safetensors, .npy or .parquet"]);
    run(&mut with("f.npy", &["--average", "--dtype", "fp16"]), 0);
    if cfg!(feature = "parquet") {
        run(&mut with("f.parquet", &[]), 0);
        let bytes = fs::read(dir.path().join("f.parquet")).unwrap();
        assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
    } else {
        refused(&mut with("f.parquet", &[]), 2, &["--features parquet"]);
    }
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../aim-model/tests/fixtures/ml-aim-tiny")
}

fn json(command: &mut Command) -> Vec<serde_json::Value> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn ml_aims_probe_answers_as_in_pytorch() {
    let dir = tempfile::tempdir().unwrap();
    let names = dir.path().join("names.txt");
    fs::write(&names, (0..10).map(|i| format!("name {i}\n")).collect::<String>()).unwrap();
    let inputs = fixture().join("inputs.safetensors");
    let expected = SafeTensors::open(fixture().join("expected.safetensors")).unwrap();
    for size in ["images_56x56", "images_56x84"] {
        let spec = format!("tensors:{}#{size}", text(&inputs));
        let picture = dir.path().join("new").join(format!("{size}.png"));
        let mut command = aim();
        command.args([
            "classify",
            "--checkpoint",
            text(&fixture()),
            &spec,
            "--json",
            "--top",
            "10",
        ]);
        command.args(["--classes", text(&names), "--attention", text(&picture), "--device", "cpu"]);
        let answers = json(&mut command);
        let logits = expected.tensor(&format!("{size}.logits")).unwrap();
        assert_eq!(answers.len(), logits.shape[0]);
        for (answer, logits) in answers.iter().zip(logits.to_f32().unwrap().chunks_exact(10)) {
            let parts: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
            let sum: f64 = parts.iter().sum();
            let top = answer["top"].as_array().unwrap();
            assert_eq!(top.len(), 10);
            let mut last = 1.0;
            for guess in top {
                let class = guess["class"].as_u64().unwrap() as usize;
                let probability = guess["probability"].as_f64().unwrap();
                assert!((probability - parts[class] / sum).abs() < 1e-4, "{answer}");
                assert!(probability <= last);
                last = probability;
                assert_eq!(guess["name"], format!("name {class}"));
            }
        }
        // Image, mean and two heads.
        let picture = image::open(&picture).unwrap();
        let columns = (picture.width() - 8) / 176;
        assert_eq!(columns, 4, "{}", picture.width());
    }
}

#[test]
fn a_trained_head_names_files_folders_and_data() {
    let dir = tempfile::tempdir().unwrap();
    let (run_dir, images) = prepared(dir.path());
    let probe = dir.path().join("probe");
    let mut command = aim();
    command.args([
        "probe",
        "--checkpoint",
        text(&run_dir),
        "--out",
        text(&probe),
        "--layers",
        "0,1",
    ]);
    command.args(["--train", LABELLED, "--val", LABELLED, "--kind", "attentive,linear"]);
    run(command.args(["--epochs", "1", "--device", "cpu"]), 0);
    let head = |kind: &str| probe.join(format!("head-{kind}.safetensors"));
    let classify = |kind: &str, more: &[&str]| {
        let mut command = aim();
        command.args(["classify", "--checkpoint", text(&run_dir), "--head", text(&head(kind))]);
        command.args(["--layers", "0,1", "--device", "cpu"]).args(more);
        command
    };
    let (one, two) = (images.join("00.png"), images.join("01.png"));
    for kind in ["attentive", "linear"] {
        let answers = json(&mut classify(kind, &["--json", text(&two), text(&one)]));
        assert_eq!(answers[0]["image"], text(&two));
        assert_eq!(answers[1]["top"].as_array().unwrap().len(), 4);
        let sum: f64 = answers[1]["top"]
            .as_array()
            .unwrap()
            .iter()
            .map(|g| g["probability"].as_f64().unwrap())
            .sum();
        assert!((sum - 1.0).abs() < 1e-6);
        // Labels and the same images by another way.
        let labelled = json(&mut classify(kind, &["--json", "--top", "1", LABELLED]));
        assert_eq!((labelled.len(), labelled[39]["top"].as_array().unwrap().len()), (40, 1));
        assert!(labelled[0]["label"].is_u64());
    }
    // The folder has two damaged images: the others are answered, and it is said.
    let output = classify("attentive", &["--top", "2", text(&images)]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("2 images could not be used"), "{}", stderr(&output));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.lines().count(), 22 * 3, "{printed}");
    assert!(printed.contains(" %  ") && printed.contains("00.png\n"), "{printed}");

    let picture = dir.path().join("a.png");
    let drawn = ["--attention", text(&picture)];
    run(classify("attentive", &drawn).arg(&one), 0);
    // Image, mean and two heads of 160 pixels with gaps of 8.
    assert_eq!(image::open(&picture).unwrap().width(), 4 * 168 + 8);
    refused(classify("linear", &drawn).arg(&one), 2, &["linear"]);
    let short = dir.path().join("names.json");
    fs::write(&short, r#"["a", "b"]"#).unwrap();
    let named = ["--classes", text(&short), text(&one)];
    refused(&mut classify("attentive", &named), 1, &["expected 4 class names", "found 2"]);
    refused(&mut classify("attentive", &["nothing.jpg"]), 1, &["nothing.jpg"]);
    let mut bare = aim();
    bare.args(["classify", "--checkpoint", text(&run_dir), text(&one)]);
    refused(&mut bare, 2, &["no classifier", "--head"]);
}

#[test]
fn reconstruct_samples_beside_what_is_predicted_from_the_truth() {
    let dir = tempfile::tempdir().unwrap();
    let (run_dir, images) = prepared(dir.path());
    let draw = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let mut command = aim();
        command.args(["reconstruct", "--checkpoint", text(&run_dir), "--prefix", "1"]);
        command.args(["--device", "cpu", "--out", text(&out), text(&images.join("00.png"))]);
        run(command.args(more), 0);
        image::open(out).unwrap().into_rgb8()
    };
    let plain = draw("plain.png", &[]);
    let sampled = draw("sampled.png", &["--sample"]);
    assert_eq!((plain.width(), sampled.width()), (3 * 168 + 8, 4 * 168 + 8));
    let cell = |picture: &image::RgbImage, column: u32, y: u32, x: u32| {
        *picture.get_pixel(8 + column * 168 + x * 20, 8 + y * 20)
    };
    let mut differ = 0;
    for y in 0..8 {
        for x in 0..8 {
            for column in 0..3 {
                assert_eq!(cell(&plain, column, y, x), cell(&sampled, column, y, x));
            }
            let (forced, free) = (cell(&sampled, 2, y, x), cell(&sampled, 3, y, x));
            if y < 4 {
                // The prefix, and the first patch behind it: the same up to rounding to a byte.
                let near = forced.0.iter().zip(free.0).all(|(a, b)| a.abs_diff(b) <= 1);
                assert!(near, "{forced:?} {free:?}");
            }
            differ += u32::from(forced != free);
        }
    }
    assert!(differ > 0, "what is sampled differs from what is predicted from the truth");
    assert_eq!(draw("again.png", &["--sample"]), sampled);
    assert_ne!(draw("neighbour.png", &["--sample", "--statistics", "neighbour"]), sampled);
}
