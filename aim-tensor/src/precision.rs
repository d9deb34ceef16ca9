//! Which values of a tape are f32 and which bf16, and what the kernels of each storage need beside them.

use aim_kernels::{attention_pool, batch_norm, layer_norm, linear, prefix_attention};

use crate::device::Storage;
use crate::kernel_shape::{
    self, attention_pool_shape, attention_shape, batch_norm_shape, layer_norm_shape, linear_shape,
};
use crate::shape::DType;
use crate::tape::{Op, Source, Tape, Var};

/// Values that a row of a bf16 matrix is padded to a multiple of: 16 bytes, as tensor cores want to read.
pub(crate) const ROW: usize = 8;

/// Type of every value of a tape; a gradient has its value's.
pub(crate) fn dtypes(tape: &Tape, storage: Storage) -> Vec<DType> {
    let mut dtypes: Vec<DType> = tape.values.iter().map(|value| value.dtype).collect();
    if storage == Storage::Fp32 {
        return dtypes;
    }
    // A head's predictions and logits go to a loss, or to nothing but the caller, in the precision of the accumulator
    // that made them.
    let scored = |var: Var| {
        tape.nodes.iter().any(|node| match node.op {
            Op::PatchLoss { pred, .. } => pred == var,
            Op::CrossEntropy { logits, .. } | Op::SoftCrossEntropy { logits, .. } => logits == var,
            _ => false,
        })
    };
    let answer = |var: Var| {
        tape.values[var.index()].output && !tape.nodes.iter().any(|n| n.op.inputs().contains(&var))
    };
    let pooled = |var: Var| {
        tape.nodes.iter().any(|node| match node.op {
            Op::BatchNorm { x, .. } | Op::MeanPool { x } => x == var,
            _ => false,
        })
    };
    for (i, value) in tape.values.iter().enumerate() {
        let Source::Node(node) = value.source else { continue };
        dtypes[i] = match tape.nodes[node as usize].op {
            // Losses read patches: a flat patch normalised from bf16 pixels would be mostly rounding.
            Op::Patchify { .. }
            | Op::PatchLoss { .. }
            | Op::CrossEntropy { .. }
            | Op::SoftCrossEntropy { .. } => DType::F32,
            // Probes work on features that came as f32.
            Op::BatchNorm { .. } | Op::MeanPool { .. } | Op::AttentionPool { .. } => DType::F32,
            Op::Linear { residual: None, low_rank: None, .. } if answer(Var(i as u32)) => {
                DType::F32
            }
            Op::Linear { .. } if scored(Var(i as u32)) => DType::F32,
            // Features that a classifier normalises: a mean of layers keeps the digits that their sum has.
            Op::Average { .. } if pooled(Var(i as u32)) => DType::F32,
            _ => DType::Bf16,
        };
    }
    dtypes
}

/// Words of 4 bytes that a value needs.
pub(crate) fn words(len: usize, dtype: DType) -> usize {
    (len * dtype.size()).div_ceil(4)
}

/// Words of a bf16 copy of an f32 matrix, rows padded; none when the matrix is bf16 already.
pub(crate) fn cast_words(rows: usize, cols: usize, dtype: DType) -> usize {
    match dtype {
        DType::F32 => rows * cols.next_multiple_of(ROW) / 2,
        _ => 0,
    }
}

/// Words of scratch of an op's forward step.
pub(crate) fn forward_scratch(tape: &Tape, dtypes: &[DType], storage: Storage, op: &Op) -> usize {
    if storage == Storage::Fp32 {
        return kernel_shape::forward_scratch(tape, op);
    }
    match *op {
        Op::Linear { x, .. } => {
            cast_words(tape.shape(x).rows(), tape.shape(x).last(), dtypes[x.index()])
        }
        Op::BatchNorm { x, running: None, eps } => {
            batch_norm::cuda::scratch_len(batch_norm_shape(tape.shape(x), eps))
        }
        _ => 0,
    }
}

/// Words of scratch of an op's backward step.
pub(crate) fn backward_scratch(
    tape: &Tape,
    dtypes: &[DType],
    storage: Storage,
    op: &Op,
    output: Var,
) -> usize {
    if storage == Storage::Fp32 {
        return kernel_shape::backward_scratch(tape, op);
    }
    match *op {
        Op::Linear { x, bias, .. } => {
            let shape = linear_shape(tape.shape(x), tape.shape(output));
            let copy_x = cast_words(shape.rows, shape.inputs, dtypes[x.index()]);
            let copy_dy = cast_words(shape.rows, shape.outputs, dtypes[output.index()]);
            let sums =
                bias.map_or(0, |_| linear::bias::backward_scratch(shape.rows, shape.outputs));
            copy_x + copy_dy + sums
        }
        Op::LayerNorm { x, eps, .. } => {
            layer_norm::cuda::backward_scratch(layer_norm_shape(tape.shape(x), eps))
        }
        Op::PrefixAttention { qkv, heads, .. } => {
            prefix_attention::cuda::backward_scratch(attention_shape(tape, qkv, heads))
        }
        Op::BatchNorm { x, running: None, eps } => {
            batch_norm::cuda::scratch_len(batch_norm_shape(tape.shape(x), eps))
        }
        Op::AttentionPool { x, query, heads, .. } => {
            attention_pool::cuda::backward_scratch(attention_pool_shape(tape, x, query, heads))
        }
        _ => 0,
    }
}
