//! What a trainer of adapters tells while it runs. It prints nothing itself.

use std::path::PathBuf;

use aim_data::loader::Skipped;
use aim_tensor::Memory;

use super::Evaluation;

/// One step's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepMetrics {
    /// Steps done, this one included.
    pub step: u64,
    /// Passes over the training images, this step included.
    pub epoch: f64,
    /// Mean cross-entropy of the batch, against mixed and smoothed targets.
    pub loss: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Images a second, data loading included.
    pub images_per_s: f64,
    /// Share of the step spent waiting for data.
    pub data_wait_share: f64,
    /// Images seen since the run began.
    pub images_seen: u64,
    /// At the end of an epoch.
    pub evaluation: Option<Evaluation>,
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Everything is ready; training starts after so many steps.
    Ready {
        /// Steps done before.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// Images in one step, accumulated micro-batches included.
        images_per_step: usize,
        /// Parameters of the adapters.
        adapter_parameters: usize,
        /// Parameters of the classifier.
        head_parameters: usize,
        /// Parameters of the frozen trunk.
        trunk_parameters: usize,
        /// Memory of one step, parameters left out.
        memory: Memory,
        /// Bytes of all parameters, and of gradients and moments of those that train.
        state_bytes: u64,
        /// FLOPs of forward and backward for one image.
        flops_per_image: u64,
    },
    /// A remark on the data that was opened.
    DataNote(&'a str),
    /// Training goes on from this checkpoint.
    Resumed {
        /// Its step.
        step: u64,
        /// Its directory.
        path: PathBuf,
    },
    /// A checkpoint is damaged and was passed over.
    CheckpointSkipped {
        /// Its directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An image could not be used.
    SampleSkipped(&'a Skipped),
    /// A step is done.
    Step(&'a StepMetrics),
    /// Validation images are being looked at.
    Evaluating {
        /// Images done.
        done: u64,
        /// Images in all.
        total: u64,
    },
    /// A checkpoint is complete.
    Saved {
        /// Its step.
        step: u64,
        /// Its directory.
        path: PathBuf,
    },
}

/// Receives events.
pub trait Observer {
    /// Called for each event, from the training thread.
    fn event(&mut self, event: Event<'_>);
}

impl<F: FnMut(Event<'_>)> Observer for F {
    fn event(&mut self, event: Event<'_>) {
        self(event);
    }
}
