//! One set of a suite: the only file of it that knows how a probe is made.

use std::path::Path;

use aim_train::durable;
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::file::Set;
use crate::args::Probe;
use crate::cmd::probe::probe_pair;
use crate::weights::Weights;

/// In the set's folder, written last.
const FILE: &str = "set.json";
/// Largest file of that name, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// A set that was probed: `set.json`.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Done {
    /// What it was probed with; with another one it is probed again.
    configuration: Value,
    pub(super) train_images: usize,
    pub(super) val_images: usize,
    pub(super) num_classes: usize,
    pub(super) scores: Vec<Score>,
}

/// The accuracy of one kind of probe on one kind of features.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Score {
    pub(super) probe: String,
    pub(super) features: String,
    /// Mean over the seeds, in 0..1.
    pub(super) top1: f64,
    /// Standard deviation over the seeds; 0 for one.
    pub(super) top1_std: f64,
}

/// Which weights are probed.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) checkpoint: String,
    /// Names, sizes and times of the files.
    files: Vec<(String, u64, u64)>,
}

/// Tells weights from others that may come to lie in the same place.
pub(super) fn identity(weights: &Weights) -> Result<Identity> {
    let dir = &weights.dir;
    let inspect = || format!("cannot inspect {}", dir.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })
        .with_context(inspect)?
    {
        let entry = entry.with_context(inspect)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".safetensors") || name == "config.json" {
            let found = entry.metadata().with_context(inspect)?;
            let time = found.modified().ok().and_then(|time| {
                time.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_secs())
            });
            files.push((name, found.len(), time.unwrap_or(0)));
        }
    }
    files.sort();
    Ok(Identity { checkpoint: dir.display().to_string(), files })
}

/// The arguments with a set's own values in place.
fn merged(args: &Probe, set: &Set) -> Probe {
    let mut args = args.clone();
    let learning = &mut args.options.learning;
    learning.epochs = set.epochs.or(learning.epochs);
    learning.batch_size = set.batch_size.or(learning.batch_size);
    if let Some(decay) = set.weight_decay {
        learning.weight_decay = vec![decay];
    }
    if let Some(rates) = &set.lr {
        learning.lr = rates.all().to_vec();
    }
    args.out = args.out.join(&set.name);
    args
}

/// Everything that the result depends on, but for the images themselves.
pub(super) fn configuration(args: &Probe, set: &Set, identity: &Identity) -> Value {
    let merged = merged(args, set);
    json!({
        "checkpoint": identity.checkpoint,
        "files": identity.files,
        "train": set.train,
        "val": set.val,
        "options": format!("{:?}", merged.options),
    })
}

/// Probes a set into its folder.
pub(super) fn probe(
    args: &Probe,
    set: &Set,
    out: &Path,
    configuration: Value,
    quiet: bool,
) -> Result<Done> {
    let results = probe_pair(&merged(args, set), &set.train, &set.val, quiet)?;
    let scores = results.results.iter().map(|row| {
        let (top1, top1_std) = row.mean_std();
        Score { probe: row.probe.clone(), features: row.features.clone(), top1, top1_std }
    });
    let done = Done {
        configuration,
        train_images: results.train_images,
        val_images: results.val_images,
        num_classes: results.num_classes,
        scores: scores.collect(),
    };
    durable::replace(&out.join(FILE), &serde_json::to_vec_pretty(&done)?)?;
    Ok(done)
}

impl Done {
    /// What an earlier call with the same configuration found, if it came to an end.
    pub(super) fn read(out: &Path, configuration: &Value) -> Option<Self> {
        let path = out.join(FILE);
        let small = std::fs::metadata(&path).is_ok_and(|found| found.len() <= MAX_BYTES);
        if !small || !out.join("results.json").is_file() {
            return None;
        }
        let done: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (done.configuration == *configuration && !done.scores.is_empty()).then_some(done)
    }
}
