//! Softmax cross-entropy against f64.

use super::lab::{Check, Lab, compare};
use super::shifted::{Shifted, behind};
use crate::cuda::CudaError;
use crate::softmax_cross_entropy::{SoftmaxCrossEntropy, cuda};

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let shape =
        |rows, classes, label_smoothing| SoftmaxCrossEntropy { rows, classes, label_smoothing };
    for (shape, std, shift) in [
        (shape(2, 1, 0.0), 1.0, 0),
        (shape(9, 10, 0.0), 1.0, 0),
        (shape(9, 12, 0.1), 1.0, 0),
        (shape(5, 257, 0.1), 1.0, 0),
        (shape(6, 1000, 0.0), 3.0, 0),
        (shape(3, 1000, 0.1), 3.0, 1),
        // Logits of some hundred: only the largest counts.
        (shape(4, 1000, 0.1), 100.0, 0),
        (shape(2, 21_843, 0.1), 1.0, 0),
    ] {
        check(lab, checks, shape, std, shift)?;
        soft(lab, checks, shape, std, shift)?;
    }
    ignored(lab, checks)
}

fn check(
    lab: &mut Lab,
    checks: &mut Vec<Check>,
    shape: SoftmaxCrossEntropy,
    std: f64,
    shift: usize,
) -> Result<(), CudaError> {
    let SoftmaxCrossEntropy { rows, classes, label_smoothing } = shape;
    let name = format!("softmax_cross_entropy {rows} x {classes} from {shift}, logits of {std}");
    let values = lab.normal(rows * classes, std);
    let before = lab.normal(rows * classes, 1e-3);
    let labels: Vec<i32> = (0..rows).map(|_| lab.below(classes) as i32).collect();
    let scale = 0.25f32;
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for (x, &label) in values.chunks(classes).zip(&labels) {
        let top = x.iter().fold(f64::NEG_INFINITY, |top, &v| top.max(f64::from(v)));
        let sum: f64 = x.iter().map(|&v| (f64::from(v) - top).exp()).sum();
        let log_p = |c: usize| f64::from(x[c]) - top - sum.ln();
        let s = f64::from(label_smoothing);
        let target =
            |c: usize| s / classes as f64 + if c == label as usize { 1.0 - s } else { 0.0 };
        losses.push(-(0..classes).map(|c| target(c) * log_p(c)).sum::<f64>());
        gradients.extend((0..classes).map(|c| f64::from(scale) * (log_p(c).exp() - target(c))));
    }
    let x = Shifted::new(lab, shift, &values)?;
    let labels = lab.upload(&labels)?;
    let loss = Shifted::poisoned(lab, shift, rows)?;
    cuda::forward(lab.gpu(), shape, x.slice(), labels.slice(), loss.slice())?;
    let expected = behind(shift, &losses);
    checks.push(compare(format!("{name}: loss"), &loss.buffer, &expected, 2e-6)?);
    for accumulate in [false, true] {
        let dx = match accumulate {
            false => Shifted::poisoned(lab, shift, values.len())?,
            true => Shifted::new(lab, shift, &before)?,
        };
        cuda::backward(lab.gpu(), shape, x.slice(), labels.slice(), scale, dx.slice(), accumulate)?;
        let before = before.iter().map(|&v| if accumulate { f64::from(v) } else { 0.0 });
        let expected: Vec<f64> = gradients.iter().zip(before).map(|(g, b)| g + b).collect();
        let name = format!("{name}: gradient, accumulate {accumulate}");
        checks.push(compare(name, &dx.buffer, &behind(shift, &expected), 1e-5)?);
    }
    Ok(())
}

/// Against shares of the classes that sum to a little more or less than one.
fn soft(
    lab: &mut Lab,
    checks: &mut Vec<Check>,
    shape: SoftmaxCrossEntropy,
    std: f64,
    shift: usize,
) -> Result<(), CudaError> {
    let SoftmaxCrossEntropy { rows, classes, .. } = shape;
    let name = format!("soft_cross_entropy {rows} x {classes} from {shift}, logits of {std}");
    let values = lab.normal(rows * classes, std);
    let before = lab.normal(rows * classes, 1e-3);
    let shares: Vec<f32> =
        lab.normal(rows * classes, 1.0).iter().map(|v| v.abs() / classes as f32).collect();
    let scale = 0.25f32;
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for (x, t) in values.chunks(classes).zip(shares.chunks(classes)) {
        let top = x.iter().fold(f64::NEG_INFINITY, |top, &v| top.max(f64::from(v)));
        let sum: f64 = x.iter().map(|&v| (f64::from(v) - top).exp()).sum();
        let log_p = |v: f32| f64::from(v) - top - sum.ln();
        let whole: f64 = t.iter().map(|&t| f64::from(t)).sum();
        losses.push(-x.iter().zip(t).map(|(&v, &t)| f64::from(t) * log_p(v)).sum::<f64>());
        let gradient = |(&v, &t): (&f32, &f32)| whole * log_p(v).exp() - f64::from(t);
        gradients.extend(x.iter().zip(t).map(gradient).map(|g| f64::from(scale) * g));
    }
    let x = Shifted::new(lab, shift, &values)?;
    let targets = Shifted::new(lab, shift, &shares)?;
    let loss = Shifted::poisoned(lab, shift, rows)?;
    cuda::forward_soft(lab.gpu(), shape, x.slice(), targets.slice(), loss.slice())?;
    let expected = behind(shift, &losses);
    checks.push(compare(format!("{name}: loss"), &loss.buffer, &expected, 2e-6)?);
    for accumulate in [false, true] {
        let dx = match accumulate {
            false => Shifted::poisoned(lab, shift, values.len())?,
            true => Shifted::new(lab, shift, &before)?,
        };
        let (gpu, t) = (lab.gpu(), targets.slice());
        cuda::backward_soft(gpu, shape, x.slice(), t, scale, dx.slice(), accumulate)?;
        let before = before.iter().map(|&v| if accumulate { f64::from(v) } else { 0.0 });
        let expected: Vec<f64> = gradients.iter().zip(before).map(|(g, b)| g + b).collect();
        let name = format!("{name}: gradient, accumulate {accumulate}");
        checks.push(compare(name, &dx.buffer, &behind(shift, &expected), 1e-5)?);
    }
    Ok(())
}

/// A row with a negative label counts for nothing, whatever it holds; one with a label that is no class is NaN.
fn ignored(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let shape = SoftmaxCrossEntropy { rows: 3, classes: 300, label_smoothing: 0.1 };
    let mut values = vec![0f32; 3 * 300];
    values[..300].fill(f32::NAN);
    let (x, labels) = (lab.upload(&values)?, lab.upload(&[-1, 0, 300])?);
    let loss = lab.poisoned::<f32>(3)?;
    cuda::forward(lab.gpu(), shape, x.slice(), labels.slice(), loss.slice())?;
    let loss = loss.read()?;
    let mut right = loss[0] == 0.0 && (loss[1] - 300f32.ln()).abs() < 1e-5 && loss[2].is_nan();
    for accumulate in [false, true] {
        let dx = match accumulate {
            false => lab.poisoned::<f32>(values.len())?,
            true => lab.upload(&vec![0f32; values.len()])?,
        };
        cuda::backward(lab.gpu(), shape, x.slice(), labels.slice(), 1.0, dx.slice(), accumulate)?;
        let dx = dx.read()?;
        right &= dx[..300].iter().all(|&v| v == 0.0);
        right &= dx[300..600].iter().all(|v| v.is_finite());
        right &= dx[600..].iter().all(|v| v.is_nan());
    }
    let name = "softmax_cross_entropy: ignored rows and labels that are no class".into();
    checks.push(Check { name, error: f64::from(u8::from(!right)), tolerance: 0.0, bits: 0 });
    Ok(())
}
