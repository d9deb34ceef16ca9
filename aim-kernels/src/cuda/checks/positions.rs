//! Positions.

use super::lab::{Check, Lab, compare};
use crate::cuda::CudaError;
use crate::positions::{Positions, cuda};

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    for (rows, dim) in [(1, 1), (7, 48), (33, 192), (5, 588), (3, 1536), (2, 4096), (0, 8)] {
        rows_of(lab, checks, Positions { rows, dim })?;
    }
    Ok(())
}

fn rows_of(lab: &mut Lab, checks: &mut Vec<Check>, shape: Positions) -> Result<(), CudaError> {
    let Positions { rows, dim } = shape;
    let places = 11;
    let (x, table) = (lab.normal_bf16(rows * dim, 1.0), lab.normal(places * dim, 1.0));
    let index: Vec<_> = (0..rows).map(|_| lab.below(places) as i32).collect();
    let operands = (lab.upload(&x)?, lab.upload(&table)?, lab.upload(&index)?);
    let y = lab.poisoned(x.len())?;
    let (dx, dt, di) = (operands.0.slice(), operands.1.slice(), operands.2.slice());
    cuda::forward(lab.gpu(), shape, dx, dt, di, y.slice())?;
    let expected: Vec<_> = (0..rows * dim)
        .map(|at| {
            let place = index[at / dim] as usize;
            x[at].to_f64() + f64::from(table[place * dim + at % dim])
        })
        .collect();
    checks.push(compare(format!("positions {shape:?}"), &y, &expected, 4e-3)?);
    Ok(())
}
