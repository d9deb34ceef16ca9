//! Attention pooling on CUDA: f32 tokens, bf16 weights, f32 sums.

use half::bf16;

use super::AttentionPool;
use crate::cuda::{Args, CudaError, DeviceSlice, Gpu, Grid};
use crate::linear::cuda::Operand;

/// Threads of every block, and columns of those that walk over columns.
const THREADS: u32 = 256;
const COLUMNS: usize = THREADS as usize;
/// Warps of a block.
const WARPS: usize = 8;
/// Tokens of a block of scores, weighted sums of a block, tokens of a block of dx, images that share a read of Wv.
const SCORED: usize = 32;
const SUMS: usize = 8;
const PLACES: usize = 16;
const IMAGES: usize = 8;

/// The three learned matrices; their rows may be padded.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// `[queries, dim]`
    pub query: Operand<'a>,
    /// `[dim, dim]`
    pub key: Operand<'a>,
    /// `[dim, dim]`
    pub value: Operand<'a>,
}

/// Gradients of the three with the stride of their rows, accumulated.
#[derive(Clone, Copy)]
pub struct WeightGradients<'a> {
    /// `[queries, dim]`
    pub query: (DeviceSlice<'a, f32>, usize),
    /// `[dim, dim]`
    pub key: (DeviceSlice<'a, f32>, usize),
    /// `[dim, dim]`
    pub value: (DeviceSlice<'a, f32>, usize),
}

fn check(shape: AttentionPool, x: usize, weights: Weights<'_>, kept: usize, out: usize) {
    let dim = shape.dim();
    assert_eq!(x, shape.batch * shape.tokens * dim, "attention_pool: x");
    weights.query.check("query", shape.queries, dim);
    weights.key.check("key", dim, dim);
    weights.value.check("value", dim, dim);
    assert_eq!(kept, shape.kept(), "attention_pool: kept");
    assert_eq!(out, shape.batch * dim, "attention_pool: out");
}

/// What the forward pass keeps: P, pooled, U.
fn parts(
    shape: AttentionPool,
    kept: DeviceSlice<'_, f32>,
) -> (DeviceSlice<'_, f32>, DeviceSlice<'_, f32>, DeviceSlice<'_, f32>) {
    let (p, pooled) = (shape.batch * shape.scores(), shape.pooled());
    (kept.range(0..p), kept.range(p..p + pooled), kept.range(p + pooled..kept.len()))
}

fn grid(x: usize, y: usize, z: usize) -> Grid {
    Grid { blocks: [x as u32, y as u32, z as u32], threads: THREADS, shared: 0 }
}

fn matrix(args: Args, operand: Operand<'_>) -> Args {
    args.slice::<bf16>(operand.data).i32(operand.stride)
}

fn scale(shape: AttentionPool) -> f32 {
    1.0 / (shape.head_dim as f32).sqrt()
}

/// Writes out `[batch, dim]` and what [`backward`] needs.
///
/// # Errors
/// [`CudaError::Driver`].
///
/// # Panics
/// If lengths do not fit the shape.
pub fn forward(
    gpu: &Gpu,
    shape: AttentionPool,
    x: DeviceSlice<'_, f32>,
    weights: Weights<'_>,
    out: DeviceSlice<'_, f32>,
    kept: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    check(shape, x.len(), weights, kept.len(), out.len());
    let AttentionPool { batch, tokens, queries, heads, head_dim } = shape;
    let (dim, rows) = (shape.dim(), heads * queries);
    let (p, pooled, folded) = parts(shape, kept);

    let args = matrix(matrix(Args::new(), weights.query), weights.key);
    let args = args.i32(queries).i32(head_dim).i32(dim).f32(scale(shape)).slice(folded);
    // SAFETY: the kernel's arguments; lengths were checked, as for those that follow.
    unsafe { gpu.launch("attention_pool_fold", grid(dim.div_ceil(COLUMNS), rows, 1), args) }?;
    scores(gpu, shape, x, (folded, 0, rows), 1.0, p)?;
    let args = Args::new().slice(p).i32(batch * rows).i32(tokens);
    let over_rows = Grid::new((batch * rows).div_ceil(WARPS), THREADS);
    // SAFETY: as above.
    unsafe { gpu.launch("attention_pool_softmax", over_rows, args) }?;
    weigh(gpu, shape, p, x, (heads, queries), pooled)?;
    let args = matrix(Args::new().slice(pooled), weights.value);
    let args = args.i32(heads).i32(head_dim).i32(batch).slice(out);
    let over = grid(dim.div_ceil(WARPS), batch.div_ceil(IMAGES), 1);
    // SAFETY: as above.
    unsafe { gpu.launch("attention_pool_values", over, args) }
}

/// `s = factor u x^T` of each image, where images lie `u.1` values apart in u and have `u.2` rows.
fn scores(
    gpu: &Gpu,
    shape: AttentionPool,
    x: DeviceSlice<'_, f32>,
    (u, apart, rows): (DeviceSlice<'_, f32>, usize, usize),
    factor: f32,
    s: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    let AttentionPool { batch, tokens, .. } = shape;
    let args = Args::new().slice(x).slice(u).u64(apart);
    let args = args.i32(rows).i32(tokens).i32(shape.dim()).f32(factor).slice(s);
    // SAFETY: the kernel's arguments; the callers' lengths follow from the shape.
    unsafe { gpu.launch("attention_pool_scores", grid(tokens.div_ceil(SCORED), batch, 1), args) }
}

/// Of each image `rows` sums of its tokens, weighted by the mean of `each` rows of w.
fn weigh(
    gpu: &Gpu,
    shape: AttentionPool,
    w: DeviceSlice<'_, f32>,
    x: DeviceSlice<'_, f32>,
    (rows, each): (usize, usize),
    out: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    let dim = shape.dim();
    let over = grid(dim.div_ceil(COLUMNS), rows.div_ceil(SUMS), shape.batch);
    let args = Args::new().slice(w).slice(x).i32(rows).i32(each).i32(shape.tokens).i32(dim);
    // SAFETY: the kernel's arguments; the callers' lengths follow from the shape.
    unsafe { gpu.launch("attention_pool_weigh", over, args.slice(out)) }
}

/// Parts of the backward pass's scratch: dpooled, g, dS, dU of each image, dU.
fn scratch_parts(shape: AttentionPool) -> [usize; 5] {
    let AttentionPool { batch, tokens, heads, .. } = shape;
    let folded = shape.folded();
    [shape.pooled(), batch * heads * tokens, batch * shape.scores(), batch * folded, folded]
}

/// f32 values of scratch that [`backward`] needs.
pub fn backward_scratch(shape: AttentionPool) -> usize {
    scratch_parts(shape).iter().sum()
}

/// Gradients of the weights, accumulated, and of x, written, or accumulated when its flag is set; each if it is wanted.
/// `scratch` holds [`backward_scratch`] values of any content.
///
/// # Errors
/// [`CudaError::Driver`].
///
/// # Panics
/// If lengths do not fit the shape.
#[expect(clippy::too_many_arguments, reason = "the same order as on the CPU")]
pub fn backward(
    gpu: &Gpu,
    shape: AttentionPool,
    x: DeviceSlice<'_, f32>,
    weights: Weights<'_>,
    kept: DeviceSlice<'_, f32>,
    dout: DeviceSlice<'_, f32>,
    gradients: Option<WeightGradients<'_>>,
    dx: Option<(DeviceSlice<'_, f32>, bool)>,
    scratch: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    check(shape, x.len(), weights, kept.len(), dout.len());
    assert!(scratch.len() >= backward_scratch(shape), "attention_pool: scratch");
    let AttentionPool { batch, tokens, queries, heads, head_dim } = shape;
    let (dim, rows) = (shape.dim(), heads * queries);
    let (p, pooled, folded) = parts(shape, kept);
    let mut from = 0;
    let [dpooled, g, ds, by_image, dfolded] = scratch_parts(shape).map(|len| {
        from += len;
        scratch.range(from - len..from)
    });

    let args = matrix(Args::new().slice(dout), weights.value);
    let args = args.i32(head_dim).i32(batch).slice(dpooled);
    let over = grid(dim.div_ceil(COLUMNS), heads, batch.div_ceil(IMAGES));
    // SAFETY: the kernel's arguments; lengths were checked, as for those that follow.
    unsafe { gpu.launch("attention_pool_values_backward", over, args) }?;
    scores(gpu, shape, x, (dpooled, heads * dim, heads), 1.0 / queries as f32, g)?;
    let args = Args::new().slice(p).slice(g).i32(batch * rows).i32(queries).i32(tokens).slice(ds);
    let over_rows = Grid::new((batch * rows).div_ceil(WARPS), THREADS);
    // SAFETY: as above.
    unsafe { gpu.launch("attention_pool_softmax_backward", over_rows, args) }?;
    if let Some((dx, accumulate)) = dx {
        assert_eq!(dx.len(), x.len(), "attention_pool: dx");
        let args = Args::new().slice(p).slice(ds).slice(folded).slice(dpooled);
        let args = args.i32(heads).i32(queries).i32(tokens).i32(dim).slice(dx).bool(accumulate);
        let over = grid(dim.div_ceil(COLUMNS), tokens.div_ceil(PLACES), batch);
        // SAFETY: as above.
        unsafe { gpu.launch("attention_pool_tokens", over, args) }?;
    }
    let Some(gradients) = gradients else { return Ok(()) };
    for ((gradient, stride), rows) in
        [(gradients.query, queries), (gradients.key, dim), (gradients.value, dim)]
    {
        let needed = (rows - 1) * stride + dim;
        assert!(stride >= dim && gradient.len() >= needed, "attention_pool: weights' gradients");
    }
    weigh(gpu, shape, ds, x, (rows, 1), by_image)?;
    let args = Args::new().slice(by_image).i32(batch).i32(rows * dim).slice(dfolded);
    let over = Grid::new((rows * dim).div_ceil(COLUMNS), THREADS);
    // SAFETY: as above.
    unsafe { gpu.launch("attention_pool_sum", over, args) }?;
    let args = matrix(Args::new(), weights.query).slice(dfolded).slice(dout).slice(pooled);
    let args = args.i32(heads).i32(queries).i32(head_dim).i32(batch).f32(scale(shape));
    let args = args.slice(gradients.key.0).i32(gradients.key.1);
    let args = args.slice(gradients.value.0).i32(gradients.value.1);
    // SAFETY: as above.
    unsafe { gpu.launch("attention_pool_matrices", grid(dim.div_ceil(COLUMNS), dim, 1), args) }?;
    let args = matrix(Args::new().slice(dfolded), weights.key);
    let args = args.i32(queries).i32(head_dim).i32(dim).f32(scale(shape));
    let args = args.slice(gradients.query.0).i32(gradients.query.1);
    let over = Grid::new((queries * dim).div_ceil(WARPS), THREADS);
    // SAFETY: as above.
    unsafe { gpu.launch("attention_pool_query", over, args) }
}
