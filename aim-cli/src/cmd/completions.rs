//! `aim-cli completions`.

use anyhow::Result;
use clap::CommandFactory as _;

use crate::args::{Cli, Completions};
use crate::stdout;

pub(crate) fn run(args: &Completions) -> Result<()> {
    // Into memory first: the generator panics when its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "aim-cli", &mut script);
    stdout::print(&String::from_utf8_lossy(&script))
}
