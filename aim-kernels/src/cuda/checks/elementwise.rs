//! Element-wise sums.

use super::lab::{Check, Lab, compare};
use crate::cuda::CudaError;
use crate::elementwise::cuda;

/// Largest relative error: one rounding to bf16.
const ROUNDED: f64 = 4e-3;

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    for (len, skip) in [(1, 0), (37, 0), (4096, 0), (4096, 1), (9001, 0), (0, 0)] {
        sums(lab, checks, len, skip)?;
    }
    Ok(())
}

/// With `skip` values before them the others are not at 16 bytes.
fn sums(lab: &mut Lab, checks: &mut Vec<Check>, len: usize, skip: usize) -> Result<(), CudaError> {
    let range = skip..skip + len;
    let (a, b) = (lab.normal_bf16(skip + len, 1.0), lab.normal_bf16(skip + len, 2.0));
    let (da, db) = (lab.upload(&a)?, lab.upload(&b)?);
    let (sa, sb) = (da.slice().range(range.clone()), db.slice().range(range.clone()));
    let pairs = a[range.clone()].iter().zip(&b[range.clone()]);
    let pairs: Vec<_> = pairs.map(|(a, b)| (a.to_f64(), b.to_f64())).collect();
    let expected =
        |f: fn(f64, f64) -> f64| -> Vec<f64> { pairs.iter().map(|&(a, b)| f(a, b)).collect() };
    let name = |what: &str| format!("elementwise {what} {len} from {skip}");

    let y = lab.poisoned(len)?;
    cuda::add(lab.gpu(), sa, sb, y.slice())?;
    checks.push(compare(name("add"), &y, &expected(|a, b| a + b), ROUNDED)?);

    let y = lab.upload(&b[range.clone()])?;
    cuda::accumulate(lab.gpu(), sa, y.slice())?;
    checks.push(compare(name("accumulate"), &y, &expected(|a, b| a + b), ROUNDED)?);

    let y = lab.poisoned(len)?;
    cuda::scale(lab.gpu(), sa, 0.3, y.slice(), false)?;
    checks.push(compare(name("scale"), &y, &expected(|a, _| 0.3 * a), ROUNDED)?);

    let y = lab.upload(&b[range.clone()])?;
    cuda::scale(lab.gpu(), sa, -1.7, y.slice(), true)?;
    checks.push(compare(name("scale, added"), &y, &expected(|a, b| b - 1.7 * a), ROUNDED)?);

    let wide: Vec<f32> = a.iter().map(|v| v.to_f32()).collect();
    let wide = lab.upload(&wide)?;
    for accumulate in [false, true] {
        let before: Vec<f32> = b[range.clone()].iter().map(|v| v.to_f32()).collect();
        let y = if accumulate { lab.upload(&before)? } else { lab.poisoned(len)? };
        cuda::scale_to_f32(lab.gpu(), sa, 0.3, y.slice(), accumulate)?;
        let sum = expected(if accumulate { |a, b| b + 0.3 * a } else { |a, _| 0.3 * a });
        checks.push(compare(name("scale to f32"), &y, &sum, 1e-6)?);

        let y = if accumulate { lab.upload(&b[range.clone()])? } else { lab.poisoned(len)? };
        let x = wide.slice().range(range.clone());
        cuda::scale_to_bf16(lab.gpu(), x, 0.3, y.slice(), accumulate)?;
        checks.push(compare(name("scale to bf16"), &y, &sum, ROUNDED)?);
    }
    Ok(())
}
