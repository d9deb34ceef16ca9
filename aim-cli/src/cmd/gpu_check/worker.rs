//! The process that works and the one that listens to it.
//!
//! The first says what it finds in lines of JSON on its standard output; its standard error is the user's.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::record::Line;
use super::{Context, perform};
use crate::args::GpuCheck;
use crate::stdout;

/// Longer than any unit is silent: one that is hangs.
const PATIENCE: Duration = Duration::from_secs(240);

/// Sends a line to the process that listens.
pub(super) fn say(line: &Line) -> Result<()> {
    stdout::print(&format!("{}\n", serde_json::to_string(line)?))
}

/// Does the units that `--worker` names, up to the first that fails: a fault of a kernel leaves no device behind.
pub(super) fn work(args: &GpuCheck) -> Result<()> {
    let context = match Context::new(args) {
        Ok(context) => context,
        Err(error) => return say(&Line::Fatal { error: format!("{error:#}") }),
    };
    for unit in &args.worker {
        say(&Line::Begin { unit: unit.clone() })?;
        let start = Instant::now();
        // A launcher that does not like its arguments panics.
        let outcome = catch_unwind(AssertUnwindSafe(|| perform(&context, unit)));
        let error = match outcome {
            // What a kernel did wrong may show only now.
            Ok(Ok(())) => context.gpu.synchronize().err().map(|error| error.to_string()),
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(panic) => Some(words(&*panic)),
        };
        let failed = error.is_some();
        say(&Line::End { unit: unit.clone(), seconds: start.elapsed().as_secs_f64(), error })?;
        if failed {
            break;
        }
    }
    Ok(())
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a word"))
}

/// Has all units done, by as many processes as it takes; `hear` gets every line, and an end for each unit.
pub(super) fn drive(
    args: &GpuCheck,
    units: &[String],
    hear: &mut dyn FnMut(Line) -> Result<()>,
) -> Result<()> {
    let mut left: VecDeque<String> = units.iter().cloned().collect();
    while !left.is_empty() {
        let before = left.len();
        let mut child = spawn(args, &left)?;
        let lines = listen(child.stdout.take());
        let ended = follow(&mut child, &lines, &mut left, hear)?;
        if left.len() < before && ended.unit.is_none() {
            continue;
        }
        // It died at a unit, or before the first: whichever is next counts as failed, so that this comes to an end.
        if let Some(unit) = ended.unit.or_else(|| left.front().cloned()) {
            left.retain(|other| *other != unit);
            hear(Line::End { unit, seconds: ended.seconds, error: Some(ended.why) })?;
        }
    }
    Ok(())
}

/// How a process ended.
struct Ended {
    /// The unit that it was at.
    unit: Option<String>,
    seconds: f64,
    why: String,
}

/// Hears a process to its end; takes what it has done off the list.
fn follow(
    child: &mut Child,
    lines: &Receiver<String>,
    left: &mut VecDeque<String>,
    hear: &mut dyn FnMut(Line) -> Result<()>,
) -> Result<Ended> {
    let (mut unit, mut since) = (None, Instant::now());
    let why = loop {
        let text = match lines.recv_timeout(PATIENCE) {
            Ok(text) => text,
            Err(RecvTimeoutError::Timeout) => {
                // It may be over already.
                let _ = child.kill();
                break format!("it hangs: nothing was heard of it for {} s", PATIENCE.as_secs());
            }
            Err(RecvTimeoutError::Disconnected) => break String::new(),
        };
        match serde_json::from_str::<Line>(&text) {
            Ok(Line::Begin { unit: begun }) => (unit, since) = (Some(begun), Instant::now()),
            Ok(Line::Fatal { error }) => {
                // Another process would get no further.
                left.clear();
                let unit = "opening the device".to_owned();
                hear(Line::End { unit, seconds: 0.0, error: Some(error) })?;
            }
            Ok(line) => {
                if let Line::End { unit: done, .. } = &line {
                    left.retain(|other| other != done);
                    unit = None;
                }
                hear(line)?;
            }
            // A library that talks.
            Err(_) => drop(writeln!(std::io::stderr(), "{text}")),
        }
    };
    let status = child.wait().context("cannot wait for the process that works")?;
    let why = if why.is_empty() { format!("its process ended by itself ({status})") } else { why };
    Ok(Ended { unit, seconds: since.elapsed().as_secs_f64(), why })
}

fn spawn(args: &GpuCheck, units: &VecDeque<String>) -> Result<Child> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.arg("gpu-check");
    if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    if let Some(batch) = args.batch {
        command.args(["--batch", &batch.to_string()]);
    }
    if args.quick {
        command.arg("--quick");
    }
    for preset in &args.preset {
        command.args(["--preset", preset]);
    }
    if let Some(out) = &args.out {
        command.arg("--out").arg(out);
    }
    for unit in units {
        command.args(["--worker", unit]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().context("cannot start a second process of this program")
}

/// The lines of a process as they come.
fn listen(stdout: Option<ChildStdout>) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let Some(stdout) = stdout else { return };
        for line in BufReader::new(stdout).split(b'\n') {
            let Ok(line) = line else { return };
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}
