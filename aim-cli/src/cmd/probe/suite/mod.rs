//! `aim-cli probe --suite`: the same probe on many data sets, and the paper's Table 6 beside it.
//!
//! - [`mod@file`]: the TOML file that names the sets
//! - [`one`]: the probe of one set, and when it need not be done again
//! - [`table`]: the paper's numbers, and ours under them

mod file;
mod one;
mod table;

use std::path::Path;

use aim_train::durable;
use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::args::Probe;
use crate::progress::{note, warn};
use crate::stdout;
use crate::weights::Weights;

pub(crate) use file::EXAMPLE;
use file::{Set, Suite};
use one::Done;
use table::Comparison;

/// `suite.json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    checkpoint: String,
    sets: Vec<Entry<'a>>,
    /// The paper's Table 6 and this model's rows.
    table: &'a Comparison,
}

#[derive(Debug, Serialize)]
struct Entry<'a> {
    #[serde(flatten)]
    set: &'a Set,
    /// `done`, `kept` (from an earlier call with the same configuration) or `failed`.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<&'a Done>,
}

/// How the probe of one set ended.
type Outcome = (&'static str, Result<Done>);

/// Probes every set, whatever becomes of the others; fails at the end if one did.
pub(super) fn run(args: &Probe, path: &Path, quiet: bool) -> Result<()> {
    let suite = Suite::read(path)?;
    // What is wrong for every set is said once, before the first of them.
    let weights = Weights::open(&args.checkpoint)?;
    let identity = one::identity(&weights)?;
    drop(weights);
    let mut outcomes: Vec<Outcome> = Vec::new();
    for (number, set) in (1..).zip(&suite.sets) {
        let out = args.out.join(&set.name);
        let configuration = one::configuration(args, set, &identity);
        let label = format!("{number}/{} {}", suite.sets.len(), set.name);
        if let Some(done) = Done::read(&out, &configuration) {
            note(quiet, &format!("{label}: done before, kept from {}", out.display()));
            outcomes.push(("kept", Ok(done)));
            continue;
        }
        note(quiet, &format!("{label}: {} on {}", set.train, set.val));
        let done = one::probe(args, set, &out, configuration, quiet);
        if let Err(error) = &done {
            // Asked to stop, not failed: the same command goes on with this set.
            if crate::cmd::is_stopped(error) {
                return done.map(drop);
            }
            warn(&format!("{label} failed, going on with the next: {error:#}"));
        }
        outcomes.push((if done.is_ok() { "done" } else { "failed" }, done));
    }
    report(args, &suite, &identity.checkpoint, &outcomes, quiet)
}

fn report(
    args: &Probe,
    suite: &Suite,
    checkpoint: &str,
    outcomes: &[Outcome],
    quiet: bool,
) -> Result<()> {
    let done = suite.sets.iter().zip(outcomes);
    let done = done.filter_map(|(set, (_, done))| Some((set, done.as_ref().ok()?)));
    let comparison = Comparison::new(done);
    let entries = suite.sets.iter().zip(outcomes).map(|(set, (status, done))| Entry {
        set,
        status,
        error: done.as_ref().err().map(|error| format!("{error:#}")),
        results: done.as_ref().ok(),
    });
    let report =
        Report { checkpoint: checkpoint.to_owned(), sets: entries.collect(), table: &comparison };
    let path = args.out.join("suite.json");
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create {}", args.out.display()))?;
    durable::replace(&path, &serde_json::to_vec_pretty(&report)?)?;
    if args.json {
        stdout::print_json(&report)?;
    } else {
        stdout::print(&comparison.to_string())?;
    }
    note(quiet, &format!("written to {}", path.display()));
    let failed: Vec<&str> = suite
        .sets
        .iter()
        .zip(outcomes)
        .filter(|(_, (_, done))| done.is_err())
        .map(|(set, _)| set.name.as_str())
        .collect();
    if !failed.is_empty() {
        let total = outcomes.len();
        bail!(
            "{} of {total} sets failed: {}. The same command tries them again and keeps the others",
            failed.len(),
            failed.join(", ")
        );
    }
    Ok(())
}
