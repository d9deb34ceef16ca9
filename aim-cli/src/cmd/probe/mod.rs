//! `aim-cli probe`: how good frozen features are.
//!
//! - [`measure`]: one kind of classifier on one kind of features
//! - [`plan`]: what the options ask for: layers, settings, pixels
//! - [`row`]: what was found, as JSON, table and pictures
//! - [`figure`]: the pictures
//! - [`suite`]: many pairs of data sets

mod bench;
mod figure;
mod measure;
mod plan;
mod row;
pub(crate) mod suite;

use std::path::Path;

use aim_data::augment::Transform;
use aim_tensor::Device;
use aim_train::durable;
use aim_train::probe::store::Kept;
use aim_train::probe::{FeatureStore, Features};
use aim_train::signals::Stop;
use anyhow::Result;

use crate::args::{Probe, ProbeKind, ProbeOptions};
use crate::cmd::Usage;
use crate::progress::note;
use crate::weights::{Weights, open_device};

pub(crate) use bench::Bench;
pub(crate) use measure::Measure;
pub(crate) use row::Results;

use bench::{Memory, Which};
use measure::Measured;
use plan::{Layers, settings};

pub(crate) fn run(args: &Probe, quiet: bool) -> Result<()> {
    if let Some(file) = &args.suite.suite {
        return suite::run(args, file, quiet);
    }
    let (Some(train), Some(val)) = (&args.train, &args.val) else {
        return Err(Usage("expected --train and --val, or --suite".into()).into());
    };
    let results = probe_pair(args, train, val, quiet)?;
    results.print(args.json)?;
    note(quiet, &format!("written to {}", args.out.join("results.json").display()));
    Ok(())
}

/// Probes one pair of data sets into `args.out`.
fn probe_pair(args: &Probe, train: &str, val: &str, quiet: bool) -> Result<Results> {
    let device = open_device(args.device.device, quiet)?;
    let weights = Weights::open(&args.checkpoint)?;
    weights.announce(quiet);
    let stop = Stop::install()?;
    let (options, out) = (&args.options, args.out.as_path());
    run_one(&Task { weights: &weights, train, val, options, device, out }, &stop, quiet)
}

/// One pair of training and validation images to probe a model on.
pub(crate) struct Task<'a> {
    pub(crate) weights: &'a Weights,
    /// SPEC of the images to train classifiers on.
    pub(crate) train: &'a str,
    /// SPEC of the images to measure on.
    pub(crate) val: &'a str,
    pub(crate) options: &'a ProbeOptions,
    /// Where features are computed; classifiers train on the CPU.
    pub(crate) device: Device,
    /// Directory for `results.json`, pictures and heads.
    pub(crate) out: &'a Path,
}

/// Probes one pair: trains the classifiers that the options ask for, measures them and writes everything into the
/// task's directory. A request to stop comes back as `TrainError::Stopped`; features that are complete on the disk
/// then stay for the same command, and nothing else does.
pub(crate) fn run_one(task: &Task<'_>, stop: &Stop, quiet: bool) -> Result<Results> {
    let layers = Layers::parse(&task.options.layers, task.options.window, &task.weights.config)?;
    if task.options.learning.augment() && matches!(layers, Layers::Sweep { .. }) {
        let text = "--layers sweep needs features that are computed once: add --augment=false";
        return Err(Usage(text.into()).into());
    }
    let device = task.device.clone();
    let bench = Bench::open(task.train, task.val, task.weights, device, stop.clone(), quiet)?;
    let done = measure_all(task, &bench, &layers);
    let cache = task.out.join(CACHE);
    let stopped = done.as_ref().err().is_some_and(crate::cmd::is_stopped);
    if !stopped && cache.is_dir() {
        durable::remove_dir_all(&cache)?;
    }
    let (measured, depth) = done?;
    let mut results = Results { depth, ..bench.results(task.weights, Vec::new()) };
    for Measured { row, head } in measured {
        if let Some(head) = head.filter(|_| row.features == PRE_TRAINED) {
            bench.save(&head, &row, task.out)?;
        }
        results.results.push(row);
    }
    results.write(task.out)?;
    Ok(results)
}

/// Directory in a probe's own for features on the disk, until the end.
const CACHE: &str = ".features";
/// Name of the features that are measured; the others are there to compare.
pub(super) const PRE_TRAINED: &str = "pre-trained";

fn measure_all(
    task: &Task<'_>,
    bench: &Bench,
    layers: &Layers,
) -> Result<(Vec<Measured>, Vec<row::Depth>)> {
    let options = task.options;
    let (mut measured, mut depths) = (Vec::new(), Vec::new());
    let untrained = options.untrained.then_some(("untrained", Some(0)));
    for (name, seed) in [(PRE_TRAINED, None)].into_iter().chain(untrained) {
        if options.learning.augment() {
            measured.extend(augmented(task, bench, layers, name, seed)?);
        } else {
            let (best, depth) = cached(task, bench, layers, name, seed)?;
            measured.extend(best);
            depths.extend(depth);
        }
    }
    Ok((measured, depths))
}

/// Features of the training images (where they are wanted) and of the validation images, within the memory allowed.
fn stores(
    task: &Task<'_>,
    bench: &Bench,
    layers: &[usize],
    kept: Kept,
    (name, seed): (&str, Option<u64>),
    with_train: bool,
) -> Result<(Option<FeatureStore>, FeatureStore)> {
    let cache = &task.options.cache;
    let mut memory = Memory {
        bytes: cache.cache_bytes,
        disk_bytes: cache.cache_disk_bytes,
        dir: task.out.join(CACHE),
    };
    let mut extractor = task.weights.extractor(layers, seed, &task.device)?;
    let mut of = |which| {
        let key = plan::key(task.weights, layers, seed, kept, bench.source(which), bench.options());
        bench.extract(&mut extractor, which, kept, &mut memory, name, key)
    };
    let train = with_train.then(|| of(Which::Train)).transpose()?;
    Ok((train, of(Which::Val)?))
}

/// What the options say of one measurement.
fn measure_of<'a>(
    task: &'a Task<'_>,
    kind: ProbeKind,
    features: &'a str,
    layers: &'a [usize],
    settings: &'a aim_train::probe::ProbeTraining,
) -> Measure<'a> {
    let options = task.options;
    let holdout = (options.learning.select == crate::args::Select::Holdout)
        .then_some(options.learning.holdout);
    Measure {
        kind,
        features,
        layers,
        seeds: options.seeds,
        settings,
        holdout,
        dtype: options.cache.dtype(),
        augment: options.learning.augment(),
        k: options.k.iter().map(|&k| k as usize).collect(),
        temperature: options.temperature,
    }
}

/// Classifiers on features that are computed once, of one window or all.
fn cached(
    task: &Task<'_>,
    bench: &Bench,
    layers: &Layers,
    name: &str,
    seed: Option<u64>,
) -> Result<(Vec<Measured>, Vec<row::Depth>)> {
    let kinds = &task.options.kind;
    let kept = Kept {
        every_layer: layers.is_sweep(),
        pooled: !kinds.contains(&ProbeKind::Attentive),
        dtype: task.options.cache.dtype(),
    };
    let all = layers.all();
    let (train, val) = stores(task, bench, &all, kept, (name, seed), true)?;
    let Some(train) = train else { return Ok(Default::default()) };
    let settings = settings(&task.options.learning, train.len());
    let mut depths = Vec::new();
    // Of each row, as kNN has one for each k, the best window.
    let mut best: Vec<(f64, Measured)> = Vec::new();
    for window in layers.windows() {
        let blocks: Vec<usize> = if layers.is_sweep() { window.clone() } else { vec![0] };
        let (mut train, mut val) = (train.view(&blocks)?, val.view(&blocks)?);
        for &kind in kinds {
            let measure = measure_of(task, kind, name, &window, &settings);
            for measured in bench.measure(&measure, &mut train, &mut val)? {
                let depth = measured.row.depth();
                let score = depth.score();
                // A single block is drawn, and not chosen where windows were asked for.
                let counts = window.len() == layers.window();
                match best.iter_mut().find(|(_, other)| other.row.probe == measured.row.probe) {
                    Some(slot) if counts && score > slot.0 => *slot = (score, measured),
                    None if counts => best.push((score, measured)),
                    _ => {}
                }
                depths.push(depth);
            }
        }
    }
    if !layers.is_sweep() {
        depths.clear();
    }
    Ok((best.into_iter().map(|(_, measured)| measured).collect(), depths))
}

/// Attentive and linear classifiers trained on fresh crops in each epoch; neighbours on features computed once.
fn augmented(
    task: &Task<'_>,
    bench: &Bench,
    layers: &Layers,
    name: &str,
    seed: Option<u64>,
) -> Result<Vec<Measured>> {
    let (kinds, layers) = (&task.options.kind, layers.all());
    let kept = Kept {
        every_layer: false,
        pooled: !kinds.contains(&ProbeKind::Attentive),
        dtype: task.options.cache.dtype(),
    };
    let neighbours = kinds.contains(&ProbeKind::Knn);
    let holdout = task.options.learning.select == crate::args::Select::Holdout;
    let with_train = neighbours || holdout;
    let (train, val) = stores(task, bench, &layers, kept, (name, seed), with_train)?;
    let settings = settings(&task.options.learning, bench.train_images());
    let trained: Vec<ProbeKind> =
        kinds.iter().copied().filter(|&kind| kind != ProbeKind::Knn).collect();
    let mut measured = Vec::new();
    let mut train = train.as_ref().map(|train| train.view(&[0])).transpose()?;
    let mut val = val.view(&[0])?;
    if !trained.is_empty() {
        let measures: Vec<_> =
            trained.iter().map(|&kind| measure_of(task, kind, name, &layers, &settings)).collect();
        let mut extractor = task.weights.extractor(&layers, seed, &task.device)?;
        let transform = Transform::probe_train(task.weights.mean);
        measured = bench.measure_augmented(
            &measures,
            &mut extractor,
            transform,
            train.as_mut(),
            &mut val,
        )?;
    }
    if let Some(train) = train.as_mut().filter(|_| neighbours) {
        let measure = measure_of(task, ProbeKind::Knn, name, &layers, &settings);
        let train: &mut dyn Features = train;
        measured.extend(bench.measure(&measure, train, &mut val)?);
    }
    Ok(measured)
}
