//! `aim-cli probe`: how good frozen features are.

pub(crate) mod suite;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aim_data::source::Source;
use aim_model::classifier::{Probe as Classifier, ProbeConfig, ProbeKind as ClassifierKind};
use aim_model::weights as model_weights;
use aim_tensor::Device;
use aim_tensor::io::safetensors;
use aim_train::probe::{
    FeatureSet, Neighbours, ProbeTraining, evaluate, extract, nearest, pixels, train,
};
use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::args::{Probe, ProbeKind};
use crate::progress::{Pace, Progress, note};
use crate::stdout;
use crate::table::Table;
use crate::weights::{Weights, open_device, parse_layers};

/// Images in one forward pass of the trunk.
const TRUNK_BATCH: usize = 64;
/// DINO's protocol.
const KNN: Neighbours = Neighbours::Cosine { k: 20, temperature: 0.07 };

/// `results.json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) checkpoint: String,
    pub(crate) train_images: usize,
    pub(crate) val_images: usize,
    pub(crate) num_classes: usize,
    pub(crate) results: Vec<Row>,
}

/// One classifier on one kind of features.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) probe: String,
    pub(crate) features: String,
    pub(crate) layers: Vec<usize>,
    /// Top-1 accuracy of each seed, in 0..1.
    pub(crate) accuracy: Vec<f64>,
    /// Top-5 accuracy of each seed, in 0..1.
    pub(crate) top5: Vec<f64>,
}

impl Row {
    /// Mean of the seeds' accuracies, and their standard deviation.
    pub(crate) fn mean_std(&self) -> (f64, f64) {
        let n = self.accuracy.len().max(1) as f64;
        let mean = self.accuracy.iter().sum::<f64>() / n;
        let squares: f64 = self.accuracy.iter().map(|a| (a - mean).powi(2)).sum();
        (mean, (squares / (n - 1.0).max(1.0)).sqrt())
    }
}

pub(crate) fn run(args: &Probe, quiet: bool) -> Result<()> {
    if let Some(file) = &args.suite.suite {
        return suite::run(args, file, quiet);
    }
    let (Some(train), Some(val)) = (&args.train, &args.val) else {
        return Err(super::Usage("expected --train and --val, or --suite".into()).into());
    };
    let results = probe_pair(args, train, val, args.lr.as_slice(), quiet)?;
    results.print(args.json)?;
    note(quiet, &format!("written to {}", args.out.join("results.json").display()));
    Ok(())
}

/// Probes one pair of data sets into `args.out`. Of several learning rates the best is reported, as
/// the paper does; without one the default is taken.
fn probe_pair(args: &Probe, train: &str, val: &str, lrs: &[f64], quiet: bool) -> Result<Results> {
    let device = open_device(args.device.device, quiet)?;
    let weights = Weights::open(&args.checkpoint)?;
    weights.announce(quiet);
    let layers = parse_layers(&args.layers, weights.config.num_blocks)?;
    let bench = Bench::open(train, val, &weights, device, quiet)?;
    let default = ProbeTraining::default();
    let settings = ProbeTraining {
        epochs: args.epochs.map_or(default.epochs, |n| n as usize),
        batch_size: args.batch_size.map_or(default.batch_size, |n| n as usize),
        weight_decay: args.weight_decay.unwrap_or(default.weight_decay),
        ..default
    };
    let lrs = if lrs.is_empty() { &[default.lr][..] } else { lrs };
    let mut rows: Vec<Row> = Vec::new();
    let trained = [("pre-trained", None)];
    let untrained = args.untrained.then_some(("untrained", Some(0)));
    for (name, seed) in trained.into_iter().chain(untrained) {
        let sets = bench.features(&weights, &layers, seed, name)?;
        for &kind in &args.kind {
            let mut best: Option<Row> = None;
            // Neighbours know no learning rate.
            for &lr in if kind == ProbeKind::Knn { &lrs[..1] } else { lrs } {
                let settings = ProbeTraining { lr, ..settings };
                let save = (seed.is_none() && lrs.len() == 1).then_some(args.out.as_path());
                let row = bench.measure(kind, &sets, &layers, name, args.seeds, settings, save)?;
                if best.as_ref().is_none_or(|best| row.mean_std().0 > best.mean_std().0) {
                    best = Some(row);
                }
            }
            rows.extend(best);
        }
    }
    let results = bench.results(&weights, rows);
    results.write(&args.out)?;
    Ok(results)
}

impl Results {
    /// Writes `results.json`.
    pub(crate) fn write(&self, out: &Path) -> Result<()> {
        std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        let path = out.join("results.json");
        let text = serde_json::to_vec_pretty(self)?;
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Prints the table, or JSON.
    pub(crate) fn print(&self, json: bool) -> Result<()> {
        if json {
            return stdout::print_json(self);
        }
        let mut table = Table::new(&["classifier", "features", ">top-1 %", ">top-5 %"]);
        for row in &self.results {
            let (mean, std) = row.mean_std();
            let spread = if row.accuracy.len() > 1 {
                format!(" +- {:.2}", 100.0 * std)
            } else {
                String::new()
            };
            let top5 = row.top5.iter().sum::<f64>() / row.top5.len().max(1) as f64;
            table.row([
                row.probe.clone(),
                row.features.clone(),
                format!("{:.2}{spread}", 100.0 * mean),
                format!("{:.2}", 100.0 * top5),
            ]);
        }
        stdout::print(&table.to_string())
    }
}

/// Training and validation features.
pub(crate) struct Sets {
    train: FeatureSet,
    val: FeatureSet,
}

/// Labelled images to measure features on.
pub(crate) struct Bench {
    train: Arc<dyn Source>,
    val: Arc<dyn Source>,
    classes: usize,
    heads: usize,
    /// Where features are computed; classifiers train on the CPU.
    device: Device,
    options: aim_train::probe::features::ImageOptions,
    quiet: bool,
}

impl Bench {
    /// Opens both sources.
    pub(crate) fn open(
        train: &str,
        val: &str,
        weights: &Weights,
        device: Device,
        quiet: bool,
    ) -> Result<Self> {
        let (train, val) = (aim_data::spec::open(train)?, aim_data::spec::open(val)?);
        let (Some(classes), Some(_)) = (train.num_classes(), val.num_classes()) else {
            bail!("a probe needs labels: class folders, .cls members or an IDX label file");
        };
        Ok(Self {
            train,
            val,
            classes: classes as usize,
            heads: weights.config.num_heads,
            device,
            options: weights.image_options(TRUNK_BATCH),
            quiet,
        })
    }

    /// Features of both sources from the trunk as it is, or from one with random weights.
    pub(crate) fn features(
        &self,
        weights: &Weights,
        layers: &[usize],
        untrained: Option<u64>,
        name: &str,
    ) -> Result<Sets> {
        let mut extractor = weights.extractor(layers, untrained, &self.device)?;
        let mut of = |source: &Arc<dyn Source>| {
            let label = format!("features, {name}");
            self.with_progress(&label, source.len(), |progress| {
                extract(&mut extractor, source, &self.options, progress, &mut |skipped| {
                    crate::progress::warn(&format!("skipped {}", skipped.defect));
                })
            })
        };
        Ok(Sets { train: of(&self.train)?, val: of(&self.val)? })
    }

    /// The pixels themselves as features.
    pub(crate) fn pixels(&self) -> Result<Sets> {
        let of = |source: &Arc<dyn Source>| {
            self.with_progress("pixels", source.len(), |progress| {
                pixels(source, &self.options, progress)
            })
        };
        Ok(Sets { train: of(&self.train)?, val: of(&self.val)? })
    }

    fn with_progress<T>(
        &self,
        label: &str,
        total: u64,
        work: impl FnOnce(&mut dyn FnMut(u64, u64)) -> Result<T, aim_train::TrainError>,
    ) -> Result<T> {
        let mut progress =
            Progress::new(self.quiet, label, total, Pace::Every(Duration::from_secs(10)));
        let result = work(&mut |done, _| progress.update(done, String::new));
        progress.finish();
        Ok(result?)
    }

    /// Trains and evaluates one classifier for each seed. The first seed's head goes to `save`.
    pub(crate) fn measure(
        &self,
        kind: ProbeKind,
        sets: &Sets,
        layers: &[usize],
        features: &str,
        seeds: u32,
        settings: ProbeTraining,
        save: Option<&Path>,
    ) -> Result<Row> {
        let mut row = Row {
            probe: name(kind).to_owned(),
            features: features.to_owned(),
            layers: layers.to_vec(),
            accuracy: Vec::new(),
            top5: Vec::new(),
        };
        let classifier = match kind {
            ProbeKind::Knn => {
                let (train, val) = (sets.train.mean_pooled(), sets.val.mean_pooled());
                return self.neighbours(&train, &val, KNN, row);
            }
            ProbeKind::Attentive => ClassifierKind::Attentive,
            ProbeKind::Linear => ClassifierKind::Linear,
        };
        let config = ProbeConfig {
            kind: classifier,
            dim: sets.train.dim,
            heads: self.heads,
            classes: self.classes,
        };
        let classifier = Classifier::new(config)?;
        // A linear classifier sees only the mean over tokens: take it once.
        let pooled = (kind == ProbeKind::Linear)
            .then(|| Sets { train: sets.train.mean_pooled(), val: sets.val.mean_pooled() });
        let sets = pooled.as_ref().unwrap_or(sets);
        for seed in 0..u64::from(seeds) {
            let settings = ProbeTraining { seed, ..settings };
            let label = format!("{} on {features}, seed {seed}", name(kind));
            let params = self.with_progress(&label, settings.epochs as u64, |progress| {
                train(&classifier, &sets.train, settings, &mut |epoch, _| {
                    progress(epoch as u64, settings.epochs as u64);
                })
            })?;
            let accuracy = evaluate(&classifier, &params, &sets.val)?;
            row.accuracy.push(accuracy.top1);
            row.top5.push(accuracy.top5);
            if let (0, Some(dir)) = (seed, save) {
                std::fs::create_dir_all(dir)
                    .with_context(|| format!("cannot create {}", dir.display()))?;
                let path = dir.join(format!("head-{}.safetensors", name(kind)));
                let metadata = head_metadata(name(kind), layers, self.heads);
                safetensors::write_file(&path, &model_weights::tensors(&params), &metadata)
                    .map_err(aim_tensor::TensorError::from)?;
            }
        }
        Ok(row)
    }

    /// The nearest training image by distance between pixels.
    pub(crate) fn nearest_pixels(&self, sets: &Sets) -> Result<Row> {
        let row = Row {
            probe: "1-nn".to_owned(),
            features: "pixels".to_owned(),
            layers: Vec::new(),
            accuracy: Vec::new(),
            top5: Vec::new(),
        };
        self.neighbours(&sets.train, &sets.val, Neighbours::Nearest, row)
    }

    fn neighbours(
        &self,
        train: &FeatureSet,
        val: &FeatureSet,
        rule: Neighbours,
        mut row: Row,
    ) -> Result<Row> {
        let label = format!("{} on {}", row.probe, row.features);
        let accuracy = self.with_progress(&label, val.len() as u64, |progress| {
            nearest(train, val, rule, progress)
        })?;
        row.accuracy.push(accuracy.top1);
        row.top5.push(accuracy.top5);
        Ok(row)
    }

    /// Everything that was measured.
    pub(crate) fn results(&self, weights: &Weights, results: Vec<Row>) -> Results {
        Results {
            checkpoint: weights.dir.display().to_string(),
            train_images: self.train.len() as usize,
            val_images: self.val.len() as usize,
            num_classes: self.classes,
            results,
        }
    }
}

/// What a head's file says of itself: which classifier, its attention heads, and the blocks whose mean
/// it was trained on.
fn head_metadata(kind: &str, layers: &[usize], heads: usize) -> BTreeMap<String, String> {
    let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
    [("kind", kind.to_owned()), ("layers", layers.join(",")), ("heads", heads.to_string())]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
}

fn name(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Attentive => "attentive",
        ProbeKind::Linear => "linear",
        ProbeKind::Knn => "knn",
    }
}
