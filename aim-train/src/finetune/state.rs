//! What a checkpoint holds: adapters, classifier, their moments, and where the run stands. The trunk is where it was.

use std::path::{Path, PathBuf};

use aim_data::loader::LoaderState;
use aim_model::finetune::FinetuneModel;
use aim_model::weights;
use aim_tensor::Parameters;
use aim_tensor::io::safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::files::{self, AdapterDir, AdapterInfo};
use super::settings::FinetuneSettings;
use crate::checkpoint::{self, CheckpointWriter};
use crate::error::{Difference, TrainError};
use crate::optimizer::AdamW;

/// First and second moments, under the parameters' names.
const MOMENTS: [&str; 2] = ["optimizer_exp_avg", "optimizer_exp_avg_sq"];

/// `trainer.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// Steps done.
    pub(super) step: u64,
    /// Where the loader stands.
    pub(super) loader: LoaderState,
    /// What the run was made with.
    pub(super) settings: FinetuneSettings,
}

/// What is saved.
pub(super) struct Parts<'a> {
    pub(super) info: &'a AdapterInfo,
    pub(super) model: &'a FinetuneModel,
    pub(super) params: &'a Parameters,
    pub(super) optimizer: &'a AdamW,
}

/// Writes a checkpoint; it appears whole or not at all.
pub(super) fn save(
    run_dir: &Path,
    state: &State,
    parts: &Parts<'_>,
) -> Result<PathBuf, TrainError> {
    let Parts { info, model, params, optimizer } = parts;
    let mut writer = CheckpointWriter::begin(run_dir, state.step)?;
    let copy = params.fetch(FinetuneModel::is_adapted)?;
    files::add(&mut writer, info, model, copy.as_ref().unwrap_or(params))?;
    for (which, stem) in MOMENTS.into_iter().enumerate() {
        let moments = optimizer.moment(params, which)?;
        writer.tensors(stem, &weights::refs(params.layout(), &moments))?;
    }
    writer.json("trainer.json", state)?;
    writer.commit()
}

/// Fills adapters, classifier and moments from a checkpoint that was verified, if it continues this run.
pub(super) fn restore(
    dir: &Path,
    info: &AdapterInfo,
    settings: &FinetuneSettings,
    params: &mut Parameters,
    optimizer: &mut AdamW,
) -> Result<State, TrainError> {
    let state: State = checkpoint::read_json(dir, "trainer.json")?;
    let mut differences = state.settings.differences(settings)?;
    let adapter = AdapterDir::open(dir)?;
    let saved =
        adapter.info.as_ref().ok_or(TrainError::Internal("a checkpoint without finetune.json"))?;
    for (key, before, now) in [
        ("the trunk", saved.base_blake3.clone(), info.base_blake3.clone()),
        ("lora", format!("{:?}", saved.lora), format!("{:?}", info.lora)),
        ("layers", format!("{:?}", saved.layers), format!("{:?}", info.layers)),
        ("classes", saved.num_classes.to_string(), info.num_classes.to_string()),
    ] {
        if before != now {
            differences.push(Difference { key: key.into(), saved: before, current: now });
        }
    }
    if !differences.is_empty() {
        return Err(TrainError::ResumeMismatch { checkpoint: dir.to_owned(), differences });
    }
    adapter.fill(params, &info.model)?;
    let layout = params.layout().clone();
    let (m, v) = optimizer.moments_mut();
    for (stem, moments) in MOMENTS.into_iter().zip([m, v]) {
        weights::load_like(&layout, moments, &SafeTensors::open_dir(dir, stem)?, dir)?;
    }
    Ok(state)
}
