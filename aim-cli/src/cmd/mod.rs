//! One file per command, thin over the library crates.

mod bench;
mod classify;
mod completions;
mod config;
mod data;
mod doctor;
mod features;
mod finetune;
mod gpu_check;
mod kernels;
mod man;
mod plan;
mod presets;
mod pretrain;
mod probe;
mod quickstart;
mod reconstruct;
mod report;
mod weights;

use anyhow::Result;

use crate::args::{Cli, Command};

/// How a command that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything was done.
    Done,
    /// A signal stopped it, and the same command resumes.
    Stopped,
}

/// The command line asks for something that cannot be; exit status 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Whether a signal asked for the end.
pub(crate) fn is_stopped(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(aim_train::TrainError::Stopped { .. }))
}

/// Runs the command that was asked for.
pub(crate) fn run(cli: Cli) -> Result<Outcome> {
    let quiet = cli.quiet;
    match dispatch(cli) {
        Err(error) if is_stopped(&error) => {
            crate::progress::note(quiet, &format!("{error:#}"));
            Ok(Outcome::Stopped)
        }
        outcome => outcome,
    }
}

fn dispatch(cli: Cli) -> Result<Outcome> {
    let done = |()| Outcome::Done;
    match cli.command {
        Command::Report(args) => report::run(&args, cli.quiet).map(done),
        Command::Presets(args) => presets::run(&args).map(done),
        Command::Config(args) => config::run(&args).map(done),
        Command::Data(args) => data::run(&args, cli.quiet).map(done),
        Command::Bench(args) => bench::run(&args).map(done),
        Command::Doctor(args) => doctor::run(&args).map(done),
        Command::Kernels(args) => kernels::run(&args, cli.quiet).map(done),
        Command::GpuCheck(args) => gpu_check::run(&args, cli.quiet).map(done),
        Command::Completions(args) => completions::run(&args).map(done),
        Command::Man(args) => man::run(&args, cli.quiet).map(done),
        Command::Pretrain(args) => pretrain::run(&args, cli.quiet),
        Command::Quickstart(args) => quickstart::run(&args, cli.quiet),
        Command::Probe(args) => probe::run(&args, cli.quiet).map(done),
        Command::Features(args) => features::run(&args, cli.quiet),
        Command::Classify(args) => classify::run(&args, cli.quiet).map(done),
        Command::Finetune(args) => finetune::run(&args, cli.quiet),
        Command::Reconstruct(args) => reconstruct::run(&args, cli.quiet).map(done),
        Command::Plan(args) => plan::run(&args).map(done),
        Command::Weights(args) => weights::run(&args, cli.quiet).map(done),
    }
}
