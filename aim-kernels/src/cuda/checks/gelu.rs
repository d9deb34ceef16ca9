//! GELU.

use half::bf16;

use super::lab::{Buffer, Check, Lab, compare};
use crate::cuda::CudaError;
use crate::gelu::cuda;

/// Largest relative error of a value: one rounding to bf16.
const ROUNDED: f64 = 4e-3;
/// What is smaller is zero to a bf16, or nearly.
const SMALL: f64 = 1e-37;

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    for (len, skip) in [(1, 0), (37, 0), (4096, 0), (4096, 1), (4807, 0), (0, 0)] {
        values(lab, checks, len, skip)?;
    }
    tails(lab, checks)?;
    tanh_form(lab, checks)
}

/// `(Phi(x), phi(x))`, the left tail to full relative precision.
fn normal(x: f64) -> (f64, f64) {
    let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    let a = x.abs();
    let tail = if a < 4.0 {
        // Phi(a) = 1/2 + phi(a) (a + a^3 / 3 + a^5 / (3 5) + ...)
        let (mut term, mut sum) = (a, a);
        for k in 1..100 {
            term *= a * a / f64::from(2 * k + 1);
            sum += term;
        }
        0.5 - density * sum
    } else {
        // phi(a) / (a + 1 / (a + 2 / (a + 3 / ...)))
        density / (1..200).rev().fold(a, |rest, k| a + f64::from(k) / rest)
    };
    (if x < 0.0 { tail } else { 1.0 - tail }, density)
}

fn value(x: bf16) -> f64 {
    x.to_f64() * normal(x.to_f64()).0
}

fn slope(x: bf16) -> f64 {
    let (cdf, density) = normal(x.to_f64());
    cdf + x.to_f64() * density
}

/// With `skip` values before them the others are not at 16 bytes.
fn values(
    lab: &mut Lab,
    checks: &mut Vec<Check>,
    len: usize,
    skip: usize,
) -> Result<(), CudaError> {
    let range = skip..skip + len;
    let (x, dy) = (lab.normal_bf16(skip + len, 2.0), lab.normal_bf16(skip + len, 1.0));
    let (device_x, device_dy) = (lab.upload(&x)?, lab.upload(&dy)?);
    let (sx, sdy) = (device_x.slice().range(range.clone()), device_dy.slice().range(range.clone()));
    let name = |what: &str| format!("gelu {what} {len} from {skip}");

    let y = lab.poisoned(len)?;
    cuda::forward(lab.gpu(), sx, y.slice())?;
    let expected: Vec<_> = x[range.clone()].iter().map(|&x| value(x)).collect();
    checks.push(compare(name("forward"), &y, &expected, ROUNDED)?);

    let pairs = x[range.clone()].iter().zip(&dy[range]);
    let expected: Vec<_> = pairs.map(|(&x, dy)| dy.to_f64() * slope(x)).collect();
    let dx = lab.poisoned(len)?;
    cuda::backward(lab.gpu(), sx, sdy, dx.slice(), false)?;
    checks.push(compare(name("backward"), &dx, &expected, ROUNDED)?);

    let before = lab.normal_bf16(len, 1.0);
    let dx = lab.upload(&before)?;
    cuda::backward(lab.gpu(), sx, sdy, dx.slice(), true)?;
    let expected: Vec<_> = expected.iter().zip(&before).map(|(g, b)| g + b.to_f64()).collect();
    checks.push(compare(name("backward, added"), &dx, &expected, ROUNDED)?);
    Ok(())
}

/// Each value by itself: the largest relative error.
fn each(name: &str, found: &Buffer<bf16>, expected: &[f64]) -> Result<Check, CudaError> {
    let mut check = compare(name, found, expected, ROUNDED)?;
    let errors = found.read()?.into_iter().zip(expected).map(|(found, expected)| {
        let small = found.to_f64().abs() < SMALL && expected.abs() < SMALL;
        if small { 0.0 } else { (found.to_f64() / expected - 1.0).abs() }
    });
    // As `f64::max`, but a NaN stays.
    check.error = errors.fold(0.0, |most, error| if error <= most { most } else { error });
    Ok(check)
}

/// Far from zero, where an L2 norm does not look.
fn tails(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let ends = [-1e38, -3e4, 3e4, 1e38, 0.0].map(bf16::from_f32);
    let far = [-64.0, -32.0].map(bf16::from_f32);
    let steps = (-1000..=1000).map(|step| bf16::from_f32(step as f32 * 0.01));
    let x: Vec<_> = ends.into_iter().chain(far).chain(steps).collect();
    let device_x = lab.upload(&x)?;
    let y = lab.poisoned(x.len())?;
    cuda::forward(lab.gpu(), device_x.slice(), y.slice())?;
    let expected: Vec<_> = x.iter().map(|&x| value(x)).collect();
    checks.push(each("gelu forward, each of -10 ... 10", &y, &expected)?);

    let dy = lab.upload(&vec![bf16::ONE; x.len()])?;
    let dx = lab.poisoned::<bf16>(x.len())?;
    cuda::backward(lab.gpu(), device_x.slice(), dy.slice(), dx.slice(), false)?;
    let expected: Vec<_> = x.iter().map(|&x| slope(x)).collect();
    // The slope is zero near -0.75 and has no relative error to speak of there.
    checks.push(compare("gelu backward, -10 ... 10", &dx, &expected, ROUNDED)?);
    Ok(())
}

/// The tanh form from -10 to 10 and far outside.
fn tanh_form(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let ends = [-1e38, -64.0, 64.0, 1e38].map(bf16::from_f32);
    let steps = (-1000..=1000).map(|step| bf16::from_f32(step as f32 * 0.01));
    let x: Vec<_> = ends.into_iter().chain(steps).collect();
    let (device_x, y) = (lab.upload(&x)?, lab.poisoned(x.len())?);
    cuda::forward_tanh(lab.gpu(), device_x.slice(), y.slice())?;
    let gelu = |x: &bf16| super::linear::gelu(x.to_f64().clamp(-100.0, 1e38));
    let expected: Vec<_> = x.iter().map(|x| gelu(x).0).collect();
    // Without the largest, beside which nothing else would count.
    checks.push(share("gelu tanh forward", &y, &expected)?);

    let dy = lab.normal_bf16(x.len(), 1.0);
    let (device_dy, dx) = (lab.upload(&dy)?, lab.poisoned::<bf16>(x.len())?);
    cuda::backward_tanh(lab.gpu(), device_x.slice(), device_dy.slice(), dx.slice())?;
    let inside = |x: &bf16| bf16::from_f64(x.to_f64().clamp(-100.0, 100.0));
    let expected: Vec<_> =
        x.iter().zip(&dy).map(|(x, dy)| dy.to_f64() * gelu(&inside(x)).1).collect();
    checks.push(compare("gelu tanh backward", &dx, &expected, ROUNDED)?);
    Ok(())
}

/// The share of values that are further off than rounding and 1e-5 explain.
fn share(name: &str, found: &Buffer<bf16>, expected: &[f64]) -> Result<Check, CudaError> {
    let mut check = compare(name, found, expected, 0.0)?;
    let values = found.read()?;
    let off = values.iter().zip(expected).filter(|(found, expected)| {
        let error = (found.to_f64() - **expected).abs();
        error.is_nan() || error > ROUNDED * expected.abs() + 1e-5
    });
    check.error = off.count() as f64 / values.len() as f64;
    Ok(check)
}
