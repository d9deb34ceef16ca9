//! Mean pooling against f64.

use super::lab::{Check, Lab, compare};
use super::shifted::{Shifted, behind};
use crate::cuda::CudaError;
use crate::mean_pool::{MeanPool, cuda};

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let shape = |batch, tokens, dim| MeanPool { batch, tokens, dim };
    for (shape, shift) in [
        (shape(1, 1, 1), 0),
        (shape(2, 5, 7), 0),
        (shape(2, 37, 131), 0),
        (shape(2, 37, 132), 0),
        (shape(2, 37, 132), 1),
        (shape(3, 256, 384), 0),
    ] {
        check(lab, checks, shape, shift)?;
    }
    Ok(())
}

fn check(
    lab: &mut Lab,
    checks: &mut Vec<Check>,
    shape: MeanPool,
    shift: usize,
) -> Result<(), CudaError> {
    let MeanPool { batch, tokens, dim } = shape;
    let name = format!("mean_pool {batch} x {tokens} x {dim} from {shift}");
    let values = lab.normal(batch * tokens * dim, 1.0);
    let mut expected = vec![0.0; batch * dim];
    for (row, x) in values.chunks(dim).enumerate() {
        let mean = &mut expected[row / tokens * dim..][..dim];
        mean.iter_mut().zip(x).for_each(|(mean, &x)| *mean += f64::from(x) / tokens as f64);
    }
    let x = Shifted::new(lab, shift, &values)?;
    let y = Shifted::poisoned(lab, shift, batch * dim)?;
    cuda::forward(lab.gpu(), shape, x.slice(), y.slice())?;
    let expected = behind(shift, &expected);
    checks.push(compare(format!("{name} forward"), &y.buffer, &expected, 1e-6)?);

    let gradient = lab.normal(batch * dim, 1.0);
    let dy = Shifted::new(lab, shift, &gradient)?;
    for accumulate in [false, true] {
        let dx = match accumulate {
            false => Shifted::poisoned(lab, shift, values.len())?,
            true => Shifted::new(lab, shift, &values)?,
        };
        cuda::backward(lab.gpu(), shape, dy.slice(), dx.slice(), accumulate)?;
        let expected: Vec<f64> = (0..values.len())
            .map(|i| {
                let dy = gradient[i / (tokens * dim) * dim + i % dim];
                let before = if accumulate { f64::from(values[i]) } else { 0.0 };
                before + f64::from(dy) / tokens as f64
            })
            .collect();
        let name = format!("{name} backward, accumulate {accumulate}");
        checks.push(compare(name, &dx.buffer, &behind(shift, &expected), 1e-6)?);
    }
    Ok(())
}
