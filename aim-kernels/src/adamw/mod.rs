//! AdamW (Loshchilov and Hutter 2019), with PyTorch's order of operations.
//!
//! With `g = grad_scale * grad` and step t counted from 1:
//! `p *= 1 - lr * weight_decay`, `m += (1 - beta1) (g - m)`, `v = beta2 v + (1 - beta2) g^2`,
//! `p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)`.
//!
//! - params, grads, m, v: one contiguous range of the parameters, any shape

pub mod cpu;
pub mod cuda;

/// What one AdamW step of a range of parameters is made with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of this range.
    pub weight_decay: f64,
    /// Number of this step; the first is 1.
    pub step: u64,
    /// Multiplies every gradient: the clipping factor.
    pub grad_scale: f32,
}

/// The step's constants, rounded once from f64: the same for every kernel.
#[derive(Clone, Copy)]
struct Constants {
    decay: f32,
    grad_scale: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    root_correction: f32,
    eps: f32,
}

impl AdamW {
    /// # Panics
    /// If the step is 0: steps count from 1.
    fn constants(self) -> Constants {
        let Self { lr, beta1, beta2, eps, weight_decay, step, grad_scale } = self;
        assert!(step > 0, "adamw: steps count from 1");
        Constants {
            decay: (1.0 - lr * weight_decay) as f32,
            grad_scale,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            step_size: (lr / (1.0 - beta1.powf(step as f64))) as f32,
            root_correction: (1.0 / (1.0 - beta2.powf(step as f64)).sqrt()) as f32,
            eps: eps as f32,
        }
    }
}
