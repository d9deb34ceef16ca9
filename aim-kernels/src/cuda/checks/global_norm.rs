//! The sum of squares against f64.

use super::lab::{Check, Lab};
use super::shifted::tail;
use crate::cuda::CudaError;
use crate::global_norm::cuda::{scratch_len, sum_of_squares};

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    for (len, shift) in [(1, 0), (3, 0), (1025, 0), (4096, 1), (70_001, 0)] {
        let values = lab.normal(shift + len, 1e-3);
        let expected: f64 = values[shift..].iter().map(|&v| f64::from(v).powi(2)).sum();
        let sum = sum(lab, &values, shift)?;
        // Squares and sums are f64.
        let error = ((sum - expected) / expected).abs();
        let name = format!("global_norm {len} values from {shift}");
        checks.push(Check { name, error, tolerance: 1e-12, bits: sum.to_bits() });
    }
    let mut check = |name: &str, sum: f64, right: bool| {
        let error = if right { 0.0 } else { f64::INFINITY };
        let name = format!("global_norm of {name}");
        checks.push(Check { name, error, tolerance: 0.0, bits: sum.to_bits() });
    };
    let nothing = sum(lab, &[], 0)?;
    check("nothing", nothing, nothing == 0.0);
    let huge = sum(lab, &[f32::MAX; 2000], 0)?;
    let expected = f64::from(f32::MAX).powi(2) * 2000.0;
    check("the largest numbers", huge, (huge / expected - 1.0).abs() < 1e-12);
    let tiny = sum(lab, &[1e-40; 2000], 0)?;
    check("denormals", tiny, (tiny / (f64::from(1e-40f32).powi(2) * 2000.0) - 1.0).abs() < 1e-12);
    for (value, place) in [(f32::NAN, 0), (f32::NAN, 2002), (f32::NEG_INFINITY, 1000)] {
        let mut values = [1.0; 2003];
        values[place] = value;
        let sum = sum(lab, &values, 0)?;
        // The bits of a NaN are the machine's.
        check(
            &format!("{value} at {place}"),
            if sum.is_nan() { 0.0 } else { sum },
            !sum.is_finite(),
        );
    }
    Ok(())
}

fn sum(lab: &Lab, values: &[f32], shift: usize) -> Result<f64, CudaError> {
    let x = lab.upload(values)?;
    let scratch = lab.poisoned(scratch_len(values.len() - shift))?;
    sum_of_squares(lab.gpu(), tail(&x, shift), scratch.slice())
}
