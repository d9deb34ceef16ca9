//! Mean pooling on the CPU: one image per piece.

use super::MeanPool;
use crate::cpu::pool;
use crate::cpu::simd::simd_dispatch;

fn check(shape: MeanPool, x: usize, y: usize) {
    let MeanPool { batch, tokens, dim } = shape;
    assert!(tokens > 0, "mean_pool: mean of no tokens");
    assert!(x == batch * tokens * dim && y == batch * dim, "mean_pool: tokens and pooled");
}

/// Writes the mean of each image's tokens.
pub fn forward(shape: MeanPool, x: &[f32], y: &mut [f32]) {
    check(shape, x.len(), y.len());
    let image = shape.tokens * shape.dim;
    pool::for_each_chunk(y, shape.dim, |i, y| mean_rows(&x[i * image..][..image], y));
}

/// `dx = dy / tokens`, written or accumulated.
pub fn backward(shape: MeanPool, dy: &[f32], dx: &mut [f32], accumulate: bool) {
    check(shape, dx.len(), dy.len());
    let MeanPool { tokens, dim, .. } = shape;
    pool::for_each_chunk(dx, tokens * dim, |i, dx| {
        spread(&dy[i * dim..][..dim], 1.0 / tokens as f32, dx, accumulate);
    });
}

#[inline(always)]
fn mean_body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
    let (dim, tokens) = (y.len(), x.len() / y.len());
    y.fill(0.0);
    for x in x.chunks_exact(dim) {
        y.iter_mut().zip(x).for_each(|(sum, v)| *sum += v);
    }
    y.iter_mut().for_each(|v| *v /= tokens as f32);
}
simd_dispatch! { fn mean_rows(x: &[f32], y: &mut [f32]) = mean_body; }

#[inline(always)]
fn spread_body<const FMA: bool>(dy: &[f32], scale: f32, dx: &mut [f32], accumulate: bool) {
    for dx in dx.chunks_exact_mut(dy.len()) {
        for (dx, dy) in dx.iter_mut().zip(dy) {
            *dx = if accumulate { *dx + dy * scale } else { dy * scale };
        }
    }
}
simd_dispatch! { fn spread(dy: &[f32], scale: f32, dx: &mut [f32], accumulate: bool) = spread_body; }
