//! The commands that use a run, and the numbers that must not depend on how a run is computed.
// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use aim_tensor::io::safetensors::SafeTensors;
use common::*;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn four_micro_batches_of_8_are_one_batch_of_32() {
    let dir = tempfile::tempdir().unwrap();
    let lines = [(8, 4), (32, 1)].map(|(batch, accumulate)| {
        let out = dir.path().join(format!("{batch}x{accumulate}"));
        let batch = format!("train.batch_size={batch}");
        let accumulate = format!("train.accumulate={accumulate}");
        run(&mut pretrain_stripes(&out, 5, &["--set", &batch, "--set", &accumulate]), 0);
        metrics(&out)
    });
    assert_eq!(lines[0].len(), 5);
    for (micro, whole) in lines[0].iter().zip(&lines[1]) {
        for field in ["loss", "grad_norm"] {
            let (found, expected) = (number(micro, field), number(whole, field));
            let error = (found - expected).abs() / expected.abs();
            assert!(error <= 1e-6, "{field}: {found} and {expected} differ by {error:e}");
        }
        assert_eq!(number(micro, "images_seen"), number(whole, "images_seen"));
    }
}

#[test]
fn threads_and_workers_change_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    // Large enough that every loop has work for 8 threads; 7 images so that it does not divide.
    let larger = [
        "model.img_size=32",
        "model.embed_dim=48",
        "model.num_blocks=2",
        "model.head_width=64",
        "train.batch_size=7",
    ];
    let mut reference: Option<Vec<String>> = None;
    for (threads, workers) in [(1, 0), (2, 1), (3, 2), (5, 3), (8, 4)] {
        let out = dir.path().join(format!("{threads}"));
        let mut command = pretrain(&out, 6, &["--data", "synthetic:stripes,n=50,size=48"]);
        for setting in larger {
            command.args(["--set", setting]);
        }
        command.args(["--set", &format!("train.threads={threads}")]);
        command.args(["--set", &format!("data.workers={workers}")]);
        run(&mut command, 0);
        assert_same_metrics(&out, reference.get_or_insert_with(|| metrics(&out)));
    }
}

#[test]
fn a_run_is_probed_shown_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let mut command = pretrain(&run_dir, 30, &["--data", LABELLED, "--json"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&summary["finished"], &summary["step"]), (&true.into(), &30.into()));
    assert!(summary["val_baseline"].is_f64());

    let probe = dir.path().join("probe");
    let mut command = aim();
    command.args(["probe", "--checkpoint", text(&run_dir), "--out", text(&probe), "--json"]);
    command.args(["--train", LABELLED, "--val", "synthetic:stripes,n=20,classes=4,size=8,seed=1"]);
    command.args([
        "--kind",
        "attentive,linear,knn",
        "--epochs",
        "2",
        "--seeds",
        "2",
        "--untrained",
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let kept: serde_json::Value =
        serde_json::from_slice(&fs::read(probe.join("results.json")).unwrap()).unwrap();
    assert_eq!(printed, kept);
    for kind in ["attentive", "linear", "knn"] {
        assert!(kept.to_string().contains(kind), "{kept}");
    }
    assert!(probe.join("head-attentive.safetensors").is_file());

    let image = dir.path().join("image.png");
    image::RgbImage::from_fn(20, 10, |x, y| image::Rgb([x as u8 * 12, y as u8 * 25, 90]))
        .save(&image)
        .unwrap();
    let picture = dir.path().join("new/picture.png");
    let mut command = aim();
    command.args(["reconstruct", "--checkpoint", text(&run_dir), "--prefix", "2"]);
    run(command.args(["--out", text(&picture), text(&image), text(&image)]), 0);
    let picture = image::open(&picture).unwrap();
    assert!(picture.width() >= 3 * 8 && picture.height() >= 2 * 8);

    run(aim().args(["report", text(&run_dir)]), 0);
    let report = fs::read_to_string(run_dir.join("report.html")).unwrap();
    assert!(report.contains("<svg") && report.contains("embed_dim"));
    run(aim().args(["plan", "--config", text(&run_dir.join("config.toml"))]), 0);
}

#[test]
fn features_come_in_the_order_of_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    run(&mut pretrain_stripes(&run_dir, 10, &[]), 0);
    let features = |name: &str, data: &str, batch: &str, pool: &str| {
        let out = dir.path().join(name);
        let mut command = aim();
        command.args(["features", "--checkpoint", text(&run_dir), "--data", data]);
        command.args(["--batch-size", batch, "--pool", pool, "--out", text(&out)]);
        run(&mut command, 0);
        let file = SafeTensors::open(&out).unwrap();
        let tensor = file.tensor("block_0").unwrap();
        (tensor.to_f32().unwrap(), fs::read(&out).unwrap())
    };
    let (all, bytes) = features("all.safetensors", LABELLED, "32", "mean");
    assert_eq!(all.len(), 40 * 16);
    assert_eq!(features("again.safetensors", LABELLED, "32", "mean").1, bytes);
    // Whatever the batch, row i is image i: the first images alone give the first rows.
    let close = |a: &[f32], b: &[f32]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5)
    };
    assert!(close(&features("ones.safetensors", LABELLED, "1", "mean").0, &all));
    let (first, _) =
        features("first.safetensors", "synthetic:stripes,n=7,classes=4,size=8", "3", "mean");
    assert!(close(&first, &all[..7 * 16]));
    assert!(!close(&first[16..32], &all[..16]), "rows differ");
    assert_eq!(features("tokens.safetensors", LABELLED, "32", "none").0.len(), 40 * 4 * 16);
}
