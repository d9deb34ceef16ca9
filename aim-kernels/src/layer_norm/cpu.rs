//! Layer norm on the CPU.

use super::LayerNorm;
use crate::cpu::pool;
use crate::cpu::simd::{fma, simd_dispatch, sum_by, sum_by2, sum_by3};

/// Rows per piece of the forward pass.
const ROWS: usize = 32;
/// Most row groups of the backward pass; each leaves a partial sum of the weight's and the bias's gradient.
const GROUPS: usize = 32;

/// Normalises each row; writes y, mean and rstd.
pub fn forward(
    shape: LayerNorm,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let LayerNorm { rows, dim, eps } = shape;
    assert!(x.len() == rows * dim && y.len() == x.len(), "layer_norm: x and y");
    assert!(weight.len() == dim && bias.len() == dim, "layer_norm: weight and bias");
    assert!(mean.len() == rows && rstd.len() == rows, "layer_norm: mean and rstd");
    let (mean, rstd) = (pool::Disjoint::new(mean), pool::Disjoint::new(rstd));
    pool::for_each_chunk(y, ROWS * dim, |i, y| {
        let count = y.len() / dim;
        // SAFETY: piece i owns these rows.
        let (mean, rstd) = unsafe { (mean.slice(i * ROWS, count), rstd.slice(i * ROWS, count)) };
        forward_rows(&x[i * ROWS * dim..][..y.len()], weight, bias, eps, y, mean, rstd);
    });
}

#[inline(always)]
fn forward_body<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let dim = weight.len();
    let rows = x.chunks_exact(dim).zip(y.chunks_exact_mut(dim));
    for ((x, y), (mean, rstd)) in rows.zip(mean.iter_mut().zip(rstd)) {
        let m = sum_by(x, |v| v) / dim as f32;
        // Two passes: the variance of large values with a small spread keeps its digits.
        let variance = sum_by(x, |v| (v - m) * (v - m)) / dim as f32;
        let r = 1.0 / (variance + eps).sqrt();
        for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = fma::<FMA>((x - m) * r, w, b);
        }
        (*mean, *rstd) = (m, r);
    }
}
simd_dispatch! {
    fn forward_rows(
        x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32], mean: &mut [f32], rstd: &mut [f32],
    ) = forward_body;
}

/// Rows per group of the backward pass.
fn group(rows: usize) -> usize {
    rows.div_ceil(GROUPS).max(16)
}

/// f32 values of scratch that [`backward`] needs: the groups' partial sums.
pub fn backward_scratch(rows: usize, dim: usize) -> usize {
    rows.div_ceil(group(rows)) * 2 * dim
}

/// Which gradients the backward pass leaves, and how.
pub struct Gradients<'a> {
    /// Gradient of x and whether it is added to what is there.
    pub dx: Option<(&'a mut [f32], bool)>,
    /// Gradients of weight and bias, accumulated.
    pub parameters: Option<(&'a mut [f32], &'a mut [f32])>,
}

/// Gradients of x, weight and bias from dy. `scratch` holds [`backward_scratch`] values of any content.
pub fn backward(
    shape: LayerNorm,
    x: &[f32],
    weight: &[f32],
    mean: &[f32],
    rstd: &[f32],
    dy: &[f32],
    gradients: Gradients<'_>,
    scratch: &mut [f32],
) {
    let LayerNorm { rows, dim, .. } = shape;
    assert!(x.len() == rows * dim && dy.len() == x.len(), "layer_norm: x and dy");
    let group = group(rows);
    let groups = rows.div_ceil(group);
    let scratch = &mut scratch[..groups * 2 * dim];
    let (dx, accumulate) = match gradients.dx {
        Some((dx, accumulate)) => {
            assert_eq!(dx.len(), x.len(), "layer_norm: dx");
            (Some(pool::Disjoint::new(dx)), accumulate)
        }
        None => (None, false),
    };
    pool::for_each_chunk(scratch, 2 * dim, |i, partial| {
        let first = i * group;
        let count = group.min(rows - first);
        let span = first * dim..(first + count) * dim;
        // SAFETY: piece i owns these rows of dx.
        let dx = dx.as_ref().map(|dx| unsafe { dx.slice(span.start, span.len()) });
        let (dweight, dbias) = partial.split_at_mut(dim);
        let stats = (&mean[first..first + count], &rstd[first..first + count]);
        backward_rows(&x[span.clone()], weight, stats, &dy[span], dx, accumulate, dweight, dbias);
    });
    if let Some((dweight, dbias)) = gradients.parameters {
        for partial in scratch.chunks_exact(2 * dim) {
            let (w, b) = partial.split_at(dim);
            dweight.iter_mut().zip(w).for_each(|(sum, v)| *sum += v);
            dbias.iter_mut().zip(b).for_each(|(sum, v)| *sum += v);
        }
    }
}

#[inline(always)]
fn backward_body<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    (mean, rstd): (&[f32], &[f32]),
    dy: &[f32],
    dx: Option<&mut [f32]>,
    accumulate: bool,
    dweight: &mut [f32],
    dbias: &mut [f32],
) {
    let dim = weight.len();
    dweight.fill(0.0);
    dbias.fill(0.0);
    for (((x, dy), &m), &r) in x.chunks_exact(dim).zip(dy.chunks_exact(dim)).zip(mean).zip(rstd) {
        for (((dw, db), &x), &dy) in dweight.iter_mut().zip(&mut *dbias).zip(x).zip(dy) {
            *dw = fma::<FMA>(dy, (x - m) * r, *dw);
            *db += dy;
        }
    }
    let Some(dx) = dx else { return };
    let rows = x.chunks_exact(dim).zip(dy.chunks_exact(dim)).zip(dx.chunks_exact_mut(dim));
    for (((x, dy), dx), (&m, &r)) in rows.zip(mean.iter().zip(rstd)) {
        let mean_g = sum_by2(dy, weight, |dy, w| dy * w) / dim as f32;
        let mean_gx = sum_by3(x, dy, weight, |x, dy, w| dy * w * ((x - m) * r)) / dim as f32;
        for (((dx, &x), &dy), &w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
            let g = r * (dy * w - mean_g - (x - m) * r * mean_gx);
            *dx = if accumulate { *dx + g } else { g };
        }
    }
}
simd_dispatch! {
    fn backward_rows(
        x: &[f32], weight: &[f32], stats: (&[f32], &[f32]), dy: &[f32], dx: Option<&mut [f32]>, accumulate: bool,
        dweight: &mut [f32], dbias: &mut [f32],
    ) = backward_body;
}
