//! `gpu-check` on the emulated device, and on a machine without any.
// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;
#[path = "../../aim-kernels/emulator/harness.rs"]
mod harness;

use std::process::Output;
use std::time::Instant;

use aim_tensor::io::npy;
use common::*;
use serde_json::Value;

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json(file: &std::path::Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

#[test]
fn everything_passes_on_the_emulator() {
    let Some(_) = harness::libraries() else { return };
    let start = Instant::now();
    let dir = tempfile::tempdir().unwrap();
    let mut command = aim();
    command.args([
        "gpu-check",
        "--quick",
        "--only",
        "seam,kernels,training",
        "--seed",
        "1",
        "--out",
    ]);
    // Copies at once, and the order of threads that finds most.
    harness::child_env(command.arg(dir.path()), 4);
    let output = command.output().unwrap();
    let (text, errors) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(0), "{text}\n{errors}");
    println!("{text}\n{:.0} s", start.elapsed().as_secs_f64());
    for part in ["primitives", "prefix_attention", "linear", "small, 49 tokens", "resumed run"] {
        assert!(text.lines().any(|line| line.starts_with(part)), "{part}: {text}");
    }
    let report = json(&dir.path().join("gpu_check.json"));
    assert_eq!(report["machine"]["device"], "CPU emulator");
    assert_eq!(report["failures"], Value::Array(Vec::new()));
    let units: Vec<_> = report["parts"].as_array().unwrap().iter().map(|p| &p["unit"]).collect();
    assert!(units.contains(&&"seam/seam".into()) && units.contains(&&"training/resume".into()));
    assert_eq!(listing(dir.path()), ["gpu_check.json"], "nothing is left behind");
}

#[test]
fn every_measurement_runs() {
    let Some(_) = harness::libraries() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut command = aim();
    command.args(["gpu-check", "--quick", "--only", "bench", "--preset", "aim-nano", "--out"]);
    harness::child_env(command.arg(dir.path()).args(["--batch", "2", "--seed", "1"]), 0);
    let output = command.output().unwrap();
    let (text, errors) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(0), "{text}\n{errors}");
    for row in ["copy of", "adamw", "prefix_attention/backward", "qkv/backward_weight", "aim-nano"]
    {
        assert!(text.lines().any(|line| line.starts_with(row)), "{row}: {text}");
    }
    let report = json(&dir.path().join("gpu_check.json"));
    let records = report["records"].as_array().unwrap();
    let step = records.iter().find(|record| record["kind"] == "step").unwrap();
    assert!(step["all_rows_flops"].as_f64() > step["flops"].as_f64() && step["batch"] == 2);
    let qkv = npy::read(dir.path().join("attention-aim-nano-qkv.npy")).unwrap();
    assert_eq!(qkv.shape, [2, 64, 3, 3, 64]);
    let npy::NpyData::I64(words) = qkv.data else { panic!("floats") };
    let zeros = words.iter().filter(|word| **word & 0x7fff == 0).count();
    assert!(zeros < words.len() / 100, "{zeros} zeros");
}

#[test]
fn a_wrong_kernel_is_named_and_the_rest_is_done() {
    let wrong = |text: &str| {
        let anchor = "return fmaf(-fminf(a, 10.f), tail(a), fmaxf(x, 0.f));";
        assert!(text.contains(anchor), "the anchor is gone");
        text.replace(anchor, "return fmaf(-fminf(a, 10.f), tail(a), fmaxf(x, 0.01f));")
    };
    let wild = |text: &str| {
        let anchor = "KERNEL __launch_bounds__(256) void cast_to_f32(";
        let at = text.find(anchor).expect("the kernel is there");
        let body = at + text[at..].find('{').unwrap() + 1;
        let pointer = "*(volatile int*)16 = 0;";
        format!("{}{pointer}{}", &text[..body], &text[body..])
    };
    let build = harness::Build::all().edit("gelu.cu", wrong).edit("cast.cu", wild);
    let Some(folder) = build.make() else { return };
    let mut command = aim();
    harness::child_env_in(
        command.args(["gpu-check", "--only", "kernels", "--seed", "1"]),
        &folder,
        0,
    );
    let output = command.output().unwrap();
    let (text, errors) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(1), "{text}\n{errors}");
    assert!(text.contains("FAILED gelu: "), "{text}");
    assert!(text.contains("FAILED kernels/cast: "), "{text}");
    // Units behind the fault are done by another process.
    let fine =
        |name: &str| text.lines().any(|line| line.starts_with(name) && line.contains(" 0  "));
    assert!(fine("layer_norm") && fine("prefix_attention") && fine("adamw"), "{text}");
}

#[test]
fn a_device_that_does_not_open_is_one_failure() {
    let Some(_) = harness::libraries() else { return };
    let mut command = aim();
    harness::child_env(command.args(["gpu-check", "--only", "seam,kernels"]), 0);
    let output = command.env("AIM_CUBIN", "/nonexistent/kernels.cubin").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(text.contains("FAILED opening the device: "), "{text}");
    assert!(text.contains("/nonexistent/kernels.cubin") && text.contains("0 of 1 "), "{text}");
}

#[test]
fn without_a_gpu_one_line_says_why() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("libcuda.so.1"), "no library").unwrap();
    let mut command = aim();
    command.args(["gpu-check", "--only", "seam"]).env("AIM_CUDA_LIB", dir.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.starts_with("error: no CUDA: ") && text.lines().count() == 1, "{text}");
    assert!(output.stdout.is_empty());
    refused(aim().args(["gpu-check", "--preset", "aim-2B"]), 2, &["aim-2B", "aim-1B"]);
}
