//! Starting this test binary again over the fake libraries, and what it does then.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aim_kernels::cuda::Gpu;
use aim_kernels::cuda::checks::{self, Lab};

use crate::harness;

/// The environment variable with what the child is to do.
const TASK: &str = "AIM_TEST_CHILD";
/// Longer than any child takes: one that still runs hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// One check as the child saw it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) error: f64,
    pub(crate) tolerance: f64,
    pub(crate) bits: String,
}

impl Line {
    pub(crate) fn passed(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// What the emulator counted over all launches of a kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) launches: u64,
    /// Passes of `ldmatrix` over the banks of shared memory beyond those that it needs.
    pub(crate) matrix_conflicts: u64,
    /// The same for plain accesses; only the watching build counts them.
    pub(crate) access_conflicts: u64,
}

/// How a child ended.
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) checks: Vec<Line>,
    /// All that it printed.
    pub(crate) text: String,
    pub(crate) counts: HashMap<String, Counts>,
}

impl Outcome {
    /// Whether it ran to its end and all checks passed.
    pub(crate) fn passed(&self) -> bool {
        self.status.success() && !self.checks.is_empty() && self.checks.iter().all(Line::passed)
    }

    /// The checks that did not pass, and what was printed.
    pub(crate) fn failures(&self) -> String {
        let failed = self.checks.iter().filter(|line| !line.passed());
        let failed: Vec<_> = failed
            .map(|Line { name, error, tolerance, .. }| {
                format!("{name}: error {error:.2e}, allowed {tolerance:.2e}")
            })
            .collect();
        let notes = self.text.lines().filter(|line| !line.starts_with("check\t"));
        let notes: Vec<_> = notes.collect();
        format!("{}\n{}\n{}", self.status, failed.join("\n"), notes.join("\n"))
    }
}

/// Runs the checks of kernels whose name contains `filter`.
pub(crate) fn checks(folder: &Path, schedule: u32, filter: &str) -> Outcome {
    run(folder, schedule, &format!("checks {filter}"), &[])
}

/// Runs a task in a child process.
pub(crate) fn run(
    folder: &Path,
    schedule: u32,
    task: &str,
    environment: &[(&str, &str)],
) -> Outcome {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let file = |what: &str| {
        let name = format!("aim-emulator/child-{}-{number}.{what}", std::process::id());
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
    };
    let (printed, report) = (file("printed"), file("report"));
    let output = File::create(&printed).expect("target/tmp can be written");
    let errors = output.try_clone().expect("a second handle of a file");

    let binary = std::env::current_exe().expect("the path of this test");
    let mut command = Command::new(binary);
    command.args(["--exact", "child::child", "--nocapture", "--test-threads=1"]);
    command.env(TASK, task).env("AIM_EMULATOR_REPORT", &report).envs(environment.iter().copied());
    harness::child_env_in(&mut command, folder, schedule);
    command.stdout(output).stderr(errors);
    let mut child = command.spawn().expect("this test can be started");
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().expect("a child of ours");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let read =
        |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let text = read(&printed);
    let outcome = Outcome { status, checks: lines(&text), counts: counts(&read(&report)), text };
    for file in [printed, report] {
        let _ = fs::remove_file(file);
    }
    outcome
}

fn lines(text: &str) -> Vec<Line> {
    let line = |line: &str| {
        let mut fields = line.strip_prefix("check\t")?.split('\t');
        let name = fields.next()?.to_owned();
        let mut number = || fields.next()?.parse().ok();
        let (error, tolerance) = (number()?, number()?);
        Some(Line { name, error, tolerance, bits: fields.next()?.to_owned() })
    };
    // What libtest prints may stand before the first.
    let text = text.replace("test child::child ... ", "\n");
    text.lines().filter_map(line).collect()
}

fn counts(report: &str) -> HashMap<String, Counts> {
    let line = |line: &str| {
        let mut fields = line.split(' ');
        let name = fields.next()?.to_owned();
        let [launches, _, matrix_conflicts, access_conflicts] =
            [(); 4].map(|()| fields.next().and_then(|field| field.parse().ok()));
        let (launches, matrix_conflicts) = (launches?, matrix_conflicts?);
        Some((name, Counts { launches, matrix_conflicts, access_conflicts: access_conflicts? }))
    };
    report.lines().filter_map(line).collect()
}

/// No test by itself: what a child process does.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let (verb, rest) = task.split_once(' ').unwrap_or((&task, ""));
    match verb {
        "blas" => crate::blas::run(),
        "checks" => run_checks(rest),
        "driver" => crate::driver::run(rest),
        "probe" => crate::emulator::run(rest),
        _ => panic!("unknown task {task}"),
    }
}

fn run_checks(filter: &str) {
    let gpu = Gpu::open(0).expect("the emulator opens");
    let found = checks::run(&mut Lab::new(gpu, 1), filter).expect("the checks run");
    for check in found {
        let checks::Check { name, error, tolerance, bits } = check;
        println!("check\t{name}\t{error}\t{tolerance}\t{bits:016x}");
    }
}
