//! `aim-cli finetune`: a run that a signal stops, evaluation, merging and the way back, PEFT, and what is refused.
// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use aim_model::trunk::{ImageBatch, PixelFormat};
use aim_model::weights::read_config;
use aim_tensor::io::safetensors::{SafeTensors, TensorRef, write_file};
use aim_train::finetune::{AdapterDir, Base, merge};
use common::*;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A pre-trained run, whose blocks are 16 wide.
fn base(dir: &Path) -> PathBuf {
    let out = dir.join("base");
    run(&mut pretrain_stripes(&out, 10, &["--set", "model.num_blocks=2"]), 0);
    out
}

fn finetune(base: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = aim();
    command.args(["finetune", "--checkpoint", text(base), "--out", text(out)]);
    command.args(["--train", LABELLED, "--val", LABELLED, "--batch-size", "8", "--workers", "1"]);
    command.args(more);
    command
}

fn top1(command: &mut Command) -> String {
    let output = command.arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["images"], 40);
    json.to_string()
}

#[test]
fn a_stopped_run_goes_on_and_its_adapters_are_merged_and_taken_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let whole = dir.path().join("whole");
    let epochs = ["--epochs", "80", "--lora-rank", "2"];
    let expected = top1(&mut finetune(&base, &whole, &epochs));
    assert_eq!(metrics(&whole).len(), 400);

    let parts = dir.path().join("parts");
    let running = Running::spawn(&mut finetune(&base, &parts, &epochs));
    assert!(running.wait_for_training());
    running.signal("-TERM");
    let (status, said) = running.finish();
    assert_eq!(status.code(), Some(75), "{said}");
    assert!(said.contains("the same command goes on"), "{said}");
    assert!(metrics(&parts).len() < 400);
    assert_eq!(top1(&mut finetune(&base, &parts, &epochs)), expected);
    assert_same_metrics(&parts, &metrics(&whole));
    for name in ["adapter_model.safetensors", "head.safetensors", "finetune.json"] {
        assert!(fs::read(whole.join(name)).unwrap() == fs::read(parts.join(name)).unwrap());
    }
    // The trunk is in no checkpoint.
    let names = listing(&checkpoint(&parts, 400));
    assert!(names.iter().all(|name| !name.starts_with("model")), "{names:?}");

    let eval = |checkpoint: &Path, adapter: &Path| {
        let mut command = aim();
        command.args(["finetune", "eval", "--checkpoint", text(checkpoint)]);
        command.args(["--adapter", text(adapter), "--data", LABELLED]);
        command
    };
    assert_eq!(top1(&mut eval(&base, &whole)), expected);

    let merged = dir.path().join("merged");
    let mut command = aim();
    command.args(["finetune", "merge", "--checkpoint", text(&base), "--adapter", text(&whole)]);
    command.args(["--out", text(&merged)]);
    run(&mut command, 0);
    refused(&mut command, 1, &["holds something already"]);
    let back = dir.path().join("back");
    let mut command = aim();
    command.args(["finetune", "unmerge", "--checkpoint", text(&merged), "--out", text(&back)]);
    run(&mut command, 0);
    let before = SafeTensors::open(checkpoint(&base, 10)).unwrap();
    let after = SafeTensors::open(&back).unwrap();
    let with = SafeTensors::open(&merged).unwrap();
    assert_eq!(after.len(), before.len());
    let mut changed = 0;
    for view in before.tensors() {
        let bits = |file: &SafeTensors| -> Vec<u32> {
            let values = file.tensor(view.name).unwrap().to_f32().unwrap();
            values.iter().map(|v| v.to_bits()).collect()
        };
        assert_eq!(bits(&before), bits(&after), "{}", view.name);
        changed += usize::from(with.contains(view.name) && bits(&with) != bits(&before));
    }
    assert_eq!(changed, 4, "queries, values and projections of two blocks");

    // Adapters on other weights, and a merged directory that was changed.
    refused(&mut eval(&merged, &whole), 1, &["were trained on the weights of"]);
    fs::copy(whole.join("head.safetensors"), merged.join("base.safetensors")).unwrap();
    let out = dir.path().join("not");
    let mut command = aim();
    command.args(["finetune", "unmerge", "--checkpoint", text(&merged), "--out", text(&out)]);
    refused(&mut command, 1, &["merge.json", "was changed"]);
    assert!(!out.exists());
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let out = dir.path().join("out");
    let bad = |more: &[&str], code, says: &[&str]| {
        refused(&mut finetune(&base, &out, more), code, says);
        assert!(!out.exists(), "{more:?} left something");
    };
    bad(&["--lora-targets", "q,fc1"], 2, &["fc1", "q, k, v, qkv or proj"]);
    bad(&["--lora-targets", "q,qkv"], 1, &["lora.targets"]);
    bad(&["--lora-rank", "17"], 1, &["lora.rank = 17", "16"]);
    bad(&["--layers", "0", "--lora-blocks", "1"], 1, &["lora.blocks", "the classifier sees"]);
    bad(&["--label-smoothing", "1"], 2, &["--label-smoothing"]);
    bad(&["--head", "nothing.safetensors"], 1, &["nothing.safetensors"]);
    let mut command = finetune(&base, &out, &[]);
    command.args(["--train", STRIPES]);
    assert_eq!(command.output().unwrap().status.code(), Some(2), "--train twice");
    refused(aim().args(["finetune"]).arg("--checkpoint").arg(&base), 2, &["train"]);
    let mut command = aim();
    command.args(["finetune", "eval", "--checkpoint", text(&base), "--adapter", text(&base)]);
    refused(command.args(["--data", LABELLED]), 1, &["adapter_config.json"]);
}

/// PEFT loads the adapters onto ml-aim, where `AIM_PYTHON` names a Python that has torch, peft, safetensors and ml-aim.
#[test]
fn peft_and_ml_aim_compute_the_same() {
    let Some(python) = std::env::var_os("AIM_PYTHON") else {
        println!("skipped: AIM_PYTHON names no Python with torch, peft, safetensors and ml-aim");
        return;
    };
    let modules = "import torch, peft, safetensors, aim.v1.torch.models";
    let found = Command::new(&python).args(["-c", modules]).output().unwrap();
    if !found.status.success() {
        println!("skipped: {} lacks a module: {}", python.display(), stderr(&found));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../aim-model/tests/fixtures/ml-aim-tiny");
    let out = dir.path().join("run");
    let data = "synthetic:stripes,n=40,classes=4,size=56";
    let mut command = aim();
    command.args(["finetune", "--checkpoint", text(&fixture), "--out", text(&out)]);
    command.args(["--train", data, "--val", data, "--layers", "1,3", "--batch-size", "10"]);
    // A factor other than one.
    command.args(["--epochs", "5", "--lr", "1e-2", "--lora-rank", "4", "--lora-alpha", "6"]);
    run(&mut command, 0);
    let merged = dir.path().join("merged");
    let mut command = aim();
    command.args(["finetune", "merge", "--checkpoint", text(&fixture), "--adapter", text(&out)]);
    run(command.args(["--out", text(&merged)]), 0);

    let expected = dir.path().join("expected.safetensors");
    write_expected(&fixture, &out, &expected);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/peft_check.py");
    let mut command = Command::new(&python);
    command.arg(script).args([&fixture, &out, &merged, &expected]);
    let output = command.output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", stderr(&output));
}

/// Images, and what this project computes for them.
fn write_expected(fixture: &Path, adapter: &Path, path: &Path) {
    let model = read_config(fixture).unwrap();
    let file = SafeTensors::open(fixture).unwrap();
    let base = Base {
        name: "fixture",
        file: &file,
        dir: fixture,
        model: &model,
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
    };
    let adapter = AdapterDir::open(adapter).unwrap();
    let (tuned, params) = merge::load(&base, &adapter, None, None).unwrap();
    let inputs = SafeTensors::open(fixture.join("inputs.safetensors")).unwrap();
    let name = inputs.names().min().unwrap().to_owned();
    let view = inputs.tensor(&name).unwrap();
    let &[batch, _, height, width] = view.shape else { panic!("{:?}", view.shape) };
    let images = view.to_f32().unwrap();
    let kind = ImageBatch { batch, height, width, format: PixelFormat::F32 };
    let (mut tape, vars) = tuned.record(kind, false).unwrap();
    vars.trunk.blocks.iter().for_each(|&block| tape.output(block));
    let mut session = aim_tensor::Session::new(tape, Default::default()).unwrap();
    let tokens = (vars.trunk.grid.0 * vars.trunk.grid.1) as i32;
    let positions: Vec<i32> = (0..batch).flat_map(|_| 0..tokens).collect();
    session.write_i32(vars.trunk.positions, &positions).unwrap();
    session.write_i32(vars.trunk.prefix, &vec![tokens; batch]).unwrap();
    session.write_f32(vars.trunk.images, &images).unwrap();
    session.forward(&params).unwrap();

    let mut names = vec!["images".to_owned(), "logits".to_owned()];
    let dim = model.embed_dim;
    let mut shapes = vec![view.shape.to_vec(), vec![batch, tuned.config().classes]];
    let mut values = vec![images.clone(), session.read(vars.logits).unwrap().into_owned()];
    for (i, &block) in vars.trunk.blocks.iter().enumerate() {
        names.push(format!("block_{i}"));
        shapes.push(vec![batch, tokens as usize, dim]);
        values.push(session.read(block).unwrap().into_owned());
    }
    let tensors: Vec<_> = names
        .iter()
        .zip(&shapes)
        .zip(&values)
        .map(|((name, shape), values)| TensorRef::f32(name, shape, values))
        .collect();
    write_file(path, &tensors, &Default::default()).unwrap();
}
