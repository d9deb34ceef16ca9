//! A linear layer's bias and its gradient against f64.

use half::bf16;

use super::lab::{Check, Lab, compare};
use super::masters::Masters;
use super::shifted::{Shifted, behind, tail};
use crate::cuda::CudaError;
use crate::linear::bias;

/// Largest relative error of a bf16 result: its one rounding is 1.7e-3 on average and 3.9e-3 at most.
const ROUNDED: f64 = 4e-3;

#[derive(Clone, Copy)]
struct Case {
    rows: usize,
    outputs: usize,
    /// Values from a row of dy to the next.
    stride: usize,
    /// Values in front of y and dy.
    shift: usize,
}

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let case = |rows, outputs, stride, shift| Case { rows, outputs, stride, shift };
    for case in [
        case(1, 1, 1, 0),
        case(33, 7, 8, 0),
        case(37, 588, 592, 0),
        case(131, 257, 257, 0),
        case(70, 264, 264, 0),
        case(70, 264, 264, 1),
        case(300, 1536, 1536, 0),
    ] {
        add(lab, checks, case)?;
        backward(lab, checks, case)?;
    }
    one_order(lab, checks)
}

/// The wide path and the one for unaligned addresses sum in the same order.
fn one_order(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let (rows, outputs) = (70, 264);
    let values = lab.normal(rows * outputs, 1.0);
    let scratch = lab.poisoned(bias::backward_scratch(rows, outputs))?;
    let mut sums = Vec::new();
    for shift in [0, 1] {
        let dy = Shifted::new(lab, shift, &values)?;
        let dbias = lab.upload(&vec![0f32; outputs])?;
        let (dy, to) = (dy.slice(), dbias.slice());
        bias::backward_f32(lab.gpu(), rows, outputs, dy, outputs, to, scratch.slice())?;
        sums.push(dbias.read()?);
    }
    let error = sums[0].iter().zip(&sums[1]).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    let name = "bias backward: values that differ between the paths".into();
    checks.push(Check { name, error: error as f64, tolerance: 0.0, bits: 0 });
    Ok(())
}

impl Case {
    fn name(self, what: &str) -> String {
        let Self { rows, outputs, stride, shift } = self;
        format!("bias {what} {rows} x {outputs} (stride {stride}, from {shift})")
    }
}

fn add(lab: &mut Lab, checks: &mut Vec<Check>, case: Case) -> Result<(), CudaError> {
    let Case { rows, outputs, shift, .. } = case;
    let bias = lab.normal(outputs, 1.0);
    let masters = Masters::new(lab, &bias)?;
    let halves = masters.slice(0);
    let sum = |y: Vec<f64>| -> Vec<f64> {
        let bias = bias.iter().cycle();
        behind(shift, &y.iter().zip(bias).map(|(y, &b)| y + f64::from(b)).collect::<Vec<_>>())
    };
    let values = lab.normal_bf16(rows * outputs, 1.0);
    let y = lab.upload(&[&vec![bf16::ONE; shift][..], &values].concat())?;
    bias::add_bf16(lab.gpu(), rows, outputs, halves, tail(&y, shift))?;
    let expected = sum(values.iter().map(|y| f64::from(y.to_f32())).collect());
    checks.push(compare(case.name("add bf16"), &y, &expected, ROUNDED)?);

    let values = lab.normal(rows * outputs, 1.0);
    let y = Shifted::new(lab, shift, &values)?;
    bias::add_f32(lab.gpu(), rows, outputs, halves, y.slice())?;
    let expected = sum(values.iter().map(|&y| f64::from(y)).collect());
    checks.push(compare(case.name("add f32"), &y.buffer, &expected, 1e-7)?);
    Ok(())
}

fn backward(lab: &mut Lab, checks: &mut Vec<Check>, case: Case) -> Result<(), CudaError> {
    let Case { rows, outputs, stride, shift } = case;
    // What lies between the rows is NaN, behind the last row is nothing.
    let mut values = lab.normal_bf16((rows - 1) * stride + outputs, 1.0);
    for row in values.chunks_mut(stride) {
        row.iter_mut().skip(outputs).for_each(|gap| *gap = bf16::NAN);
    }
    let before = lab.normal(outputs, 1.0);
    let expected: Vec<f64> = (0..outputs)
        .map(|c| {
            let column = values.iter().skip(c).step_by(stride);
            column.map(|v| f64::from(v.to_f32())).sum::<f64>() + f64::from(before[c])
        })
        .collect();
    let scratch = lab.poisoned(bias::backward_scratch(rows, outputs))?;
    let dy = lab.upload(&[&vec![bf16::ONE; shift][..], &values].concat())?;
    let dbias = lab.upload(&before)?;
    let (gpu, scratch) = (lab.gpu(), scratch.slice());
    bias::backward_bf16(gpu, rows, outputs, tail(&dy, shift), stride, dbias.slice(), scratch)?;
    checks.push(compare(case.name("backward bf16"), &dbias, &expected, 1e-6)?);

    let values: Vec<f32> = values.iter().map(|v| v.to_f32()).collect();
    let dy = Shifted::new(lab, shift, &values)?;
    let dbias = lab.upload(&before)?;
    bias::backward_f32(gpu, rows, outputs, dy.slice(), stride, dbias.slice(), scratch)?;
    checks.push(compare(case.name("backward f32"), &dbias, &expected, 1e-6)?);
    Ok(())
}
