//! From shapes on a tape to the kernels' own, and the scratch that kernels ask for.

use aim_kernels::{
    attention_pool::{self, AttentionPool},
    batch_norm::BatchNorm,
    gather_rows::GatherRows,
    layer_norm::{self, LayerNorm},
    linear::Linear,
    low_rank,
    mean_pool::MeanPool,
    patch_embed::PatchEmbed,
    prefix_attention::{self, PrefixAttention},
    softmax_cross_entropy::SoftmaxCrossEntropy,
};

use crate::parameters::ParamId;
use crate::shape::{DType, Shape};
use crate::tape::{LowRank, Op, Tape, Var};

pub(crate) fn patchify_shape(tape: &Tape, images: Var, patch: usize) -> PatchEmbed {
    let value = &tape.values[images.index()];
    let dims = value.shape.dims();
    let (height, width) =
        if value.dtype == DType::U8 { (dims[1], dims[2]) } else { (dims[2], dims[3]) };
    PatchEmbed { batch: dims[0], height, width, patch }
}

pub(crate) fn linear_shape(x: Shape, y: Shape) -> Linear {
    Linear { rows: x.rows(), inputs: x.last(), outputs: y.last() }
}

pub(crate) fn low_rank_shape<'a>(
    tape: &Tape,
    term: &'a LowRank,
    y: Shape,
) -> low_rank::LowRank<'a> {
    let rank = tape.shape(term.u).last() / term.segments.len().max(1);
    low_rank::LowRank { rows: y.rows(), rank, outputs: y.last(), segments: &term.segments }
}

pub(crate) fn layer_norm_shape(x: Shape, eps: f32) -> LayerNorm {
    LayerNorm { rows: x.rows(), dim: x.last(), eps }
}

pub(crate) fn batch_norm_shape(x: Shape, eps: f32) -> BatchNorm {
    BatchNorm { rows: x.rows(), dim: x.last(), eps }
}

pub(crate) fn gather_shape(x: Shape, index: Shape) -> GatherRows {
    GatherRows { sources: x.rows(), rows: index.len(), dim: x.last() }
}

pub(crate) fn mean_pool_shape(x: Shape) -> MeanPool {
    MeanPool { batch: x.dims()[0], tokens: x.dims()[1], dim: x.last() }
}

pub(crate) fn attention_pool_shape(
    tape: &Tape,
    x: Var,
    query: ParamId,
    heads: usize,
) -> AttentionPool {
    let shape = tape.shape(x);
    let dims = shape.dims();
    let queries = tape.layout.get(query).spec.shape.rows();
    AttentionPool { batch: dims[0], tokens: dims[1], queries, heads, head_dim: dims[2] / heads }
}

pub(crate) fn cross_entropy_shape(logits: Shape) -> SoftmaxCrossEntropy {
    SoftmaxCrossEntropy { rows: logits.rows(), classes: logits.last(), label_smoothing: 0.0 }
}

pub(crate) fn attention_shape(tape: &Tape, qkv: Var, heads: usize) -> PrefixAttention {
    let shape = tape.shape(qkv);
    let (batch, tokens) = (shape.dims()[0], shape.dims()[1]);
    PrefixAttention { batch, tokens, heads, head_dim: shape.last() / 3 / heads }
}

/// f32 values of scratch that an op's forward kernel needs.
pub(crate) fn forward_scratch(tape: &Tape, op: &Op) -> usize {
    match *op {
        Op::PrefixAttention { qkv, heads, .. } => {
            prefix_attention::cpu::forward_scratch(attention_shape(tape, qkv, heads))
        }
        Op::AttentionPool { x, query, heads, .. } => {
            let shape = attention_pool_shape(tape, x, query, heads);
            attention_pool::cpu::forward_scratch(shape)
        }
        _ => 0,
    }
}

/// f32 values of scratch that an op's backward kernel needs.
pub(crate) fn backward_scratch(tape: &Tape, op: &Op) -> usize {
    match *op {
        Op::PrefixAttention { qkv, heads, .. } => {
            prefix_attention::cpu::backward_scratch(attention_shape(tape, qkv, heads))
        }
        Op::AttentionPool { x, query, heads, .. } => {
            let shape = attention_pool_shape(tape, x, query, heads);
            attention_pool::cpu::backward_scratch(shape)
        }
        Op::LayerNorm { x, .. } => {
            let shape = tape.shape(x);
            layer_norm::cpu::backward_scratch(shape.rows(), shape.last())
        }
        _ => 0,
    }
}
