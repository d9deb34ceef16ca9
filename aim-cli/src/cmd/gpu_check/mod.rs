//! `aim-cli gpu-check`: is this machine's GPU right, and how fast is it?
//!
//! The work is cut into units (`seam/seam`, `kernels/gelu`, `bench/steps aim-1B`, …) that a second process runs one after
//! the other: a kernel that faults leaves its process without a device, so the units behind a failed one get a new
//! process, and one that hangs is ended. What a unit finds out are [`record::Record`]s.
//!
//! | module | what |
//! |---|---|
//! | `worker` | the two processes and what they say to each other |
//! | `machine` | the device, the driver and the libraries |
//! | `kernels` | every kernel against double precision |
//! | `training` | a short training against the CPU's, and the same bits again |
//! | `resume` | a run that is interrupted against one that is not |
//! | `bench` | copying, products and kernels, timed |
//! | `steps` | whole training steps, timed |
//! | `tensors` | attention's tensors for a comparison with PyTorch |
//! | `report` | tables and JSON |

mod bench;
mod kernels;
mod machine;
mod record;
mod report;
mod resume;
mod steps;
mod tensors;
mod training;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aim_kernels::cuda::Gpu;
use aim_model::AimConfig;
use aim_tensor::Device;
use anyhow::{Context as _, Result, bail};

use super::Usage;
use crate::args::{GpuCheck, GpuPart};
use crate::progress::note;
use crate::stdout;
use record::{Line, Record};
use report::Report;

/// The sizes that are measured when none are named, and with `--quick`.
const PRESETS: [&str; 4] = ["aim-600M", "aim-1B", "aim-3B", "aim-7B"];
const QUICK_PRESETS: [&str; 1] = ["aim-600M"];
/// The sizes whose state and activations fit one card, for whole steps.
const STEP_PRESETS: [&str; 2] = ["aim-600M", "aim-1B"];

/// What a unit works with.
struct Context {
    device: Device,
    gpu: Arc<Gpu>,
    seed: u64,
    quick: bool,
    /// Images in a batch of the measurements.
    batch: usize,
    /// The size that stands for all where the size does not matter.
    preset: String,
    /// Samples of a measurement.
    runs: usize,
    out: Option<PathBuf>,
}

impl Context {
    fn new(args: &GpuCheck) -> Result<Self> {
        let device = Device::cuda(0)?;
        let gpu = Arc::clone(device.gpu().context("a CUDA device is a GPU")?);
        Ok(Self {
            device,
            gpu,
            seed: seed(args),
            quick: args.quick,
            batch: batch(args),
            preset: presets(args).remove(0),
            runs: if args.quick { 5 } else { 30 },
            out: args.out.clone(),
        })
    }

    /// Sends a record to the process that reports.
    fn emit(&self, record: Record) -> Result<()> {
        worker::say(&Line::Record { record })
    }
}

fn seed(args: &GpuCheck) -> u64 {
    // Other inputs every time, unless they are asked for again.
    args.seed.unwrap_or_else(|| now_s().as_nanos() as u64 >> 10 & 0xffff_ffff)
}

fn now_s() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn batch(args: &GpuCheck) -> usize {
    args.batch.map_or(if args.quick { 8 } else { 64 }, |batch| batch as usize)
}

fn presets(args: &GpuCheck) -> Vec<String> {
    let names: &[&str] = if args.quick { &QUICK_PRESETS } else { &PRESETS };
    if args.preset.is_empty() {
        return names.iter().map(|&name| name.to_owned()).collect();
    }
    args.preset.clone()
}

/// The units of the parts that were asked for, cheapest first.
fn units(args: &GpuCheck) -> Vec<String> {
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let mut units = Vec::new();
    let mut add = |part: &str, what: &str| units.push(format!("{part}/{what}"));
    if wanted(GpuPart::Seam) {
        add("seam", "seam");
    }
    if wanted(GpuPart::Kernels) {
        kernels::names().iter().for_each(|name| add("kernels", name));
    }
    if wanted(GpuPart::Training) {
        training::names(args.quick).iter().for_each(|name| add("training", name));
    }
    if wanted(GpuPart::Bench) {
        let presets = presets(args);
        for what in
            ["rates", "kernels optimizer", "kernels head", "kernels probes", "products head"]
        {
            add("bench", what);
        }
        for preset in &presets {
            add("bench", &format!("kernels {preset}"));
            add("bench", &format!("products {preset}"));
        }
        if args.out.is_some() {
            presets.iter().for_each(|preset| add("bench", &format!("tensors {preset}")));
        }
        let named =
            |preset: &&String| !args.preset.is_empty() || STEP_PRESETS.contains(&preset.as_str());
        presets.iter().filter(named).for_each(|p| add("bench", &format!("steps {p}")));
    }
    units
}

/// Does one unit.
fn perform(context: &Context, unit: &str) -> Result<()> {
    let (part, what) = unit.split_once('/').unwrap_or((unit, ""));
    let (verb, object) = what.split_once(' ').unwrap_or((what, ""));
    match (part, verb) {
        ("seam" | "kernels", name) => kernels::run(context, part, name),
        ("training", "resume") => resume::run(context),
        ("training", _) => training::run(context, what),
        ("bench", "rates") => bench::rates(context),
        ("bench", "kernels") => bench::kernels(context, object),
        ("bench", "products") => bench::products(context, object),
        ("bench", "tensors") => tensors::run(context, object),
        ("bench", "steps") => steps::run(context, object),
        _ => bail!("there is no unit {unit}"),
    }
}

pub(crate) fn run(args: &GpuCheck, quiet: bool) -> Result<()> {
    if !args.worker.is_empty() {
        return worker::work(args);
    }
    let args = &GpuCheck { seed: Some(seed(args)), ..args.clone() };
    for preset in &args.preset {
        AimConfig::preset(preset).map_err(|error| Usage(error.to_string()))?;
    }
    let facts = machine::facts()?;
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out)
            .with_context(|| format!("cannot make the folder {}", out.display()))?;
    }
    let mut report = Report::new(args, facts);
    note(quiet, &report.heading());
    let file = args.out.as_ref().map(|out| out.join("gpu_check.json"));
    worker::drive(args, &units(args), &mut |line| {
        if let Line::End { unit, seconds, error } = &line {
            let error =
                error.as_ref().map_or_else(String::new, |error| format!("  FAILED: {error}"));
            note(quiet, &format!("{unit}  {seconds:.1} s{error}"));
        }
        let over = matches!(line, Line::End { .. });
        report.hear(line);
        // Whoever ends this early keeps what there is.
        file.as_ref().filter(|_| over).map_or(Ok(()), |file| report.write(file))
    })?;
    stdout::print(&report.text())?;
    let failures = report.failures().len();
    if failures == 0 {
        return Ok(());
    }
    bail!("{failures} of {} checks and parts failed", report.judged())
}
