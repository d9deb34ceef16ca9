//! AdamW over the flat arena of parameters, and clipping by the global norm.

use aim_kernels::adamw;
use aim_tensor::parameters::zeros;
use aim_tensor::{ParamLayout, Parameters, TensorError};

/// What one update is made with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay of the parameters that decay applies to.
    pub weight_decay: f64,
    /// Number of the update; the first is 1.
    pub step: u64,
    /// Multiplies every gradient.
    pub grad_scale: f32,
}

/// First and second moments of every trainable parameter, in the parameters' own layout.
pub struct AdamW {
    m: Vec<f32>,
    v: Vec<f32>,
}

impl AdamW {
    /// Zero moments.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(layout: &ParamLayout) -> Result<Self, TensorError> {
        let len = layout.trainable_len();
        Ok(Self { m: zeros("first moments", len)?, v: zeros("second moments", len)? })
    }

    /// Updates every trainable parameter from its gradient (Loshchilov and Hutter, "Decoupled weight decay
    /// regularization"): one pass over memory.
    pub fn step(&mut self, params: &mut Parameters, update: Update) {
        let (layout, values, grads) = params.trainable_mut();
        for (range, weight_decay) in
            [(layout.decayed(), update.weight_decay), (layout.undecayed(), 0.0)]
        {
            let settings = adamw::AdamW {
                lr: update.lr,
                beta1: update.betas[0],
                beta2: update.betas[1],
                eps: update.eps,
                weight_decay,
                step: update.step,
                grad_scale: update.grad_scale,
            };
            let (m, v) = (&mut self.m[range.clone()], &mut self.v[range.clone()]);
            adamw::cpu::step(settings, &mut values[range.clone()], &grads[range], m, v);
        }
    }

    /// First and second moments, laid out like the parameters.
    pub fn moments(&self) -> (&[f32], &[f32]) {
        (&self.m, &self.v)
    }

    /// First and second moments, to fill from a checkpoint.
    pub fn moments_mut(&mut self) -> (&mut [f32], &mut [f32]) {
        (&mut self.m, &mut self.v)
    }
}

/// L2 norm of all gradients together.
pub fn grad_norm(params: &Parameters) -> f64 {
    aim_kernels::global_norm::cpu::global_norm(params.grads())
}

/// Factor that brings gradients of norm `norm` to at most `clip` (PyTorch's `clip_grad_norm_`).
pub fn clip_scale(norm: f64, clip: f64) -> f32 {
    (clip / (norm + 1e-6)).min(1.0) as f32
}
