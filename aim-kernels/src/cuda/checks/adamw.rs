//! AdamW against its formula in f64 and against the CPU kernel.

use super::lab::{Check, Lab, compare};
use super::masters::{Masters, nearest};
use super::shifted::tail;
use crate::adamw::{AdamW, cpu, cuda};
use crate::cuda::CudaError;

/// A range of parameters and how its step is made.
struct Case {
    len: usize,
    /// Where the range starts in the arrays.
    start: usize,
    /// How much further it starts in the gradients.
    shift: usize,
    lr: f64,
    weight_decay: f64,
}

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    for case in [
        Case { len: 1, start: 0, shift: 0, lr: 1e-3, weight_decay: 0.1 },
        Case { len: 5003, start: 0, shift: 0, lr: 1e-3, weight_decay: 0.05 },
        Case { len: 2048, start: 16, shift: 0, lr: 1e-3, weight_decay: 0.0 },
        Case { len: 3001, start: 3, shift: 0, lr: 1e-2, weight_decay: 0.05 },
        Case { len: 701, start: 16, shift: 1, lr: 1e-3, weight_decay: 0.05 },
        // Parameters of size 1 move by 3e-5; a bf16 master, 4e-3 from its neighbours, would stay.
        Case { len: 1500, start: 32, shift: 0, lr: 1e-5, weight_decay: 0.0 },
    ] {
        three_steps(lab, checks, &case)?;
    }
    not_a_number(lab, checks)
}

fn settings(case: &Case, step: u64) -> AdamW {
    AdamW {
        lr: case.lr,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: case.weight_decay,
        step,
        grad_scale: 0.3,
    }
}

fn three_steps(lab: &mut Lab, checks: &mut Vec<Check>, case: &Case) -> Result<(), CudaError> {
    let &Case { len, start, shift, lr, .. } = case;
    let first = lab.normal(start + len, 1.0);
    let zeros = vec![0f32; start + len];
    let masters = Masters::new(lab, &first)?;
    let (m, v) = (lab.upload(&zeros)?, lab.upload(&zeros)?);
    let (mut on_cpu, mut cpu_m, mut cpu_v) = (first.clone(), zeros.clone(), zeros);
    let mut exact: Vec<[f64; 3]> = first.iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
    for step in 1..=3 {
        let values = lab.normal(start + shift + len, 1e-3);
        let grads = lab.upload(&values)?;
        let settings = settings(case, step);
        let (m, v) = (tail(&m, start), tail(&v, start));
        let params = masters.slice(start);
        cuda::step(lab.gpu(), settings, params, tail(&grads, start + shift), m, v)?;
        let grads = &values[start + shift..];
        cpu::step(settings, &mut on_cpu[start..], grads, &mut cpu_m[start..], &mut cpu_v[start..]);
        exact[start..].iter_mut().zip(grads).for_each(|(state, &g)| exact_step(settings, state, g));
    }
    let found = masters.read()?;
    let name = format!("adamw {len} values from {start} + {shift}, lr {lr}");
    // The way gone and not the place, which would hide a wrong step behind the parameter's size.
    let way = |i: usize, to: f64| to - f64::from(first[i]);
    let moved: Vec<f32> = (0..).zip(&found).map(|(i, &p)| way(i, f64::from(p)) as f32).collect();
    let exact_way: Vec<f64> = (0..).zip(&exact).map(|(i, state)| way(i, state[0])).collect();
    // Roundings of parameters of size 1 against steps of size lr; a parameter that stays is off by 1.
    checks.push(compare(
        format!("{name}: way"),
        &lab.upload(&moved)?,
        &exact_way,
        few(len) * 1e-6 / lr,
    )?);
    for (i, name, moment) in [(1, format!("{name}: m"), &m), (2, format!("{name}: v"), &v)] {
        let exact: Vec<f64> = exact.iter().map(|state| state[i]).collect();
        checks.push(compare(name, moment, &exact, few(len) * 1e-6)?);
    }
    // Relative to a step where a parameter is smaller than that.
    let apart = |(a, b): (&f32, &f32)| f64::from((a - b).abs()) / f64::from(b.abs()).max(lr);
    let error = found.iter().zip(&on_cpu).map(apart).fold(0.0, f64::max);
    let error = if found.iter().all(|p| p.is_finite()) { error } else { f64::NAN };
    checks.push(check(format!("{name}: largest difference from the CPU"), error, 1e-6));
    let wrong = found.iter().zip(masters.hi.read()?).filter(|&(&p, hi)| nearest(p) != hi).count();
    checks.push(check(format!("{name}: upper halves not nearest"), wrong as f64, 0.0));
    Ok(())
}

fn check(name: String, error: f64, tolerance: f64) -> Check {
    Check { name, error, tolerance, bits: error.to_bits() }
}

/// One step of a parameter, its m and its v.
fn exact_step(settings: AdamW, [p, m, v]: &mut [f64; 3], grad: f32) {
    let AdamW { lr, beta1, beta2, eps, weight_decay, step, grad_scale } = settings;
    let g = f64::from(grad_scale) * f64::from(grad);
    *m = beta1 * *m + (1.0 - beta1) * g;
    *v = beta2 * *v + (1.0 - beta2) * g * g;
    let m_hat = *m / (1.0 - beta1.powf(step as f64));
    let v_hat = *v / (1.0 - beta2.powf(step as f64));
    *p = *p * (1.0 - lr * weight_decay) - lr * m_hat / (v_hat.sqrt() + eps);
}

/// A NaN among the gradients shows in the compute copy, too, and nowhere else.
fn not_a_number(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    let case = Case { len: 41, start: 0, shift: 0, lr: 1e-3, weight_decay: 0.0 };
    let first = lab.normal(case.len, 1.0);
    let masters = Masters::new(lab, &first)?;
    let mut grads = lab.normal(case.len, 1.0);
    for i in [5, 40] {
        grads[i] = f32::NAN;
    }
    let (grads, m, v) = (lab.upload(&grads)?, lab.upload(&[0f32; 41])?, lab.upload(&[0f32; 41])?);
    let params = masters.slice(0);
    cuda::step(lab.gpu(), settings(&case, 1), params, grads.slice(), m.slice(), v.slice())?;
    let halves = masters.hi.read()?.into_iter().zip(masters.read()?).enumerate();
    let wrong = halves.filter(|&(i, (hi, p))| {
        let expected = i == 5 || i == 40;
        hi.is_nan() != expected || p.is_nan() != expected
    });
    checks.push(check("adamw: NaN where it is not expected".into(), wrong.count() as f64, 0.0));
    Ok(())
}

/// The error of a handful of values is that of one rounding, which may be large beside a value that came out small; many
/// values average it.
fn few(len: usize) -> f64 {
    if len < 64 { 10.0 } else { 1.0 }
}
