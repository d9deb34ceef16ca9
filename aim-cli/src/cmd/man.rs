//! `aim-cli man`.

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;

use crate::args::{Cli, Man};
use crate::{progress, stdout};

pub(crate) fn run(args: &Man, quiet: bool) -> Result<()> {
    let Some(dir) = &args.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        return stdout::print(&String::from_utf8_lossy(&page));
    };
    let writing = || format!("writing manual pages to {}", dir.display());
    std::fs::create_dir_all(dir).with_context(writing)?;
    clap_mangen::generate_to(Cli::command(), dir).with_context(writing)?;
    progress::note(quiet, &format!("manual pages are in {}", dir.display()));
    Ok(())
}
