//! AdamW (Loshchilov and Hutter 2019), with PyTorch's order of operations.
//!
//! With `g = grad_scale * grad` and step t counted from 1:
//! `p *= 1 - lr * weight_decay`, `m += (1 - beta1) (g - m)`, `v = beta2 v + (1 - beta2) g^2`,
//! `p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)`.
//!
//! - params, grads, m, v: one contiguous range of the parameters, any shape

pub mod cpu;

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
