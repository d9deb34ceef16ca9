//! What a trainer tells while it runs. It prints nothing itself.

use std::path::PathBuf;

use aim_data::loader::Skipped;
use aim_tensor::{Device, Memory, Recompute};

/// Losses on the validation images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Validation {
    /// With a prefix length fixed for each image.
    pub loss: f64,
    /// With a prefix of one patch: every patch but the first is scored.
    pub loss_causal: f64,
    /// What the best constant per position, fitted on training images, scores on the patches of `loss`.
    pub baseline: f64,
    /// The same on the patches of `loss_causal`.
    pub baseline_causal: f64,
}

/// One step's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepMetrics {
    /// Steps done, this one included.
    pub step: u64,
    /// Mean loss over all scored patches of the global batch.
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
    /// On steps that validate.
    pub validation: Option<Validation>,
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The device was opened.
    Device {
        /// Where the run computes.
        device: &'a Device,
        /// Why not on a GPU, if one might have been expected.
        note: Option<&'a str>,
    },
    /// Everything is ready; training starts after so many steps.
    Ready {
        /// Steps done before.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// Images in one step, accumulated micro-batches included.
        images_per_step: usize,
        /// Trunk and head parameters.
        parameters: usize,
        /// Memory of one step, parameters left out.
        memory: Memory,
        /// Bytes of masters, gradients and moments, wherever they are.
        state_bytes: u64,
        /// What the backward pass makes again.
        recompute: Recompute,
        /// FLOPs of forward and backward for one image.
        flops_per_image: u64,
    },
    /// Something about the device that may matter for speed or for the last bits.
    DeviceNote(&'a str),
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
    /// A checkpoint after the one that the run was told to go on from was set aside.
    SetAside {
        /// Where it is now.
        path: PathBuf,
    },
    /// A remark on the data that was opened.
    DataNote(&'a str),
    /// An image could not be used; another took its place.
    SampleSkipped(&'a Skipped),
    /// A step is done.
    Step(&'a StepMetrics),
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
