//! `aim-cli data`: look at sources of images, and pack them.

mod sheet;

use std::num::NonZero;
use std::ops::ControlFlow;
use std::time::Duration;

use aim_data::check::check;
use aim_data::pack::{PackOptions, pack};
use aim_data::stats::{Range, Stats, stats};
use aim_data::{Defect, Progress as Scanned, ScanOptions};
use anyhow::{Result, bail};

use crate::args::{Data, DataCheck, DataPack, DataScan};
use crate::progress::{Pace, Progress};
use crate::stdout;
use crate::table::{Table, bytes, thousands};

/// Defects listed one by one before the rest is only counted.
const MAX_LISTED: usize = 1000;

pub(crate) fn run(args: &Data, quiet: bool) -> Result<()> {
    match args {
        Data::Check(args) => run_check(args, quiet),
        Data::Stats(args) => run_stats(args, quiet),
        Data::Pack(args) => run_pack(args, quiet),
    }
}

fn options(args: &DataScan) -> ScanOptions {
    let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
    let workers = if args.workers == 0 { cores() } else { args.workers };
    ScanOptions { workers, ..ScanOptions::default() }
}

/// Runs `work` with a progress callback.
fn with_progress<T>(
    quiet: bool,
    label: &str,
    total: u64,
    work: impl FnOnce(&mut dyn FnMut(Scanned) -> ControlFlow<()>) -> aim_data::Result<T>,
) -> Result<T> {
    let mut progress = Progress::new(quiet, label, total, Pace::Every(Duration::from_secs(5)));
    let result = work(&mut |at| {
        progress.update(at.done, String::new);
        ControlFlow::Continue(())
    });
    progress.finish();
    Ok(result?)
}

fn defect_list(defects: &[Defect]) -> String {
    let mut text = String::new();
    for defect in defects.iter().take(MAX_LISTED) {
        text.push_str(&format!("{defect}\n"));
    }
    if defects.len() > MAX_LISTED {
        text.push_str(&format!("and {} more\n", defects.len() - MAX_LISTED));
    }
    text
}

/// `png 12,000, jpeg 3`.
fn counts<K: std::fmt::Display>(counts: impl IntoIterator<Item = (K, u64)>) -> String {
    let each: Vec<_> =
        counts.into_iter().map(|(name, count)| format!("{name} {}", thousands(count))).collect();
    each.join(", ")
}

fn run_check(args: &DataCheck, quiet: bool) -> Result<()> {
    let DataCheck { scan: args, sheet, sheet_samples, sheet_size } = args;
    let source = aim_data::spec::open(&args.data)?;
    let report = with_progress(quiet, "checking", source.len(), |progress| {
        check(&*source, &options(args), progress)
    })?;
    if args.json {
        stdout::print_json(&report)?;
    } else {
        let mut text = defect_list(&report.defects);
        for note in source.notes() {
            text.push_str(&format!("note: {note}\n"));
        }
        text.push_str(&format!(
            "{} of {} samples are good: {}\n",
            thousands(report.good),
            thousands(report.samples),
            counts(report.formats)
        ));
        stdout::print(&text)?;
    }
    if let (Some(path), 1..) = (sheet, report.good) {
        let shown = sheet::write(source, *sheet_samples, *sheet_size, path)?;
        crate::progress::note(quiet, &format!("{shown} samples drawn in {}", path.display()));
    }
    if !report.defects.is_empty() {
        bail!("{} of {} samples cannot be used", report.defects.len(), report.samples);
    }
    Ok(())
}

fn run_stats(args: &DataScan, quiet: bool) -> Result<()> {
    let source = aim_data::spec::open(&args.data)?;
    let found = with_progress(quiet, "reading", source.len(), |progress| {
        stats(&*source, &options(args), progress)
    })?;
    if args.json {
        return stdout::print_json(&found);
    }
    let notes: String = source.notes().iter().map(|note| format!("note: {note}\n")).collect();
    stdout::print(&format!("{}{notes}", stats_text(&found, source.class_names())))
}

fn stats_text(found: &Stats, class_names: Option<&[String]>) -> String {
    let range = |range: &Option<Range>| match range {
        Some(r) if r.min == r.max => format!("{} px", r.min),
        Some(r) => format!("{} to {} px, mean {:.0}", r.min, r.max, r.mean),
        None => "unknown".to_owned(),
    };
    let channels = |values: &Option<[f64; 3]>| match values {
        Some([r, g, b]) => format!("[{r:.4}, {g:.4}, {b:.4}]"),
        None => "unknown".to_owned(),
    };
    let mut text = format!(
        "samples  {} ({} cannot be used), {}\nformats  {}\nwidth    {}\nheight   {}\n\
         mean     {}\nstd      {}\n",
        thousands(found.samples),
        thousands(found.bad),
        bytes(found.bytes),
        counts(found.formats.iter().map(|(name, count)| (*name, *count))),
        range(&found.width),
        range(&found.height),
        channels(&found.mean),
        channels(&found.std),
    );
    if found.labels.is_empty() {
        text.push_str("labels   none\n");
        return text;
    }
    text.push_str(&format!(
        "labels   {} classes, {} samples without\n\n",
        found.labels.len(),
        thousands(found.unlabelled)
    ));
    let mut table = Table::new(&[">class", "name", ">samples"]);
    for (label, count) in found.labels.iter().take(MAX_LISTED) {
        let name = class_names.and_then(|names| names.get(*label as usize));
        table.row([label.to_string(), name.cloned().unwrap_or_default(), thousands(*count)]);
    }
    text.push_str(&table.to_string());
    text
}

fn run_pack(args: &DataPack, quiet: bool) -> Result<()> {
    let source = aim_data::spec::open(&args.data)?;
    let options =
        PackOptions { samples_per_shard: u64::from(args.shard_size), prefix: args.name.clone() };
    let report = with_progress(quiet, "packing", source.len(), |progress| {
        pack(&*source, &args.out, &options, progress)
    })?;
    for defect in &report.skipped {
        crate::progress::warn(&format!("left out: {defect}"));
    }
    if args.json {
        return stdout::print_json(&report);
    }
    let line = format!(
        "{} samples in {} shards, {}, in {}",
        thousands(report.samples),
        report.shards.len(),
        bytes(report.bytes),
        args.out.display()
    );
    crate::progress::note(quiet, &line);
    Ok(())
}
