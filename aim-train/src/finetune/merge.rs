//! Weights with the adapters in them, and back.
//!
//! ```text
//! config.json aim.json model.safetensors   trunk and classifier: what ml-aim's AIMForImageClassification loads strictly
//! base.safetensors                         the weights that the adapters changed, as they were, and the pixel head
//! merge.json                               what was merged, and the hash of the trunk before
//! ```
//!
//! `W + D - D` is not W in floating point, so the way back does no arithmetic: it puts the kept weights in their places
//! and checks the hash of the trunk that comes out.

use std::path::{Path, PathBuf};

use aim_model::finetune::{FinetuneConfig, FinetuneModel};
use aim_model::lora::merged_weights;
use aim_model::weights::MlAimConfig;
use aim_tensor::Parameters;
use aim_tensor::io::TensorSource;
use aim_tensor::io::safetensors::{MAX_SHARD_BYTES, SafeTensors, ShardPlan, TensorRef};
use serde::{Deserialize, Serialize};

use super::files::{self, AdapterDir, head_tensors, write_json};
use super::setup::Base;
use crate::checkpoint;
use crate::durable::{self, DurableFile};
use crate::error::TrainError;
use crate::trainer::AimJson;

/// The weights that were replaced, without `.safetensors`.
const BASE_STEM: &str = "base";
const MERGE: &str = "merge.json";
const PIXEL_HEAD: &str = "pixel_head.";

/// `merge.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MergeJson {
    format_version: u32,
    base: String,
    base_blake3: String,
    adapter: String,
    scaling: f64,
}

/// A directory that appears whole or not at all.
struct NewDir {
    temporary: PathBuf,
    target: PathBuf,
}

impl NewDir {
    fn create(target: &Path) -> Result<Self, TrainError> {
        let occupied = std::fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_some());
        if occupied || target.is_file() {
            return Err(TrainError::Exists { path: target.to_owned() });
        }
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let temporary = target.with_file_name(format!(".tmp-{name}-{}", std::process::id()));
        durable::create_dir(&temporary)?;
        Ok(Self { temporary, target: target.to_owned() })
    }

    fn tensors(&self, stem: &str, tensors: &[TensorRef<'_>]) -> Result<(), TrainError> {
        let plan = ShardPlan::new(stem, tensors, MAX_SHARD_BYTES, &Default::default())?;
        for planned in plan.files() {
            let mut file = DurableFile::create(self.temporary.join(&planned.name))?;
            file.write_with(|out| planned.write_to(out))?;
            file.finish()?;
        }
        Ok(())
    }

    fn json(&self, name: &str, value: &impl Serialize) -> Result<(), TrainError> {
        write_json(&self.temporary.join(name), value)
    }

    fn commit(self) -> Result<(), TrainError> {
        durable::sync_dir(&self.temporary)?;
        if self.target.is_dir() {
            // Empty, as was seen before.
            std::fs::remove_dir(&self.target)
                .map_err(|source| TrainError::io("replace", &self.target, source))?;
        }
        durable::rename(&self.temporary, &self.target)?;
        match self.target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => durable::sync_dir(parent),
            None => durable::sync_dir(Path::new(".")),
        }
    }
}

impl Drop for NewDir {
    fn drop(&mut self) {
        // After a commit there is none; else this is best effort.
        let _ = std::fs::remove_dir_all(&self.temporary);
    }
}

/// A model with adapters, and its classifier where there is one, from files.
///
/// # Errors
/// When the files do not fit, or the adapters were trained on other weights.
pub fn load(
    base: &Base<'_>,
    adapter: &AdapterDir,
    layers: Option<&[usize]>,
    head: Option<&Path>,
) -> Result<(FinetuneModel, Parameters), TrainError> {
    let read = adapter.read(base.model)?;
    let own = adapter.path.join(format!("{}.safetensors", files::HEAD_STEM));
    let head = head.map(Path::to_owned).or_else(|| adapter.has_head().then_some(own));
    let classes = head.as_deref().map(files::head_classes).transpose()?.unwrap_or(1);
    let default = || match &adapter.info {
        Some(info) => info.layers.clone(),
        None => (0..base.model.num_blocks).collect(),
    };
    let config = FinetuneConfig {
        model: base.model.clone(),
        lora: read.config.clone(),
        layers: layers.map_or_else(default, <[usize]>::to_vec),
        classes,
    };
    let model = FinetuneModel::new(config)?;
    let mut params = base.parameters(&model)?;
    if let Some(info) = &adapter.info {
        let found = files::trunk_hash(&params);
        if found != info.base_blake3 {
            return Err(TrainError::OtherTrunk {
                adapter: adapter.path.clone(),
                base: info.base.clone(),
                found: base.dir.to_owned(),
            });
        }
    }
    read.fill(&mut params)?;
    if let Some(path) = head {
        files::load_head(&mut params, &path)?;
    }
    Ok((model, params))
}

/// Writes a trunk with the adapters in its weights to `out`, with `undo` also what it takes to get them out again.
/// Returns the number of weights that changed.
///
/// # Errors
/// As [`load`]; when `out` holds something already or cannot be written.
pub fn merge(
    base: &Base<'_>,
    adapter: &AdapterDir,
    out: &Path,
    undo: bool,
) -> Result<usize, TrainError> {
    let (model, params) = load(base, adapter, None, None)?;
    let merged = merged_weights(model.adapters(), &params)?;
    let layout = params.layout().clone();
    let changed = |name: &str| merged.iter().find(|(merged, _)| merged == name);
    let trunk = |name: &str| !FinetuneModel::is_adapter(name) && !FinetuneModel::is_head(name);
    let mut tensors = Vec::new();
    for (param, values) in params.iter().filter(|(p, _)| trunk(&p.spec.name)) {
        let values = changed(&param.spec.name).map_or(values, |(_, merged)| merged);
        tensors.push(TensorRef::f32(&param.spec.name, param.spec.shape.dims(), values));
    }
    let dir = NewDir::create(out)?;
    let mut described = MlAimConfig::of(base.model);
    let tracked = [0_i64];
    if adapter.has_head() {
        tensors.extend(head_tensors(&params));
        // PyTorch's batch norm counts batches, and loads strictly.
        tensors.push(TensorRef::i64("head.bn.num_batches_tracked", &[], &tracked));
        described.probe_layers = Some(model.config().layers.clone());
        described.num_classes = Some(model.config().classes);
    }
    dir.tensors("model", &tensors)?;
    dir.json("config.json", &described)?;
    let aim = AimJson { model: base.model.clone(), mean: base.mean, std: base.std };
    dir.json("aim.json", &aim)?;
    if undo {
        let others = pixel_head(base.file)?;
        let mut kept: Vec<_> = merged
            .iter()
            .filter_map(|(name, _)| layout.id(name))
            .map(|id| (layout.get(id), params.value(id)))
            .map(|(p, values)| TensorRef::f32(&p.spec.name, p.spec.shape.dims(), values))
            .collect();
        kept.extend(others.iter().map(|(name, shape, values)| TensorRef::f32(name, shape, values)));
        dir.tensors(BASE_STEM, &kept)?;
        let scaling = model.adapters().config().scaling();
        let merge = MergeJson {
            format_version: 1,
            base: base.name.to_owned(),
            base_blake3: files::trunk_hash(&params),
            adapter: adapter.path.display().to_string(),
            scaling,
        };
        dir.json(MERGE, &merge)?;
    }
    dir.commit()?;
    Ok(merged.len())
}

/// Writes the weights that a merged directory was made of, in bits, to `out`. Returns the number of weights put back.
///
/// # Errors
/// When the directory holds no [`merge`] with its undoing, what comes out is not the trunk of before, or `out` cannot
/// be written.
pub fn unmerge(merged: &Base<'_>, out: &Path) -> Result<usize, TrainError> {
    let path = merged.dir.join(MERGE);
    if !path.is_file() {
        let reason = "not there: this is no merged directory, or it was merged without its undoing";
        return Err(TrainError::Json { path, reason: reason.into() });
    }
    let json: MergeJson = checkpoint::read_json(merged.dir, MERGE)?;
    let layout = aim_tensor::ParamLayout::new(aim_model::trunk::Trunk::specs(merged.model, false))?;
    let mut params = Parameters::without_gradients(std::sync::Arc::new(layout))?;
    aim_model::weights::load(&mut params, merged.file, merged.dir)?;
    let kept = SafeTensors::open_dir(merged.dir, BASE_STEM)?;
    let mut restored = 0;
    for view in kept.tensors() {
        let Some(id) = params.layout().id(view.name) else { continue };
        view.expect_shape(params.layout().get(id).spec.shape.dims())?;
        view.copy_to_f32(params.value_mut(id))?;
        restored += 1;
    }
    let found = files::trunk_hash(&params);
    if found != json.base_blake3 {
        let reason = format!(
            "the trunk that comes out has the hash {found}, expected {}: model.safetensors or \
             base.safetensors was changed",
            json.base_blake3
        );
        return Err(TrainError::Json { path, reason });
    }
    let others = pixel_head(&kept)?;
    let dir = NewDir::create(out)?;
    let mut tensors: Vec<_> = params
        .iter()
        .map(|(p, values)| TensorRef::f32(&p.spec.name, p.spec.shape.dims(), values))
        .collect();
    tensors.extend(others.iter().map(|(name, shape, values)| TensorRef::f32(name, shape, values)));
    dir.tensors("model", &tensors)?;
    dir.json("config.json", &MlAimConfig::of(merged.model))?;
    let aim = AimJson { model: merged.model.clone(), mean: merged.mean, std: merged.std };
    dir.json("aim.json", &aim)?;
    dir.commit()?;
    Ok(restored)
}

/// A tensor with its name and shape.
type Named = (String, Vec<usize>, Vec<f32>);

/// The pixel head in a file: no part of the trunk, but of a pre-trained model.
fn pixel_head(file: &dyn TensorSource) -> Result<Vec<Named>, TrainError> {
    file.names()
        .filter(|name| name.starts_with(PIXEL_HEAD))
        .map(|name| {
            let shape = file.shape(name).unwrap_or_default().to_vec();
            let mut values = vec![0.0; shape.iter().product()];
            file.copy_to_f32(name, &mut values)?;
            Ok((name.to_owned(), shape, values))
        })
        .collect()
}
