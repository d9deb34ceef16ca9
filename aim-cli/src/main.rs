//! `aim-cli`: pre-train AIM image models, probe and use them.
//!
//! - [`args`]: the command line, one tree that also feeds help, completions and man pages
//! - [`cmd`]: one file per command, thin over the library crates
//! - [`picture`]: reconstructions as pictures
//! - [`progress`]: bars on a terminal, plain lines elsewhere
//! - [`report`]: a run directory as one HTML file
//! - [`stdout`]: results asked for; everything else goes to standard error
//! - [`table`]: aligned text tables
//! - [`weights`]: opening what `--checkpoint` names
#![forbid(unsafe_code)]

mod args;
mod card;
mod cmd;
mod cost;
mod picture;
mod progress;
mod report;
mod stdout;
mod table;
mod weights;

use std::io::Write as _;
use std::process::ExitCode;

use aim_train::config::ConfigError;
use clap::Parser as _;

fn main() -> ExitCode {
    match cmd::run(args::Cli::parse()) {
        Ok(cmd::Outcome::Done) => ExitCode::SUCCESS,
        Ok(cmd::Outcome::Stopped) => ExitCode::from(75),
        Err(error) if stdout::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Not eprintln: it panics when standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(if error.is::<ConfigError>() || error.is::<cmd::Usage>() {
                2
            } else {
                1
            })
        }
    }
}
