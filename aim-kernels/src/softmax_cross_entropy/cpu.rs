//! Softmax cross-entropy on the CPU.

use super::SoftmaxCrossEntropy;
use crate::cpu::pool;
use crate::cpu::simd::{exp, max, simd_dispatch, sum_by};

/// Rows per piece.
const ROWS: usize = 16;

fn check(shape: SoftmaxCrossEntropy, logits: &[f32], labels: &[i32]) {
    assert_eq!(logits.len(), shape.rows * shape.classes, "softmax_cross_entropy: logits");
    assert_eq!(labels.len(), shape.rows, "softmax_cross_entropy: labels");
}

/// Writes the loss of each row.
///
/// # Panics
/// If a label is not below the number of classes.
pub fn forward(shape: SoftmaxCrossEntropy, logits: &[f32], labels: &[i32], loss: &mut [f32]) {
    check(shape, logits, labels);
    assert_eq!(loss.len(), shape.rows, "softmax_cross_entropy: loss");
    pool::for_each_chunk(loss, ROWS, |i, loss| {
        forward_rows(shape, &logits[i * ROWS * shape.classes..], &labels[i * ROWS..], loss);
    });
}

/// `dlogits = scale * (softmax - t)`, written or accumulated.
///
/// # Panics
/// If a label is not below the number of classes.
pub fn backward(
    shape: SoftmaxCrossEntropy,
    logits: &[f32],
    labels: &[i32],
    scale: f32,
    dlogits: &mut [f32],
    accumulate: bool,
) {
    check(shape, logits, labels);
    assert_eq!(dlogits.len(), logits.len(), "softmax_cross_entropy: dlogits");
    let chunk = ROWS * shape.classes;
    pool::for_each_chunk(dlogits, chunk, |i, dlogits| {
        let logits = &logits[i * chunk..][..dlogits.len()];
        backward_rows(shape, logits, &labels[i * ROWS..], scale, dlogits, accumulate);
    });
}

/// Largest value and logarithm of the sum of `e^(x - largest)`.
#[inline(always)]
fn log_sum_exp<const FMA: bool>(x: &[f32]) -> (f32, f32) {
    let top = max(x);
    (top, sum_by(x, |v| exp::<FMA>(v - top)).ln())
}

#[inline(always)]
fn forward_body<const FMA: bool>(
    shape: SoftmaxCrossEntropy,
    logits: &[f32],
    labels: &[i32],
    loss: &mut [f32],
) {
    let SoftmaxCrossEntropy { classes, label_smoothing: s, .. } = shape;
    for ((loss, x), &label) in loss.iter_mut().zip(logits.chunks_exact(classes)).zip(labels) {
        *loss = 0.0;
        if label >= 0 {
            let (top, log_sum) = log_sum_exp::<FMA>(x);
            // Everything relative to the largest logit, so that large logits keep the digits of a small loss.
            *loss = log_sum - (1.0 - s) * (x[label as usize] - top);
            if s != 0.0 {
                *loss -= s * (sum_by(x, |v| v - top) / classes as f32);
            }
        }
    }
}
simd_dispatch! {
    fn forward_rows(
        shape: SoftmaxCrossEntropy, logits: &[f32], labels: &[i32], loss: &mut [f32],
    ) = forward_body;
}

#[inline(always)]
fn backward_body<const FMA: bool>(
    shape: SoftmaxCrossEntropy,
    logits: &[f32],
    labels: &[i32],
    scale: f32,
    dlogits: &mut [f32],
    accumulate: bool,
) {
    let SoftmaxCrossEntropy { classes, label_smoothing: s, .. } = shape;
    let rows = logits.chunks_exact(classes).zip(dlogits.chunks_exact_mut(classes)).zip(labels);
    for ((x, dx), &label) in rows {
        if !accumulate {
            dx.fill(0.0);
        }
        if label < 0 {
            continue;
        }
        let (top, log_sum) = log_sum_exp::<FMA>(x);
        let even = s / classes as f32;
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx += scale * (exp::<FMA>(x - top - log_sum) - even);
        }
        dx[label as usize] -= scale * (1.0 - s);
    }
}
simd_dispatch! {
    fn backward_rows(
        shape: SoftmaxCrossEntropy, logits: &[f32], labels: &[i32], scale: f32, dlogits: &mut [f32],
        accumulate: bool,
    ) = backward_body;
}

/// Writes the loss of each row against soft targets; label smoothing is the targets' own.
pub fn forward_soft(shape: SoftmaxCrossEntropy, logits: &[f32], targets: &[f32], loss: &mut [f32]) {
    assert_eq!(logits.len(), shape.rows * shape.classes, "softmax_cross_entropy: logits");
    assert_eq!(targets.len(), logits.len(), "softmax_cross_entropy: targets");
    assert_eq!(loss.len(), shape.rows, "softmax_cross_entropy: loss");
    pool::for_each_chunk(loss, ROWS, |i, loss| {
        let start = i * ROWS * shape.classes;
        soft_forward_rows(shape.classes, &logits[start..], &targets[start..], loss);
    });
}

/// `dlogits = scale * (sum(t) softmax - t)`, written or accumulated: what PyTorch computes also where a row of targets
/// does not sum to one.
pub fn backward_soft(
    shape: SoftmaxCrossEntropy,
    logits: &[f32],
    targets: &[f32],
    scale: f32,
    dlogits: &mut [f32],
    accumulate: bool,
) {
    assert_eq!(logits.len(), shape.rows * shape.classes, "softmax_cross_entropy: logits");
    assert_eq!(targets.len(), logits.len(), "softmax_cross_entropy: targets");
    assert_eq!(dlogits.len(), logits.len(), "softmax_cross_entropy: dlogits");
    let chunk = ROWS * shape.classes;
    pool::for_each_chunk(dlogits, chunk, |i, dlogits| {
        let (logits, targets) = (&logits[i * chunk..], &targets[i * chunk..]);
        soft_backward_rows(shape.classes, logits, targets, scale, dlogits, accumulate);
    });
}

#[inline(always)]
fn soft_forward_body<const FMA: bool>(
    classes: usize,
    logits: &[f32],
    targets: &[f32],
    loss: &mut [f32],
) {
    let rows = logits.chunks_exact(classes).zip(targets.chunks_exact(classes));
    for (loss, (x, t)) in loss.iter_mut().zip(rows) {
        let (top, log_sum) = log_sum_exp::<FMA>(x);
        // Everything relative to the largest logit, as above.
        *loss = x.iter().zip(t).map(|(x, t)| t * (log_sum - (x - top))).sum();
    }
}
simd_dispatch! {
    fn soft_forward_rows(classes: usize, logits: &[f32], targets: &[f32], loss: &mut [f32]) = soft_forward_body;
}

#[inline(always)]
fn soft_backward_body<const FMA: bool>(
    classes: usize,
    logits: &[f32],
    targets: &[f32],
    scale: f32,
    dlogits: &mut [f32],
    accumulate: bool,
) {
    let rows = logits.chunks_exact(classes).zip(targets.chunks_exact(classes));
    for (dx, (x, t)) in dlogits.chunks_exact_mut(classes).zip(rows) {
        if !accumulate {
            dx.fill(0.0);
        }
        let (top, log_sum) = log_sum_exp::<FMA>(x);
        let whole: f32 = t.iter().sum();
        for ((dx, x), t) in dx.iter_mut().zip(x).zip(t) {
            *dx += scale * (whole * exp::<FMA>(x - top - log_sum) - t);
        }
    }
}
simd_dispatch! {
    fn soft_backward_rows(
        classes: usize, logits: &[f32], targets: &[f32], scale: f32, dlogits: &mut [f32], accumulate: bool,
    ) = soft_backward_body;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_row_has_no_loss_and_no_gradient_whatever_it_holds() {
        let shape = SoftmaxCrossEntropy { rows: 2, classes: 3, label_smoothing: 0.1 };
        let logits = [f32::NAN, 1.0, f32::INFINITY, 0.0, 0.0, 0.0];
        let (mut loss, mut dlogits) = ([9.0; 2], [9.0; 6]);
        forward(shape, &logits, &[-1, 2], &mut loss);
        backward(shape, &logits, &[-1, 2], 1.0, &mut dlogits, false);
        assert_eq!(loss[0], 0.0);
        assert!((loss[1] - 3f32.ln()).abs() < 1e-6);
        assert_eq!(dlogits[..3], [0.0; 3]);
        assert!(dlogits[3..].iter().all(|v| v.is_finite() && *v != 0.0));
    }
}
