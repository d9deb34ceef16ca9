//! What the options of a probe ask for.

use std::path::Path;

use aim_data::source::Source;
use aim_model::AimConfig;
use aim_model::classifier::best_layers;
use aim_train::probe::ProbeTraining;
use aim_train::probe::features::ImageOptions;
use aim_train::probe::store::Kept;

use crate::args::{Learning, LearningRecipe};
use crate::cmd::Usage;
use crate::weights::{Weights, parse_layers};

/// `--layers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layers {
    /// The mean of these blocks.
    One(Vec<usize>),
    /// Every window of so many blocks, and every single one, of a trunk.
    Sweep { blocks: usize, window: usize },
}

impl Layers {
    /// From `last:N`, a list, `best` or `sweep`.
    pub(super) fn parse(text: &str, window: u32, config: &AimConfig) -> Result<Self, Usage> {
        let blocks = config.num_blocks;
        match text {
            "best" => Ok(Self::One(best_layers(config).collect())),
            "sweep" => Ok(Self::Sweep { blocks, window: (window as usize).min(blocks) }),
            _ => parse_layers(text, blocks)
                .map(Self::One)
                .map_err(|Usage(text)| Usage(format!("{text}; or best, or sweep"))),
        }
    }

    pub(super) fn is_sweep(&self) -> bool {
        matches!(self, Self::Sweep { .. })
    }

    /// Blocks that are needed.
    pub(super) fn all(&self) -> Vec<usize> {
        match self {
            Self::One(layers) => layers.clone(),
            Self::Sweep { blocks, .. } => (0..*blocks).collect(),
        }
    }

    /// Blocks whose mean is chosen among.
    pub(super) fn window(&self) -> usize {
        match self {
            Self::One(layers) => layers.len(),
            Self::Sweep { window, .. } => *window,
        }
    }

    /// What is averaged, one after the other.
    pub(super) fn windows(&self) -> Vec<Vec<usize>> {
        match self {
            Self::One(layers) => vec![layers.clone()],
            Self::Sweep { blocks, window } => {
                let windows = (0..=blocks - window).map(|first| (first..first + window).collect());
                let singles = (0..*blocks).filter(|_| *window > 1).map(|block| vec![block]);
                windows.chain(singles).collect()
            }
        }
    }
}

/// The recipe, with what was given instead.
pub(super) fn settings(learning: &Learning, train_images: usize) -> ProbeTraining {
    let recipe = match learning.recipe {
        LearningRecipe::Quick => ProbeTraining::default(),
        LearningRecipe::Paper => ProbeTraining::paper(train_images),
    };
    let given = |list: &[f64], default: Vec<f64>| {
        if list.is_empty() { default } else { list.to_vec() }
    };
    ProbeTraining {
        epochs: learning.epochs.map_or(recipe.epochs, |n| n as usize),
        warmup_epochs: learning.warmup_epochs.map_or(recipe.warmup_epochs, |n| n as usize),
        batch_size: learning.batch_size.map_or(recipe.batch_size, |n| n as usize),
        lrs: given(&learning.lr, recipe.lrs.clone()),
        weight_decays: given(&learning.weight_decay, recipe.weight_decays.clone()),
        ..recipe
    }
}

/// Everything that decides the features that are kept of a source.
pub(super) fn key(
    weights: &Weights,
    layers: &[usize],
    untrained: Option<u64>,
    kept: Kept,
    source: &dyn Source,
    options: &ImageOptions,
) -> String {
    format!(
        "{:?} {layers:?} {untrained:?} {kept:?} {} {:?}",
        files(&weights.dir),
        source.fingerprint(),
        ImageOptions { workers: 0, ..*options },
    )
}

/// Names, sizes and times of change of what a checkpoint's directory holds.
fn files(dir: &Path) -> Vec<String> {
    let mut files: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let path = entry.path();
            path.extension()
                .is_some_and(|extension| extension == "safetensors" || extension == "json")
        })
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some(format!(
                "{} {} {:?}",
                entry.path().display(),
                metadata.len(),
                metadata.modified().ok()
            ))
        })
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers() {
        let config = AimConfig { num_blocks: 8, ..AimConfig::default() };
        let parse = |text| Layers::parse(text, 6, &config);
        assert_eq!(parse("last:2").unwrap(), Layers::One(vec![6, 7]));
        assert_eq!(parse("best").unwrap(), Layers::One((2..8).collect()));
        let sweep = parse("sweep").unwrap();
        assert_eq!(sweep.windows().len(), 3 + 8);
        assert_eq!(sweep.windows()[2], [2, 3, 4, 5, 6, 7]);
        assert_eq!(Layers::parse("sweep", 1, &config).unwrap().windows().len(), 8);
        assert_eq!(Layers::parse("sweep", 99, &config).unwrap().windows().len(), 1 + 8);
        assert!(parse("worst").unwrap_err().0.contains("sweep"));
    }
}
