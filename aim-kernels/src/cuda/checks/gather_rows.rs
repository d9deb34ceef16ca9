//! Gather and its gradient.

use super::lab::{Check, Lab, compare};
use crate::cuda::CudaError;
use crate::gather_rows::{GatherRows, cuda};

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let shapes = [
        (1, 1, 1),
        (7, 3, 48),
        (33, 17, 192),
        (5, 9, 588),
        (40, 31, 1536),
        (3, 2, 4096),
        (19, 0, 16),
        (2, 50, 8),
    ];
    for (sources, rows, dim) in shapes {
        rows_of(lab, checks, GatherRows { sources, rows, dim })?;
    }
    Ok(())
}

fn rows_of(lab: &mut Lab, checks: &mut Vec<Check>, shape: GatherRows) -> Result<(), CudaError> {
    let GatherRows { sources, rows, dim } = shape;
    let x = lab.normal_bf16(sources * dim, 1.0);
    let mut index: Vec<_> = (0..rows).map(|_| lab.below(sources) as i32).collect();
    let (device_x, any) = (lab.upload(&x)?, lab.upload(&index)?);
    let y = lab.poisoned(rows * dim)?;
    cuda::forward(lab.gpu(), shape, device_x.slice(), any.slice(), y.slice())?;
    let picked = |at: usize| x[index[at / dim] as usize * dim + at % dim].to_f64();
    let expected: Vec<_> = (0..rows * dim).map(picked).collect();
    checks.push(compare(format!("gather_rows forward {shape:?}"), &y, &expected, 0.0)?);

    index.sort_unstable();
    let dy = lab.normal_bf16(rows * dim, 1.0);
    let (device_dy, ascending) = (lab.upload(&dy)?, lab.upload(&index)?);
    for accumulate in [false, true] {
        let before = lab.normal_bf16(sources * dim, 1.0);
        let dx = if accumulate { lab.upload(&before)? } else { lab.poisoned(sources * dim)? };
        let (gpu, out) = (lab.gpu(), dx.slice());
        cuda::backward(gpu, shape, device_dy.slice(), ascending.slice(), out, accumulate)?;
        let first = before.iter().map(|v| if accumulate { v.to_f64() } else { 0.0 });
        let mut expected: Vec<_> = first.collect();
        for (dy, &source) in dy.chunks(dim).zip(&index) {
            let sums = &mut expected[source as usize * dim..][..dim];
            sums.iter_mut().zip(dy).for_each(|(sum, v)| *sum += v.to_f64());
        }
        let name = format!("gather_rows backward accumulate={accumulate} {shape:?}");
        checks.push(compare(name, &dx, &expected, 4e-3)?);
    }
    Ok(())
}
