//! The program on a machine without CUDA, and on the emulated device.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../aim-kernels/emulator/harness.rs"]
mod harness;

use std::fs;
use std::path::Path;
use std::process::Command;

use aim_tensor::io::safetensors::SafeTensors;
use common::*;

/// The smallest sizes that the kernels take: a head of 64, 16 tokens.
const SIZES: &[&str] = &[
    "model.img_size=16",
    "model.embed_dim=64",
    "model.num_heads=1",
    "model.head_width=64",
    "model.num_blocks=2",
    "checkpoint.every_steps=3",
    "checkpoint.keep=3",
    "validation.every_steps=4",
];

fn pretrain_on(device: &str, out: &Path, steps: u32, more: &[&str]) -> Command {
    let mut command = pretrain(out, steps, &["--data", "synthetic:stripes,n=64,size=16"]);
    command.args(["--device", device]);
    SIZES.iter().for_each(|setting| {
        command.args(["--set", setting]);
    });
    command.args(more);
    command
}

/// A child that finds the fake libraries; `None` without a compiler.
fn emulated(mut command: Command) -> Option<Command> {
    harness::libraries()?;
    harness::child_env(&mut command, 0);
    Some(command)
}

/// A child that finds no driver, wherever the tests run.
fn without_cuda(mut command: Command) -> Command {
    // A folder that exists and has no library in it; bare names are the loader's business.
    command.env("AIM_CUDA_LIB", "/proc/self/fdinfo").env_remove("LD_LIBRARY_PATH");
    command
}

#[test]
fn without_cuda_one_line_says_what_is_missing() {
    if Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let text = run(&mut without_cuda(pretrain_on("cuda", &out, 2, &[])), 1);
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!((errors.len(), text.lines().count()), (1, 1), "{text}");
    assert!(errors[0].contains("libcuda.so.1"), "{text}");
    assert!(!out.exists(), "nothing is made before the device is open");
    // Precision and device must agree before anything is looked for.
    let bf16 = ["--precision", "bf16"];
    run(&mut without_cuda(pretrain_on("cpu", &out, 2, &bf16)), 1);
    run(&mut without_cuda(pretrain_on("cuda", &out, 2, &["--precision", "fp32"])), 1);
    // `auto` says why it takes the CPU, and trains.
    let text = run(&mut without_cuda(pretrain_on("auto", &out, 2, &[])), 0);
    assert!(text.contains("computing on the CPU") && text.contains("libcuda.so.1"), "{text}");
    assert_eq!(metrics(&out).len(), 2);
    run(&mut without_cuda(pretrain_on("auto", &dir.path().join("b"), 2, &bf16)), 1);
}

#[test]
fn a_resumed_run_on_cuda_has_the_bits_of_one_that_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let Some(mut command) = emulated(pretrain_on("cuda", &out, 8, &[])) else { return };
    let text = run(&mut command, 0);
    assert!(text.contains("CPU emulator"), "{text}");
    // Products chose their algorithms by measurement: the choice is kept, and it decides the last bits.
    let names = listing(&out.join("checkpoints/step-00000003"));
    assert!(names.iter().any(|name| name == "device.json"), "{names:?}");
    let last = out.join("checkpoints/step-00000008/model.safetensors");
    let (expected, weights) = (metrics(&out), fs::read(&last).unwrap());

    for step in ["step-00000006", "step-00000008"] {
        fs::remove_dir_all(out.join("checkpoints").join(step)).unwrap();
    }
    let text = run(&mut emulated(pretrain_on("cuda", &out, 8, &[])).unwrap(), 0);
    assert!(text.contains("(step 3)"), "{text}");
    assert_same_metrics(&out, &expected);
    assert_eq!(fs::read(&last).unwrap(), weights);

    // The same configuration on the CPU is another run: precision is part of it.
    refused(&mut pretrain_on("cpu", &out, 8, &[]), 1, &["train.precision", "bf16", "fp32"]);
}

#[test]
fn features_on_cuda_are_those_of_the_cpu_up_to_rounding() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let Some(mut command) = emulated(pretrain_on("cuda", &out, 3, &[])) else { return };
    run(&mut command, 0);
    let features = |device: &str| {
        let file = dir.path().join(format!("{device}.safetensors"));
        let mut command = aim();
        command.args(["features", "--data", "synthetic:stripes,n=6,size=16", "--layers", "0,1"]);
        command.args(["--device", device, "--checkpoint"]).arg(&out).arg("--out").arg(&file);
        run(&mut emulated(command).unwrap(), 0);
        SafeTensors::open(&file).unwrap().tensor("block_1").unwrap().to_f32().unwrap()
    };
    let (found, expected) = (features("cuda"), features("cpu"));
    let norm = |values: &mut dyn Iterator<Item = f32>| -> f64 {
        values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
    };
    let off = norm(&mut found.iter().zip(&expected).map(|(a, b)| a - b))
        / norm(&mut expected.iter().copied());
    assert!(off < 1e-2 && off > 0.0, "{off}");
}

#[test]
fn adapters_train_on_cuda_and_a_resumed_run_has_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    let Some(mut command) = emulated(pretrain_on("cuda", &base, 3, &[])) else { return };
    run(&mut command, 0);
    let data = "synthetic:stripes,n=24,size=16,classes=3";
    let finetune = |device: &str, out: &Path| {
        let mut command = aim();
        command.args(["finetune", "--train", data, "--val", data, "--batch-size", "8"]);
        command.args(["--epochs", "3", "--device", device, "--json", "--checkpoint"]).arg(&base);
        emulated(command).unwrap().arg("--out").arg(out).output().unwrap()
    };
    let answer = |output: &std::process::Output| -> serde_json::Value {
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let [whole, again, cpu] = ["whole", "again", "cpu"].map(|name| dir.path().join(name));
    let found = answer(&finetune("cuda", &whole));
    let expected = answer(&finetune("cpu", &cpu));
    let loss = |answer: &serde_json::Value| answer["loss"].as_f64().unwrap();
    assert!((loss(&found) / loss(&expected) - 1.0).abs() < 0.02, "{found} {expected}");

    // As if it had been killed after its second epoch.
    answer(&finetune("cuda", &again));
    for name in ["adapter_model.safetensors", "checkpoints/step-00000009"] {
        let path = again.join(name);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
    }
    assert_eq!(answer(&finetune("cuda", &again)), found);
    for name in ["adapter_model.safetensors", "head.safetensors"] {
        assert_eq!(fs::read(again.join(name)).unwrap(), fs::read(whole.join(name)).unwrap());
    }
    let mut narrow = aim();
    narrow.args(["finetune", "--train", data, "--val", data, "--lora-rank", "4", "--checkpoint"]);
    narrow.arg(&base).args(["--device", "cuda", "--out"]).arg(dir.path().join("narrow"));
    refused(&mut emulated(narrow).unwrap(), 1, &["lora-rank = 4", "a multiple of 8"]);
    let mut command = aim();
    command.args(["finetune", "eval", "--json", "--device", "cuda", "--data", data]);
    command.arg("--checkpoint").arg(&base).arg("--adapter").arg(&whole);
    assert_eq!(answer(&emulated(command).unwrap().output().unwrap()), found);
}

#[test]
fn what_no_kernel_does_is_said_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let narrow = ["--set", "model.num_heads=2"];
    let Some(mut command) = emulated(pretrain_on("cuda", &out, 2, &narrow)) else { return };
    refused(&mut command, 1, &["64 or 128", "32"]);
}
