//! The binary from the outside: exit codes, messages, streams.
// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used)]

use std::io::Read as _;
use std::process::{Command, Output, Stdio};

fn aim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_aim-cli")).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const COMMANDS: &[&str] = &[
    "quickstart",
    "pretrain",
    "probe",
    "finetune",
    "finetune eval",
    "finetune merge",
    "finetune unmerge",
    "features",
    "classify",
    "reconstruct",
    "report",
    "plan",
    "presets",
    "config",
    "config show",
    "data",
    "data check",
    "data stats",
    "data pack",
    "doctor",
    "kernels",
    "kernels build",
    "kernels list",
    "completions",
    "man",
];

#[test]
fn every_command_has_help() {
    for command in COMMANDS {
        let mut args: Vec<_> = command.split(' ').collect();
        args.push("--help");
        let output = aim(&args);
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(stdout(&output).contains("Usage: aim-cli"), "{command}");
        assert!(output.stderr.is_empty(), "{command}");
    }
    let all = stdout(&aim(&["--help"]));
    for command in COMMANDS.iter().filter(|command| !command.contains(' ')) {
        assert!(all.contains(&format!("\n  {command} ")), "{command}: {all}");
    }
}

#[test]
fn wrong_usage_is_2() {
    for args in [
        &[][..],
        &["nonsense"],
        &["config", "show", "--nonsense"],
        &["config", "show", "--preset", "aim-2B"],
        &["config", "show", "--set", "train.lr"],
        &["config", "show", "--set", "train.lr=-1"],
        &["config", "show", "--config", "/nonexistent.toml"],
        &["pretrain", "--out", "x", "--device", "gpu"],
    ] {
        let output = aim(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn failures_are_1_and_name_the_place() {
    let output = aim(&["report", "/nonexistent/run"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("error: /nonexistent/run is no directory"));
    let dir = tempfile::tempdir().unwrap();
    let output = aim(&["report", &dir.path().to_string_lossy()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("holds neither config.toml nor metrics.jsonl"));
    let output = aim(&["data", "check", "imagefolder:/nonexistent/images"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nonexistent/images"), "{}", stderr(&output));
    let output = aim(&["kernels", "list", "--arch", "fast"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("sm_90a") && stderr(&output).contains("fast"));
}

#[test]
fn an_unknown_key_is_refused_with_a_suggestion() {
    let output = aim(&["config", "show", "--set", "train.batchsize=8"]);
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert!(message.contains("did you mean train.batch_size?"), "{message}");
    assert!(message.contains("keys of [train]: steps, batch_size"), "{message}");
}

#[test]
fn shown_configurations_can_be_read_back() {
    let args = ["config", "show", "--preset", "aim-nano", "--set", "train.lr=5e-4", "--steps", "7"];
    let shown = stdout(&aim(&args));
    assert!(shown.contains("# preset aim-nano") && shown.contains("# --steps"), "{shown}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    std::fs::write(&path, &shown).unwrap();
    let again = stdout(&aim(&["config", "show", "--config", &path.to_string_lossy()]));
    let values = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split(" #").next().unwrap().trim().to_owned()).collect()
    };
    assert_eq!(values(&again)[1..], values(&shown)[1..]);
    let json = stdout(&aim(&["config", "show", "--preset", "aim-nano", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let eps = json.as_array().unwrap().iter().find(|e| e["key"] == "model.norm_eps").unwrap();
    assert_eq!(
        (eps["value"].as_f64(), eps["origin"].as_str()),
        (Some(1e-6), Some("preset aim-nano"))
    );
}

/// Runs with the reading end of standard output closed before anything can be written.
fn into_closed_pipe(args: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    Command::new(env!("CARGO_BIN_EXE_aim-cli"))
        .args(args)
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap()
}

#[test]
fn a_closed_pipe_is_no_failure() {
    for args in [
        &["presets"][..],
        &["config", "show"],
        &["doctor", "--json"],
        &["completions", "bash"],
        &["man"],
        &["--help"],
    ] {
        let output = into_closed_pipe(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        assert!(output.stderr.is_empty(), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_closed_standard_error_is_no_panic() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_aim-cli"))
        .args(["report", "/nonexistent/run"])
        .stderr(writer)
        .spawn()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn completions_and_manual_pages_are_generated() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = aim(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(stdout(&output).contains("pretrain"), "{shell}");
    }
    assert!(stdout(&aim(&["man"])).contains(".TH aim-cli 1"));
    let dir = tempfile::tempdir().unwrap();
    let output = aim(&["man", "--out", &dir.path().to_string_lossy()]);
    assert_eq!(output.status.code(), Some(0));
    assert!(dir.path().join("aim-cli-pretrain.1").exists());
}

#[test]
fn results_go_to_standard_output_alone() {
    for args in [&["presets", "--json"][..], &["doctor", "--json"]] {
        let output = aim(args);
        assert!(serde_json::from_slice::<serde_json::Value>(&output.stdout).is_ok(), "{args:?}");
        assert!(output.stderr.is_empty(), "{args:?}");
    }
    let presets = stdout(&aim(&["presets"]));
    assert!(presets.contains("680,535,552") && presets.contains("407,059,020"), "{presets}");
}

#[test]
fn the_doctor_looks_for_cuda_and_needs_none() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("libcuda.so.1"), "no library").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_aim-cli"));
    command.args(["doctor", "--json"]).env("AIM_CUDA_LIB", dir.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let finding = |name: &str| {
        let found = findings.as_array().unwrap().iter().find(|finding| finding["name"] == name);
        found.unwrap_or_else(|| panic!("{name}: {findings}"))
    };
    let advice = finding("driver")["advice"].as_str().unwrap();
    assert!(advice.contains("libcuda.so.1 cannot be used"), "{advice}");
    for name in ["cuBLASLt", "NVRTC", "NCCL", "kernels"] {
        finding(name);
    }
}

#[test]
fn data_is_checked_described_and_packed() {
    let dir = tempfile::tempdir().unwrap();
    let shards = dir.path().join("shards");
    let out = shards.to_string_lossy().into_owned();
    let source = "synthetic:stripes,n=25,size=16,classes=5";
    let packed =
        aim(&["data", "pack", source, "--out", &out, "--shard-size", "10", "--json", "--quiet"]);
    assert_eq!(packed.status.code(), Some(0), "{}", stderr(&packed));
    assert!(packed.stderr.is_empty(), "{}", stderr(&packed));
    let report: serde_json::Value = serde_json::from_slice(&packed.stdout).unwrap();
    assert_eq!(
        (report["samples"].as_u64(), report["shards"].as_array().map(Vec::len)),
        (Some(25), Some(3))
    );
    let spec = format!("wds:{out}/train-{{000000..000002}}.tar");
    let checked = aim(&["data", "check", &spec]);
    assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
    assert!(stdout(&checked).contains("25 of 25 samples are good: png 25"), "{}", stdout(&checked));
    let described = stdout(&aim(&["data", "stats", &spec]));
    assert!(described.contains("5 classes") && described.contains("16 px"), "{described}");
}

#[test]
fn bad_images_are_listed_and_fail_the_check() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("empty.png"), b"").unwrap();
    std::fs::write(dir.path().join("page.jpg"), b"<html>").unwrap();
    let output = aim(&["data", "check", &format!("imagefolder:{}", dir.path().display())]);
    assert_eq!(output.status.code(), Some(1));
    let list = stdout(&output);
    assert!(list.contains("empty.png") && list.contains("page.jpg"), "{list}");
    assert!(
        stderr(&output).contains("error: 2 of 2 samples cannot be used"),
        "{}",
        stderr(&output)
    );
}
