//! Cross-entropy of class labels under a softmax.
//!
//! `loss[r] = -sum over c of t[c] log softmax(logits[r])[c]` with `t = (1 - s) onehot(label[r]) + s / classes` and the
//! label smoothing `s`.
//!
//! - logits, dlogits: `[rows, classes]`; loss: `[rows]`
//! - labels: i32 `[rows]`, each below `classes`; a negative one is ignored: no loss, no gradient
//! - soft targets: f32 t `[rows, classes]` instead of labels, each row of non-negative shares that sum to one, as of
//!   mixed images (Zhang et al., "mixup", 2018)
//! - backward: `dlogits = scale * (softmax - t)`, where the loss of a step is `scale * sum(loss)`

pub mod cpu;
pub mod cuda;

/// Shape of a cross-entropy's work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxCrossEntropy {
    /// Rows of logits, one label each.
    pub rows: usize,
    /// Values in a row.
    pub classes: usize,
    /// Share of the target spread evenly over all classes; 0 for plain labels.
    pub label_smoothing: f32,
}
