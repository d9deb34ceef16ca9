//! Batch norm against f64.

use super::lab::{Check, Lab, compare};
use super::shifted::{Shifted, behind};
use crate::batch_norm::{BatchNorm, cuda};
use crate::cuda::CudaError;

#[derive(Clone, Copy)]
struct Case {
    shape: BatchNorm,
    /// Mean of the columns, their standard deviation being 1.
    mean: f32,
    /// Values in front of x, y, dx and dy.
    shift: usize,
}

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let shape = |rows, dim| BatchNorm { rows, dim, eps: 1e-6 };
    for case in [
        // A large eps: without, two rows leave a gradient of almost nothing.
        Case { shape: BatchNorm { eps: 0.5, ..shape(2, 1) }, mean: 0.5, shift: 0 },
        Case { shape: shape(37, 131), mean: 0.5, shift: 0 },
        Case { shape: shape(300, 132), mean: 0.5, shift: 0 },
        Case { shape: shape(300, 132), mean: 0.5, shift: 1 },
        Case { shape: shape(257, 36), mean: 1000.0, shift: 0 },
        Case { shape: shape(128, 768), mean: 0.5, shift: 0 },
    ] {
        check(lab, checks, case)?;
    }
    Ok(())
}

/// Mean, rstd and biased variance of each column.
fn statistics(shape: BatchNorm, x: &[f32]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let BatchNorm { rows, dim, eps } = shape;
    let column = |c: usize| x.iter().skip(c).step_by(dim).map(|&v| f64::from(v));
    let mean: Vec<f64> = (0..dim).map(|c| column(c).sum::<f64>() / rows as f64).collect();
    let var: Vec<f64> = (0..dim)
        .map(|c| column(c).map(|v| (v - mean[c]).powi(2)).sum::<f64>() / rows as f64)
        .collect();
    let rstd = var.iter().map(|var| 1.0 / (var + f64::from(eps)).sqrt()).collect();
    (mean, rstd, var)
}

fn check(lab: &mut Lab, checks: &mut Vec<Check>, case: Case) -> Result<(), CudaError> {
    let Case { shape, mean: offset, shift } = case;
    let BatchNorm { rows, dim, eps } = shape;
    let name = format!("batch_norm {rows} x {dim} from {shift}, mean {offset}");
    let mut values = lab.normal(rows * dim, 1.0);
    values.iter_mut().for_each(|v| *v += offset);
    let (mean, rstd, var) = statistics(shape, &values);
    let x = Shifted::new(lab, shift, &values)?;
    let y = Shifted::poisoned(lab, shift, values.len())?;
    let (found_mean, found_rstd) = (lab.poisoned(dim)?, lab.poisoned(dim)?);
    let scratch = lab.poisoned(cuda::scratch_len(shape))?;
    let gpu = lab.gpu();
    let stats = (found_mean.slice(), found_rstd.slice());
    cuda::forward_training(gpu, shape, x.slice(), y.slice(), stats.0, stats.1, scratch.slice())?;
    // A mean that is rounded to f32 moves the values, which are of size 1, by that much.
    let tolerance = 1e-6 + f64::from(offset) * 6e-8;
    let normalized = |mean: &[f64], rstd: &[f64]| -> Vec<f64> {
        let value = |(i, &v): (usize, &f32)| (f64::from(v) - mean[i % dim]) * rstd[i % dim];
        behind(shift, &values.iter().enumerate().map(value).collect::<Vec<_>>())
    };
    let expected = normalized(&mean, &rstd);
    checks.push(compare(format!("{name}: y"), &y.buffer, &expected, tolerance)?);
    checks.push(compare(format!("{name}: mean"), &found_mean, &mean, 1e-7)?);
    checks.push(compare(format!("{name}: rstd"), &found_rstd, &rstd, 1e-6)?);

    let rounded = |values: &[f64]| -> Vec<f32> { values.iter().map(|&v| v as f32).collect() };
    let (running_mean, running_var) = (lab.upload(&rounded(&mean))?, lab.upload(&rounded(&var))?);
    let y = Shifted::poisoned(lab, shift, values.len())?;
    let running = (running_mean.slice(), running_var.slice());
    cuda::forward_evaluation(gpu, shape, x.slice(), running.0, running.1, y.slice())?;
    let exact = |values: Vec<f32>| -> Vec<f64> { values.into_iter().map(f64::from).collect() };
    let std = |v: &f64| 1.0 / (v + f64::from(eps)).sqrt();
    let var: Vec<f64> = exact(running_var.read()?).iter().map(std).collect();
    let expected = normalized(&exact(running_mean.read()?), &var);
    checks.push(compare(format!("{name}: evaluation"), &y.buffer, &expected, 1e-6)?);
    backward(lab, checks, case, &values, &name)
}

fn backward(
    lab: &mut Lab,
    checks: &mut Vec<Check>,
    case: Case,
    values: &[f32],
    name: &str,
) -> Result<(), CudaError> {
    let Case { shape, shift, .. } = case;
    let BatchNorm { rows, dim, .. } = shape;
    // From the statistics as the kernel gets them.
    let (mean, rstd, _) = statistics(shape, values);
    let mean: Vec<f32> = mean.iter().map(|&v| v as f32).collect();
    let rstd: Vec<f32> = rstd.iter().map(|&v| v as f32).collect();
    let (gradient, before) = (lab.normal(values.len(), 1.0), lab.normal(values.len(), 1.0));
    let hat =
        |i: usize| (f64::from(values[i]) - f64::from(mean[i % dim])) * f64::from(rstd[i % dim]);
    let (mut mean_dy, mut mean_dy_x) = (vec![0.0; dim], vec![0.0; dim]);
    for (i, &dy) in gradient.iter().enumerate() {
        mean_dy[i % dim] += f64::from(dy) / rows as f64;
        mean_dy_x[i % dim] += f64::from(dy) * hat(i) / rows as f64;
    }
    let x = Shifted::new(lab, shift, values)?;
    let dy = Shifted::new(lab, shift, &gradient)?;
    let (found_mean, found_rstd) = (lab.upload(&mean)?, lab.upload(&rstd)?);
    for accumulate in [false, true] {
        let dx = match accumulate {
            false => Shifted::poisoned(lab, shift, values.len())?,
            true => Shifted::new(lab, shift, &before)?,
        };
        let scratch = lab.poisoned(cuda::scratch_len(shape))?;
        cuda::backward(
            lab.gpu(),
            shape,
            x.slice(),
            found_mean.slice(),
            found_rstd.slice(),
            dy.slice(),
            dx.slice(),
            accumulate,
            scratch.slice(),
        )?;
        let expected: Vec<f64> = (0..values.len())
            .map(|i| {
                let before = if accumulate { f64::from(before[i]) } else { 0.0 };
                let centered = f64::from(gradient[i]) - mean_dy[i % dim];
                before + f64::from(rstd[i % dim]) * (centered - hat(i) * mean_dy_x[i % dim])
            })
            .collect();
        let name = format!("{name}: dx, accumulate {accumulate}");
        // Of two rows the gradient all but cancels.
        let tolerance = if shape.rows * shape.dim < 64 { 1e-5 } else { 1e-6 };
        checks.push(compare(name, &dx.buffer, &behind(shift, &expected), tolerance)?);
    }
    Ok(())
}
