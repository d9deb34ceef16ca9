//! Attention pooling on the CPU: one image per piece, keys and values read once from first to last. There are few
//! queries (one, usually), so the products are dot products and the work is reading.

use super::AttentionPool;
use crate::cpu::pool::{self, Disjoint};
use crate::cpu::simd::{exp, fma, max, simd_dispatch, sum_by, sum_by2};

/// Most groups of images in the backward pass; each leaves a partial sum of the queries' gradient.
const GROUPS: usize = 32;

fn check(shape: AttentionPool, q: &[f32], k: &[f32], v: &[f32], p: usize) {
    let AttentionPool { batch, tokens, queries, .. } = shape;
    assert_eq!(q.len(), queries * shape.dim(), "attention_pool: q");
    let len = batch * tokens * shape.dim();
    assert!(k.len() == len && v.len() == len, "attention_pool: k and v");
    assert_eq!(p, batch * shape.scores(), "attention_pool: p");
}

/// Writes out and p.
pub fn forward(
    shape: AttentionPool,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    p: &mut [f32],
) {
    check(shape, q, k, v, p.len());
    assert_eq!(out.len(), shape.batch * shape.dim(), "attention_pool: out");
    let image = shape.tokens * shape.dim();
    pool::for_each_chunk2(out, shape.dim(), p, shape.scores(), |i, out, p| {
        forward_image(shape, q, &k[i * image..][..image], &v[i * image..][..image], out, p);
    });
}

/// Images per group of the backward pass.
fn group(shape: AttentionPool) -> usize {
    shape.batch.div_ceil(GROUPS).max(1)
}

/// Scratch of one group: the queries' gradient, `dout V^T` of an image, and its dS.
fn stretch(shape: AttentionPool) -> usize {
    shape.queries * shape.dim() + shape.heads * shape.tokens + shape.scores()
}

/// f32 values of scratch that [`backward`] needs.
pub fn backward_scratch(shape: AttentionPool) -> usize {
    shape.batch.div_ceil(group(shape)) * stretch(shape)
}

/// Gradients: dq is accumulated, dk and dv are written, or accumulated when `accumulate`. `scratch` holds
/// [`backward_scratch`] values of any content.
pub fn backward(
    shape: AttentionPool,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    p: &[f32],
    dout: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    accumulate: bool,
    scratch: &mut [f32],
) {
    check(shape, q, k, v, p.len());
    assert!(
        dq.len() == q.len() && dk.len() == k.len() && dv.len() == v.len(),
        "attention_pool: dq, dk and dv"
    );
    assert_eq!(dout.len(), shape.batch * shape.dim(), "attention_pool: dout");
    let (group, stretch) = (group(shape), stretch(shape));
    let (dim, image) = (shape.dim(), shape.tokens * shape.dim());
    let (dk, dv) = (Disjoint::new(dk), Disjoint::new(dv));
    let scratch = &mut scratch[..shape.batch.div_ceil(group) * stretch];
    pool::for_each_chunk(scratch, stretch, |piece, scratch| {
        let (dq, scratch) = scratch.split_at_mut(q.len());
        dq.fill(0.0);
        for i in piece * group..shape.batch.min((piece + 1) * group) {
            let (k, v) = (&k[i * image..][..image], &v[i * image..][..image]);
            let p = &p[i * shape.scores()..][..shape.scores()];
            // SAFETY: image i belongs to this piece alone.
            let (dk, dv) = unsafe { (dk.slice(i * image, image), dv.slice(i * image, image)) };
            if !accumulate {
                dk.fill(0.0);
                dv.fill(0.0);
            }
            let dout = &dout[i * dim..][..dim];
            scores_backward(shape, v, p, dout, dv, scratch);
            let ds = &scratch[shape.heads * shape.tokens..];
            products_backward(shape, q, k, ds, dq, dk);
        }
    });
    for partial in scratch.chunks_exact(stretch) {
        dq.iter_mut().zip(partial).for_each(|(sum, v)| *sum += v);
    }
}

/// `y += a x`.
#[inline(always)]
fn add_scaled<const FMA: bool>(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = fma::<FMA>(a, *x, *y);
    }
}

/// Mean over the queries of one head's probabilities `[queries, tokens]` for one token.
#[inline(always)]
fn mean_weight(p: &[f32], tokens: usize, token: usize) -> f32 {
    let queries = p.len() / tokens;
    p[token..].iter().step_by(tokens).sum::<f32>() / queries as f32
}

#[inline(always)]
fn forward_body<const FMA: bool>(
    shape: AttentionPool,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    p: &mut [f32],
) {
    let AttentionPool { tokens, queries, head_dim, .. } = shape;
    let dim = shape.dim();
    let scale = 1.0 / (head_dim as f32).sqrt();
    for (token, k) in k.chunks_exact(dim).enumerate() {
        for (head, k) in k.chunks_exact(head_dim).enumerate() {
            for query in 0..queries {
                let q = &q[query * dim + head * head_dim..][..head_dim];
                let dot = sum_by2(q, k, |q, k| q * k);
                p[(head * queries + query) * tokens + token] = dot * scale;
            }
        }
    }
    for p in p.chunks_exact_mut(tokens) {
        let top = max(p);
        p.iter_mut().for_each(|v| *v = exp::<FMA>(*v - top));
        let inverse = 1.0 / sum_by(p, |v| v);
        p.iter_mut().for_each(|v| *v *= inverse);
    }
    out.fill(0.0);
    for (token, v) in v.chunks_exact(dim).enumerate() {
        let heads = v.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
        for ((v, out), p) in heads.zip(p.chunks_exact(queries * tokens)) {
            add_scaled::<FMA>(mean_weight(p, tokens, token), v, out);
        }
    }
}
simd_dispatch! {
    fn forward_image(
        shape: AttentionPool, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], p: &mut [f32],
    ) = forward_body;
}

/// Accumulates dv; leaves dS, with the 1 / sqrt(head_dim) of both products that follow, behind `g` in scratch.
#[inline(always)]
fn scores_backward_body<const FMA: bool>(
    shape: AttentionPool,
    v: &[f32],
    p: &[f32],
    dout: &[f32],
    dv: &mut [f32],
    scratch: &mut [f32],
) {
    let AttentionPool { tokens, queries, heads, head_dim, .. } = shape;
    let dim = shape.dim();
    let (g, ds) = scratch.split_at_mut(heads * tokens);
    for (token, (v, dv)) in v.chunks_exact(dim).zip(dv.chunks_exact_mut(dim)).enumerate() {
        let heads = v.chunks_exact(head_dim).zip(dv.chunks_exact_mut(head_dim));
        for (head, ((v, dv), dout)) in heads.zip(dout.chunks_exact(head_dim)).enumerate() {
            g[head * tokens + token] = sum_by2(dout, v, |d, v| d * v);
            let p = &p[head * queries * tokens..][..queries * tokens];
            add_scaled::<FMA>(mean_weight(p, tokens, token), dout, dv);
        }
    }
    let scale = 1.0 / ((head_dim as f32).sqrt() * queries as f32);
    let rows = p.chunks_exact(tokens).zip(ds.chunks_exact_mut(tokens));
    for (row, (p, ds)) in rows.enumerate() {
        let g = &g[row / queries * tokens..][..tokens];
        let mean = sum_by2(p, g, |p, g| p * g);
        for ((ds, p), g) in ds.iter_mut().zip(p).zip(g) {
            *ds = p * (g - mean) * scale;
        }
    }
}
simd_dispatch! {
    fn scores_backward(
        shape: AttentionPool, v: &[f32], p: &[f32], dout: &[f32], dv: &mut [f32], scratch: &mut [f32],
    ) = scores_backward_body;
}

/// Accumulates dq and dk from dS.
#[inline(always)]
fn products_backward_body<const FMA: bool>(
    shape: AttentionPool,
    q: &[f32],
    k: &[f32],
    ds: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
) {
    let AttentionPool { tokens, queries, head_dim, .. } = shape;
    let dim = shape.dim();
    for (token, (k, dk)) in k.chunks_exact(dim).zip(dk.chunks_exact_mut(dim)).enumerate() {
        let heads = k.chunks_exact(head_dim).zip(dk.chunks_exact_mut(head_dim));
        for (head, (k, dk)) in heads.enumerate() {
            for query in 0..queries {
                let ds = ds[(head * queries + query) * tokens + token];
                let at = query * dim + head * head_dim;
                add_scaled::<FMA>(ds, &q[at..at + head_dim], dk);
                add_scaled::<FMA>(ds, k, &mut dq[at..at + head_dim]);
            }
        }
    }
}
simd_dispatch! {
    fn products_backward(
        shape: AttentionPool, q: &[f32], k: &[f32], ds: &[f32], dq: &mut [f32], dk: &mut [f32],
    ) = products_backward_body;
}
