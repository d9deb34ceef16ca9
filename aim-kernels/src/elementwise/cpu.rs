//! Element-wise sums on the CPU.

use crate::cpu::pool;
use crate::cpu::simd::{fma, simd_dispatch};

/// Elements per piece: 32 KiB of each operand.
const CHUNK: usize = 8192;

/// `y = a + b`.
pub fn add(a: &[f32], b: &[f32], y: &mut [f32]) {
    assert!(a.len() == y.len() && b.len() == y.len(), "add: a, b and y");
    pool::for_each_chunk(y, CHUNK, |i, y| {
        add_chunk(&a[i * CHUNK..][..y.len()], &b[i * CHUNK..][..y.len()], y);
    });
}

/// `y += x`.
pub fn accumulate(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "accumulate: x and y");
    pool::for_each_chunk(y, CHUNK, |i, y| accumulate_chunk(&x[i * CHUNK..][..y.len()], y));
}

/// `y = (x_1 + ... + x_n) / n`, added in the order given.
///
/// # Panics
/// If there are no inputs.
pub fn average(inputs: &[&[f32]], y: &mut [f32]) {
    assert!(!inputs.is_empty(), "average of nothing");
    assert!(inputs.iter().all(|x| x.len() == y.len()), "average: inputs and y");
    pool::for_each_chunk(y, CHUNK, |i, y| average_chunk(inputs, i * CHUNK, y));
}

/// `y = a x`, or `y += a x` when `accumulate`.
pub fn scale(x: &[f32], a: f32, y: &mut [f32], accumulate: bool) {
    assert_eq!(x.len(), y.len(), "scale: x and y");
    pool::for_each_chunk(y, CHUNK, |i, y| {
        scale_chunk(&x[i * CHUNK..][..y.len()], a, y, accumulate);
    });
}

#[inline(always)]
fn add_body<const FMA: bool>(a: &[f32], b: &[f32], y: &mut [f32]) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = a + b;
    }
}
simd_dispatch! { fn add_chunk(a: &[f32], b: &[f32], y: &mut [f32]) = add_body; }

#[inline(always)]
fn accumulate_body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(sum, v)| *sum += v);
}
simd_dispatch! { fn accumulate_chunk(x: &[f32], y: &mut [f32]) = accumulate_body; }

#[inline(always)]
fn average_body<const FMA: bool>(inputs: &[&[f32]], start: usize, y: &mut [f32]) {
    y.copy_from_slice(&inputs[0][start..][..y.len()]);
    for x in &inputs[1..] {
        y.iter_mut().zip(&x[start..]).for_each(|(sum, v)| *sum += v);
    }
    y.iter_mut().for_each(|v| *v /= inputs.len() as f32);
}
simd_dispatch! { fn average_chunk(inputs: &[&[f32]], start: usize, y: &mut [f32]) = average_body; }

#[inline(always)]
fn scale_body<const FMA: bool>(x: &[f32], a: f32, y: &mut [f32], accumulate: bool) {
    if accumulate {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = fma::<FMA>(a, *x, *y));
    } else {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = a * x);
    }
}
simd_dispatch! { fn scale_chunk(x: &[f32], a: f32, y: &mut [f32], accumulate: bool) = scale_body; }
