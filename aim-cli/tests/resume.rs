//! Runs that are killed, signalled and damaged end exactly as one that nothing happened to.
// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::type_complexity, clippy::print_stdout, clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use common::*;

const STEPS: u32 = 300;

/// Metrics of a run that nothing happens to.
fn reference(dir: &Path, steps: u32, more: &[&str]) -> Vec<String> {
    let out = dir.join("reference");
    run(&mut pretrain_stripes(&out, steps, more), 0);
    let lines = metrics(&out);
    assert_eq!(lines.len(), steps as usize);
    lines
}

/// Splitmix64: the moments of the kills are the same in every run of this test, as far as the machine allows.
struct Random(u64);

impl Random {
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[test]
fn twenty_five_kills_change_no_bit() {
    const KILLS: usize = 25;
    let dir = tempfile::tempdir().unwrap();
    let reference = reference(dir.path(), STEPS, &[]);
    // The time from the first step to the last of another undisturbed run.
    let timed = Running::spawn(&mut pretrain_stripes(&dir.path().join("timed"), STEPS, &[]));
    assert!(timed.wait_for_training());
    let started = Instant::now();
    assert!(timed.finish().0.success());
    let training_s = started.elapsed().as_secs_f64();

    let mut random = Random(0);
    let (mut kills, mut in_training, mut runs) = (0, 0, 0);
    // Should the killed runs get on faster than expected, what is missing is made up for on another run.
    while kills < KILLS {
        assert!(runs < 10, "{kills} of {KILLS} kills hit in {runs} runs");
        let out = dir.path().join(format!("killed-{runs}"));
        runs += 1;
        loop {
            let mut life = Running::spawn(&mut pretrain_stripes(&out, STEPS, &[]));
            // A fifth of the kills hit a run that is still starting or resuming.
            let early = random.share() < 0.2;
            let trains = !early && life.wait_for_training();
            let span_s = if early { 0.05 } else { 2.0 * training_s / (KILLS + 1) as f64 };
            std::thread::sleep(Duration::from_secs_f64(random.share() * span_s));
            if kills < KILLS {
                life.kill();
            }
            let (status, text) = life.finish();
            // What a kill leaves is whole: checkpoints of killed runs are never passed over.
            assert!(!text.contains("passed over"), "{text}");
            if status.success() {
                break;
            }
            assert_eq!(status.signal(), Some(9), "{text}");
            kills += 1;
            in_training += usize::from(trains);
        }
        assert_same_metrics(&out, &reference);
    }
    assert!(
        in_training * 2 > KILLS,
        "only {in_training} of {KILLS} kills hit a run that was training"
    );
    println!("{kills} kills in {runs} runs, {in_training} of them after the first step began");
}

/// Operations of a run, as `AIM_FAULT_TRACE` lists them: "NUMBER KIND PATH".
fn trace(dir: &Path, steps: u32, more: &[&str]) -> Vec<String> {
    let file = dir.join("trace.txt");
    run(pretrain_stripes(&dir.join("traced"), steps, more).env("AIM_FAULT_TRACE", &file), 0);
    fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect()
}

/// The step of a line that makes a checkpoint visible.
fn commits(line: &str) -> Option<u64> {
    let (_, path) = line.split_once(" rename ")?;
    path.rsplit_once("/step-").and_then(|(_, step)| step.parse().ok())
}

#[test]
fn a_kill_at_any_operation_leaves_the_last_complete_checkpoint() {
    if !cfg!(debug_assertions) {
        println!("skipped: release builds have no fault points");
        return;
    }
    // The third checkpoint removes the first two's leftovers: every operation of writing and pruning is there.
    const STEPS: u32 = 5;
    let more = ["--set", "checkpoint.every_steps=2", "--set", "checkpoint.keep=1"];
    let dir = tempfile::tempdir().unwrap();
    let reference = reference(dir.path(), STEPS, &more);
    let operations = trace(dir.path(), STEPS, &more);
    for kind in ["create", "write", "write half", "sync", "sync directory", "rename", "remove"] {
        let found = operations
            .iter()
            .any(|line| line.contains(&format!(" {kind} ")) && line.contains("step-"));
        assert!(found, "no {kind} of a checkpoint in {operations:#?}");
    }
    let mut last = None;
    for (index, line) in operations.iter().enumerate() {
        let at = index + 1;
        let out = dir.path().join(format!("killed-{at}"));
        let killed = pretrain_stripes(&out, STEPS, &more)
            .env("AIM_FAULT_KILL_AT", at.to_string())
            .output()
            .unwrap();
        assert_eq!(killed.status.signal(), Some(9), "operation {line}: {}", stderr(&killed));
        // The process dies before the operation that it was to die at.
        assert_eq!(checkpoint_steps(&out).last().copied(), last, "operation {line}");

        // The resumed run is killed as well, while it puts things in order or soon after.
        let again = (1 + index % 12).to_string();
        let second =
            pretrain_stripes(&out, STEPS, &more).env("AIM_FAULT_KILL_AT", again).output().unwrap();
        assert!(second.status.success() || second.status.signal() == Some(9), "operation {line}");
        let newest = checkpoint_steps(&out).last().copied();
        assert!(newest >= last, "operation {line}");

        let text = run(&mut pretrain_stripes(&out, STEPS, &more), 0);
        let resumed = newest
            .map(|step| format!("resumed from {} (step {step})", checkpoint(&out, step).display()));
        assert!(resumed.is_none_or(|resumed| text.contains(&resumed)), "operation {line}: {text}");
        assert!(!text.contains("passed over"), "operation {line}: {text}");
        assert_same_metrics(&out, &reference);
        // Nothing half-done stays. An old checkpoint may, if its removal was to be the last act.
        let left = listing(&out.join("checkpoints"));
        assert!(left.iter().all(|name| name.starts_with("step-")), "operation {line}: {left:?}");
        assert_eq!(left.last().map(String::as_str), Some("step-00000005"), "operation {line}");
        assert_eq!(
            listing(&out),
            ["checkpoints", "config.toml", "lock", "metrics.jsonl"],
            "operation {line}"
        );
        last = commits(line).or(last);
        fs::remove_dir_all(&out).unwrap();
    }
    assert_eq!(last, Some(5));
}

#[test]
fn a_kill_while_a_damaged_checkpoint_is_replaced() {
    if !cfg!(debug_assertions) {
        println!("skipped: release builds have no fault points");
        return;
    }
    let steps = 4;
    let more = ["--set", "checkpoint.every_steps=2"];
    let dir = tempfile::tempdir().unwrap();
    let reference = reference(dir.path(), steps, &more);
    let mut at = 1;
    loop {
        let out = dir.path().join(format!("killed-{at}"));
        run(&mut pretrain_stripes(&out, steps, &more), 0);
        fs::write(checkpoint(&out, 4).join("trainer.json"), "{").unwrap();
        let mut command = pretrain_stripes(&out, steps, &more);
        let killed = command.env("AIM_FAULT_KILL_AT", at.to_string()).output().unwrap();
        let text = run(&mut pretrain_stripes(&out, steps, &more), 0);
        assert!(text.contains("(step 2)") || text.contains("(step 4)"), "operation {at}: {text}");
        assert_same_metrics(&out, &reference);
        let left = listing(&out.join("checkpoints"));
        assert_eq!(left, ["step-00000002", "step-00000004"], "operation {at}");
        if killed.status.success() {
            break;
        }
        assert_eq!(killed.status.signal(), Some(9), "operation {at}: {}", stderr(&killed));
        at += 1;
        fs::remove_dir_all(&out).unwrap();
    }
    // More than the operations of a plain save: some 40.
    assert!(at > 40, "{at} operations");
}

#[test]
fn signals_save_exit_75_and_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // Long enough that the signal comes before the end; no checkpoint but the signal's.
    let more = ["--set", "checkpoint.every_steps=0", "--set", "train.batch_size=16"];
    let steps = 2000;
    let reference = reference(dir.path(), steps, &more);
    for (name, number) in [("-INT", "SIGINT"), ("-TERM", "SIGTERM"), ("-USR1", "SIGUSR1")] {
        let out = dir.path().join(number);
        let life = Running::spawn(&mut pretrain_stripes(&out, steps, &more));
        assert!(life.wait_for_training());
        life.signal(name);
        let (status, text) = life.finish();
        assert_eq!(status.code(), Some(75), "{number}: {text}");
        assert!(text.contains(number), "{number}: {text}");
        let saved = checkpoint_steps(&out);
        assert_eq!(saved.len(), 1, "{number}");
        // Not a step is done again.
        assert_eq!(metrics(&out).len() as u64, saved[0], "{number}");
        assert!(saved[0] < u64::from(steps), "{number}");
        run(&mut pretrain_stripes(&out, steps, &more), 0);
        assert_same_metrics(&out, &reference);
    }
}

#[test]
fn a_signal_does_not_wait_for_a_step_of_thousands_of_images() {
    let dir = tempfile::tempdir().unwrap();
    // Seconds a step, so that the signal falls into the second one.
    let more = ["--set", "train.accumulate=12000"];
    let reference = reference(dir.path(), 2, &more);
    let out = dir.path().join("run");
    let life = Running::spawn(&mut pretrain_stripes(&out, 2, &more));
    let log = out.join("metrics.jsonl");
    while fs::metadata(&log).map_or(0, |file| file.len()) == 0 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    std::thread::sleep(std::time::Duration::from_millis(100));
    life.signal("-TERM");
    let (status, text) = life.finish();
    assert_eq!(status.code(), Some(75), "{text}");
    // The half of a step is given up, and made again from its first image.
    assert_eq!((checkpoint_steps(&out), metrics(&out).len()), (vec![1], 1), "{text}");
    run(&mut pretrain_stripes(&out, 2, &more), 0);
    assert_same_metrics(&out, &reference);
}

#[test]
fn damaged_checkpoints_are_passed_over_by_name() {
    let steps = 25;
    let dir = tempfile::tempdir().unwrap();
    let reference = reference(dir.path(), steps, &[]);
    let damages: [(&str, fn(&mut Vec<u8>)); 4] = [
        ("cut in half", |bytes| bytes.truncate(bytes.len() / 2)),
        ("empty", Vec::clear),
        ("a bit in the middle", |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }),
        ("the last bit", |bytes| *bytes.last_mut().unwrap() ^= 0x80),
    ];
    let files =
        ["MANIFEST.json", "trainer.json", "model.safetensors", "optimizer_exp_avg_sq.safetensors"];
    for (index, (what, damage)) in damages.iter().enumerate() {
        let out = dir.path().join(format!("run-{index}"));
        run(&mut pretrain_stripes(&out, steps, &[]), 0);
        assert_eq!(checkpoint_steps(&out), [20, 25]);
        let newest = checkpoint(&out, 25);
        for file in files {
            let path = newest.join(file);
            let whole = fs::read(&path).unwrap();
            let mut bytes = whole.clone();
            damage(&mut bytes);
            fs::write(&path, bytes).unwrap();
            let text = run(&mut pretrain_stripes(&out, steps, &[]), 0);
            // A manifest whose list changed accuses the file that it lists.
            let named = |line: &str| line.contains(file) || file == "MANIFEST.json";
            let warned = text.lines().any(|line| {
                line.starts_with("warning: ") && line.contains("step-00000025") && named(line)
            });
            assert!(warned, "{what}, {file}: {text}");
            assert!(text.contains("(step 20)"), "{what}, {file}: {text}");
            assert_same_metrics(&out, &reference);
            // Written anew, over the damaged one.
            assert_eq!(checkpoint_steps(&out), [20, 25], "{what}, {file}");
            let text = run(&mut pretrain_stripes(&out, steps, &[]), 0);
            assert!(
                text.contains("(step 25)") && !text.contains("passed over"),
                "{what}, {file}: {text}"
            );
        }
    }
}

#[test]
fn a_missing_file_of_a_checkpoint_is_named_too() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    run(&mut pretrain_stripes(&out, 20, &[]), 0);
    fs::remove_file(checkpoint(&out, 20).join("optimizer_exp_avg.safetensors")).unwrap();
    let text = run(&mut pretrain_stripes(&out, 20, &[]), 0);
    assert!(text.contains("optimizer_exp_avg.safetensors") && text.contains("(step 10)"), "{text}");
}

#[test]
fn one_run_per_directory() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let first = Running::spawn(&mut pretrain_stripes(&out, 1_000_000, &[]));
    assert!(first.wait_for_training());
    let pid = format!("process {} ", first.child.id());
    let before = checkpoint_steps(&out).last().copied();
    refused(&mut pretrain_stripes(&out, 1_000_000, &[]), 1, &[&pid, &out.display().to_string()]);
    // The first one is not disturbed.
    first.signal("-TERM");
    let (status, text) = first.finish();
    assert_eq!(status.code(), Some(75), "{text}");
    assert!(checkpoint_steps(&out).last().copied() >= before);
    // The lock goes with its process.
    let short = Running::spawn(&mut pretrain_stripes(&out, 1_000_000, &[]));
    assert!(short.wait_for_training());
}

#[test]
fn a_different_configuration_is_refused_with_both_values() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    run(&mut pretrain_stripes(&out, 10, &[]), 0);
    let before = fs::read(out.join("metrics.jsonl")).unwrap();
    let config = fs::read(out.join("config.toml")).unwrap();
    let different = ["--set", "train.lr=0.25", "--set", "model.embed_dim=32"];
    let expected = [
        "train.lr: 0.001 in the checkpoint, 0.25 now",
        "model.embed_dim: 16 in the checkpoint, 32 now",
        "step-00000010",
    ];
    let text = refused(&mut pretrain_stripes(&out, 20, &different), 1, &expected);
    assert!(!text.contains("train.batch_size"), "{text}");
    refused(
        &mut pretrain_stripes(&out, 20, &["--resume", "never"]),
        1,
        &["step-00000010", "--resume auto"],
    );
    let nowhere = dir.path().join("nowhere");
    refused(
        &mut pretrain_stripes(&out, 20, &["--resume", &nowhere.display().to_string()]),
        1,
        &[&nowhere.display().to_string()],
    );
    assert_eq!(fs::read(out.join("metrics.jsonl")).unwrap(), before);
    assert_eq!(fs::read(out.join("config.toml")).unwrap(), config);
    // What changes no bit may change: how often is saved and logged, how many threads work.
    let free =
        ["--set", "train.threads=2", "--set", "data.workers=2", "--set", "checkpoint.keep=3"];
    assert!(run(&mut pretrain_stripes(&out, 10, &free), 0).contains("(step 10)"));
}

#[test]
fn going_back_on_purpose_leaves_the_later_checkpoints_aside() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let keep = ["--set", "checkpoint.keep=3"];
    run(&mut pretrain_stripes(&out, 30, &keep), 0);
    let before = metrics(&out);
    let first = checkpoint(&out, 10);
    let mut back = pretrain_stripes(&out, 30, &["--resume", first.to_str().unwrap()]);
    let text = run(back.args(keep), 0);
    assert!(text.contains("aside-step-00000020") && text.contains("(step 10)"), "{text}");
    let names = listing(&out.join("checkpoints"));
    let aside: Vec<_> = names.iter().filter(|name| name.starts_with("aside-")).collect();
    assert_eq!(aside, ["aside-step-00000020", "aside-step-00000030"]);
    assert_eq!(checkpoint_steps(&out), [10, 20, 30]);
    assert_same_metrics(&out, &before);
}

#[test]
fn an_output_directory_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "in the way").unwrap();
    refused(&mut pretrain_stripes(&file, 10, &[]), 1, &[&file.display().to_string()]);
    refused(&mut pretrain_stripes(&file.join("run"), 10, &[]), 1, &[&file.display().to_string()]);
    assert_eq!(fs::read(&file).unwrap(), b"in the way");

    let place = dir.path().join("mounted");
    fs::create_dir(&place).unwrap();
    let Some(disk) = Tmpfs::mount(&place, "4m") else {
        return;
    };
    let run_dir = place.join("run");
    run(&mut pretrain_stripes(&run_dir, 10, &[]), 0);
    disk.remount("ro");
    let shown = run_dir.display().to_string();
    refused(&mut pretrain_stripes(&run_dir, 20, &[]), 1, &[&shown]);
    refused(&mut pretrain_stripes(&place.join("new"), 20, &[]), 1, &["Read-only", "new"]);
    disk.remount("rw");
    assert_eq!(checkpoint_steps(&run_dir), [10]);
}

#[test]
fn a_full_disk_keeps_what_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let steps = 40;
    let reference = reference(dir.path(), steps, &[]);
    let place = dir.path().join("mounted");
    fs::create_dir(&place).unwrap();
    let Some(_disk) = Tmpfs::mount(&place, "1m") else {
        return;
    };
    let out = place.join("run");
    // A checkpoint has 112 KiB here, and three must fit before the oldest goes: the disk is full at
    // varying points of the second or third.
    for ballast in [700, 740, 780, 820, 860_usize] {
        fs::write(place.join("ballast"), vec![1; ballast << 10]).unwrap();
        let text = refused(
            &mut pretrain_stripes(&out, steps, &[]),
            1,
            &["the disk is full", "bytes free"],
        );
        let path = out.display().to_string();
        assert!(text.contains(&path), "{text}");
        let saved = checkpoint_steps(&out);
        assert!(!saved.is_empty() && *saved.last().unwrap() < 40, "{ballast} KiB: {saved:?}");
        fs::remove_file(place.join("ballast")).unwrap();
        let text = run(&mut pretrain_stripes(&out, steps, &[]), 0);
        let newest = saved.last().unwrap();
        assert!(
            text.contains(&format!("(step {newest})")) && !text.contains("passed over"),
            "{text}"
        );
        assert_same_metrics(&out, &reference);
        fs::remove_dir_all(&out).unwrap();
    }
}
