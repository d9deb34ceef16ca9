//! Prefix attention on the CPU: one image and head per piece, tiles of queries inside it.
//!
//! Under a prefix-causal mask the keys a query sees are always the first so many, so a tile of queries needs one
//! product with the keys up to the last one that any of its rows sees; what lies behind is never computed. A piece
//! holds the scores of one tile, `[TILE, tokens]`, in scratch that the caller owns, one stretch per (image, head)
//! in flight.

use super::PrefixAttention;
use crate::cpu::gemm::{Mat, MatMut, gemm};
use crate::cpu::pool;
use crate::cpu::simd::{exp, max, simd_dispatch, sum_by2};

/// Queries in a tile.
const TILE: usize = 64;
/// Most stretches of scratch; pieces beyond share them in turn.
const LANES: usize = 64;

/// Rounds of [`LANES`] pieces would idle threads at each end: instead a stretch owns every `LANES`-th piece.
fn lanes(shape: PrefixAttention) -> usize {
    (shape.batch * shape.heads).clamp(1, LANES)
}

fn tile(shape: PrefixAttention) -> usize {
    TILE.min(shape.tokens)
}

/// f32 values of scratch that [`forward`] needs.
pub fn forward_scratch(shape: PrefixAttention) -> usize {
    lanes(shape) * tile(shape) * shape.tokens
}

/// f32 values of scratch that [`backward`] needs.
pub fn backward_scratch(shape: PrefixAttention) -> usize {
    2 * forward_scratch(shape)
}

/// Keys that the queries up to `last` see.
fn visible(prefix: i32, last: usize, tokens: usize) -> usize {
    (prefix.max(0) as usize).max(last + 1).min(tokens)
}

/// Writes out and lse. `scratch` holds [`forward_scratch`] values of any content.
pub fn forward(
    shape: PrefixAttention,
    qkv: &[f32],
    prefix: &[i32],
    out: &mut [f32],
    lse: &mut [f32],
    scratch: &mut [f32],
) {
    let PrefixAttention { tokens, heads, head_dim, .. } = shape;
    check(shape, qkv, prefix, lse);
    assert_eq!(out.len() * 3, qkv.len(), "prefix_attention: out");
    let (lanes, stretch) = (lanes(shape), tile(shape) * tokens);
    let (out, lse) = (pool::Disjoint::new(out), pool::Disjoint::new(lse));
    for_each_head(shape, &mut scratch[..lanes * stretch], stretch, |image, head, scores| {
        let view = HeadView::new(shape, qkv, image, head);
        // SAFETY: lse is `[batch, heads, tokens]` and this piece owns one (image, head).
        let lse = unsafe { lse.slice((image * heads + head) * tokens, tokens) };
        for first in (0..tokens).step_by(TILE) {
            let rows = TILE.min(tokens - first);
            let keys = visible(prefix[image], first + rows - 1, tokens);
            let scores = &mut scores[..rows * keys];
            gemm(
                MatMut::dense(scores, rows, keys),
                false,
                view.q(first, rows),
                view.k(keys).t(),
                view.scale,
            );
            softmax(
                scores,
                keys,
                first,
                prefix[image].max(0) as usize,
                &mut lse[first..first + rows],
            );
            // SAFETY: rows `first..first + rows` of this image, columns of this head: nobody else's.
            let tile = unsafe {
                let at = (image * tokens + first) * shape.dim() + head * head_dim;
                MatMut::from_raw(out.as_mut_ptr().add(at), rows, head_dim, shape.dim())
            };
            gemm(tile, false, Mat::dense(scores, rows, keys), view.v(keys), 1.0);
        }
    });
}

/// Writes dqkv, or adds to it when `accumulate`. `scratch` holds [`backward_scratch`] values of any content.
pub fn backward(
    shape: PrefixAttention,
    qkv: &[f32],
    prefix: &[i32],
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    dqkv: &mut [f32],
    accumulate: bool,
    scratch: &mut [f32],
) {
    let PrefixAttention { tokens, heads, head_dim, .. } = shape;
    check(shape, qkv, prefix, lse);
    assert!(
        out.len() * 3 == qkv.len() && dout.len() == out.len(),
        "prefix_attention: out and dout"
    );
    assert_eq!(dqkv.len(), qkv.len(), "prefix_attention: dqkv");
    let dim = shape.dim();
    let (lanes, stretch) = (lanes(shape), 2 * tile(shape) * tokens);
    let dqkv = pool::Disjoint::new(dqkv);
    for_each_head(shape, &mut scratch[..lanes * stretch], stretch, |image, head, scratch| {
        let view = HeadView::new(shape, qkv, image, head);
        let grad = |part: usize, first: usize, rows: usize| {
            let at = ((image * tokens + first) * 3 + part) * dim + head * head_dim;
            // SAFETY: within dqkv, only the columns of this head of this image: nobody else's.
            unsafe { MatMut::from_raw(dqkv.as_mut_ptr().add(at), rows, head_dim, 3 * dim) }
        };
        let (p, ds) = scratch.split_at_mut(stretch / 2);
        // The last tile sees every key, so going from the end its products write dK and dV and the others add.
        let mut add = accumulate;
        for first in (0..tokens).step_by(TILE).rev() {
            let rows = TILE.min(tokens - first);
            let keys = visible(prefix[image], first + rows - 1, tokens);
            let (p, ds) = (&mut p[..rows * keys], &mut ds[..rows * keys]);
            let at = (image * tokens + first) * dim + head * head_dim;
            let span = (rows - 1) * dim + head_dim;
            let (o, d_o) = (&out[at..at + span], &dout[at..at + span]);
            let d_out = Mat::new(d_o, rows, head_dim, dim);
            gemm(
                MatMut::dense(p, rows, keys),
                false,
                view.q(first, rows),
                view.k(keys).t(),
                view.scale,
            );
            gemm(MatMut::dense(ds, rows, keys), false, d_out, view.v(keys).t(), 1.0);
            let lse = &lse[(image * heads + head) * tokens + first..][..rows];
            softmax_backward(
                p,
                ds,
                keys,
                first,
                prefix[image].max(0) as usize,
                lse,
                o,
                d_o,
                (dim, head_dim),
            );
            gemm(grad(2, 0, keys), add, Mat::dense(p, rows, keys).t(), d_out, 1.0);
            gemm(
                grad(1, 0, keys),
                add,
                Mat::dense(ds, rows, keys).t(),
                view.q(first, rows),
                view.scale,
            );
            gemm(
                grad(0, first, rows),
                accumulate,
                Mat::dense(ds, rows, keys),
                view.k(keys),
                view.scale,
            );
            add = true;
        }
    });
}

fn check(shape: PrefixAttention, qkv: &[f32], prefix: &[i32], lse: &[f32]) {
    let PrefixAttention { batch, tokens, heads, .. } = shape;
    assert_eq!(qkv.len(), batch * tokens * 3 * shape.dim(), "prefix_attention: qkv");
    assert_eq!(prefix.len(), batch, "prefix_attention: prefix");
    assert_eq!(lse.len(), batch * heads * tokens, "prefix_attention: lse");
}

/// Calls `f(image, head, scratch)` for every pair, each stretch of scratch used by one thread at a time.
fn for_each_head(
    shape: PrefixAttention,
    scratch: &mut [f32],
    stretch: usize,
    f: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let pairs = shape.batch * shape.heads;
    let lanes = lanes(shape);
    pool::for_each_chunk(scratch, stretch, |lane, scratch| {
        // Neighbouring heads read neighbouring columns of the same rows: keep them on one thread.
        for pair in pairs * lane / lanes..pairs * (lane + 1) / lanes {
            f(pair / shape.heads, pair % shape.heads, scratch);
        }
    });
}

/// Queries, keys and values of one head of one image inside the packed array.
struct HeadView<'a> {
    image: &'a [f32],
    head: usize,
    shape: PrefixAttention,
    scale: f32,
}

impl<'a> HeadView<'a> {
    fn new(shape: PrefixAttention, qkv: &'a [f32], image: usize, head: usize) -> Self {
        let size = shape.tokens * 3 * shape.dim();
        let image = &qkv[image * size..][..size];
        Self { image, head, shape, scale: 1.0 / (shape.head_dim as f32).sqrt() }
    }

    fn part(&self, part: usize, first: usize, rows: usize) -> Mat<'a> {
        let dim = self.shape.dim();
        let at = (first * 3 + part) * dim + self.head * self.shape.head_dim;
        Mat::new(&self.image[at..], rows, self.shape.head_dim, 3 * dim)
    }

    fn q(&self, first: usize, rows: usize) -> Mat<'a> {
        self.part(0, first, rows)
    }

    fn k(&self, keys: usize) -> Mat<'a> {
        self.part(1, 0, keys)
    }

    fn v(&self, keys: usize) -> Mat<'a> {
        self.part(2, 0, keys)
    }
}

/// Softmax of each row over the keys that it sees, zero behind them; the logarithm of the denominator to `lse`.
#[inline(always)]
fn softmax_body<const FMA: bool>(
    scores: &mut [f32],
    keys: usize,
    first: usize,
    prefix: usize,
    lse: &mut [f32],
) {
    for (i, (row, lse)) in scores.chunks_exact_mut(keys).zip(lse).enumerate() {
        let (seen, hidden) = row.split_at_mut(prefix.max(first + i + 1).min(keys));
        let top = max(seen);
        for s in seen.iter_mut() {
            *s = exp::<FMA>(*s - top);
        }
        let sum = crate::cpu::simd::sum_by(seen, |s| s);
        let inverse = 1.0 / sum;
        seen.iter_mut().for_each(|s| *s *= inverse);
        hidden.fill(0.0);
        *lse = top + sum.ln();
    }
}
simd_dispatch! {
    fn softmax(scores: &mut [f32], keys: usize, first: usize, prefix: usize, lse: &mut [f32]) = softmax_body;
}

/// `p`: scores in, probabilities out. `ds`: `dO V^T` in, `dS` out.
#[inline(always)]
fn softmax_backward_body<const FMA: bool>(
    p: &mut [f32],
    ds: &mut [f32],
    keys: usize,
    first: usize,
    prefix: usize,
    lse: &[f32],
    o: &[f32],
    d_o: &[f32],
    (stride, head_dim): (usize, usize),
) {
    let rows = p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys)).zip(lse);
    for (i, ((p, ds), &lse)) in rows.enumerate() {
        let at = i * stride;
        let d = sum_by2(&o[at..at + head_dim], &d_o[at..at + head_dim], |o, d_o| o * d_o);
        let split = prefix.max(first + i + 1).min(keys);
        let (seen, hidden) = p.split_at_mut(split);
        let (ds_seen, ds_hidden) = ds.split_at_mut(split);
        for (p, ds) in seen.iter_mut().zip(ds_seen) {
            *p = exp::<FMA>(*p - lse);
            *ds = *p * (*ds - d);
        }
        hidden.fill(0.0);
        ds_hidden.fill(0.0);
    }
}
simd_dispatch! {
    fn softmax_backward(
        p: &mut [f32], ds: &mut [f32], keys: usize, first: usize, prefix: usize, lse: &[f32], o: &[f32], d_o: &[f32],
        widths: (usize, usize),
    ) = softmax_backward_body;
}
