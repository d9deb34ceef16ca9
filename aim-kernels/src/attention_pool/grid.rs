//! Several attention poolings of the same features at once: a grid of probes that differ in their weights only.
//!
//! Each point of the grid has one query and pools the features after a batch norm that all share, which has no
//! parameters of its own. Neither the normalised features nor keys nor values are ever computed; besides the moves of
//! [`super`], the norm moves to the queries' side as well. With `m` its mean and `r` its 1 / standard deviation, by
//! column:
//!
//! ```text
//! f = r (x - m)
//! softmax(U f^T) = softmax((U r) x^T)         what all tokens share drops out of a softmax
//! P f = r (P x - m)                           probabilities add up to one
//! g = (G r) x^T + what all tokens share,      which drops out of dS = P (g - sum(P g))
//! dU = dS f = r (dS x - sum(dS) m)            the rows of dS add up to zero but for rounding
//! ```
//!
//! So features are read twice going forward and twice going backward, once from memory and once from cache, by all
//! points together. A point's results are the same bits as alone.
//!
//! - x: [`Tokens`], `[batch, tokens, dim]` with `dim = heads * head_dim`
//! - out, dout: `[points, batch, dim]`
//! - kept for the backward pass: P `[batch, points, heads, tokens]`, pooled `[points, batch, heads, dim]`, U r

use super::cpu::{self, WeightGradients, Weights};
use super::products::{Rows, RowsMut, mix, scores};
use super::{AttentionPool, Tokens};
use crate::cpu::pool::{self, Disjoint};
use crate::cpu::simd::simd_dispatch;

/// Most groups of images in a pass that leaves partial sums.
const GROUPS: usize = 16;

/// Shape of a grid's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Points of the grid: independent poolings.
    pub points: usize,
    /// Images.
    pub batch: usize,
    /// Tokens of an image.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Grid {
    /// Width of a token.
    pub fn dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Queries of all points and heads.
    fn rows(&self) -> usize {
        self.points * self.heads
    }

    fn probabilities(&self) -> usize {
        self.rows() * self.tokens
    }

    fn pooled(&self) -> usize {
        self.batch * self.rows() * self.dim()
    }

    /// f32 values kept for the backward pass.
    pub fn kept(&self) -> usize {
        self.batch * self.probabilities() + self.pooled() + self.rows() * self.dim()
    }

    /// Images of a group in the backward pass, by the batch alone.
    fn group(&self) -> usize {
        self.batch.div_ceil(GROUPS).max(1)
    }

    /// Scratch of one group: dU, sums of dS, and g and dS of one image.
    fn stretch(&self) -> usize {
        self.rows() * (self.dim() + 1) + 2 * self.probabilities()
    }

    /// f32 values of scratch that [`backward`] needs.
    pub fn backward_scratch(&self) -> usize {
        self.pooled() + self.batch.div_ceil(self.group()) * self.stretch()
    }

    /// One point's share of the work.
    fn one(&self) -> AttentionPool {
        let Self { batch, tokens, heads, head_dim, .. } = *self;
        AttentionPool { batch, tokens, queries: 1, heads, head_dim }
    }

    /// Values of one point in what is laid out point by point, with `dim` values for each head or for each image.
    fn of_point(&self, point: usize, per_image: usize) -> std::ops::Range<usize> {
        let len = self.batch * per_image;
        point * len..(point + 1) * len
    }
}

/// Statistics of the batch norm, by column.
#[derive(Clone, Copy, Debug)]
pub struct Statistics<'a> {
    /// Mean.
    pub mean: &'a [f32],
    /// 1 / standard deviation.
    pub rstd: &'a [f32],
}

/// Mean and biased variance of each of the `dim` columns over all tokens of all images.
///
/// # Panics
/// If the images are of unlike sizes or none.
pub fn column_statistics(x: Tokens<'_>, dim: usize, mean: &mut [f32], var: &mut [f32]) {
    assert!(mean.len() == dim && var.len() == dim && !x.is_empty(), "column_statistics: sizes");
    let origin = x.with_image(0, |x| x[..dim].to_vec());
    let group = x.len().div_ceil(GROUPS).max(1);
    let mut partial = vec![0.0; x.len().div_ceil(group) * 2 * dim];
    let len = x.with_image(0, <[f32]>::len);
    assert!(x.all_have(len) && len.is_multiple_of(dim), "column_statistics: x");
    pool::for_each_chunk(&mut partial, 2 * dim, |piece, partial| {
        let (sum, squares) = partial.split_at_mut(dim);
        for image in piece * group..x.len().min((piece + 1) * group) {
            x.with_image(image, |x| add_columns(x, &origin, sum, squares));
        }
    });
    let rows = (x.len() * (len / dim)) as f64;
    for (column, (mean, var)) in mean.iter_mut().zip(var).enumerate() {
        let total =
            |first: usize| partial.iter().skip(first + column).step_by(2 * dim).sum::<f64>() / rows;
        let (shift, squares) = (total(0), total(dim));
        *mean = (f64::from(origin[column]) + shift) as f32;
        *var = (squares - shift * shift).max(0.0) as f32;
    }
}

#[inline(always)]
fn add_columns_body<const FMA: bool>(
    x: &[f32],
    origin: &[f32],
    sum: &mut [f64],
    squares: &mut [f64],
) {
    let dim = origin.len();
    // f64 sums of differences from some token lose nothing that f32 could show. Four rows at a time, for fewer loads
    // and stores of the sums.
    let mut blocks = x.chunks_exact(4 * dim);
    for block in &mut blocks {
        let (a, rest) = block.split_at(dim);
        let (b, rest) = rest.split_at(dim);
        let (c, d) = rest.split_at(dim);
        let columns = a.iter().zip(b).zip(c.iter().zip(d));
        for ((((a, b), (c, d)), origin), (sum, squares)) in
            columns.zip(origin).zip(sum.iter_mut().zip(&mut *squares))
        {
            let origin = f64::from(*origin);
            let [a, b, c, d] = [a, b, c, d].map(|v| f64::from(*v) - origin);
            *sum += (a + b) + (c + d);
            *squares += (a * a + b * b) + (c * c + d * d);
        }
    }
    for row in blocks.remainder().chunks_exact(dim) {
        for ((v, origin), (sum, squares)) in
            row.iter().zip(origin).zip(sum.iter_mut().zip(&mut *squares))
        {
            let v = f64::from(*v) - f64::from(*origin);
            *sum += v;
            *squares += v * v;
        }
    }
}
simd_dispatch! {
    fn add_columns(x: &[f32], origin: &[f32], sum: &mut [f64], squares: &mut [f64])
        = add_columns_body;
}

fn check(shape: Grid, x: Tokens<'_>, norm: Statistics<'_>, points: usize, kept: usize, out: usize) {
    let dim = shape.dim();
    assert!(x.len() == shape.batch && x.all_have(shape.tokens * dim), "attention_pool grid: x");
    assert!(norm.mean.len() == dim && norm.rstd.len() == dim, "attention_pool grid: statistics");
    assert_eq!(points, shape.points, "attention_pool grid: points");
    assert_eq!(kept, shape.kept(), "attention_pool grid: kept");
    assert_eq!(out, shape.points * shape.batch * dim, "attention_pool grid: out");
}

/// Writes out and what [`backward`] needs; `weights` has one entry for each point.
pub fn forward(
    shape: Grid,
    x: Tokens<'_>,
    norm: Statistics<'_>,
    weights: &[Weights<'_>],
    out: &mut [f32],
    kept: &mut [f32],
) {
    check(shape, x, norm, weights.len(), kept.len(), out.len());
    let Grid { batch, tokens, heads, .. } = shape;
    let (dim, rows) = (shape.dim(), shape.rows());
    let (p, rest) = kept.split_at_mut(batch * shape.probabilities());
    let (pooled, folded) = rest.split_at_mut(shape.pooled());
    for (weights, folded) in weights.iter().zip(folded.chunks_exact_mut(heads * dim)) {
        cpu::fold(shape.one(), *weights, folded);
        folded.chunks_exact_mut(dim).for_each(|row| multiply(row, norm.rstd));
    }
    let folded = &*folded;
    let places = Disjoint::new(pooled);
    pool::for_each_chunk(p, shape.probabilities(), |image, p| {
        x.with_image(image, |x| {
            scores(Rows::dense(folded, rows, dim), x, p);
            cpu::softmax(p, tokens);
            let start = image * heads * dim;
            // SAFETY: the image's own rows.
            let mut pooled =
                unsafe { RowsMut::grouped(&places, start, rows, heads, batch * heads * dim, dim) };
            mix(p, x, false, pooled);
            pooled.for_each(|row| normalise(row, norm.mean, norm.rstd));
        });
    });
    for (point, weights) in weights.iter().enumerate() {
        let pooled = &pooled[shape.of_point(point, heads * dim)];
        let out = &mut out[shape.of_point(point, dim)];
        cpu::project_values(shape.one(), pooled, weights.value, out);
    }
}

/// Gradients of the weights of each point, accumulated. `scratch` holds [`Grid::backward_scratch`] values of any
/// content. The features get none: the trunk below is frozen.
pub fn backward(
    shape: Grid,
    x: Tokens<'_>,
    norm: Statistics<'_>,
    weights: &[Weights<'_>],
    kept: &[f32],
    dout: &[f32],
    gradients: &mut [WeightGradients<'_>],
    scratch: &mut [f32],
) {
    check(shape, x, norm, weights.len(), kept.len(), dout.len());
    assert_eq!(gradients.len(), shape.points, "attention_pool grid: gradients");
    let Grid { batch, tokens, heads, .. } = shape;
    let (dim, rows, image_p) = (shape.dim(), shape.rows(), shape.probabilities());
    let (p, rest) = kept.split_at(batch * image_p);
    let pooled = &rest[..shape.pooled()];
    let (dpooled, scratch) = scratch.split_at_mut(shape.pooled());
    for (point, weights) in weights.iter().enumerate() {
        let dout = &dout[shape.of_point(point, dim)];
        let dpooled = &mut dpooled[shape.of_point(point, heads * dim)];
        cpu::backward_values(shape.one(), dout, weights.value, dpooled);
    }

    let (group, stretch) = (shape.group(), shape.stretch());
    let scratch = &mut scratch[..batch.div_ceil(group) * stretch];
    let places = Disjoint::new(dpooled);
    pool::for_each_chunk(scratch, stretch, |piece, scratch| {
        let (dfolded, scratch) = scratch.split_at_mut(rows * dim);
        let (sums, scratch) = scratch.split_at_mut(rows);
        let (g, ds) = scratch.split_at_mut(image_p);
        sums.fill(0.0);
        for (i, image) in (piece * group..batch.min((piece + 1) * group)).enumerate() {
            let start = image * heads * dim;
            // SAFETY: the image's own rows.
            let mut dpooled =
                unsafe { RowsMut::grouped(&places, start, rows, heads, batch * heads * dim, dim) };
            dpooled.for_each(|row| multiply(row, norm.rstd));
            x.with_image(image, |x| {
                scores(dpooled.as_rows(), x, g);
                cpu::softmax_backward(&p[image * image_p..][..image_p], g, tokens, 1, ds);
                mix(ds, x, i > 0, RowsMut::dense(dfolded, rows, dim));
                // Without them the error would grow as the square of mean / standard deviation.
                for (sum, ds) in sums.iter_mut().zip(ds.chunks_exact(tokens)) {
                    *sum += ds.iter().map(|&v| f64::from(v)).sum::<f64>() as f32;
                }
            });
        }
    });

    let (first, partials) = scratch.split_at_mut(stretch);
    let (dfolded, rest) = first.split_at_mut(rows * dim);
    let sums = &rest[..rows];
    pool::for_each_chunk(dfolded, dim, |row, du| {
        let mut sum = sums[row];
        for partial in partials.chunks_exact(stretch) {
            du.iter_mut().zip(&partial[row * dim..]).for_each(|(du, v)| *du += v);
            sum += partial[rows * dim + row];
        }
        for ((du, mean), rstd) in du.iter_mut().zip(norm.mean).zip(norm.rstd) {
            *du = (*du - sum * mean) * rstd;
        }
    });
    for (point, (weights, gradients)) in weights.iter().zip(gradients).enumerate() {
        let pooled = &pooled[shape.of_point(point, heads * dim)];
        let dout = &dout[shape.of_point(point, dim)];
        let dfolded = &dfolded[point * heads * dim..][..heads * dim];
        let WeightGradients { query, key, value } = gradients;
        let gradients = WeightGradients { query, key, value };
        cpu::weight_gradients(shape.one(), *weights, pooled, dout, dfolded, gradients);
    }
}

#[inline(always)]
fn multiply_body<const FMA: bool>(row: &mut [f32], by: &[f32]) {
    row.iter_mut().zip(by).for_each(|(v, by)| *v *= by);
}
simd_dispatch! { fn multiply(row: &mut [f32], by: &[f32]) = multiply_body; }

#[inline(always)]
fn normalise_body<const FMA: bool>(row: &mut [f32], mean: &[f32], rstd: &[f32]) {
    for ((v, mean), rstd) in row.iter_mut().zip(mean).zip(rstd) {
        *v = (*v - mean) * rstd;
    }
}
simd_dispatch! { fn normalise(row: &mut [f32], mean: &[f32], rstd: &[f32]) = normalise_body; }
