//! `aim-cli report`.

use anyhow::Result;

use crate::args::Report;
use crate::{progress, report};

pub(crate) fn run(args: &Report, quiet: bool) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| args.run.join("report.html"));
    for warning in report::write(&args.run, &out)? {
        progress::warn(&warning);
    }
    progress::note(quiet, &format!("report: {}", out.display()));
    Ok(())
}
