//! Prefix attention on CUDA, bf16 with f32 sums, for heads of 64 or 128.
//!
//! `lse` is f32. Backward writes its `delta`, the sum over a head of dout times out, to scratch in the kernel for dQ
//! and reads it in the one for dK and dV. No two blocks write to one address: the same inputs give the same bits.

use half::bf16;

use super::PrefixAttention;
use crate::cuda::{Args, CudaError, DeviceSlice, Gpu, Grid};

/// Threads of a block; queries of one that walks over the keys, keys of one that walks over the queries; as in
/// `prefix_attention.cuh`.
const THREADS: u32 = 128;
const ROWS: usize = 128;
const COLUMNS: usize = 64;
/// Blocks that a grid has at most in its second and third direction.
const MOST: usize = 65_535;
/// Bytes behind the tiles in shared memory.
const PLACE_BYTES: usize = 64;

/// What depends on the head's width.
struct Kernels {
    forward: &'static str,
    backward_q: &'static str,
    backward_kv: &'static str,
}

fn kernels(shape: PrefixAttention) -> Result<Kernels, CudaError> {
    let unsupported =
        |expected, found| CudaError::Unsupported { op: "prefix attention", expected, found };
    if shape.batch > MOST || shape.heads > MOST {
        let found = format!("{} images, {} heads", shape.batch, shape.heads);
        return Err(unsupported("at most 65535 images and 65535 heads at a time", found));
    }
    match shape.head_dim {
        64 => Ok(Kernels {
            forward: "prefix_attention_forward_64",
            backward_q: "prefix_attention_backward_q_64",
            backward_kv: "prefix_attention_backward_kv_64",
        }),
        128 => Ok(Kernels {
            forward: "prefix_attention_forward_128",
            backward_q: "prefix_attention_backward_q_128",
            backward_kv: "prefix_attention_backward_kv_128",
        }),
        other => Err(unsupported(
            "a head dimension of 64 or 128 (embed_dim / num_heads)",
            format!("a head dimension of {other}"),
        )),
    }
}

/// Blocks that take `tile` tokens each, with `shared` bytes of shared memory.
fn grid(shape: PrefixAttention, tile: usize, shared: usize) -> Grid {
    let tiles = shape.tokens.div_ceil(tile);
    Grid {
        blocks: [tiles as u32, shape.heads as u32, shape.batch as u32],
        threads: THREADS,
        shared: (shared + PLACE_BYTES) as u32,
    }
}

/// Bytes of the rows from one that a thread copies to the next that it does, in a matrix with `width` values a row.
fn step(shape: PrefixAttention, width: usize) -> usize {
    let rows = THREADS as usize / (shape.head_dim / 8);
    rows * width * size_of::<bf16>()
}

fn scale(shape: PrefixAttention) -> f32 {
    (1.0 / (shape.head_dim as f64).sqrt()) as f32
}

fn scale_log2(shape: PrefixAttention) -> f32 {
    (std::f64::consts::LOG2_E / (shape.head_dim as f64).sqrt()) as f32
}

fn check(
    shape: PrefixAttention,
    qkv: DeviceSlice<'_, bf16>,
    prefix: DeviceSlice<'_, i32>,
    out: DeviceSlice<'_, bf16>,
    lse: DeviceSlice<'_, f32>,
) {
    let PrefixAttention { batch, tokens, heads, .. } = shape;
    assert_eq!(qkv.len(), batch * tokens * 3 * shape.dim(), "prefix_attention: qkv");
    assert_eq!(prefix.len(), batch, "prefix_attention: prefix");
    assert_eq!(out.len(), batch * tokens * shape.dim(), "prefix_attention: out");
    assert_eq!(lse.len(), batch * heads * tokens, "prefix_attention: lse");
}

/// Rows are read and written 16 bytes at a time.
fn check_alignment(matrices: &[DeviceSlice<'_, bf16>]) {
    let aligned = matrices.iter().all(|matrix| matrix.ptr().is_multiple_of(16));
    assert!(aligned, "prefix_attention: a matrix does not begin at a multiple of 16 bytes");
}

/// Writes out and lse. A prefix below 0 counts as 0, one above `tokens` as `tokens`.
///
/// # Errors
/// [`CudaError::Unsupported`] when heads are not 64 or 128 wide, [`CudaError::Driver`].
///
/// # Panics
/// If a length does not fit the shape, or a matrix does not begin at a multiple of 16 bytes.
pub fn forward(
    gpu: &Gpu,
    shape: PrefixAttention,
    qkv: DeviceSlice<'_, bf16>,
    prefix: DeviceSlice<'_, i32>,
    out: DeviceSlice<'_, bf16>,
    lse: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    let kernels = kernels(shape)?;
    check(shape, qkv, prefix, out, lse);
    check_alignment(&[qkv, out]);
    // Q, and K and V of 64 keys twice.
    let shared = (ROWS + 4 * 64) * 2 * shape.head_dim;
    let args = Args::new()
        .slice(qkv)
        .slice(prefix)
        .slice(out)
        .slice(lse)
        .i32(shape.tokens)
        .u64(step(shape, 3 * shape.dim()))
        .f32(scale_log2(shape));
    // SAFETY: the kernel's arguments; lengths were checked, and it touches only rows of tokens that there are.
    unsafe { gpu.launch(kernels.forward, grid(shape, ROWS, shared), args) }
}

/// f32 values of scratch that [`backward`] needs: `[batch, heads, tokens]`.
pub fn backward_scratch(shape: PrefixAttention) -> usize {
    shape.batch * shape.heads * shape.tokens
}

/// Writes dqkv. `scratch` holds [`backward_scratch`] values or more, of any content.
///
/// # Errors
/// [`CudaError::Unsupported`] when heads are not 64 or 128 wide, and with `accumulate`; [`CudaError::Driver`].
///
/// # Panics
/// If a length does not fit the shape, or a matrix does not begin at a multiple of 16 bytes.
pub fn backward(
    gpu: &Gpu,
    shape: PrefixAttention,
    qkv: DeviceSlice<'_, bf16>,
    prefix: DeviceSlice<'_, i32>,
    out: DeviceSlice<'_, bf16>,
    lse: DeviceSlice<'_, f32>,
    dout: DeviceSlice<'_, bf16>,
    dqkv: DeviceSlice<'_, bf16>,
    accumulate: bool,
    scratch: DeviceSlice<'_, f32>,
) -> Result<(), CudaError> {
    let kernels = kernels(shape)?;
    if accumulate {
        return Err(CudaError::Unsupported {
            op: "the gradient of prefix attention",
            expected: "packed queries, keys and values that nothing else reads",
            found: "a second gradient to add to".to_owned(),
        });
    }
    check(shape, qkv, prefix, out, lse);
    assert_eq!(dout.len(), out.len(), "prefix_attention: dout");
    assert_eq!(dqkv.len(), qkv.len(), "prefix_attention: dqkv");
    assert!(scratch.len() >= backward_scratch(shape), "prefix_attention: scratch");
    check_alignment(&[qkv, out, dout, dqkv]);
    let rest = |args: Args| {
        args.i32(shape.tokens)
            .u64(step(shape, 3 * shape.dim()))
            .u64(step(shape, shape.dim()))
            .f32(scale(shape))
            .f32(scale_log2(shape))
    };
    // Q and dO, and K and V of 32 keys twice.
    let shared = (2 * ROWS + 4 * 32) * 2 * shape.head_dim;
    let args = Args::new().slice(qkv).slice(prefix).slice(out).slice(lse).slice(dout);
    let args = rest(args.slice(dqkv).slice(scratch));
    // SAFETY: the kernel's arguments; lengths were checked, and it touches only rows of tokens that there are.
    unsafe { gpu.launch(kernels.backward_q, grid(shape, ROWS, shared), args) }?;
    // Q and dO of 64 queries twice, and their lse and delta.
    let shared = 4 * 64 * 2 * shape.head_dim + 4 * 64 * size_of::<f32>();
    let args = Args::new().slice(qkv).slice(prefix).slice(lse).slice(dout).slice(scratch);
    let args = rest(args.slice(dqkv));
    // SAFETY: as above; what it reads of `scratch` the first kernel wrote.
    unsafe { gpu.launch(kernels.backward_kv, grid(shape, COLUMNS, shared), args) }
}
