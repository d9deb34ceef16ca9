//! `--checkpoint PATH`: a run, a checkpoint directory or a weights file, opened.

use std::path::{Path, PathBuf};

use aim_model::config::AimConfig;
use aim_model::features::FeatureExtractor;
use aim_model::init;
use aim_model::weights::{self, Checkpoint};
use aim_tensor::Device;
use aim_train::checkpoint;
use aim_train::config::Precision;
use aim_train::trainer::{AimJson, DeviceChoice, TrainerState};
use anyhow::{Result, bail};

use crate::progress;

/// Weights with what is needed to use them.
pub(crate) struct Weights {
    /// The checkpoint's directory.
    pub(crate) dir: PathBuf,
    /// The tensors, under our names whatever the file calls them.
    pub(crate) file: Checkpoint,
    pub(crate) config: AimConfig,
    /// Mean of each channel that images are normalised with.
    pub(crate) mean: [f64; 3],
    /// Standard deviation of each channel.
    pub(crate) std: [f64; 3],
}

impl Weights {
    /// Opens a run (its newest checkpoint that verifies), a checkpoint directory, a weights file, or several with commas
    /// between; see [`Checkpoint::open`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let found = locate(path)?;
        let file = Checkpoint::open(&found)?;
        let dir = file.dir().to_owned();
        let (mean, std) = normalization(&dir)?;
        let config = file.config().clone();
        Ok(Self { dir, file, config, mean, std })
    }

    /// Says what a user should know about how the weights were read.
    pub(crate) fn announce(&self, quiet: bool) {
        for line in self.file.notes() {
            progress::note(quiet, line);
        }
    }

    /// An extractor of these layers with the trunk's weights, or with fresh random ones.
    pub(crate) fn extractor(
        &self,
        layers: &[usize],
        untrained: Option<u64>,
        device: &Device,
    ) -> Result<FeatureExtractor> {
        // Blocks behind the last layer asked for would only take memory.
        let depth = layers.iter().max().map_or(self.config.num_blocks, |last| last + 1);
        let num_blocks = depth.min(self.config.num_blocks);
        let config = AimConfig { num_blocks, ..self.config.clone() };
        let mut params = FeatureExtractor::parameters(&config)?;
        match untrained {
            Some(seed) => init::initialize(&mut params, seed),
            None => {
                weights::load(&mut params, &self.file, &self.dir)?;
            }
        }
        Ok(FeatureExtractor::new(&config, params.to(device)?, layers)?)
    }

    /// How images are brought to the model.
    pub(crate) fn image_options(
        &self,
        batch_size: usize,
    ) -> aim_train::probe::features::ImageOptions {
        let narrow = |values: [f64; 3]| values.map(|v| v as f32);
        aim_train::probe::features::ImageOptions {
            height: self.config.img_size.height,
            width: self.config.img_size.width,
            mean: narrow(self.mean),
            std: narrow(self.std),
            batch_size,
            workers: std::thread::available_parallelism().map_or(1, |n| n.get()),
            limit: None,
        }
    }

    /// The training state beside the weights, if they are a run's checkpoint.
    pub(crate) fn trainer_state(&self) -> Option<TrainerState> {
        checkpoint::read_json(&self.dir, "trainer.json").ok()
    }
}

/// What to open: the newest checkpoint of a run, else the path itself.
fn locate(path: &Path) -> Result<PathBuf> {
    if checkpoint::checkpoints_dir(path).is_dir() {
        let found = checkpoint::newest_valid(path, |path, error| {
            progress::warn(&format!("{} is passed over: {error}", path.display()));
        })?;
        return match found {
            Some(found) => Ok(found.path),
            None => bail!("{}: no complete checkpoint in this run", path.display()),
        };
    }
    if !path.exists() && !path.to_string_lossy().contains(',') {
        bail!("{}: expected a run, a checkpoint directory or a weights file", path.display());
    }
    Ok(path.to_owned())
}

/// From `aim.json`; ImageNet's where ml-aim's files have none.
fn normalization(dir: &Path) -> Result<([f64; 3], [f64; 3])> {
    if dir.join("aim.json").is_file() {
        let aim: AimJson = checkpoint::read_json(dir, "aim.json")?;
        return Ok((aim.mean, aim.std));
    }
    Ok(([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
}

/// Block indices from `last:N` or a list such as `3,4,5`.
pub(crate) fn parse_layers(text: &str, num_blocks: usize) -> Result<Vec<usize>, crate::cmd::Usage> {
    let usage = || {
        crate::cmd::Usage(format!(
            "--layers {text}: expected last:N with N from 1 to {num_blocks}, or block indices below {num_blocks} such as 0,1"
        ))
    };
    if let Some(count) = text.strip_prefix("last:") {
        let count: usize = count.parse().map_err(|_| usage())?;
        if count == 0 {
            return Err(usage());
        }
        // "last:6" is the paper's default; a model of fewer blocks uses them all.
        return Ok((num_blocks.saturating_sub(count)..num_blocks).collect());
    }
    let layers: Vec<usize> = text
        .split(',')
        .map(|part| part.trim().parse().map_err(|_| usage()))
        .collect::<Result<_, _>>()?;
    if layers.iter().any(|&layer| layer >= num_blocks) {
        return Err(usage());
    }
    Ok(layers)
}

/// Opens the device for using a model; says so where it is not the GPU that `auto` looks for.
pub(crate) fn open_device(choice: DeviceChoice, quiet: bool) -> Result<Device> {
    let chosen = choice.open(Precision::Auto)?;
    if let Some(text) = chosen.note {
        progress::note(quiet, &text);
    }
    Ok(chosen.device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers() {
        assert_eq!(parse_layers("last:2", 6).unwrap(), [4, 5]);
        assert_eq!(parse_layers("last:6", 4).unwrap(), [0, 1, 2, 3]);
        assert_eq!(parse_layers("1, 3", 4).unwrap(), [1, 3]);
        for bad in ["", "last:0", "last:x", "4", "-1", "best"] {
            assert!(parse_layers(bad, 4).is_err(), "{bad}");
        }
    }
}
