//! AdamW on the CPU: one pass over the four slices, bound by memory.

use super::{AdamW, Constants};
use crate::cpu::pool::{self, Disjoint};
use crate::cpu::simd::{fma, simd_dispatch};

/// Elements per piece: 64 KiB of each slice.
const CHUNK: usize = 16_384;

/// Updates params, m and v from grads.
///
/// # Panics
/// If the step is 0: steps count from 1.
pub fn step(settings: AdamW, params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32]) {
    let len = params.len();
    assert!(grads.len() == len && m.len() == len && v.len() == len, "adamw: grads, m and v");
    let constants = settings.constants();
    let v = Disjoint::new(v);
    pool::for_each_chunk2(params, CHUNK, m, CHUNK, |i, params, m| {
        // SAFETY: chunk i of v belongs to this piece alone.
        let v = unsafe { v.slice(i * CHUNK, params.len()) };
        step_chunk(constants, params, &grads[i * CHUNK..][..params.len()], m, v);
    });
}

#[inline(always)]
fn step_body<const FMA: bool>(
    c: Constants,
    params: &mut [f32],
    grads: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    for ((p, g), (m, v)) in params.iter_mut().zip(grads).zip(m.iter_mut().zip(v)) {
        let g = g * c.grad_scale;
        *m = fma::<FMA>(c.one_minus_beta1, g - *m, *m);
        *v = fma::<FMA>(c.beta2, *v, c.one_minus_beta2 * g * g);
        let denominator = fma::<FMA>(v.sqrt(), c.root_correction, c.eps);
        *p = fma::<FMA>(-c.step_size, *m / denominator, *p * c.decay);
    }
}
simd_dispatch! {
    fn step_chunk(
        constants: Constants, params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32],
    ) = step_body;
}
