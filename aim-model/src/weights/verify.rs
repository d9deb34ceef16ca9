//! What is in a checkpoint, what is missing, and whether its numbers are sound.

use std::collections::BTreeMap;

use aim_tensor::io::TensorSource as _;
use aim_tensor::{ParamSpec, TensorError};

use super::checkpoint::Checkpoint;
use crate::classifier::{Probe, ProbeConfig, ProbeKind};
use crate::config::AimConfig;
use crate::error::ModelError;
use crate::pixel_head::PixelHead;
use crate::trunk::Trunk;

/// PyTorch's counter in a batch norm, which nothing needs.
pub(super) const NUM_BATCHES_TRACKED: &str = "head.bn.num_batches_tracked";

/// Numbers about one tensor; of its finite elements where not all are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistics {
    /// Elements.
    pub elements: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation (over n).
    pub std: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Elements that are NaN or infinite.
    pub non_finite: usize,
}

impl Statistics {
    /// Of these values.
    pub fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let (mut elements, mut count, mut sum) = (0, 0usize, 0.0);
        let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.clone() {
            elements += 1;
            if value.is_finite() {
                count += 1;
                sum += value;
                min = min.min(value);
                max = max.max(value);
            }
        }
        if count == 0 {
            (min, max) = (0.0, 0.0);
        }
        let mean = sum / count.max(1) as f64;
        // A second pass: the difference of two large sums would have few digits left.
        let squares: f64 = values.filter(|v| v.is_finite()).map(|v| (v - mean) * (v - mean)).sum();
        let std = (squares / count.max(1) as f64).sqrt();
        Self { elements, mean, std, min, max, non_finite: elements - count }
    }
}

/// Numbers about the tensor called `name`; `buffer` grows to the largest tensor.
///
/// # Errors
/// When it cannot be read.
pub fn statistics(
    checkpoint: &Checkpoint,
    name: &str,
    buffer: &mut Vec<f32>,
) -> Result<Statistics, ModelError> {
    let elements = checkpoint.shape(name).map_or(0, |shape| shape.iter().product());
    let integers = checkpoint.dtype(name).is_some_and(|dtype| {
        let name = dtype.to_string();
        name.starts_with(['I', 'U']) || name == "BOOL"
    });
    if integers {
        let values = checkpoint.to_i64(name).map_err(TensorError::from)?;
        return Ok(Statistics::of(values.iter().map(|&value| value as f64)));
    }
    buffer.resize(elements, 0.0);
    checkpoint.copy_to_f32(name, buffer).map_err(TensorError::from)?;
    Ok(Statistics::of(buffer.iter().map(|&value| f64::from(value))))
}

/// Names against what the model needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Needed and not there. A pixel head or a probe's head is needed in full once a part of it is there.
    pub missing: Vec<String>,
    /// There and not known.
    pub extra: Vec<String>,
    /// Of another shape: name, expected, found.
    pub misshapen: Vec<(String, String, String)>,
}

/// What ml-aim's probe consists of, for a trunk.
pub(super) fn attentive_specs(config: &AimConfig, classes: usize) -> Vec<ParamSpec> {
    let kind = ProbeKind::Attentive;
    Probe::specs(ProbeConfig { kind, dim: config.embed_dim, heads: config.num_heads, classes })
}

/// Compares names and shapes with the model's.
pub fn coverage(checkpoint: &Checkpoint) -> Coverage {
    let config = checkpoint.config();
    let some = |prefix: &str| checkpoint.names().any(|name| name.starts_with(prefix));
    let head_only = !some("trunk.") && !some("preprocessor.") && some("head.");
    let mut specs = if head_only { Vec::new() } else { Trunk::specs(config, false) };
    if some("pixel_head.") {
        specs.extend(PixelHead::specs(config));
    }
    if some("head.") {
        let linear = checkpoint.contains("head.linear.bias");
        let kind = if linear { ProbeKind::Linear } else { ProbeKind::Attentive };
        let classes = checkpoint.num_classes().unwrap_or(1);
        let (dim, heads) = (config.embed_dim, config.num_heads);
        specs.extend(Probe::specs(ProbeConfig { kind, dim, heads, classes }));
    }
    let needed: BTreeMap<&str, &ParamSpec> =
        specs.iter().map(|spec| (spec.name.as_str(), spec)).collect();
    let mut coverage = Coverage::default();
    for (&name, spec) in &needed {
        match checkpoint.shape(name) {
            None => coverage.missing.push(name.to_owned()),
            Some(shape) if shape != spec.shape.dims() => {
                let (expected, found) = (spec.shape.to_string(), format!("{shape:?}"));
                coverage.misshapen.push((name.to_owned(), expected, found));
            }
            Some(_) => {}
        }
    }
    let known = |name: &str| needed.contains_key(name) || name == NUM_BATCHES_TRACKED;
    coverage.extra = checkpoint.names().filter(|name| !known(name)).map(str::to_owned).collect();
    coverage
}
