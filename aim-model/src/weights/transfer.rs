//! Which tensors an import or export writes, and their values.

use std::collections::BTreeMap;
use std::io::{self, Write};

use aim_tensor::ParamSpec;
use aim_tensor::io::TensorSource;
use aim_tensor::io::safetensors::{Dtype, StreamTensor};

use super::config::MlAimConfig;
use super::verify::{NUM_BATCHES_TRACKED, attentive_specs};
use crate::config::AimConfig;
use crate::error::ModelError;
use crate::pixel_head::PixelHead;
use crate::trunk::Trunk;

/// The type of floats in the written file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits with f32's range, rounded to nearest; the statistics of the probe's batch norm stay 32 bits.
    Bf16,
}

/// Trunk and patch embedding.
pub fn trunk(config: &AimConfig) -> Vec<ParamSpec> {
    Trunk::specs(config, false)
}

/// The pre-training head.
pub fn pixel_head(config: &AimConfig) -> Vec<ParamSpec> {
    PixelHead::specs(config)
}

/// The tensors as they are written: parameters in the order given, and for a probe's head PyTorch's counter.
pub fn describe(specs: &[ParamSpec], precision: Precision) -> Vec<StreamTensor> {
    let mut tensors: Vec<StreamTensor> = specs
        .iter()
        .map(|spec| {
            let statistics = spec.name.starts_with("head.bn.");
            let bf16 = precision == Precision::Bf16 && !statistics;
            StreamTensor {
                name: spec.name.clone(),
                dtype: if bf16 { Dtype::BF16 } else { Dtype::F32 },
                shape: spec.shape.dims().to_vec(),
            }
        })
        .collect();
    if specs.iter().any(|spec| spec.name == "head.bn.running_mean") {
        let name = NUM_BATCHES_TRACKED.to_owned();
        tensors.push(StreamTensor { name, dtype: Dtype::I64, shape: Vec::new() });
    }
    tensors
}

/// The attentive head of a source, checked: ml-aim knows no other.
///
/// # Errors
/// When it is a linear one, incomplete, or of another width than the trunk.
pub fn attentive_head(
    source: &dyn TensorSource,
    config: &AimConfig,
) -> Result<Vec<ParamSpec>, ModelError> {
    let bad = |reason: &str| ModelError::BadFile {
        path: source.path().to_owned(),
        reason: reason.to_owned(),
    };
    if source.contains("head.linear.bias") || !source.contains("head.cls_token") {
        return Err(bad(
            "a linear head; ml-aim's AIMForImageClassification has an attentive one only: train it with \
             `aim-cli probe --kind attentive`",
        ));
    }
    let classes = source.shape("head.linear.weight").and_then(<[usize]>::first);
    let classes =
        classes.ok_or_else(|| bad("expected a tensor `head.linear.weight`, found none"))?;
    let specs = attentive_specs(config, *classes);
    check(source, &specs)?;
    Ok(specs)
}

/// Checks that a source has parameters of these names and shapes.
///
/// # Errors
/// [`ModelError::BadWeight`] names the first that it lacks.
pub fn check(source: &dyn TensorSource, specs: &[ParamSpec]) -> Result<(), ModelError> {
    for spec in specs {
        let found = source.shape(&spec.name);
        if found != Some(spec.shape.dims()) {
            return Err(ModelError::BadWeight {
                path: source.path().to_owned(),
                name: spec.name.clone(),
                expected: spec.shape.to_string(),
                found: found.map_or_else(|| "no such tensor".into(), |shape| format!("{shape:?}")),
            });
        }
    }
    Ok(())
}

/// ml-aim's `config.json` for a model with a probe's head.
pub fn ml_aim_config(
    config: &AimConfig,
    probe_layers: Option<Vec<usize>>,
    num_classes: Option<usize>,
) -> MlAimConfig {
    MlAimConfig { probe_layers, num_classes, ..MlAimConfig::of(config) }
}

/// What the written files say of themselves; Hugging Face's libraries look for it.
pub fn metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_owned(), "pt".to_owned())])
}

/// Writes a tensor's values, converting them through `buffer`, which grows to the largest tensor.
///
/// # Errors
/// Those of the source and of `out`.
pub fn write_values(
    source: &dyn TensorSource,
    tensor: &StreamTensor,
    buffer: &mut Vec<f32>,
    out: &mut dyn Write,
) -> io::Result<()> {
    if tensor.dtype == Dtype::I64 {
        // PyTorch's counter of batches, which ours do not have: it steers nothing while the momentum is a number.
        let known = source.contains(&tensor.name).then(|| source.to_i64(&tensor.name));
        let values = known.unwrap_or_else(|| Ok(vec![0])).map_err(io::Error::other)?;
        return out.write_all(bytemuck::cast_slice(&values));
    }
    let elements = tensor.shape.iter().product();
    buffer.resize(elements, 0.0);
    source.copy_to_f32(&tensor.name, buffer).map_err(io::Error::other)?;
    if tensor.dtype == Dtype::F32 {
        return out.write_all(bytemuck::cast_slice(buffer));
    }
    let mut narrow = Vec::with_capacity(PIECE);
    for piece in buffer.chunks(PIECE) {
        narrow.clear();
        narrow.extend(piece.iter().map(|&value| half::bf16::from_f32(value)));
        out.write_all(bytemuck::cast_slice(&narrow))?;
    }
    Ok(())
}

/// Values that are narrowed at a time.
const PIECE: usize = 1 << 18;
