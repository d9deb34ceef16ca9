//! What the end-to-end tests share: a run that takes a fraction of a second, and its metrics.
// Each test binary compiles this module and uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::print_stdout, clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;

/// 4 tokens of 16 dimensions: a step takes a fraction of a millisecond.
const TINY: &[&str] = &[
    "model.img_size=8",
    "model.patch_size=4",
    "model.embed_dim=16",
    "model.num_heads=2",
    "model.num_blocks=1",
    "model.head_width=16",
    "model.head_depth=1",
    "train.batch_size=4",
    "train.threads=1",
    "data.workers=1",
    "validation.num_images=8",
    "validation.every_steps=50",
    "checkpoint.every_steps=10",
    "log.tensorboard=false",
];

pub const STRIPES: &str = "synthetic:stripes,n=64,size=8";
pub const LABELLED: &str = "synthetic:stripes,n=40,classes=4,size=8";

/// The built binary.
pub fn aim() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aim-cli"));
    command.stdin(Stdio::null()).env_remove("AIM_FAULT_KILL_AT").env_remove("AIM_FAULT_TRACE");
    command
}

/// `aim-cli pretrain` of the tiny model, without data; settings given later win.
pub fn pretrain(out: &Path, steps: u32, more: &[&str]) -> Command {
    let mut command = aim();
    command.arg("pretrain").arg("--out").arg(out).args(["--steps", &steps.to_string()]);
    for setting in TINY {
        command.args(["--set", setting]);
    }
    command.args(more);
    command
}

/// [`pretrain`] on stripes.
pub fn pretrain_stripes(out: &Path, steps: u32, more: &[&str]) -> Command {
    let mut command = pretrain(out, steps, more);
    command.args(["--data", STRIPES]);
    command
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command that must end with `code` and must not panic; returns its standard error.
pub fn run(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let text = stderr(&output);
    assert!(!text.contains("panicked"), "{command:?}: {text}");
    assert_eq!(output.status.code(), Some(code), "{command:?}: {text}");
    if matches!(code, 1 | 2) {
        assert!(text.lines().any(|line| line.starts_with("error: ")), "{command:?}: {text}");
    }
    text
}

/// Runs a command that must fail with `code` and say all of `expected`.
pub fn refused(command: &mut Command, code: i32, expected: &[&str]) -> String {
    let text = run(command, code);
    for part in expected {
        assert!(text.contains(part), "expected {part:?} of {command:?}: {text}");
    }
    text
}

/// A line for each step of `metrics.jsonl`, as the text that was written, without the two rates: no number is parsed,
/// so equal lines are equal in bits.
pub fn metrics(run_dir: &Path) -> Vec<String> {
    let path = run_dir.join("metrics.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{}: torn last line", path.display());
    let rate = |field: &&str| {
        field.starts_with("\"images_per_s\":") || field.starts_with("\"data_wait_share\":")
    };
    text.lines()
        .map(|line| {
            assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
            let fields: Vec<&str> = line[1..line.len() - 1].split(',').collect();
            assert_eq!(fields.iter().filter(|field| rate(field)).count(), 2, "{line}");
            fields.into_iter().filter(|field| !rate(field)).collect::<Vec<_>>().join(",")
        })
        .collect()
}

/// Compares two runs line by line: a whole-file assertion would print hundreds of lines.
pub fn assert_same_metrics(run_dir: &Path, reference: &[String]) {
    let found = metrics(run_dir);
    for (index, (found, expected)) in found.iter().zip(reference).enumerate() {
        assert_eq!(found, expected, "line {} of {}", index + 1, run_dir.display());
    }
    assert_eq!(found.len(), reference.len(), "lines of {}", run_dir.display());
}

/// One number of a line of [`metrics`].
pub fn number(line: &str, field: &str) -> f64 {
    let start = format!("\"{field}\":");
    let text = line.split(',').find_map(|part| part.strip_prefix(&start));
    text.unwrap_or_else(|| panic!("no {field} in {line}")).parse().unwrap()
}

/// Steps of the visible checkpoints, ascending.
pub fn checkpoint_steps(run_dir: &Path) -> Vec<u64> {
    let names = listing(&run_dir.join("checkpoints"));
    names.iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect()
}

pub fn checkpoint(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join(format!("checkpoints/step-{step:08}"))
}

/// The names in a directory, sorted; none if there is no such directory.
pub fn listing(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A process whose messages are read while it runs. It is killed when dropped: a failed test leaves nothing behind.
pub struct Running {
    pub child: Child,
    stderr: Option<JoinHandle<String>>,
    started: std::sync::mpsc::Receiver<()>,
}

impl Running {
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stderr.take().unwrap();
        let (sender, started) = std::sync::mpsc::channel();
        let stderr = std::thread::spawn(move || {
            let (mut text, mut sender) = (Vec::new(), Some(sender));
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut piece) {
                text.extend_from_slice(&piece[..count]);
                // The line that tells that everything is ready and the first step begins.
                if String::from_utf8_lossy(&text).contains("; steps ") {
                    sender.take().map(|sender| sender.send(()));
                }
            }
            String::from_utf8_lossy(&text).into_owned()
        });
        Self { child, stderr: Some(stderr), started }
    }

    /// Waits until training begins; false if the process ended before.
    pub fn wait_for_training(&self) -> bool {
        self.started.recv().is_ok()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([OsStr::new(name), self.child.id().to_string().as_ref()])
            .status();
        assert!(status.unwrap().success(), "kill {name}");
    }

    /// SIGKILL; nothing happens if it has ended.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// How it ended and what it said.
    pub fn finish(mut self) -> (std::process::ExitStatus, String) {
        let status = self.child.wait().unwrap();
        let text = self.stderr.take().unwrap().join().unwrap();
        assert!(!text.contains("panicked"), "{text}");
        (status, text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A small file system of its own, unmounted when dropped.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None`, with the reason printed, where mounting is not allowed. With `CI` set it has to be: a test that never
    /// runs anywhere is worth nothing.
    pub fn mount(dir: &Path, size: &str) -> Option<Self> {
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir)
            .output();
        let failed = match output {
            Ok(output) if output.status.success() => return Some(Self(dir.to_owned())),
            Ok(output) => stderr(&output),
            Err(error) => error.to_string(),
        };
        assert!(std::env::var_os("CI").is_none(), "cannot mount a tmpfs: {failed}");
        println!("skipped: cannot mount a tmpfs: {failed}");
        None
    }

    pub fn remount(&self, options: &str) {
        let status =
            Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0).status();
        assert!(status.unwrap().success(), "remount {options}");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
