//! What a checkpoint of a run holds, written and read.

use std::path::Path;

use aim_data::loader::LoaderState;
use aim_model::config::AimConfig;
use aim_model::weights::{self, MlAimConfig};
use aim_tensor::Parameters;
use aim_tensor::io::safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::device::DeviceState;
use crate::checkpoint::{self, CheckpointWriter};
use crate::config::RunConfig;
use crate::error::TrainError;
use crate::optimizer::AdamW;

/// First and second moments are files of their own, under the parameters' names.
const MOMENTS: [&str; 2] = ["optimizer_exp_avg", "optimizer_exp_avg_sq"];
/// Choices made for a GPU.
const DEVICE: &str = "device.json";

/// `trainer.json`: where the run stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerState {
    /// Steps done.
    pub step: u64,
    /// Images seen.
    pub images_seen: u64,
    /// Where the loader stands.
    pub loader: LoaderState,
    /// The configuration the run was made with.
    pub config: RunConfig,
}

/// `aim.json`: what ml-aim's `config.json` has no keys for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AimJson {
    /// The model, pixel head included.
    pub model: AimConfig,
    /// Mean of each channel that images were normalised with.
    pub mean: [f64; 3],
    /// Standard deviation of each channel.
    pub std: [f64; 3],
}

/// Writes a checkpoint; it appears whole or not at all.
pub(super) fn save(
    run_dir: &Path,
    state: &TrainerState,
    params: &Parameters,
    optimizer: &AdamW,
) -> Result<std::path::PathBuf, TrainError> {
    let config = &state.config;
    let aim = AimJson { model: config.model.clone(), mean: config.data.mean, std: config.data.std };
    let mut writer = CheckpointWriter::begin(run_dir, state.step)?;
    writer.json("config.json", &MlAimConfig::of(&config.model))?;
    writer.json("aim.json", &aim)?;
    writer.tensors("model", &weights::refs(params.layout(), &params.download()?))?;
    for (which, stem) in MOMENTS.into_iter().enumerate() {
        let moments = optimizer.moment(params, which)?;
        writer.tensors(stem, &weights::refs(params.layout(), &moments))?;
    }
    if let Some(device) = DeviceState::of(&params.device()) {
        writer.json(DEVICE, &device)?;
    }
    writer.json("trainer.json", state)?;
    writer.commit()
}

/// Reads `trainer.json` of a checkpoint.
pub(super) fn read_state(dir: &Path) -> Result<TrainerState, TrainError> {
    checkpoint::read_json(dir, "trainer.json")
}

/// Reads `device.json` of a checkpoint, if a GPU made it.
pub(super) fn read_device(dir: &Path) -> Result<Option<DeviceState>, TrainError> {
    if dir.join(DEVICE).is_file() { checkpoint::read_json(dir, DEVICE).map(Some) } else { Ok(None) }
}

/// Fills parameters and moments, on the CPU, from a checkpoint that was verified.
pub(super) fn restore(
    dir: &Path,
    params: &mut Parameters,
    optimizer: &mut AdamW,
) -> Result<(), TrainError> {
    weights::load(params, &SafeTensors::open_dir(dir, "model")?, dir)?;
    let layout = params.layout().clone();
    let (m, v) = optimizer.moments_mut();
    for (stem, moments) in MOMENTS.into_iter().zip([m, v]) {
        weights::load_like(&layout, moments, &SafeTensors::open_dir(dir, stem)?, dir)?;
    }
    Ok(())
}
