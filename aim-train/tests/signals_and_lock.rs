//! Signals and the run's lock, seen from outside: this test binary runs itself again as the process
//! that is signalled or killed.

// Helpers of tests count as code outside of tests.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};

use aim_train::lock::RunLock;
use aim_train::signals::{Signal, Stop};

const CASE: &str = "AIM_TEST_CHILD_CASE";
const RUN: &str = "AIM_TEST_CHILD_RUN";

/// What the child does. Not a test of its own: it returns at once unless it is the child. It talks
/// on stderr, a line for each thing that happened.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    // What should have ended it did not: fail rather than hang.
    std::thread::spawn(|| {
        std::thread::sleep(std::time::Duration::from_secs(60));
        std::process::exit(99);
    });
    if case == "lock" {
        let _held = RunLock::acquire(&PathBuf::from(std::env::var_os(RUN).unwrap())).unwrap();
        eprintln!("locked");
        loop {
            std::thread::park();
        }
    }
    let stop = Stop::install().unwrap();
    let mut told = None;
    eprintln!("ready");
    loop {
        if stop.requested() != told {
            told = stop.requested();
            eprintln!("{}", told.map_or("none", Signal::name));
            if case == "finish" {
                break;
            }
        }
        std::thread::yield_now();
    }
    // The loop is over: another one starts, then none.
    drop(stop);
    assert_eq!(Stop::install().unwrap().requested(), None);
    eprintln!("finished");
    loop {
        std::thread::park();
    }
}

struct Running {
    child: Child,
    said: BufReader<ChildStderr>,
}

impl Running {
    fn start(case: &str, run: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(CASE, case)
            .env(RUN, run)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        Self { child, said }
    }

    /// Waits until the child says this line.
    fn says(&mut self, line: &str) {
        let mut said = String::new();
        loop {
            let mut next = String::new();
            assert!(self.said.read_line(&mut next).unwrap() > 0, "no `{line}` after:\n{said}");
            if next.trim() == line {
                return;
            }
            said.push_str(&next);
        }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_first_signal_asks_and_the_second_exits() {
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let mut running = Running::start("wait", "");
        running.says("ready");
        running.signal(name);
        running.says(&format!("SIG{name}"));
        running.signal(name);
        assert_eq!(running.child.wait().unwrap().code(), Some(code));
    }
}

#[test]
fn user1_then_terminate_still_waits_for_the_save() {
    let mut running = Running::start("wait", "");
    running.says("ready");
    running.signal("USR1");
    running.says("SIGUSR1");
    running.signal("TERM");
    running.says("SIGTERM");
    running.signal("INT");
    assert_eq!(running.child.wait().unwrap().code(), Some(130));
}

#[test]
fn after_the_loop_one_signal_ends_the_process() {
    let mut running = Running::start("finish", "");
    running.says("ready");
    running.signal("USR1");
    running.says("finished");
    running.signal("TERM");
    assert_eq!(running.child.wait().unwrap().code(), Some(143));
}

#[test]
fn a_killed_holder_frees_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::start("lock", dir.path().to_str().unwrap());
    running.says("locked");
    let message = RunLock::acquire(dir.path()).unwrap_err().to_string();
    assert!(message.contains(&format!("process {} on ", running.child.id())), "{message}");
    running.signal("KILL");
    assert_eq!(running.child.wait().unwrap().signal(), Some(9));
    assert!(RunLock::acquire(dir.path()).is_ok());
}
