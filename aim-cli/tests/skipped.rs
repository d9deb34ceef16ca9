//! Bad samples in a training run: named once in `skipped.jsonl`, whatever happens to the run, and too many of them end
//! it.
// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use aim_data::source::Payload;
use common::*;

const STEPS: u32 = 40;

/// Tar shards of 60 small images, every fifth of them damaged in some way.
fn shards(dir: &Path) -> PathBuf {
    let stripes = aim_data::spec::open("synthetic:stripes,n=60,size=8").unwrap();
    for shard in 0..3 {
        let file = fs::File::create(dir.join(format!("{shard:05}.tar"))).unwrap();
        let mut tar = tar::Builder::new(file);
        for index in shard * 20..(shard + 1) * 20 {
            let Payload::Pixels(image) = stripes.read(index, 0).unwrap().payload else {
                panic!("stripes are pixels");
            };
            let mut bytes = aim_data::pack::encode_png(&image).unwrap();
            match index % 15 {
                4 => bytes.truncate(0),
                9 => bytes = b"<html>404</html>".to_vec(),
                14 => bytes.truncate(60),
                _ => {}
            }
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append_data(&mut header, format!("k{index:05}.png"), &bytes[..]).unwrap();
        }
        tar.finish().unwrap();
    }
    dir.to_owned()
}

fn pretrain_shards(out: &Path, data: &Path, more: &[&str]) -> std::process::Command {
    let mut command = pretrain(out, STEPS, &["--set", "data.max_bad_fraction=0.5"]);
    command.args(more).arg("--data").arg(format!("wds:{}", data.display()));
    command
}

fn skipped(out: &Path) -> String {
    fs::read_to_string(out.join("skipped.jsonl")).unwrap()
}

#[test]
fn skipped_samples_are_named_once_also_after_interruptions() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("shards");
    fs::create_dir(&data).unwrap();
    shards(&data);
    let whole = dir.path().join("whole");
    let trace = dir.path().join("trace.txt");
    run(pretrain_shards(&whole, &data, &[]).env("AIM_FAULT_TRACE", &trace), 0);
    let reference = metrics(&whole);
    let text = skipped(&whole);
    // 160 images of about 54: every bad one was met, most of them thrice.
    let mut keys: Vec<&str> = Vec::new();
    for line in text.lines() {
        let key = line.split("\"key\":\"").nth(1).unwrap().split('"').next().unwrap();
        let index: usize = key[1..].parse().unwrap();
        let kind = match index % 15 {
            4 => "empty",
            9 => "unknown_format",
            _ => "truncated",
        };
        assert!(line.contains(&format!("\"kind\":\"{kind}\"")), "{line}");
        assert!(line.contains(&format!("{:05}.tar", index / 20)), "{line}");
        let (step, set) = if line.contains("\"set\":\"train\"") { (1, "train") } else { (0, "") };
        assert!(line.starts_with("{\"step\":") && number(&line[1..], "step") >= step as f64);
        assert!(set == "train" || line.contains("\"step\":0,\"set\":\"validation\""), "{line}");
        keys.push(key);
    }
    assert_eq!(keys.len(), 12, "{text}");
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 12, "{text}");

    // Killed at operations of the file system all over the run, and again while it resumes.
    if !cfg!(debug_assertions) {
        println!("skipped: release builds have no fault points");
        return;
    }
    let operations = fs::read_to_string(trace).unwrap().lines().count();
    for at in (1..operations).step_by(operations / 12) {
        let out = dir.path().join(format!("killed-{at}"));
        let workers = ["--set", "data.workers=3"];
        for kill_at in [at, at / 2 + 1] {
            let killed = pretrain_shards(&out, &data, &workers)
                .env("AIM_FAULT_KILL_AT", kill_at.to_string())
                .output()
                .unwrap();
            let ended = killed.status.success() || killed.status.signal() == Some(9);
            assert!(ended, "operation {at}: {}", stderr(&killed));
        }
        run(&mut pretrain_shards(&out, &data, &[]), 0);
        assert_same_metrics(&out, &reference);
        assert_eq!(skipped(&out), text, "operation {at}");
    }
}

#[test]
fn too_many_bad_samples_end_the_run_and_are_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("shards");
    fs::create_dir(&data).unwrap();
    shards(&data);
    let out = dir.path().join("run");
    let strict = ["--set", "data.max_bad_fraction=0.01"];
    refused(&mut pretrain_shards(&out, &data, &strict), 1, &["11 of ", "tolerated: 1 %", ".tar"]);
    // The ones that broke the camel's back are there too, each once.
    assert!(skipped(&out).lines().filter(|line| line.contains("\"train\"")).count() >= 8);
    let wrong = ["--set", "data.max_bad_fraction=2"];
    refused(&mut pretrain_shards(&out, &data, &wrong), 2, &["data.max_bad_fraction", "0 to 1"]);
}

#[test]
fn a_shuffle_in_windows_of_shards_is_the_runs_own() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("shards");
    fs::create_dir(&data).unwrap();
    shards(&data);
    let out = dir.path().join("run");
    run(&mut pretrain_shards(&out, &data, &["--set", "data.window_shards=1"]), 0);
    // Neither forgotten nor changed by the way.
    let text = refused(&mut pretrain_shards(&out, &data, &[]), 1, &["data.window_shards"]);
    assert!(text.contains('1') && text.contains('0'), "{text}");
}
