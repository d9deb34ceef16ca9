//! A run directory as one HTML file that needs nothing else: no network, no other file.
//!
//! - [`run`]: what is in the directory, as far as it can be read
//! - [`scale`]: axes and numbers for people
//! - [`chart`]: line charts as SVG
//! - [`page`]: the HTML

mod chart;
mod page;
mod run;
mod scale;

use std::path::Path;

use anyhow::{Context as _, Result};

/// Writes the report of `run_dir` to `out` and returns warnings about parts that cannot be read.
///
/// # Errors
/// `run_dir` is no directory or holds nothing of a run, or `out` cannot be written.
pub(crate) fn write(run_dir: &Path, out: &Path) -> Result<Vec<String>> {
    let run = run::Run::read(run_dir)?;
    let html = page::render(&run);
    std::fs::write(out, html).with_context(|| format!("writing {}", out.display()))?;
    Ok(run.warnings)
}
