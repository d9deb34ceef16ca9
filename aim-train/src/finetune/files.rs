//! Adapters, classifier, and what they belong to, as files.
//!
//! ```text
//! adapter_config.json adapter_model.safetensors   as Hugging Face PEFT reads them (aim_model::lora::peft)
//! head.safetensors                                the classifier under ml-aim's names, head.*
//! finetune.json                                   layers, classes and the trunk that they were trained on
//! ```

use std::path::{Path, PathBuf};

use aim_model::config::AimConfig;
use aim_model::finetune::{FinetuneConfig, FinetuneModel};
use aim_model::lora::{LoraConfig, peft};
use aim_model::weights;
use aim_tensor::Parameters;
use aim_tensor::io::safetensors::{FilePlan, SafeTensors, TensorRef};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, CheckpointWriter};
use crate::durable;
use crate::error::TrainError;

/// The description beside the weights.
pub const INFO: &str = "finetune.json";
/// The classifier, without `.safetensors`.
pub const HEAD_STEM: &str = "head";
const FORMAT_VERSION: u32 = 1;

/// `finetune.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterInfo {
    /// Version of this file.
    pub format_version: u32,
    /// The trunk's sizes.
    pub model: AimConfig,
    /// The weights that the adapters were trained on, as the command named them.
    pub base: String,
    /// BLAKE3 of the trunk's values.
    pub base_blake3: String,
    /// The adapters.
    pub lora: LoraConfig,
    /// Blocks whose outputs the classifier sees the mean of.
    pub layers: Vec<usize>,
    /// Number of classes.
    pub num_classes: usize,
    /// Names of the classes in label order; empty where the data have none.
    pub class_names: Vec<String>,
    /// Mean of each channel that images are normalised with.
    pub mean: [f64; 3],
    /// Standard deviation of each channel.
    pub std: [f64; 3],
}

impl AdapterInfo {
    pub(super) fn version() -> u32 {
        FORMAT_VERSION
    }

    /// The model that it describes.
    pub fn config(&self) -> FinetuneConfig {
        FinetuneConfig {
            model: self.model.clone(),
            lora: self.lora.clone(),
            layers: self.layers.clone(),
            classes: self.num_classes,
        }
    }
}

/// BLAKE3 of the trunk's values, in the order of their names.
pub fn trunk_hash(params: &Parameters) -> String {
    let mut trunk: Vec<_> =
        params.iter().filter(|(p, _)| !FinetuneModel::is_adapted(&p.spec.name)).collect();
    trunk.sort_by(|(a, _), (b, _)| a.spec.name.cmp(&b.spec.name));
    let mut hasher = blake3::Hasher::new();
    let mut bytes = Vec::new();
    for (param, values) in trunk {
        hasher.update(param.spec.name.as_bytes());
        for chunk in values.chunks(1 << 16) {
            bytes.clear();
            bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
            hasher.update(&bytes);
        }
    }
    hasher.finalize().to_string()
}

/// What goes into the files, with the memory that the tensors need.
struct Content {
    config: serde_json::Value,
    tensors: Vec<peft::PeftTensor>,
}

impl Content {
    fn new(info: &AdapterInfo, model: &FinetuneModel, params: &Parameters) -> Self {
        Self {
            config: peft::config(model.adapters(), info.model.num_blocks, &info.base),
            tensors: peft::tensors(model.adapters(), params),
        }
    }

    fn adapter(&self) -> Vec<TensorRef<'_>> {
        self.tensors.iter().map(|t| TensorRef::f32(&t.name, &t.shape, &t.values)).collect()
    }
}

pub(super) fn head_tensors(params: &Parameters) -> Vec<TensorRef<'_>> {
    params
        .iter()
        .filter(|(p, _)| FinetuneModel::is_head(&p.spec.name))
        .map(|(p, values)| TensorRef::f32(&p.spec.name, p.spec.shape.dims(), values))
        .collect()
}

/// Adds the files to a checkpoint.
pub(super) fn add(
    writer: &mut CheckpointWriter,
    info: &AdapterInfo,
    model: &FinetuneModel,
    params: &Parameters,
) -> Result<(), TrainError> {
    let content = Content::new(info, model, params);
    writer.json(peft::CONFIG_FILE, &content.config)?;
    writer.tensors(peft::MODEL_STEM, &content.adapter())?;
    writer.tensors(HEAD_STEM, &head_tensors(params))?;
    writer.json(INFO, info)
}

/// Writes the files into a directory, each of them atomically.
///
/// # Errors
/// When they cannot be written.
pub fn write(
    dir: &Path,
    info: &AdapterInfo,
    model: &FinetuneModel,
    params: &Parameters,
) -> Result<(), TrainError> {
    durable::create_dir(dir)?;
    let content = Content::new(info, model, params);
    for (stem, tensors) in
        [(peft::MODEL_STEM, content.adapter()), (HEAD_STEM, head_tensors(params))]
    {
        let plan = FilePlan::new(&tensors, &Default::default())?;
        durable::replace_with(&dir.join(format!("{stem}.safetensors")), |out| plan.write_to(out))?;
    }
    write_json(&dir.join(peft::CONFIG_FILE), &content.config)?;
    write_json(&dir.join(INFO), info)
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| TrainError::Json { path: path.to_owned(), reason: error.to_string() })?;
    durable::replace_with(path, |out| writeln!(out, "{text}"))
}

/// A directory of adapters that was opened.
#[derive(Debug)]
pub struct AdapterDir {
    /// The directory: for a run that was not finished, its newest good checkpoint.
    pub path: PathBuf,
    /// What the adapters belong to; none for PEFT's own directories.
    pub info: Option<AdapterInfo>,
}

impl AdapterDir {
    /// Opens a directory of adapters, or a run.
    ///
    /// # Errors
    /// When there are none, or their description cannot be read.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let mut dir = path.to_owned();
        if !dir.join(peft::CONFIG_FILE).is_file() {
            match checkpoint::newest_valid(path, |_, _| {})? {
                Some(found) if found.path.join(peft::CONFIG_FILE).is_file() => dir = found.path,
                _ => {
                    let reason = format!(
                        "no {} and no checkpoint with one: expected a directory that `finetune` or \
                         PEFT wrote",
                        peft::CONFIG_FILE
                    );
                    return Err(TrainError::Json { path: path.to_owned(), reason });
                }
            }
        }
        let info: Option<AdapterInfo> = if dir.join(INFO).is_file() {
            let info: AdapterInfo = checkpoint::read_json(&dir, INFO)?;
            if info.format_version != FORMAT_VERSION {
                let reason = format!(
                    "expected format version {FORMAT_VERSION}, found {}",
                    info.format_version
                );
                return Err(TrainError::Json { path: dir.join(INFO), reason });
            }
            Some(info)
        } else {
            None
        };
        Ok(Self { path: dir, info })
    }

    /// Reads the adapters for a trunk of these sizes.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn read(&self, model: &AimConfig) -> Result<peft::PeftAdapters, TrainError> {
        Ok(peft::read(&self.path, model)?)
    }

    /// Whether a classifier is there.
    pub fn has_head(&self) -> bool {
        self.path.join(format!("{HEAD_STEM}.safetensors")).is_file()
    }

    /// Fills adapters and classifier of a model.
    ///
    /// # Errors
    /// When a file is missing or does not fit.
    pub fn fill(&self, params: &mut Parameters, model: &AimConfig) -> Result<(), TrainError> {
        self.read(model)?.fill(params)?;
        let path = self.path.join(format!("{HEAD_STEM}.safetensors"));
        load_head(params, &path)
    }
}

/// Fills the classifier from a file such as `probe` writes.
///
/// # Errors
/// When a tensor is missing or has another shape.
pub fn load_head(params: &mut Parameters, path: &Path) -> Result<(), TrainError> {
    let file = SafeTensors::open(path)?;
    Ok(weights::load_some(params, &file, path, FinetuneModel::is_head)?)
}

/// The number of classes of a classifier's file.
///
/// # Errors
/// When it holds no `head.linear.weight`.
pub fn head_classes(path: &Path) -> Result<usize, TrainError> {
    let file = SafeTensors::open(path)?;
    let view = file.tensor("head.linear.weight")?;
    Ok(view.shape.first().copied().unwrap_or(0))
}
