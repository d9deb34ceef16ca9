//! GELU on the CPU.

use crate::cpu::pool;
use crate::cpu::simd::{fma, normal_cdf_pdf, simd_dispatch};

/// Elements per piece: 32 KiB of each operand.
const CHUNK: usize = 8192;

/// `y = x Phi(x)`, element by element.
pub fn forward(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "gelu: x and y");
    pool::for_each_chunk(y, CHUNK, |i, y| forward_chunk(&x[i * CHUNK..][..y.len()], y));
}

/// `dx = dy (Phi(x) + x phi(x))`, or `dx += ...` when `accumulate`.
pub fn backward(x: &[f32], dy: &[f32], dx: &mut [f32], accumulate: bool) {
    assert!(x.len() == dx.len() && dy.len() == dx.len(), "gelu: x, dy and dx");
    pool::for_each_chunk(dx, CHUNK, |i, dx| {
        let range = i * CHUNK..i * CHUNK + dx.len();
        backward_chunk(&x[range.clone()], &dy[range], dx, accumulate);
    });
}

#[inline(always)]
fn forward_body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x * normal_cdf_pdf::<FMA>(x).0;
    }
}
simd_dispatch! { fn forward_chunk(x: &[f32], y: &mut [f32]) = forward_body; }

#[inline(always)]
fn backward_body<const FMA: bool>(x: &[f32], dy: &[f32], dx: &mut [f32], accumulate: bool) {
    if accumulate {
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            let (cdf, pdf) = normal_cdf_pdf::<FMA>(x);
            *dx = fma::<FMA>(dy, fma::<FMA>(x, pdf, cdf), *dx);
        }
    } else {
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            let (cdf, pdf) = normal_cdf_pdf::<FMA>(x);
            *dx = dy * fma::<FMA>(x, pdf, cdf);
        }
    }
}
simd_dispatch! { fn backward_chunk(x: &[f32], dy: &[f32], dx: &mut [f32], accumulate: bool) = backward_body; }
