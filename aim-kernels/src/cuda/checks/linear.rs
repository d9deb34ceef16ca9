//! The products of the linear layer.

use half::bf16;

use super::lab::{Check, Lab, compare};
use super::matrix::{Matrix, product};
use crate::cuda::{CudaError, DeviceSlice, gemm};
use crate::linear::Linear;
use crate::linear::cuda::{self, Operand, Out};

/// Largest relative error of a bf16 result: its one rounding is 1.7e-3.
const ROUNDED: f64 = 4e-3;
/// Largest relative error of an f32 result.
const SUMMED: f64 = 1e-5;

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let shape = |rows, inputs, outputs| Linear { rows, inputs, outputs };
    // The last number is how far strides go beyond the next multiple of 8.
    let shapes = [
        (shape(1, 1, 1), 0),
        (shape(5, 3, 7), 0),
        (shape(13, 17, 19), 8),
        (shape(31, 588, 40), 0),
        (shape(24, 64, 588), 0),
        (shape(64, 256, 128), 0),
        (shape(96, 72, 64), 16),
    ];
    for (shape, gap) in shapes {
        products(lab, checks, shape, gap)?;
    }
    for shape in [shape(1, 8, 8), shape(33, 24, 40), shape(64, 128, 256)] {
        forward_gelu(lab, checks, shape)?;
        backward_input_gelu(lab, checks, shape)?;
    }
    nothing_to_do(lab, checks)?;
    choices(lab, checks)
}

/// The three products and their variants.
fn products(
    lab: &mut Lab,
    checks: &mut Vec<Check>,
    shape: Linear,
    gap: usize,
) -> Result<(), CudaError> {
    forward(lab, checks, shape, gap)?;
    backward_input(lab, checks, shape, gap)?;
    backward_weight(lab, checks, shape, gap)
}

fn plus(values: &[f64], more: &[bf16]) -> Vec<f64> {
    values.iter().zip(more).map(|(value, more)| value + f64::from(more.to_f32())).collect()
}

fn forward(
    lab: &mut Lab,
    checks: &mut Vec<Check>,
    shape: Linear,
    gap: usize,
) -> Result<(), CudaError> {
    let Linear { rows, inputs, outputs } = shape;
    let x = Matrix::new(lab, rows, inputs, gap)?;
    let weight = Matrix::new(lab, outputs, inputs, gap)?;
    let residual = lab.normal_bf16(rows * outputs, 2.0);
    let expected = product([rows, outputs, inputs], |i, l| x.at(i, l), |l, j| weight.at(j, l));
    let sum = plus(&expected, &residual);
    let run = |lab: &Lab, residual: Option<DeviceSlice<'_, bf16>>, y| {
        cuda::forward(lab.gpu(), shape, x.operand(), weight.operand(), residual, y)
    };

    let y = lab.poisoned::<bf16>(rows * outputs)?;
    run(lab, None, Out::Bf16(y.slice()))?;
    checks.push(compare(format!("linear forward {shape:?}"), &y, &expected, ROUNDED)?);

    let y = lab.poisoned::<f32>(rows * outputs)?;
    run(lab, None, Out::F32(y.slice()))?;
    checks.push(compare(format!("linear forward f32 {shape:?}"), &y, &expected, SUMMED)?);

    let (y, added) = (lab.poisoned::<bf16>(rows * outputs)?, lab.upload(&residual)?);
    run(lab, Some(added.slice()), Out::Bf16(y.slice()))?;
    checks.push(compare(format!("linear forward residual {shape:?}"), &y, &sum, ROUNDED)?);

    run(lab, Some(added.slice()), Out::Bf16(added.slice()))?;
    let name = format!("linear forward residual in place {shape:?}");
    checks.push(compare(name, &added, &sum, ROUNDED)?);
    Ok(())
}

fn backward_input(
    lab: &mut Lab,
    checks: &mut Vec<Check>,
    shape: Linear,
    gap: usize,
) -> Result<(), CudaError> {
    let Linear { rows, inputs, outputs } = shape;
    let dy = Matrix::new(lab, rows, outputs, gap)?;
    let weight = Matrix::new(lab, outputs, inputs, gap)?;
    let before = lab.normal_bf16(rows * inputs, 2.0);
    let expected = product([rows, inputs, outputs], |i, l| dy.at(i, l), |l, j| weight.at(l, j));
    for accumulate in [false, true] {
        let dx = if accumulate { lab.upload(&before)? } else { lab.poisoned(before.len())? };
        let (gpu, out) = (lab.gpu(), Out::Bf16(dx.slice()));
        cuda::backward_input(gpu, shape, dy.operand(), weight.operand(), out, accumulate)?;
        let expected = if accumulate { plus(&expected, &before) } else { expected.clone() };
        let name = format!("linear backward_input accumulate={accumulate} {shape:?}");
        checks.push(compare(name, &dx, &expected, ROUNDED)?);

        let wide: Vec<f32> = before.iter().map(|v| v.to_f32()).collect();
        let dx = if accumulate { lab.upload(&wide)? } else { lab.poisoned(before.len())? };
        let (gpu, out) = (lab.gpu(), Out::F32(dx.slice()));
        cuda::backward_input(gpu, shape, dy.operand(), weight.operand(), out, accumulate)?;
        let name = format!("linear backward_input f32 accumulate={accumulate} {shape:?}");
        checks.push(compare(name, &dx, &expected, SUMMED)?);
    }
    Ok(())
}

fn backward_weight(
    lab: &mut Lab,
    checks: &mut Vec<Check>,
    shape: Linear,
    gap: usize,
) -> Result<(), CudaError> {
    let Linear { rows, inputs, outputs } = shape;
    let dy = Matrix::new(lab, rows, outputs, gap)?;
    let x = Matrix::new(lab, rows, inputs, gap)?;
    let stride = inputs.next_multiple_of(4) + gap;
    let before = lab.normal((outputs - 1) * stride + inputs, 1.0);
    let sum = product([outputs, inputs, rows], |i, l| dy.at(l, i), |l, j| x.at(l, j));
    // What lies between rows stays.
    let mut expected: Vec<_> = before.iter().map(|&value| f64::from(value)).collect();
    for (expected, sum) in expected.chunks_mut(stride).zip(sum.chunks(inputs)) {
        expected.iter_mut().zip(sum).for_each(|(expected, sum)| *expected += sum);
    }
    let dweight = lab.upload(&before)?;
    let (gpu, out) = (lab.gpu(), dweight.slice());
    cuda::backward_weight(gpu, shape, dy.operand(), x.operand(), out, stride)?;
    let name = format!("linear backward_weight {shape:?}");
    checks.push(compare(name, &dweight, &expected, SUMMED)?);
    Ok(())
}

/// `(gelu(x), gelu'(x))`, the tanh form.
pub(super) fn gelu(x: f64) -> (f64, f64) {
    let scale = (2.0 / std::f64::consts::PI).sqrt();
    let t = (scale * (x + 0.044715 * x.powi(3))).tanh();
    let slope = scale * (1.0 + 3.0 * 0.044715 * x * x);
    (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
}

fn forward_gelu(lab: &mut Lab, checks: &mut Vec<Check>, shape: Linear) -> Result<(), CudaError> {
    let Linear { rows, inputs, outputs } = shape;
    let x = Matrix::new(lab, rows, inputs, 0)?;
    let weight = Matrix::new(lab, outputs, inputs, 8)?;
    if !cuda::fuses_gelu(lab.gpu(), shape, x.stride, weight.stride)? {
        return Ok(());
    }
    let expected = product([rows, outputs, inputs], |i, l| x.at(i, l), |l, j| weight.at(j, l));
    let (pre, y) = (lab.poisoned(rows * outputs)?, lab.poisoned(rows * outputs)?);
    let (gpu, out) = (lab.gpu(), y.slice());
    cuda::forward_gelu(gpu, shape, x.operand(), weight.operand(), pre.slice(), out)?;
    let name = format!("linear forward_gelu pre {shape:?}");
    checks.push(compare(name, &pre, &expected, ROUNDED)?);
    let expected: Vec<_> = expected.into_iter().map(|x| gelu(x).0).collect();
    checks.push(compare(format!("linear forward_gelu {shape:?}"), &y, &expected, ROUNDED)?);
    Ok(())
}

fn backward_input_gelu(
    lab: &mut Lab,
    checks: &mut Vec<Check>,
    shape: Linear,
) -> Result<(), CudaError> {
    let Linear { rows, inputs, outputs } = shape;
    let dy = Matrix::new(lab, rows, outputs, 0)?;
    let weight = Matrix::new(lab, outputs, inputs, 0)?;
    if !cuda::fuses_gelu_backward(lab.gpu(), shape, dy.stride, weight.stride)? {
        return Ok(());
    }
    let pre = lab.normal_bf16(rows * inputs, 1.0);
    let mut expected = product([rows, inputs, outputs], |i, l| dy.at(i, l), |l, j| weight.at(l, j));
    for (expected, pre) in expected.iter_mut().zip(&pre) {
        *expected *= gelu(f64::from(pre.to_f32())).1;
    }
    let (pre, dpre) = (lab.upload(&pre)?, lab.poisoned(rows * inputs)?);
    let (gpu, out) = (lab.gpu(), dpre.slice());
    cuda::backward_input_gelu(gpu, shape, dy.operand(), weight.operand(), pre.slice(), out)?;
    let name = format!("linear backward_input_gelu {shape:?}");
    checks.push(compare(name, &dpre, &expected, ROUNDED)?);
    Ok(())
}

/// Something that holds or does not.
fn holds(name: &str, holds: bool) -> Check {
    let error = if holds { 0.0 } else { 1.0 };
    Check { name: name.to_owned(), error, tolerance: 0.0, bits: 0 }
}

/// No rows, and what cannot be asked for.
fn nothing_to_do(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let shape = Linear { rows: 0, inputs: 16, outputs: 8 };
    let (none, weight) = (lab.poisoned::<bf16>(0)?, Matrix::new(lab, 8, 16, 0)?);
    let before = lab.normal(8 * 16, 1.0);
    let dweight = lab.upload(&before)?;
    let (x, dy) = (Operand::dense(none.slice(), 16), Operand::dense(none.slice(), 8));
    let (gpu, weight) = (lab.gpu(), weight.operand());
    cuda::forward(gpu, shape, x, weight, None, Out::Bf16(none.slice()))?;
    cuda::forward_gelu(gpu, shape, x, weight, none.slice(), none.slice())?;
    cuda::backward_input(gpu, shape, dy, weight, Out::Bf16(none.slice()), true)?;
    cuda::backward_weight(gpu, shape, dy, x, dweight.slice(), 16)?;
    let expected: Vec<_> = before.iter().map(|&value| f64::from(value)).collect();
    checks.push(compare("linear backward_weight without rows", &dweight, &expected, 0.0)?);

    // A second matrix whose rows are not aligned cannot be fused; the note says it once.
    gemm::notes(gpu);
    let odd = Linear { rows: 4, inputs: 8, outputs: 7 };
    let fuses = cuda::fuses_gelu(gpu, odd, 8, 8)? || cuda::fuses_gelu(gpu, odd, 8, 8)?;
    let noted = gemm::notes(gpu);
    checks.push(holds("linear forward_gelu odd width is not fused", !fuses && noted.len() == 1));

    let one = Linear { rows: 1, inputs: 16, outputs: 1 };
    let (row, out) = (Operand { data: weight.data, stride: 16 }, dweight.slice().range(0..1));
    let refused = cuda::forward(gpu, one, row, row, Some(row.data.range(0..1)), Out::F32(out));
    let unsupported = matches!(refused, Err(CudaError::Unsupported { .. }));
    checks.push(holds("linear forward f32 with a residual is refused", unsupported));
    Ok(())
}

/// Measuring does not touch live results; choices survive a round trip; those of another library do not.
fn choices(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let shape = Linear { rows: 24, inputs: 40, outputs: 48 };
    let first = checks.len();
    gemm::tune(lab.gpu(), true);
    let measured = products(lab, checks, shape, 0);
    gemm::tune(lab.gpu(), false);
    measured?;
    let chosen = gemm::export(lab.gpu());
    let warnings = gemm::import(lab.gpu(), &chosen);
    forward(lab, checks, shape, 0)?;
    for check in &mut checks[first..] {
        check.name.insert_str(0, "measured ");
        // Which algorithm is fastest is up to the clock.
        check.bits = 0;
    }
    let kept = warnings.is_empty() && gemm::export(lab.gpu()) == chosen;
    checks.push(holds("gemm choices survive a round trip", kept));

    let other = gemm::Chosen { version: "1.2".to_owned(), ..chosen.clone() };
    let warned = gemm::import(lab.gpu(), &other).len() == 1;
    checks.push(holds("gemm choices of another version are not used", warned));

    let mut strange = chosen.clone();
    strange.algorithms.iter_mut().for_each(|(_, bits)| bits[7] ^= 0x5a5a);
    let warned = gemm::import(lab.gpu(), &strange);
    gemm::notes(lab.gpu());
    forward(lab, checks, shape, 0)?;
    checks.truncate(checks.len() - 4);
    let noted = warned.is_empty() && gemm::notes(lab.gpu()).len() == 4;
    gemm::import(lab.gpu(), &chosen);
    checks.push(holds("gemm algorithms that nobody proposes are not used", noted));
    Ok(())
}
