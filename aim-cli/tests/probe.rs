//! `aim-cli probe`: grids, sweeps over layers, features on the disk, fresh crops, interruptions.
// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use aim_tensor::io::safetensors::SafeTensors;
use common::*;
use serde_json::Value;

const VAL: &str = "synthetic:stripes,n=30,classes=4,size=8,seed=1";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A tiny trunk of three blocks.
fn trunk(dir: &Path) -> std::path::PathBuf {
    let out = dir.join("run");
    let deeper = ["--set", "model.num_blocks=3"];
    run(pretrain_stripes(&out, 10, &deeper).args(["--quiet"]), 0);
    out
}

fn probe(trunk: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = aim();
    command.args(["probe", "--checkpoint", text(trunk), "--out", text(out)]);
    command.args(["--train", LABELLED, "--val", VAL, "--device", "cpu", "--batch-size", "16"]);
    command.args(more);
    command
}

fn results(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("results.json")).unwrap()).unwrap()
}

fn tensor(path: &Path, name: &str) -> Vec<f32> {
    SafeTensors::open(path).unwrap().tensor(name).unwrap().to_f32().unwrap()
}

#[test]
fn a_grid_is_reported_point_by_point_and_features_on_disk_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let trunk = trunk(dir.path());
    let grid = [
        "--kind",
        "attentive,linear,knn",
        "--lr",
        "1e-2,1e-3",
        "--weight-decay",
        "0,0.1",
        "--epochs",
        "3",
        "--seeds",
        "2",
        "--select",
        "holdout",
        "--holdout",
        "0.25",
        "--k",
        "1,5",
    ];
    let (memory, disk) = (dir.path().join("memory"), dir.path().join("disk"));
    let output = probe(&trunk, &memory, &grid).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in ["attentive", "linear", "knn-1", "knn-5", "best on val %", "per class %", "0-2"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    run(probe(&trunk, &disk, &grid).args(["--cache-bytes", "0"]), 0);
    let found = results(&memory);
    assert_eq!(found, results(&disk));
    let row = &found["results"][0];
    assert_eq!(
        (row["probe"].as_str(), row["selected_by"].as_str()),
        (Some("attentive"), Some("holdout"))
    );
    assert_eq!(row["grid"].as_array().unwrap().len(), 4);
    assert_eq!(
        (&row["grid"][1]["lr"], &row["grid"][1]["weight_decay"]),
        (&0.01.into(), &0.1.into())
    );
    assert_eq!(row["grid"][0]["holdout_accuracy"].as_array().unwrap().len(), 2);
    assert_eq!(row["seeds"].as_array().unwrap().len(), 2);
    let selected = row["selected"][0].as_u64().unwrap() as usize;
    assert_eq!(row["accuracy"][0], row["grid"][selected]["accuracy"][0]);
    assert!(row["best_on_val"][0].as_f64() >= row["accuracy"][0].as_f64());
    assert_eq!(row["per_class"].as_array().unwrap().len(), 4);
    assert_eq!(row["layers"], serde_json::json!([0, 1, 2]));
    // Nothing is left of the features, and the pictures and the matrix are there.
    let files = listing(&disk);
    assert!(!files.contains(&".features".to_owned()), "{files:?}");
    for name in ["confusion-attentive.png", "confusion-attentive.json", "confusion-knn-5.json"] {
        assert!(files.contains(&name.to_owned()), "{name}: {files:?}");
    }
    let matrix: Value =
        serde_json::from_slice(&fs::read(disk.join("confusion-linear.json")).unwrap()).unwrap();
    let counts = matrix["counts"].as_array().unwrap();
    let total: u64 =
        counts.iter().flat_map(|row| row.as_array().unwrap()).map(|n| n.as_u64().unwrap()).sum();
    assert_eq!((counts.len(), total), (4, 30));

    let head = SafeTensors::open(memory.join("head-attentive.safetensors")).unwrap();
    let metadata = head.metadata();
    for (key, value) in [("kind", "attentive"), ("layers", "0,1,2"), ("dim", "16"), ("heads", "2")]
    {
        assert_eq!(metadata.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert_eq!(head.tensor("head.k.weight").unwrap().shape, [16, 16]);

    // The same point alone is the same classifier.
    let alone = dir.path().join("alone");
    let [lr, decay] = ["lr", "weight_decay"].map(|key| row["grid"][selected][key].to_string());
    run(
        probe(&trunk, &alone, &grid[..2]).args([
            "--lr",
            &lr,
            "--weight-decay",
            &decay,
            "--epochs",
            "3",
            "--select",
            "holdout",
            "--holdout",
            "0.25",
        ]),
        0,
    );
    let [a, b] = [&memory, &alone]
        .map(|out| tensor(&out.join("head-attentive.safetensors"), "head.v.weight"));
    assert_eq!(a, b);
}

#[test]
fn a_sweep_finds_the_window_that_a_run_of_its_own_reports() {
    let dir = tempfile::tempdir().unwrap();
    let trunk = trunk(dir.path());
    let (swept, own) = (dir.path().join("sweep"), dir.path().join("own"));
    let common = ["--kind", "attentive,linear", "--epochs", "4", "--lr", "1e-2"];
    let mut command = probe(&trunk, &swept, &common);
    // On the disk, and again in memory: the same.
    run(command.args(["--layers", "sweep", "--window", "2", "--cache-bytes", "0"]), 0);
    let found = results(&swept);
    let depth = found["depth"].as_array().unwrap();
    // Two windows and three blocks, for each classifier.
    assert_eq!(depth.len(), 2 * (2 + 3));
    let picture = image::open(swept.join("depth.png")).unwrap();
    assert!(picture.width() > 300 && picture.height() > 300);
    let row = &found["results"][0];
    let best = depth
        .iter()
        .filter(|d| d["probe"] == "attentive" && d["layers"].as_array().unwrap().len() == 2)
        .map(|d| d["accuracy"].as_f64().unwrap())
        .fold(0.0, f64::max);
    assert_eq!(row["accuracy"][0].as_f64().unwrap(), best);
    let layers: Vec<String> =
        row["layers"].as_array().unwrap().iter().map(ToString::to_string).collect();
    run(probe(&trunk, &own, &common).args(["--layers", &layers.join(",")]), 0);
    assert_eq!(results(&own)["results"][0]["grid"], row["grid"]);
    for name in ["head.cls_token", "head.linear.weight", "head.bn.running_var"] {
        let [a, b] =
            [&swept, &own].map(|out| tensor(&out.join("head-attentive.safetensors"), name));
        assert_eq!(a, b, "{name}");
    }
    let mut command = probe(&trunk, &own, &["--layers", "sweep", "--augment"]);
    refused(&mut command, 2, &["computed once", "--augment=false"]);
    refused(&mut probe(&trunk, &own, &["--layers", "last"]), 2, &["best, or sweep"]);
}

#[test]
fn fresh_crops_train_the_same_classifiers_twice() {
    let dir = tempfile::tempdir().unwrap();
    let trunk = trunk(dir.path());
    let [a, b, plain] = ["a", "b", "plain"].map(|name| dir.path().join(name));
    let options =
        ["--kind", "attentive,linear", "--epochs", "2", "--lr", "1e-2,1e-3", "--select", "holdout"];
    for out in [&a, &b] {
        run(probe(&trunk, out, &options).args(["--augment"]), 0);
    }
    run(&mut probe(&trunk, &plain, &options), 0);
    assert_eq!(results(&a), results(&b));
    assert_eq!(results(&a)["results"][1]["augment"], true);
    let heads = [&a, &b, &plain]
        .map(|out| tensor(&out.join("head-attentive.safetensors"), "head.v.weight"));
    assert!(heads[0] == heads[1] && heads[0] != heads[2]);
}

#[test]
fn an_interrupted_probe_keeps_complete_features_for_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let trunk = trunk(dir.path());
    let out = dir.path().join("probe");
    let on_disk = ["--cache-bytes", "0", "--feature-dtype", "bf16", "--epochs"];
    let mut command = probe(&trunk, &out, &on_disk);
    let mut running = Running::spawn(command.args(["100000000"]));
    let cache = out.join(".features");
    for _ in 0..6000 {
        let there = cache.join("pre-trained-val.json").is_file();
        if there || running.child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    running.signal("-TERM");
    let (status, said) = running.finish();
    assert_eq!(status.code(), Some(75), "{said}");
    assert!(said.contains("run the same command again"), "{said}");
    assert_eq!(listing(&out), [".features"]);
    // The next run takes them, whatever else it does with them: here, values that it cannot have computed.
    let file = cache.join("pre-trained-train.features");
    let mut bytes = fs::read(&file).unwrap();
    let features = bytes.len() - 40 * 8;
    bytes[..features].fill(0);
    fs::write(&file, &bytes).unwrap();
    run(probe(&trunk, &out, &on_disk).args(["2"]), 0);
    let fresh = dir.path().join("fresh");
    run(probe(&trunk, &fresh, &on_disk).args(["2"]), 0);
    let mean = |out: &Path| tensor(&out.join("head-attentive.safetensors"), "head.bn.running_mean");
    assert!(mean(&out).iter().all(|&v| v == 0.0) && mean(&fresh).iter().any(|&v| v != 0.0));
    // They are gone with the run that used them.
    assert!(!cache.exists());
    run(probe(&trunk, &out, &on_disk).args(["2"]), 0);
    assert_eq!((results(&fresh), mean(&fresh)), (results(&out), mean(&out)));
    let mut command = probe(&trunk, &out, &["--cache-bytes", "0", "--cache-disk-bytes", "10"]);
    refused(&mut command, 1, &["10 may be used", "--cache-bytes"]);
    assert!(!cache.exists());
}
