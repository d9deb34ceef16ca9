//! Attention pooling on the CPU: an image's tokens are read twice, for the scores and for the mean they weigh, while
//! they are in cache. What belongs to heads alone is done for all images at once.

use super::AttentionPool;
use crate::cpu::gemm::{Mat, MatMut, gemm};
use crate::cpu::pool::{self, Disjoint};
use crate::cpu::simd::{exp, max, simd_dispatch, sum_by, sum_by2};

/// Most groups of images in the backward pass; each leaves a partial sum of dU.
const GROUPS: usize = 32;
/// Images in one piece of a product with Wv.
const IMAGES: usize = 64;

/// The three learned matrices.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// `[queries, dim]`
    pub query: &'a [f32],
    /// `[dim, dim]`
    pub key: &'a [f32],
    /// `[dim, dim]`
    pub value: &'a [f32],
}

/// Gradients of the three, accumulated.
pub struct WeightGradients<'a> {
    /// `[queries, dim]`
    pub query: &'a mut [f32],
    /// `[dim, dim]`
    pub key: &'a mut [f32],
    /// `[dim, dim]`
    pub value: &'a mut [f32],
}

fn check(shape: AttentionPool, x: &[f32], weights: Weights<'_>, kept: usize, out: usize) {
    let dim = shape.dim();
    assert_eq!(x.len(), shape.batch * shape.tokens * dim, "attention_pool: x");
    assert_eq!(weights.query.len(), shape.queries * dim, "attention_pool: query");
    assert!(
        weights.key.len() == dim * dim && weights.value.len() == dim * dim,
        "attention_pool: key and value"
    );
    assert_eq!(kept, shape.kept(), "attention_pool: kept");
    assert_eq!(out, shape.batch * dim, "attention_pool: out");
}

/// Lengths of the three parts of what is kept: P, pooled, U.
fn parts(shape: AttentionPool) -> (usize, usize) {
    (shape.batch * shape.scores(), shape.pooled())
}

fn scale(shape: AttentionPool) -> f32 {
    1.0 / (shape.head_dim as f32).sqrt()
}

/// f32 values of scratch that [`forward`] needs.
pub fn forward_scratch(shape: AttentionPool) -> usize {
    shape.batch * mean_len(shape)
}

/// Length of an image's mean probabilities where they are not P itself.
fn mean_len(shape: AttentionPool) -> usize {
    if shape.queries == 1 { 0 } else { shape.heads * shape.tokens }
}

/// Writes out and what [`backward`] needs. `scratch` holds [`forward_scratch`] values of any content.
pub fn forward(
    shape: AttentionPool,
    x: &[f32],
    weights: Weights<'_>,
    out: &mut [f32],
    kept: &mut [f32],
    scratch: &mut [f32],
) {
    check(shape, x, weights, kept.len(), out.len());
    let AttentionPool { tokens, queries, heads, .. } = shape;
    let dim = shape.dim();
    let (p_len, pooled_len) = parts(shape);
    let (p, rest) = kept.split_at_mut(p_len);
    let (pooled, folded) = rest.split_at_mut(pooled_len);

    fold(shape, weights, folded);
    let folded = Mat::dense(folded, heads * queries, dim);
    let means = Disjoint::new(scratch);
    pool::for_each_chunk2(p, shape.scores(), pooled, heads * dim, |image, p, pooled| {
        let x = Mat::dense(&x[image * tokens * dim..][..tokens * dim], tokens, dim);
        gemm(MatMut::dense(p, heads * queries, tokens), false, folded, x.t(), 1.0);
        softmax(p, tokens);
        // SAFETY: the image's own place.
        let mean = unsafe { means.slice(image * mean_len(shape), mean_len(shape)) };
        let mean = mean_over_queries(shape, p, mean);
        gemm(MatMut::dense(pooled, heads, dim), false, Mat::dense(mean, heads, tokens), x, 1.0);
    });

    project_values(shape, pooled, weights.value, out);
}

/// Writes U `[heads, queries, dim]`.
pub(super) fn fold(shape: AttentionPool, weights: Weights<'_>, folded: &mut [f32]) {
    let AttentionPool { queries, head_dim, .. } = shape;
    let dim = shape.dim();
    pool::for_each_chunk(folded, queries * dim, |head, folded| {
        let query = Mat::new(&weights.query[head * head_dim..], queries, head_dim, dim);
        let key = Mat::dense(&weights.key[head * head_dim * dim..], head_dim, dim);
        gemm(MatMut::dense(folded, queries, dim), false, query, key, scale(shape));
    });
}

/// `out = pooled Wv^T`, head by head.
pub(super) fn project_values(shape: AttentionPool, pooled: &[f32], value: &[f32], out: &mut [f32]) {
    let AttentionPool { heads, head_dim, .. } = shape;
    let dim = shape.dim();
    let out = Disjoint::new(out);
    for_heads_and_images(shape, |head, first, images| {
        let pooled = Mat::new(&pooled[(first * heads + head) * dim..], images, dim, heads * dim);
        let value = Mat::dense(&value[head * head_dim * dim..], head_dim, dim);
        // SAFETY: the columns of this head in these images' rows belong to this piece.
        let out = unsafe {
            let start = out.as_mut_ptr().add(first * dim + head * head_dim);
            MatMut::from_raw(start, images, head_dim, dim)
        };
        gemm(out, false, pooled, value.t(), 1.0);
    });
}

/// Calls `f(head, first image, images)` for all heads and stretches of images.
fn for_heads_and_images(shape: AttentionPool, f: impl Fn(usize, usize, usize) + Sync) {
    let blocks = shape.batch.div_ceil(IMAGES);
    pool::for_each(shape.heads * blocks, |piece| {
        let first = piece % blocks * IMAGES;
        f(piece / blocks, first, IMAGES.min(shape.batch - first));
    });
}

/// Images per group of the backward pass.
fn group(shape: AttentionPool) -> usize {
    shape.batch.div_ceil(GROUPS).max(1)
}

/// Scratch of one group: dU, the g of one image, its dS, and its mean probabilities.
fn stretch(shape: AttentionPool) -> usize {
    shape.folded() + shape.heads * shape.tokens + shape.scores() + mean_len(shape)
}

/// f32 values of scratch that [`backward`] needs.
pub fn backward_scratch(shape: AttentionPool) -> usize {
    shape.pooled() + shape.batch.div_ceil(group(shape)) * stretch(shape)
}

/// Gradients of the weights, accumulated, and of x, written, or accumulated when its flag is set; each if it is wanted.
/// `scratch` holds [`backward_scratch`] values of any content.
pub fn backward(
    shape: AttentionPool,
    x: &[f32],
    weights: Weights<'_>,
    kept: &[f32],
    dout: &[f32],
    gradients: Option<WeightGradients<'_>>,
    dx: Option<(&mut [f32], bool)>,
    scratch: &mut [f32],
) {
    check(shape, x, weights, kept.len(), dout.len());
    let AttentionPool { batch, tokens, queries, heads, .. } = shape;
    let (dim, image_len) = (shape.dim(), tokens * shape.dim());
    let (p_len, pooled_len) = parts(shape);
    let (p, rest) = kept.split_at(p_len);
    let (pooled, folded) = rest.split_at(pooled_len);
    let (dpooled, scratch) = scratch.split_at_mut(shape.pooled());

    backward_values(shape, dout, weights.value, dpooled);

    let (accumulate, dx) = match dx {
        Some((dx, accumulate)) => {
            assert_eq!(dx.len(), x.len(), "attention_pool: dx");
            (accumulate, Some(Disjoint::new(dx)))
        }
        None => (false, None),
    };
    let (group, stretch) = (group(shape), stretch(shape));
    let scratch = &mut scratch[..batch.div_ceil(group) * stretch];
    pool::for_each_chunk(scratch, stretch, |piece, scratch| {
        let (dfolded, scratch) = scratch.split_at_mut(shape.folded());
        let (g, scratch) = scratch.split_at_mut(heads * tokens);
        let (ds, mean) = scratch.split_at_mut(shape.scores());
        for (i, image) in (piece * group..batch.min((piece + 1) * group)).enumerate() {
            let x = Mat::dense(&x[image * image_len..][..image_len], tokens, dim);
            let p = &p[image * shape.scores()..][..shape.scores()];
            let dpooled = Mat::dense(&dpooled[image * heads * dim..], heads, dim);
            let by_query = 1.0 / queries as f32;
            gemm(MatMut::dense(g, heads, tokens), false, dpooled, x.t(), by_query);
            softmax_backward(p, g, tokens, queries, ds);
            let rows = Mat::dense(ds, heads * queries, tokens);
            gemm(MatMut::dense(dfolded, heads * queries, dim), i > 0, rows, x, 1.0);
            if let Some(dx) = &dx {
                // SAFETY: the image belongs to this piece alone.
                let dx = unsafe { dx.slice(image * image_len, image_len) };
                let folded = Mat::dense(folded, heads * queries, dim);
                gemm(MatMut::dense(dx, tokens, dim), accumulate, rows.t(), folded, 1.0);
                let mean = Mat::dense(mean_over_queries(shape, p, mean), heads, tokens);
                gemm(MatMut::dense(dx, tokens, dim), true, mean.t(), dpooled, 1.0);
            }
        }
    });

    if let Some(gradients) = gradients {
        let (dfolded, partials) = scratch.split_at_mut(stretch);
        let dfolded = &mut dfolded[..shape.folded()];
        for partial in partials.chunks_exact(stretch) {
            dfolded.iter_mut().zip(partial).for_each(|(sum, v)| *sum += v);
        }
        weight_gradients(shape, weights, pooled, dout, dfolded, gradients);
    }
}

/// `dpooled = dout Wv`, head by head.
pub(super) fn backward_values(
    shape: AttentionPool,
    dout: &[f32],
    value: &[f32],
    dpooled: &mut [f32],
) {
    let AttentionPool { heads, head_dim, .. } = shape;
    let dim = shape.dim();
    let out = Disjoint::new(dpooled);
    for_heads_and_images(shape, |head, first, images| {
        let dout = Mat::new(&dout[first * dim + head * head_dim..], images, head_dim, dim);
        let value = Mat::dense(&value[head * head_dim * dim..], head_dim, dim);
        // SAFETY: the rows of this head in these images belong to this piece.
        let dpooled = unsafe {
            let start = out.as_mut_ptr().add((first * heads + head) * dim);
            MatMut::from_raw(start, images, dim, heads * dim)
        };
        gemm(dpooled, false, dout, value, 1.0);
    });
}

/// Gradients of the three matrices from dU, accumulated.
pub(super) fn weight_gradients(
    shape: AttentionPool,
    weights: Weights<'_>,
    pooled: &[f32],
    dout: &[f32],
    dfolded: &[f32],
    gradients: WeightGradients<'_>,
) {
    let AttentionPool { batch, queries, heads, head_dim, .. } = shape;
    let dim = shape.dim();
    let WeightGradients { query: dquery, key: dkey, value: dvalue } = gradients;
    assert_eq!(dquery.len(), weights.query.len(), "attention_pool: gradient of the query");
    let dquery = Disjoint::new(dquery);
    let rows = head_dim * dim;
    pool::for_each_chunk2(dkey, rows, dvalue, rows, |head, dkey, dvalue| {
        let dfolded = Mat::dense(&dfolded[head * queries * dim..], queries, dim);
        let query = Mat::new(&weights.query[head * head_dim..], queries, head_dim, dim);
        let key = Mat::dense(&weights.key[head * rows..], head_dim, dim);
        let scale = scale(shape);
        gemm(MatMut::dense(dkey, head_dim, dim), true, query.t(), dfolded, scale);
        // SAFETY: the columns of this head belong to this piece.
        let dquery = unsafe {
            MatMut::from_raw(dquery.as_mut_ptr().add(head * head_dim), queries, head_dim, dim)
        };
        gemm(dquery, true, dfolded, key.t(), scale);
        let dout = Mat::new(&dout[head * head_dim..], batch, head_dim, dim);
        let pooled = Mat::new(&pooled[head * dim..], batch, dim, heads * dim);
        gemm(MatMut::dense(dvalue, head_dim, dim), true, dout.t(), pooled, 1.0);
    });
}

/// Mean over the queries of an image's P: P itself where there is one query, else written to `mean`.
fn mean_over_queries<'a>(shape: AttentionPool, p: &'a [f32], mean: &'a mut [f32]) -> &'a [f32] {
    let AttentionPool { tokens, queries, .. } = shape;
    if queries == 1 {
        return p;
    }
    for (mean, p) in mean.chunks_exact_mut(tokens).zip(p.chunks_exact(queries * tokens)) {
        for (token, mean) in mean.iter_mut().enumerate() {
            *mean = p[token..].iter().step_by(tokens).sum::<f32>() / queries as f32;
        }
    }
    mean
}

#[inline(always)]
fn softmax_body<const FMA: bool>(p: &mut [f32], tokens: usize) {
    for p in p.chunks_exact_mut(tokens) {
        let top = max(p);
        p.iter_mut().for_each(|v| *v = exp::<FMA>(*v - top));
        let inverse = 1.0 / sum_by(p, |v| v);
        p.iter_mut().for_each(|v| *v *= inverse);
    }
}
simd_dispatch! { pub(super) fn softmax(p: &mut [f32], tokens: usize) = softmax_body; }

/// `dS = P (g - sum(P g))`, where the queries of a head share g.
#[inline(always)]
fn softmax_backward_body<const FMA: bool>(
    p: &[f32],
    g: &[f32],
    tokens: usize,
    queries: usize,
    ds: &mut [f32],
) {
    let rows = p.chunks_exact(tokens).zip(ds.chunks_exact_mut(tokens));
    for (row, (p, ds)) in rows.enumerate() {
        let g = &g[row / queries * tokens..][..tokens];
        let mean = sum_by2(p, g, |p, g| p * g);
        for ((ds, p), g) in ds.iter_mut().zip(p).zip(g) {
            *ds = p * (g - mean);
        }
    }
}
simd_dispatch! {
    pub(super) fn softmax_backward(p: &[f32], g: &[f32], tokens: usize, queries: usize, ds: &mut [f32])
        = softmax_backward_body;
}
