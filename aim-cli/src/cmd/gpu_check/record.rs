//! What units find out, as the two processes exchange it and as the JSON file keeps it.

use serde::{Deserialize, Serialize};

/// One line from the process that works to the one that reports.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub(super) enum Line {
    /// A unit begins.
    Begin { unit: String },
    /// A unit has found something out.
    Record { record: Record },
    /// A unit is over; with an error, units behind it need a new process.
    End { unit: String, seconds: f64, error: Option<String> },
    /// Nothing can be done on this machine.
    Fatal { error: String },
}

/// Something that a unit has found out.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Record {
    Check(Check),
    Timing(Timing),
    Step(Step),
    Tensor(Tensor),
    Note { text: String },
}

/// A result and what it should be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Check {
    /// What is checked: a kernel, a training.
    pub(super) group: String,
    pub(super) name: String,
    /// None stands for NaN, which JSON does not have.
    pub(super) error: Option<f64>,
    /// Largest error that passes.
    pub(super) tolerance: f64,
}

impl Check {
    pub(super) fn new(group: &str, name: impl Into<String>, error: f64, tolerance: f64) -> Self {
        let error = error.is_finite().then_some(error);
        Self { group: group.to_owned(), name: name.into(), error, tolerance }
    }

    /// A check without degrees.
    pub(super) fn holds(group: &str, name: impl Into<String>, holds: bool) -> Self {
        Self::new(group, name, if holds { 0.0 } else { 1.0 }, 0.0)
    }

    pub(super) fn passed(&self) -> bool {
        self.error.is_some_and(|error| error <= self.tolerance)
    }

    /// How much of the tolerance is used.
    pub(super) fn used(&self) -> f64 {
        match self.error {
            Some(0.0) => 0.0,
            Some(error) => error / self.tolerance.max(f64::MIN_POSITIVE),
            None => f64::INFINITY,
        }
    }
}

/// Times of a kernel or product.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Timing {
    /// `rates`, `kernels` or `products`.
    pub(super) group: String,
    /// The preset, or what stands for it.
    pub(super) size: String,
    pub(super) name: String,
    pub(super) shape: String,
    pub(super) median_s: f64,
    /// A tenth of the samples is below, a tenth above.
    pub(super) p10_s: f64,
    pub(super) p90_s: f64,
    pub(super) samples: usize,
    /// Bytes that must move.
    pub(super) bytes: f64,
    /// Operations on matrix units; of attention those of visible pairs.
    pub(super) flops: f64,
    /// The same with the masked part.
    pub(super) dense_flops: f64,
}

impl Timing {
    pub(super) fn gb_per_s(&self) -> f64 {
        self.bytes / self.median_s * 1e-9
    }

    pub(super) fn tflop_per_s(&self) -> f64 {
        self.flops / self.median_s * 1e-12
    }
}

/// Times of a whole training step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Step {
    pub(super) preset: String,
    pub(super) batch: usize,
    /// Whether no larger batch fits without recomputation.
    pub(super) largest: bool,
    pub(super) median_s: f64,
    pub(super) p10_s: f64,
    pub(super) p90_s: f64,
    pub(super) samples: usize,
    /// Forward and backward, of predicting rows only, the masked part of attention included.
    pub(super) flops: f64,
    /// The same if the head ran on all rows, as programs that do not skip them compute.
    pub(super) all_rows_flops: f64,
    /// Masters and gradients, and moments.
    pub(super) parameter_bytes: usize,
    pub(super) moment_bytes: usize,
    pub(super) step_bytes: usize,
    /// At the fullest moment, by category.
    pub(super) by_category: Vec<(String, usize)>,
    /// Mean loss of the last step, on noise.
    pub(super) loss: f64,
}

/// A file with a tensor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Tensor {
    pub(super) size: String,
    /// `qkv`, `prefix`, `dout`, `out` or `dqkv`.
    pub(super) name: String,
    pub(super) file: String,
    pub(super) shape: Vec<usize>,
}
