//! `aim-cli report` on whole, partial and damaged run directories.
// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

fn report(run: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_aim-cli")).arg("report").arg(run).output().unwrap()
}

fn config(args: &[&str]) -> Vec<u8> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aim-cli"));
    command.args(["config", "show", "--preset", "aim-nano"]).args(args).output().unwrap().stdout
}

fn metrics(steps: u32) -> String {
    let mut text = String::new();
    for step in 1..=steps {
        let loss = 0.3 + 0.7 / f64::from(step);
        let _ = write!(
            text,
            "{{\"step\":{step},\"loss\":{loss},\"lr\":1e-3,\"grad_norm\":0.5,\"images_per_s\":800.0,\
             \"data_wait_share\":0.01,\"images_seen\":{}",
            step * 32
        );
        if step % 10 == 0 {
            let _ = write!(text, ",\"val_loss\":{},\"val_baseline\":0.599", loss + 0.01);
        }
        text.push_str("}\n");
    }
    text
}

fn png() -> Vec<u8> {
    let mut bytes = Vec::new();
    image::RgbImage::from_pixel(4, 4, image::Rgb([200, 30, 30]))
        .write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png)
        .unwrap();
    bytes
}

#[test]
fn a_run_becomes_one_file_that_needs_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    std::fs::write(run.join("config.toml"), config(&["--steps", "50", "--set", "train.lr=5e-4"]))
        .unwrap();
    std::fs::write(run.join("metrics.jsonl"), metrics(50)).unwrap();
    std::fs::create_dir_all(run.join("reconstructions")).unwrap();
    std::fs::write(run.join("reconstructions/step-50.png"), png()).unwrap();
    std::fs::create_dir_all(run.join("probe-attentive")).unwrap();
    std::fs::write(
        run.join("probe-attentive/results.json"),
        r#"{"train_images": 100, "num_classes": 10, "results": [
            {"probe": "attentive", "features": "pre-trained", "layers": [6, 7], "accuracy": [0.83, 0.85]},
            {"probe": "knn", "features": "<script>alert(1)</script>", "accuracy": 0.5}]}"#,
    )
    .unwrap();
    let output = report(run);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.is_empty());
    let html = std::fs::read_to_string(run.join("report.html")).unwrap();
    for expected in [
        "finished",
        "0.3240",
        "0.275 below the baseline of 0.599",
        "data:image/png;base64,",
        "84.0 \u{b1} 1.4 %",
        "6-7",
        "5e-4",
        "--set",
        "1,600 images seen",
        "Learning rate",
        "prefers-color-scheme",
    ] {
        assert!(html.contains(expected), "{expected}");
    }
    assert!(!html.contains("<script>alert"), "results are escaped");
    for outside in ["http://", "https://", "src=\"//", "url(", "@import", "<link"] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(!html.contains("NaN"));
}

#[test]
fn missing_and_damaged_parts_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    std::fs::write(run.join("config.toml"), "[train\n").unwrap();
    let lines = format!("{}not json\n{{\"loss\": 1}}\n{{\"step\": 6, \"lo", metrics(5));
    std::fs::write(run.join("metrics.jsonl"), lines).unwrap();
    std::fs::create_dir_all(run.join("reconstructions")).unwrap();
    std::fs::write(run.join("reconstructions/a.png"), b"no picture").unwrap();
    std::fs::create_dir_all(run.join("probe")).unwrap();
    std::fs::write(run.join("probe/results.json"), "[").unwrap();
    let output = report(run);
    let warnings = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{warnings}");
    for expected in
        ["config.toml is not valid TOML", "2 unreadable lines", "a.png: no PNG", "results.json"]
    {
        assert!(warnings.contains(expected), "{expected}: {warnings}");
    }
    let html = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(html.contains("<svg") && !html.contains("Configuration</h2>"));
}

#[test]
fn a_run_without_steps_still_has_a_report() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.toml"), config(&[])).unwrap();
    let output = report(dir.path());
    assert_eq!(output.status.code(), Some(0));
    let html = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(html.contains("no steps yet") && html.contains("Configuration</h2>"));
}

#[test]
fn a_report_that_cannot_be_written_says_where() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.toml"), config(&[])).unwrap();
    let out = dir.path().join("missing/report.html");
    let output = Command::new(env!("CARGO_BIN_EXE_aim-cli"))
        .arg("report")
        .arg(dir.path())
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("missing/report.html"));
}
