//! Patch loss.

use super::lab::{Check, Lab, compare};
use crate::cuda::CudaError;
use crate::patch_loss::{EPS, PatchLoss, cuda};

/// Largest relative error: sums in f32.
const SUMMED: f64 = 2e-6;

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    // 65: more than a block's shared memory; odd ones are read value by value.
    for (rows, patch) in [(1, 1), (7, 2), (33, 3), (5, 14), (3, 16), (2, 32), (2, 65), (0, 14)] {
        for normalize in [true, false] {
            rows_of(lab, checks, PatchLoss { rows, patch, normalize })?;
        }
    }
    Ok(())
}

/// A patch as its row is scored against, in the order of the predictions.
fn target(shape: PatchLoss, patch: &[f32]) -> Vec<f64> {
    let n = shape.dim() as f64;
    let values: Vec<_> = patch.iter().map(|&v| f64::from(v)).collect();
    let (mut mean, mut rstd) = (0.0, 1.0);
    if shape.normalize {
        mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        rstd = 1.0 / (variance + f64::from(EPS)).sqrt();
    }
    let area = shape.patch * shape.patch;
    (0..values.len()).map(|at| (values[at % 3 * area + at / 3] - mean) * rstd).collect()
}

fn rows_of(lab: &mut Lab, checks: &mut Vec<Check>, shape: PatchLoss) -> Result<(), CudaError> {
    let (rows, dim) = (shape.rows, shape.dim());
    let count = 5;
    let mut patches = lab.normal(count * dim, 0.7);
    patches.iter_mut().for_each(|v| *v += 0.4);
    // One is flat: its target is zero, whatever the rounding of its mean.
    patches[dim..2 * dim].fill(2.117_904);
    let pred = lab.normal(rows * dim, 1.0);
    let targets: Vec<_> = (0..rows).map(|row| (row % count) as i32).collect();
    let operands = (lab.upload(&pred)?, lab.upload(&patches)?, lab.upload(&targets)?);
    let (dp, dq, dt) = (operands.0.slice(), operands.1.slice(), operands.2.slice());

    let scale = 0.37;
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for (pred, &at) in pred.chunks(dim).zip(&targets) {
        let target = target(shape, &patches[at as usize * dim..][..dim]);
        let errors = pred.iter().zip(target).map(|(&p, t)| f64::from(p) - t);
        let errors: Vec<_> = errors.collect();
        losses.push(errors.iter().map(|e| e * e).sum::<f64>() / dim as f64);
        gradients.extend(errors.iter().map(|e| f64::from(scale) * 2.0 / dim as f64 * e));
    }
    let loss = lab.poisoned(rows)?;
    cuda::forward(lab.gpu(), shape, dp, dq, dt, loss.slice())?;
    checks.push(compare(format!("patch_loss forward {shape:?}"), &loss, &losses, SUMMED)?);

    let dpred = lab.poisoned(rows * dim)?;
    cuda::backward(lab.gpu(), shape, dp, dq, dt, scale, dpred.slice())?;
    checks.push(compare(format!("patch_loss backward {shape:?}"), &dpred, &gradients, SUMMED)?);
    Ok(())
}
