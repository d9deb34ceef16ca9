//! What a checkpoint promises when the process is killed, the disk fills up, or files are damaged.

// Helpers of tests count as code outside of tests.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use aim_tensor::io::safetensors::{SafeTensors, TensorRef};
use aim_train::checkpoint::{self, CheckpointWriter, Manifest};
use aim_train::metrics::jsonl;
use aim_train::{TrainError, checkpoint::Found, durable};

/// The content of a checkpoint is a function of this; a save that replaces another has its own.
fn values(step: u64, attempt: u64) -> Vec<f32> {
    (0..1000).map(|i| (step * 31 + attempt * 7 + i) as f32).collect()
}

fn save(run: &Path, step: u64, attempt: u64) -> Result<PathBuf, TrainError> {
    let mut writer = CheckpointWriter::begin(run, step)?.max_shard_bytes(3000);
    writer.json("config.json", &serde_json::json!({ "img_size": 32 }))?;
    let values = values(step, attempt);
    let (a, b) = values.split_at(400);
    let tensors = [TensorRef::f32("a", &[400], a), TensorRef::f32("b", &[2, 300], b)];
    writer.tensors("optimizer", &tensors)?;
    writer.tensors("model", &tensors[1..])?;
    writer.json("trainer.json", &serde_json::json!({ "step": step, "attempt": attempt }))?;
    writer.commit()
}

fn newest(run: &Path) -> Option<Found> {
    checkpoint::newest_valid(run, |path, error| panic!("{} is damaged: {error}", path.display()))
        .unwrap()
}

/// Every visible checkpoint is whole; returns step and attempt of the newest.
fn check_run(run: &Path) -> (u64, u64) {
    for entry in checkpoint::list(run).unwrap() {
        checkpoint::verify(&entry.path).unwrap();
    }
    let found = newest(run).expect("a checkpoint");
    let trainer: serde_json::Value = checkpoint::read_json(&found.path, "trainer.json").unwrap();
    let attempt = trainer["attempt"].as_u64().unwrap();
    assert_eq!(trainer["step"].as_u64(), Some(found.step));
    let optimizer = SafeTensors::open_dir(&found.path, "optimizer").unwrap();
    let mut read = optimizer.tensor("a").unwrap().to_f32().unwrap();
    read.extend(optimizer.tensor("b").unwrap().to_f32().unwrap());
    assert_eq!(read, values(found.step, attempt));
    (found.step, attempt)
}

/// The names in a run's checkpoint directory.
fn names(run: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

// ------------------------------------------------------------------------------------------------
// Killed processes: this test binary runs itself again as the process that is killed.

const CHILD_RUN: &str = "AIM_TEST_CHILD_RUN";
const CHILD_CASE: &str = "AIM_TEST_CHILD_CASE";

/// What the killed process does. Not a test of its own: it returns at once unless it is the child.
#[test]
fn child() {
    let Some(run) = std::env::var_os(CHILD_RUN).map(PathBuf::from) else { return };
    match std::env::var(CHILD_CASE).unwrap().as_str() {
        "new" => drop(save(&run, 20, 1).unwrap()),
        "again" => drop(save(&run, 10, 1).unwrap()),
        "prune" => {
            save(&run, 20, 1).unwrap();
            checkpoint::prune(&run, 20, 1, 0).unwrap();
        }
        "resume" => {
            checkpoint::clean_stale(&run).unwrap();
            jsonl::truncate_after(&run.join("metrics.jsonl"), 10).unwrap();
        }
        "replace" => durable::replace(&run.join("config.toml"), b"new").unwrap(),
        other => panic!("{other}"),
    }
}

fn run_child(run: &Path, case: &str, environment: &[(&str, &str)]) -> ExitStatus {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(CHILD_RUN, run)
        .env(CHILD_CASE, case)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    if !output.status.success()
        && std::os::unix::process::ExitStatusExt::signal(&output.status) != Some(9)
    {
        panic!("the child failed by itself: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status
}

/// Runs `case` again and again on what `prepare` makes, killed at its first, second, ... operation,
/// until it gets through; `check` looks at what each left. Returns the number of kills.
fn kill_everywhere(case: &str, prepare: impl Fn(&Path), check: impl Fn(&Path, bool)) -> usize {
    for at in 1.. {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let at_text = at.to_string();
        let done = run_child(dir.path(), case, &[("AIM_FAULT_KILL_AT", &at_text)]).success();
        check(dir.path(), done);
        if done {
            return at - 1;
        }
    }
    unreachable!()
}

fn ten(run: &Path) {
    save(run, 10, 0).unwrap();
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "release builds have no fault points")]
fn killed_while_saving_a_new_checkpoint() {
    let kills = kill_everywhere("new", ten, |run, done| {
        // Before anything is put in order: a reader that does not hold the lock.
        let (step, _) = check_run(run);
        assert!(step == 20 || !done && step == 10);
        checkpoint::clean_stale(run).unwrap();
        assert_eq!(check_run(run), (step, if step == 20 { 1 } else { 0 }));
        assert!(names(run).iter().all(|name| name.starts_with("step-")), "{:?}", names(run));
        // The next save works.
        save(run, 20, 2).unwrap();
        assert_eq!(check_run(run), (20, 2));
    });
    // 6 files and a manifest with 4 operations each, at least; directories; the rename.
    assert!(kills >= 32, "{kills}");
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "release builds have no fault points")]
fn killed_while_replacing_a_checkpoint() {
    let prepare = |run: &Path| {
        save(run, 5, 0).unwrap();
        ten(run);
    };
    let kills = kill_everywhere("again", prepare, |run, done| {
        check_run(run);
        checkpoint::clean_stale(run).unwrap();
        let (step, attempt) = check_run(run);
        assert_eq!(step, 10);
        assert!(attempt == 1 || !done);
        assert_eq!(names(run), ["step-00000005", "step-00000010"]);
    });
    assert!(kills >= 32, "{kills}");
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "release builds have no fault points")]
fn killed_while_pruning() {
    let kills = kill_everywhere("prune", ten, |run, done| {
        check_run(run);
        checkpoint::clean_stale(run).unwrap();
        let (step, _) = check_run(run);
        assert!(step == 20 || !done);
        if done {
            assert_eq!(names(run), ["step-00000020"]);
        }
    });
    // Every file's removal is one of them.
    assert!(kills >= 41, "{kills}");
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "release builds have no fault points")]
fn killed_while_resuming() {
    let prepare = |run: &Path| {
        ten(run);
        // What a killed save and a killed removal leave, and a metrics file that went further.
        for name in [".tmp-step-00000020", ".del-step-00000001"] {
            fs::create_dir(run.join("checkpoints").join(name)).unwrap();
        }
        let lines: String = (1..=14).map(|step| format!("{{\"step\":{step}}}\n")).collect();
        fs::write(run.join("metrics.jsonl"), lines + "{\"st").unwrap();
    };
    let kills = kill_everywhere("resume", prepare, |run, done| {
        check_run(run);
        let metrics = run.join("metrics.jsonl");
        let lines = fs::read_to_string(&metrics).unwrap();
        assert!(lines.starts_with("{\"step\":1}\n"));
        let found = jsonl::truncate_after(&metrics, 10).unwrap();
        assert_eq!((found.kept, found.last_step), (10, Some(10)));
        assert!(!done || found.dropped + found.torn == 0);
    });
    assert!(kills >= 7, "{kills}");
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "release builds have no fault points")]
fn killed_while_replacing_a_file() {
    let prepare = |run: &Path| fs::write(run.join("config.toml"), "old").unwrap();
    let kills = kill_everywhere("replace", prepare, |run, done| {
        let text = fs::read_to_string(run.join("config.toml")).unwrap();
        assert!(text == "new" || !done && text == "old", "{text}");
    });
    assert_eq!(kills, 6);
}

/// The order that makes a checkpoint whole: files synced, then the manifest, then their directory,
/// then the rename, then the parent.
#[test]
#[cfg_attr(not(debug_assertions), ignore = "release builds have no fault points")]
fn everything_is_synced_before_the_rename() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let trace = dir.path().join("trace");
    assert!(run_child(&run, "new", &[("AIM_FAULT_TRACE", trace.to_str().unwrap())]).success());
    let text = fs::read_to_string(&trace).unwrap();
    let at = |wanted: &str| {
        let found = text.lines().position(|line| line.split_once(' ').unwrap().1.ends_with(wanted));
        found.unwrap_or_else(|| panic!("no `{wanted}` in\n{text}"))
    };
    let operations = |kind: &str| text.lines().filter(|line| line.contains(kind)).count();
    let manifest = at(".tmp-step-00000020/MANIFEST.json");
    for name in
        ["config.json", "model.safetensors", "optimizer.safetensors.index.json", "trainer.json"]
    {
        let create =
            text.lines().position(|line| line.contains(" create ") && line.ends_with(name));
        let sync = text.lines().position(|line| line.contains(" sync /") && line.ends_with(name));
        assert!(create.unwrap() < sync.unwrap() && sync.unwrap() < manifest, "{name}\n{text}");
    }
    assert_eq!(operations(" create /"), operations(" sync /"));
    let lines: Vec<&str> = text.lines().collect();
    let rename = at("checkpoints/step-00000020");
    assert!(lines[rename].contains(" rename "), "{text}");
    assert!(
        lines[rename - 1].contains(" sync directory ")
            && lines[rename - 1].ends_with(".tmp-step-00000020")
    );
    assert!(
        lines[rename + 1].contains(" sync directory ")
            && lines[rename + 1].ends_with("checkpoints")
    );
}

// ------------------------------------------------------------------------------------------------
// Damaged files.

/// Three checkpoints; the newest gets `damage`. Returns what was skipped and said.
fn skipped(damage: impl FnOnce(&Path)) -> (PathBuf, String) {
    let dir = tempfile::tempdir().unwrap();
    for step in [10, 20, 30] {
        save(dir.path(), step, 0).unwrap();
    }
    let victim = dir.path().join("checkpoints/step-00000030");
    damage(&victim);
    let mut skipped = Vec::new();
    let found = checkpoint::newest_valid(dir.path(), |path, error| {
        skipped.push((path.to_path_buf(), error.to_string()));
    });
    assert_eq!(found.unwrap().expect("an older one").step, 20);
    assert_eq!(skipped.len(), 1);
    let (path, message) = skipped.remove(0);
    assert_eq!(path, victim);
    assert!(path.exists(), "a damaged checkpoint is left alone");
    assert!(message.contains("step-00000030"), "{message}");
    (path, message)
}

#[test]
fn truncated_files_are_skipped_and_named() {
    for name in ["model.safetensors", "optimizer-00002-of-00002.safetensors", "config.json"] {
        let (_, message) = skipped(|dir| {
            let path = dir.join(name);
            let length = path.metadata().unwrap().len();
            fs::File::options().write(true).open(path).unwrap().set_len(length - 1).unwrap();
        });
        assert!(message.contains(name) && message.contains(" bytes, found "), "{message}");
    }
    let (_, message) = skipped(|dir| fs::remove_file(dir.join("trainer.json")).unwrap());
    assert!(message.contains("trainer.json") && message.contains("No such file"), "{message}");
    let (_, message) = skipped(|dir| fs::remove_file(dir.join("MANIFEST.json")).unwrap());
    assert!(message.contains("MANIFEST.json"), "{message}");
    let (_, message) = skipped(|dir| fs::write(dir.join("MANIFEST.json"), "").unwrap());
    assert!(message.contains("MANIFEST.json"), "{message}");
}

#[test]
fn bit_flips_are_skipped_and_named() {
    let flip = |path: &Path, at: usize, bit: u8| {
        let mut bytes = fs::read(path).unwrap();
        bytes[at] ^= 1 << bit;
        fs::write(path, bytes).unwrap();
    };
    for (name, at, bit) in [
        ("model.safetensors", 0, 0),
        ("model.safetensors", 500, 7),
        ("optimizer-00001-of-00002.safetensors", 1600, 3),
        ("optimizer.safetensors.index.json", 40, 5),
        ("trainer.json", 5, 1),
    ] {
        let (_, message) = skipped(|dir| flip(&dir.join(name), at, bit));
        assert!(message.contains(name) && message.contains("BLAKE3"), "{message}");
    }
}

/// A flipped bit in the manifest is found, or changes nothing that matters (the writer's name).
#[test]
fn every_bit_of_the_manifest_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), 10, 0).unwrap();
    let good = checkpoint::verify(&path).unwrap();
    let manifest = path.join("MANIFEST.json");
    let bytes = fs::read(&manifest).unwrap();
    for at in 0..bytes.len() {
        for bit in [0, 3, 5, 7] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            fs::write(&manifest, damaged).unwrap();
            if let Ok(read) = checkpoint::verify(&path) {
                assert_eq!(Manifest { writer: good.writer.clone(), ..read }, good, "byte {at}");
            }
        }
    }
}

#[test]
fn manifests_stay_in_their_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), 10, 0).unwrap();
    let manifest = path.join("MANIFEST.json");
    let text = fs::read_to_string(&manifest).unwrap();
    for name in ["../x", "/etc/hostname", "..", "sub/x", "model.safetensors"] {
        fs::write(&manifest, text.replace("config.json", name)).unwrap();
        let message = checkpoint::verify(&path).unwrap_err().to_string();
        assert!(message.contains("no plain name or twice"), "{message}");
    }
    fs::write(&manifest, text.replace("\"format_version\": 1", "\"format_version\": 2")).unwrap();
    let message = checkpoint::verify(&path).unwrap_err().to_string();
    assert!(message.contains("format version 2"), "{message}");
    fs::write(&manifest, text.replace("\"step\": 10", "\"step\": 11")).unwrap();
    let message = checkpoint::verify(&path).unwrap_err().to_string();
    assert!(message.contains("step 11"), "{message}");

    let mut writer = CheckpointWriter::begin(dir.path(), 11).unwrap();
    for name in ["../x.json", "MANIFEST.json", ".hidden", ""] {
        let message = writer.bytes(name, b"x").unwrap_err().to_string();
        assert!(message.contains("no plain file name"), "{message}");
    }
    writer.bytes("x", b"1").unwrap();
    assert!(writer.bytes("x", b"2").is_err());
    drop(writer);
    assert_eq!(names(dir.path()), ["step-00000010"]);
}

// ------------------------------------------------------------------------------------------------
// Keeping.

#[test]
fn prune_keeps_the_newest_and_the_milestones() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    for step in (10..=90).step_by(10) {
        save(run, step, 0).unwrap();
    }
    let kept = |current, keep, every| {
        checkpoint::prune(run, current, keep, every).unwrap();
        let steps: Vec<u64> = checkpoint::list(run).unwrap().iter().map(|e| e.step).collect();
        steps
    };
    // 80 and 90 are of a run that went further and did not verify: not its business.
    assert_eq!(kept(70, 2, 30), [90, 80, 70, 60, 30]);
    assert_eq!(kept(90, 2, 30), [90, 80, 60, 30]);
    // The newest stays whatever is asked for.
    assert_eq!(kept(90, 0, 0), [90]);
    assert_eq!(names(run), ["step-00000090"]);
}

#[test]
fn a_run_without_checkpoints_has_none() {
    let dir = tempfile::tempdir().unwrap();
    assert!(newest(dir.path()).is_none());
    assert!(checkpoint::clean_stale(dir.path()).unwrap().is_empty());
    assert!(checkpoint::prune(dir.path(), 5, 1, 0).unwrap().is_empty());
    // Other directories and files there are nobody's business.
    let parent = dir.path().join("checkpoints");
    fs::create_dir_all(parent.join(".tmp-notes")).unwrap();
    fs::create_dir(parent.join("best")).unwrap();
    fs::write(parent.join("step-00000001"), "a file").unwrap();
    assert!(checkpoint::clean_stale(dir.path()).unwrap().is_empty());
    assert!(newest(dir.path()).is_none());
    assert_eq!(names(dir.path()), [".tmp-notes", "best", "step-00000001"]);
}

// ------------------------------------------------------------------------------------------------
// A full and a read-only disk.

/// A file system of its own, unmounted when dropped.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(dir.path())
            .output();
        let reason = match mounted {
            Ok(output) if output.status.success() => return Some(Self(dir)),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        assert!(std::env::var_os("CI").is_none(), "CI must be able to mount a tmpfs: {reason}");
        eprintln!("skipped: no tmpfs can be mounted here: {reason}");
        None
    }

    fn remount(&self, options: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(self.0.path())
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_leaves_the_checkpoints_of_before() {
    let Some(disk) = Tmpfs::mount(4 << 20) else { return };
    let run = disk.0.path();
    ten(run);
    let large = vec![1.0f32; 2 << 20];
    let mut writer = CheckpointWriter::begin(run, 20).unwrap();
    let error = writer
        .tensors("model", &[TensorRef::f32("w", &[large.len()], &large)])
        .expect_err("8 MiB do not fit in 4");
    assert!(matches!(error, TrainError::DiskFull { .. }), "{error:?}");
    let message = error.to_string();
    for part in ["model.safetensors", "the disk is full", "bytes free", "checkpoint.keep"] {
        assert!(message.contains(part), "{message}");
    }
    drop(writer);
    assert_eq!(names(run), ["step-00000010"]);
    assert_eq!(check_run(run), (10, 0));
    // The space is back: a checkpoint that fits can be saved. A process that another test is just starting shares our
    // open files until it runs its program, and keeps the space that long.
    let mut saved = save(run, 20, 0);
    for _ in 0..200 {
        if !matches!(saved, Err(TrainError::DiskFull { .. })) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        saved = save(run, 20, 0);
    }
    saved.unwrap();
    assert_eq!(check_run(run), (20, 0));

    // Not even a metrics line fits.
    let mut writer = jsonl::JsonlWriter::append_to(run.join("metrics.jsonl")).unwrap();
    let _ = fs::write(run.join("ballast"), vec![0u8; 4 << 20]);
    let line = serde_json::json!({ "step": 1, "note": "x".repeat(8192) });
    let error = writer.line(line.as_object().unwrap()).unwrap_err();
    assert!(matches!(error, TrainError::DiskFull { .. }), "{error:?}");
}

#[test]
fn a_read_only_disk_is_named() {
    let Some(disk) = Tmpfs::mount(1 << 20) else { return };
    let run = disk.0.path();
    disk.remount("ro");
    let message = CheckpointWriter::begin(run, 1).unwrap_err().to_string();
    assert!(message.contains("checkpoints") && message.contains("can be written"), "{message}");
    let message = aim_train::lock::RunLock::acquire(run).unwrap_err().to_string();
    assert!(message.contains("cannot open") && message.contains("can be written"), "{message}");
}
